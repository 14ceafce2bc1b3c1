package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(h[:])
}

func put(t *testing.T, s *Store, data []byte) string {
	t.Helper()
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	digest, size, err := w.Commit()
	if err != nil || size != int64(len(data)) || digest != sum(data) {
		t.Fatalf("commit: %s, %d, %v", digest, size, err)
	}
	return digest
}

// files lists every file below the store, relative to it.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	out := []string{}
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(s.dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return out
}

func TestWhatIsWrittenIsFoundByItsDigest(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "not", "there", "yet"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("empty store: %v, %v", list, err)
	}
	data := []byte("hello")
	digest := put(t, s, data)
	if again := put(t, s, data); again != digest {
		t.Errorf("the same bytes are called %s and %s", digest, again)
	}
	if size, ok := s.Stat(digest); !ok || size != 5 {
		t.Errorf("stat: %d, %v", size, ok)
	}
	f, err := s.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %q, %v", got, err)
	}
	if diff := cmp.Diff([]string{"sha256/" + digest[7:]}, files(t, s)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := s.Remove(digest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Open(digest); !fault.Is(err, fault.NotFound) {
		t.Errorf("after removal: %v", err)
	}
}

func TestListTellsSizeAndUse(t *testing.T) {
	s := Open(t.TempDir())
	digest := put(t, s, []byte("hello"))
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(s.path(completeDir, digest), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, completeDir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if diff := cmp.Diff([]Info{{Digest: digest, Size: 5, Used: old}}, list); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	f, err := s.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if list, err := s.List(); err != nil || time.Since(list[0].Used) > time.Minute {
		t.Errorf("opening it is no use of it: %v, %v", list, err)
	}
}

func TestNamesThatAreNoDigestsReachNoFile(t *testing.T) {
	s := Open(t.TempDir())
	hex := strings.Repeat("a", 64)
	for _, digest := range []string{
		"", "sha256:", "sha256:../../../../etc/passwd", "sha512:" + hex, hex, "sha256:" + strings.ToUpper(hex),
		"sha256:" + hex + "0", "sha256:" + hex + "\n",
	} {
		if _, ok := s.Stat(digest); ok {
			t.Errorf("%q is there", digest)
		}
		if _, err := s.Open(digest); !fault.Is(err, fault.Invalid) {
			t.Errorf("open %q: %v", digest, err)
		}
		if err := s.Remove(digest); !fault.Is(err, fault.Invalid) {
			t.Errorf("remove %q: %v", digest, err)
		}
		d := s.Download(Wanted{Digest: digest}, nil, nil)
		if err := d.Wait(t.Context()); !fault.Is(err, fault.Invalid) {
			t.Errorf("download %q: %v", digest, err)
		}
		d.Close()
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	s := Open(t.TempDir())
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	if got := files(t, s); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if _, _, err := w.Commit(); err == nil {
		t.Error("committed after all")
	}
	if _, err := w.Write(nil); err == nil {
		t.Error("written after all")
	}
	digest := put(t, s, []byte("x"))
	w, err = s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("abort after commit: %v, %v (besides %s)", list, err, digest)
	}
}

func TestFullDiskIsExhausted(t *testing.T) {
	s := Open(t.TempDir())
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	real := w.file
	w.file = full
	_, err = w.Write([]byte("x"))
	w.file = real
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	if err := explain(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, w.file.Name(), 1<<20); !fault.Is(err, fault.Exhausted) {
		t.Error(err)
	}
	if err := explain(os.ErrPermission, "x", 0); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
}

func TestSweepTakesWhatNobodyWrites(t *testing.T) {
	s := Open(t.TempDir())
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for name, age := range map[string]time.Duration{"tmp/blob-dead": time.Hour, "partial/" + strings.Repeat("a", 64): time.Hour, "tmp/blob-young": 0} {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("1234"), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Sweep(time.Minute); err != nil || n != 8 {
		t.Errorf("freed %d, %v", n, err)
	}
	if n, err := s.Sweep(0); err != nil || n != 4 {
		t.Errorf("freed %d more, %v", n, err)
	}
	if got := files(t, s); len(got) != 1 || filepath.Join(s.dir, got[0]) != w.file.Name() {
		t.Errorf("left: %q, want only what is being written", got)
	}
	if digest, _, err := w.Commit(); err != nil || digest != sum(nil) {
		t.Errorf("the writer that lived: %s, %v", digest, err)
	}
}

func TestPartial(t *testing.T) {
	s := Open(t.TempDir())
	digest := sum([]byte("hello"))
	if n := s.Partial(digest); n != 0 {
		t.Errorf("%d bytes of nothing", n)
	}
	if err := os.Mkdir(filepath.Join(s.dir, partialDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(partialDir, digest), []byte("hel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := s.Partial(digest); n != 3 {
		t.Errorf("%d bytes", n)
	}
	if n := s.Partial("../x"); n != 0 {
		t.Errorf("%d bytes of what is no digest", n)
	}
}
