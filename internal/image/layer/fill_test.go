package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/ext4"
)

// filler fills a file system with layers, and remembers the tree.
type filler struct {
	*Stream
	root    *ext4.Node
	entries int
}

func (f *filler) Fill(ctx context.Context, w *ext4.Writer) (*ext4.Node, uint64, int, error) {
	root, read, entries, err := f.Stream.Fill(ctx, w)
	f.root, f.entries = root, entries
	return root, read, entries, err
}

// fill makes a file system of layers at path.
func fill(layers []Blob, opt Options, path string) (*filler, error) {
	f := &filler{Stream: Flatten(context.Background(), layers, opt)}
	defer f.Close()
	_, err := ext4.FromTar(context.Background(), f, path, ext4.Options{Size: 1 << 30, Identity: "test", Temporary: true})
	return f, err
}

// checkFilled compares a file system with the reference.
func checkFilled(t testing.TB, opt Options, want map[string]file, refErr error, streams [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs")
	f, err := fill(blobs(streams...), opt, path)
	if _, taken := want["lost+found"]; taken || f.root != nil && err != nil {
		return // ext4 has one of its own
	}
	if (err != nil) != (refErr != nil) {
		t.Fatalf("fill: err = %v, that of the reference is %v", err, refErr)
	}
	if err != nil {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatal("a partial file system is left")
		}
		return
	}
	disk, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	got := newReference()
	known := map[*ext4.Node]*file{}
	var walk func(at string, n *ext4.Node)
	walk = func(at string, n *ext4.Node) {
		if known[n] == nil {
			e := Entry{
				Type: n.Type, Mode: n.Mode, UID: n.UID, GID: n.GID, Devmajor: n.Devmajor, Devminor: n.Devminor,
				ModTime: n.ModTime, Linkname: n.Linkname, Xattrs: n.Xattrs,
			}
			if n.Type == tar.TypeReg {
				e.Size = n.Size
			}
			made, err := newEntryLike(e.Header(at))
			if err != nil {
				t.Fatal(err)
			}
			if n.Type == tar.TypeReg {
				body := make([]byte, n.Size)
				if _, err := disk.ReadAt(body, n.Contents.Offset()); err != nil {
					t.Fatal(err)
				}
				made.Body = string(body)
			}
			known[n] = made
		}
		got.at[at] = known[n]
		for base, child := range n.Children {
			walk(place{path: at}.join(base), child)
		}
	}
	delete(f.root.Children, "lost+found")
	walk("", f.root)
	files := got.files()
	compare(t, "filled", want, files)
	if f.entries != len(files)-1 {
		t.Fatalf("%d entries, want %d", f.entries, len(files)-1)
	}
}

// TestFillGivesBack expects that contents which a higher layer removes take nothing, and that e2fsck is content.
func TestFillGivesBack(t *testing.T) {
	body := func(c string, n int) string { return strings.Repeat(c, n) }
	var low, high []item
	for i := range 300 {
		low = append(low, reg("d/"+strings.Repeat("x", i%50+1)+string(rune('a'+i%26)), body("l", i*101)))
		high = append(high, reg("e/"+strings.Repeat("y", i%50+1)+string(rune('a'+i%26)), body("h", i*99)))
	}
	low = append(low, reg("big", body("b", 5<<20)), reg("stays", body("s", 3<<20)), link("stays2", "stays"))
	high = append(high, reg(".wh.big", ""), reg("stays", body("n", 2<<20)), reg("last", "l"))
	path := filepath.Join(t.TempDir(), "fs")
	layers := []Blob{
		bytesBlob(typeGzip, gzipped(t, pack(t, low...))), bytesBlob(typeGzip, gzipped(t, pack(t, high...))),
		bytesBlob("", pack(t, reg("d/.wh..wh..opq", ""))),
	}
	if _, err := fill(layers, Options{Scratch: t.TempDir()}, path); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	used, err := ext4.Usage(path)
	if err != nil || used > 13<<20 || used < 8<<20 {
		t.Errorf("it takes %d bytes, err %v", used, err)
	}
}

// TestFillStops closes a stream whose layer does not come, and cancels another.
func TestFillStops(t *testing.T) {
	slow := Blob{Open: func(ctx context.Context) (io.ReadCloser, error) {
		pr, pw := io.Pipe()
		context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
		return pr, nil
	}}
	layers := []Blob{bytesBlob("", pack(t, base()...)), slow}
	opt := ext4.Options{Identity: "test", Temporary: true}
	s := Flatten(t.Context(), layers, Options{Scratch: t.TempDir()})
	go s.Close()
	if _, err := ext4.FromTar(t.Context(), s, filepath.Join(t.TempDir(), "fs"), opt); err == nil {
		t.Error("a closed stream has filled a file system")
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	s = Flatten(t.Context(), layers, Options{Scratch: t.TempDir()})
	defer s.Close()
	time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
	if _, err := ext4.FromTar(ctx, s, filepath.Join(t.TempDir(), "fs"), opt); !errors.Is(err, cause) {
		t.Errorf("err = %v", err)
	}
}

// TestFlattenAfterClose begins nothing.
func TestFlattenAfterClose(t *testing.T) {
	opened := false
	s := Flatten(t.Context(), []Blob{{Open: func(context.Context) (io.ReadCloser, error) {
		opened = true
		return io.NopCloser(bytes.NewReader(nil)), nil
	}}}, Options{Scratch: t.TempDir()})
	s.Close()
	if _, err := io.ReadAll(s); err == nil || opened {
		t.Errorf("err = %v, opened %v", err, opened)
	}
}
