package builder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/daemon/library"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/operation"
)

// A copy has what the file has, and the same digest whatever was a hole before.
func TestCopyImage(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 5<<20+1234)
	for _, at := range []int{0, 4095, 1 << 20, 3<<20 - 1, 5<<20 + 1233} {
		data[at] = 1
	}
	dense, sparse := filepath.Join(dir, "dense"), filepath.Join(dir, "sparse")
	if err := os.WriteFile(dense, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	for at, c := range data {
		if c != 0 {
			if _, err := f.WriteAt([]byte{c}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var digests []string
	for _, from := range []string{dense, sparse} {
		to, last := from+".copy", uint64(0)
		digest, err := copyImage(t.Context(), from, to, func(done uint64) { last = done })
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
		info, err := os.Stat(to)
		if err != nil || info.Size() != ext4.DefaultSize || last == 0 || library.Usage(to) > 64<<10 {
			t.Errorf("%v, %v: %d reported, %d bytes on the host", info, err, last, library.Usage(to))
		}
		copied, err := os.Open(to)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if _, err := io.ReadFull(copied, got); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the copy of %s differs: %v", from, err)
		}
		copied.Close()
	}
	if digests[0] != digests[1] || !strings.HasPrefix(digests[0], "sha256:") {
		t.Errorf("%v", digests)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := copyImage(ctx, dense, dense+".cancelled", func(uint64) {}); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestLines(t *testing.T) {
	var got []string
	w := &lineWriter{step: 7, log: func(l operation.Line) {
		if l.Step != 7 || l.Kind != operation.LineOutput {
			t.Errorf("%+v", l)
		}
		got = append(got, l.Text)
	}}
	long := strings.Repeat("x", longestLine+10)
	for _, part := range []string{"a", "b\nc\r\n", "10%\r20%\r\n", "\xff\n", long, "\nlast"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	w.flush()
	w.flush()
	want := []string{"ab", "c", "20%", "\uFFFD", long[:longestLine], long[longestLine:], "last"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHeadAndTail(t *testing.T) {
	end := &head{}
	_, _ = end.Write(make([]byte, 100))
	_, _ = end.Write(append(make([]byte, 412), 1)) // beyond the first block
	if !end.isEnd() {
		t.Error("a stream that begins with its end")
	}
	_, _ = (&head{}).Write(nil)
	file := &head{}
	_, _ = file.Write(append(make([]byte, 511), 1))
	if file.isEnd() {
		t.Error("a stream with an entry")
	}
	kept := &tail{}
	_, _ = kept.Write([]byte(strings.Repeat("a", 2*tailSize) + "\nthe\xff end \n"))
	if text := kept.String(); len(text) > 2*tailSize || !strings.HasSuffix(text, "a the? end") {
		t.Errorf("%q", text)
	}
}

// A blob that a power cut has damaged is found out while it is read, and is gone then.
func TestBound(t *testing.T) {
	b := &bound{limit: 3 << 20}
	for _, n := range []int{1 << 20, 1 << 20, 1 << 20, 0} { // all that is allowed
		if _, err := b.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Write([]byte("x"))
	if !fault.Is(err, fault.Exhausted) || err.Error() != "the guest's files are more than the 3M that an image may hold" ||
		fault.HintOf(err) != "banger config set limits.image_size 1G" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	if n, err := new(bound).Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
		t.Errorf("no limit: %d, %v", n, err)
	}
}

func TestDamagedBlob(t *testing.T) {
	store := blob.Open(filepath.Join(t.TempDir(), "blobs"))
	w, err := store.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("layer")); err != nil {
		t.Fatal(err)
	}
	digest, size, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	l := source.Layer{Digest: digest, Size: size}
	read := func() error {
		r, err := openVerified(store, l)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	if err := read(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(store.Dir(), "sha256", strings.TrimPrefix(digest, "sha256:"))
	if err := os.WriteFile(file, []byte("lazer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := read(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("damaged: %v", err)
	}
	if err := read(); !fault.Is(err, fault.NotFound) {
		t.Errorf("once more: %v", err)
	}
}

func TestScriptRunner(t *testing.T) {
	for script, want := range map[string]string{
		"echo": "exec /bin/sh " + scriptFile, "#!/usr/bin/perl\n": "chmod 700 " + scriptFile + " && exec " + scriptFile,
	} {
		if got := scriptRunner([]byte(script)); !strings.Contains(got, want) {
			t.Errorf("%q: %s", script, got)
		}
	}
}

// A link of an export leads to nothing but what that export has made.
func TestSweep(t *testing.T) {
	staging, user := t.TempDir(), t.TempDir()
	for name, tt := range map[string]struct {
		note, work string
		gone       bool
	}{
		"an export's":     {"export-123", ".image.tar.123", true},
		"another's":       {"export-124", ".image.tar.125", false},
		"not hidden":      {"export-126", "image.tar.126", false},
		"not an export's": {"image-127", ".image.tar.127", false},
	} {
		note, work := filepath.Join(staging, tt.note), filepath.Join(user, tt.work)
		for _, dir := range []string{note, work} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(work, filepath.Join(note, outside)); err != nil {
			t.Fatal(err)
		}
		if err := Sweep(note); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(work); os.IsNotExist(err) != tt.gone {
			t.Errorf("%s: %v", name, err)
		}
	}
}
