package diskcopy_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/diskcopy"
	"banger/internal/looptest"
)

// Where copies share their blocks they are the same, independent of each other, and it is known how much is shared.
func TestCopyOnAFileSystemThatSharesBlocks(t *testing.T) {
	dir := looptest.XFS(t, "")
	src := filepath.Join(dir, "src")
	data := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64<<20 + 512
	for _, at := range []int64{0, 20 << 20, size - int64(len(data))} { // not written out when it is copied
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := diskcopy.Shared(src); n != 0 || err != nil {
		t.Errorf("before: %d, %v", n, err)
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	if res, err := diskcopy.Copy(t.Context(), src, one); err != nil || res != (diskcopy.Result{Shared: true}) {
		t.Fatalf("%+v, %v", res, err)
	}
	if shared, err := diskcopy.Share(src, two); !shared || err != nil {
		t.Fatalf("%v, %v", shared, err)
	}
	if shared, err := diskcopy.Share(src, two); shared || !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file that is there: %v, %v", shared, err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("new"), 1<<20), 20<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{one, two} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %d bytes, %v", path, len(got), err)
		}
	}
	const all, rest = 24 << 20, 21 << 20 // 3 MB are the source's own now
	for path, most := range map[string]uint64{src: rest + 1<<20, one: all + 1<<20} {
		if n, err := diskcopy.Shared(path); n < rest-1<<20 || n > most || err != nil {
			t.Errorf("%s shares %d bytes, %v", path, n, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
}

// A file that nobody has a copy of shares nothing.
func TestSharedIsNothingElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := diskcopy.Shared(path); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := diskcopy.Shared(path + "x"); err == nil {
		t.Error("of no file")
	}
}
