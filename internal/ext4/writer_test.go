package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
)

// filler fills a file system by a function. Nobody reads it.
type filler func(w *Writer) (*Node, error)

func (filler) Read([]byte) (int, error) { return 0, errors.New("it was read") }

func (f filler) Fill(_ context.Context, w *Writer) (*Node, uint64, int, error) {
	root, err := f(w)
	return root, 0, 0, err
}

// filled makes a file system and checks it.
func filled(t *testing.T, opt Options, f filler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x")
	opt.Identity, opt.Temporary = "test", true
	if _, err := FromTar(t.Context(), f, path, opt); err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	return path
}

func regular(at Extent, size int64) *Node {
	return &Node{Type: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1, 0), Size: size, Contents: at}
}

// TestStreamsBesideEachOther writes files of all sizes from several goroutines, of which some are given back.
func TestStreamsBesideEachOther(t *testing.T) {
	const streams, files = 4, 60
	body := func(stream, i int) []byte {
		random := rand.New(rand.NewPCG(uint64(stream), uint64(i)))
		return bytes.Repeat([]byte{byte('a' + stream), byte(i + 1), 0}, random.IntN(1<<random.IntN(19)))
	}
	path := filled(t, Options{}, func(w *Writer) (*Node, error) {
		root := NewDir()
		var mu sync.Mutex // guards root.Children and gone
		gone := map[Extent]int64{}
		var group sync.WaitGroup
		for stream := range streams {
			group.Go(func() {
				s := w.Stream()
				for i := range files {
					data := body(stream, i)
					at, err := s.Put(bytes.NewReader(data), int64(len(data)))
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					if i%7 == 3 {
						gone[at] = int64(len(data))
					} else {
						root.Children[fmt.Sprintf("%d-%d", stream, i)] = regular(at, int64(len(data)))
					}
					mu.Unlock()
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for at, size := range gone {
			if err := w.Discard(at, size); err != nil {
				return nil, err
			}
		}
		return root, nil
	})
	out := t.TempDir()
	debugfs(t, path, "rdump / "+out)
	for stream := range streams {
		for i := range files {
			got, err := os.ReadFile(filepath.Join(out, fmt.Sprintf("%d-%d", stream, i)))
			if want := body(stream, i); i%7 != 3 && (err != nil || !bytes.Equal(got, want)) {
				t.Errorf("stream %d, file %d: %d bytes instead of %d, err %v", stream, i, len(got), len(want), err)
			}
		}
	}
}

// TestLargestFile has more extents than one block of the index holds.
func TestLargestFile(t *testing.T) {
	const size = 60 << 30
	path := filled(t, Options{}, func(w *Writer) (*Node, error) {
		start, err := w.allocate(blocksOf(size))
		if err != nil {
			return nil, err
		}
		_, err = w.f.WriteAt([]byte("end"), int64(start)*blockSize+size-3)
		root := NewDir()
		root.Children["large"] = regular(Extent{start}, size)
		return root, err
	})
	if got := debugfs(t, path, "stat /large"); !strings.Contains(got, fmt.Sprint("Size: ", int64(size))) {
		t.Error(got)
	}
	last := strings.TrimSpace(debugfs(t, path, fmt.Sprintf("bmap /large %d", size/blockSize-1)))
	var block int64
	if _, err := fmt.Sscan(last, &block); err != nil {
		t.Fatal(last, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := make([]byte, 3)
	if _, err := f.ReadAt(end, (block+1)*blockSize-3); err != nil || string(end) != "end" {
		t.Errorf("%q, err %v", end, err)
	}
}

// TestManyLinks has a directory with more directories than a link count counts, and a file with too many names.
func TestManyLinks(t *testing.T) {
	many := func(n int, each func(int) *Node) filler {
		return func(*Writer) (*Node, error) {
			root := NewDir()
			for i := range n {
				root.Children[fmt.Sprint(i)] = each(i)
			}
			return root, nil
		}
	}
	path := filled(t, Options{}, many(maxLinks+10, func(int) *Node { return NewDir() }))
	if got := debugfs(t, path, "stat /"); !strings.Contains(got, "Links: 1 ") {
		t.Error(got)
	}
	one := regular(Extent{}, 0)
	path = filled(t, Options{}, many(maxLinks, func(int) *Node { return one }))
	if got := debugfs(t, path, "stat /1"); !strings.Contains(got, fmt.Sprint("Links: ", maxLinks)) {
		t.Error(got)
	}
	other := regular(Extent{}, 0)
	_, err := FromTar(t.Context(), many(maxLinks+1, func(int) *Node { return other }), filepath.Join(t.TempDir(), "x"), Options{Identity: "x"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "hard links") {
		t.Errorf("err = %v", err)
	}
}

// TestSmallLimit fills a file system to its last block, and one block further.
func TestSmallLimit(t *testing.T) {
	const size = 4 << 20
	files := func(n int) filler {
		return func(w *Writer) (*Node, error) {
			root, s := NewDir(), w.Stream()
			for i := range n {
				at, err := s.Put(strings.NewReader("x"), 1)
				if err != nil {
					return nil, errors.Join(err, s.Close())
				}
				root.Children[fmt.Sprint(i)] = regular(at, 1)
			}
			return root, s.Close()
		}
	}
	most := 0
	for n := size / blockSize; n > 0; n-- {
		if _, err := FromTar(t.Context(), files(n), filepath.Join(t.TempDir(), "x"), Options{Size: size, Identity: "x", Temporary: true}); err == nil {
			most = n
			break
		} else if !fault.Is(err, fault.Exhausted) {
			t.Fatal(err)
		}
	}
	if most < 900 {
		t.Errorf("%d files fit", most)
	}
	filled(t, Options{Size: size}, files(most))
}

// TestTimes are those of ext4's 34 bits and nanoseconds.
func TestTimes(t *testing.T) {
	root := NewDir()
	for name, at := range map[string]time.Time{
		"early": time.Unix(-1<<40, 0), "1901": time.Unix(-1<<31, 0), "1969": time.Unix(-1, 999), "2038": time.Unix(1<<31, 5),
		"2106": time.Unix(1<<32, 0), "last": time.Unix(3<<32+1<<31-1, 0), "late": time.Unix(1<<40, 0),
	} {
		n := regular(Extent{}, 0)
		n.ModTime = at
		root.Children[name] = n
	}
	path := filled(t, Options{}, func(*Writer) (*Node, error) { return root, nil })
	for name, want := range map[string]string{
		"early": "0x80000000:00000000", "1901": "0x80000000:00000000", "1969": "0xffffffff:00000f9c", "2038": "0x80000000:00000015",
		"2106": "0x00000000:00000001", "last": "0x7fffffff:00000003", "late": "0x7fffffff:00000003",
	} {
		if got := debugfs(t, path, "stat /"+name); !strings.Contains(got, "mtime: "+want) {
			t.Errorf("%s: no %s in\n%s", name, want, got)
		}
	}
}

// TestAttributesFarAndNear has more attributes than fit behind an inode, in an order that the kernel expects.
func TestAttributesFarAndNear(t *testing.T) {
	n := regular(Extent{}, 0)
	n.Xattrs = map[string]string{}
	for i := range 40 {
		n.Xattrs[fmt.Sprintf("user.%s%d", strings.Repeat("n", i), i)] = strings.Repeat("v", i)
		n.Xattrs[fmt.Sprintf("trusted.%d", i)] = "t"
	}
	path := filled(t, Options{}, func(*Writer) (*Node, error) {
		root := NewDir()
		root.Children["f"] = n
		return root, nil
	})
	for name, want := range n.Xattrs {
		if got := debugfs(t, path, "ea_get /f "+name); !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	n.number, n.links = 0, 0
	n.Xattrs["user.more"] = strings.Repeat("v", 3500)
	_, err := FromTar(t.Context(), filler(func(*Writer) (*Node, error) {
		root := NewDir()
		root.Children["f"] = n
		return root, nil
	}), filepath.Join(t.TempDir(), "x"), Options{Identity: "x"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `entry "f"`) {
		t.Errorf("err = %v", err)
	}
}

// TestPutCutOff has contents that end too early.
func TestPutCutOff(t *testing.T) {
	_, err := FromTar(t.Context(), filler(func(w *Writer) (*Node, error) {
		s := w.Stream()
		_, err := s.Put(strings.NewReader("short"), 10000)
		return NewDir(), errors.Join(err, s.Close())
	}), filepath.Join(t.TempDir(), "x"), Options{Identity: "x"})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("err = %v", err)
	}
}
