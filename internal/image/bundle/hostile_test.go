package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
)

// unpackMade unpacks a kernel part of these entries.
func unpackMade(t *testing.T, entries ...entry) (dir string, err error) {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "a", "kernel")
	if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, unpackKernel(t.Context(), &b, dir)
}

func TestKernelPartTricks(t *testing.T) {
	with := func(name, record, value string) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{record: value}}, nil}
	}
	many := make([]entry, maxKernelFiles+1)
	for i := range many {
		many[i] = file("f"+strings.Repeat("x", i%100)+string(rune('a'+i/100)), nil)
	}
	for name, tt := range map[string]struct {
		entries []entry
		want    string
	}{
		"up":            {[]entry{file("../x", nil)}, `"../x": it is not a name of a kernel's file`},
		"up in between": {[]entry{file("boot/../../x", nil)}, `"boot/../../x": it is not a name of a kernel's file`},
		"absolute":      {[]entry{file("/tmp/x", nil)}, `"/tmp/x": it is not a name of a kernel's file`},
		"hidden":        {[]entry{file(".x", nil)}, `".x": it is not a name of a kernel's file`},
		"deep":          {[]entry{file("a/b/c", nil)}, `"a/b/c": it is not a name of a kernel's file`},
		"symlink":       {[]entry{{tar.Header{Typeflag: tar.TypeSymlink, Name: "boot", Linkname: "/etc"}, nil}, file("boot/x", nil)}, `"boot": it is not a plain file`},
		"hard link":     {[]entry{{tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/passwd"}, nil}}, `"x": it is not a plain file`},
		"device":        {[]entry{{tar.Header{Typeflag: tar.TypeChar, Name: "x"}, nil}}, `"x": it is not a plain file`},
		"fifo":          {[]entry{{tar.Header{Typeflag: tar.TypeFifo, Name: "x"}, nil}}, `"x": it is not a plain file`},
		"twice":         {[]entry{file("x", nil), file("x", nil)}, `"x": it is there twice`},
		"file as dir":   {[]entry{file("x", nil), file("x/y", nil)}, `"x/y": it goes through a file`},
		"shorter":       {[]entry{{tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 3, PAXRecords: map[string]string{lengthRecord: "2"}}, []byte("abc")}}, `"x": its length "2" is not possible`},
		"endless":       {[]entry{with("x", lengthRecord, "9223372036854775807")}, `"x": its length "9223372036854775807" is not possible`},
		"no number":     {[]entry{with("x", lengthRecord, "many")}, `"x": its length "many" is not possible`},
		"many":          {many, "it has more than 256 files"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := unpackMade(t, tt.entries...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v\nwant %s", fault.ClassOf(err), err, tt.want)
			}
			if left, _ := os.ReadDir(filepath.Dir(dir)); len(left) != 1 {
				t.Errorf("beside the kernel's directory: %v", left)
			}
		})
	}
}

func TestFilesKeepWhatTheyHold(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty": {}, "short": []byte("x"), "zeros": make([]byte, 10*block), "a block": bytes.Repeat([]byte("x"), block),
		"hole in the middle": append(append(bytes.Repeat([]byte("x"), block+1), make([]byte, 100*block)...), 'y'),
		"zeros at the end":   append([]byte("x"), make([]byte, 300*block)...),
	} {
		t.Run(name, func(t *testing.T) {
			src := kernelDir(t)
			if err := os.WriteFile(filepath.Join(src, "data"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := packKernel(t.Context(), src, &b); err != nil {
				t.Fatal(err)
			}
			dst := filepath.Join(t.TempDir(), "k")
			if err := unpackKernel(t.Context(), &b, dst); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dst, "data")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, want %d, %v", len(got), len(data), err)
			}
		})
	}
}

// FuzzManifest: whatever is in manifest.json, it is refused or within the limits.
func FuzzManifest(f *testing.F) {
	f.Add(describe(f, nil, file(RootfsName, rootfs(f))).data)
	f.Add(describe(f, nil, file(RootfsName, rootfs(f)), file(KernelName, nil)).data)
	f.Add([]byte(`{"schema":1,"parts":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data, Limits{Size: 1 << 20})
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("%v", err)
			}
			return
		}
		if m.Schema != Schema || len(m.Parts) < 1 || len(m.Parts) > 2 || m.Parts[0].Size > 1<<20 || m.Parts[0].Size <= 0 || m.Config.Check() != nil {
			t.Errorf("%+v", m)
		}
	})
}

// FuzzRead: whatever is in a bundle, reading ends, within the limits, with a fault or with what the manifest says.
func FuzzRead(f *testing.F) {
	root := file(RootfsName, rootfs(f))
	f.Add(pack(f, describe(f, nil, root), root))
	if data, err := os.ReadFile(makeBundle(f, kernelDir(f))); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { readHostile(t, data) })
}

// FuzzTar is FuzzRead behind the compression, which stops nearly all that a fuzzer tries there.
func FuzzTar(f *testing.F) {
	root, kern := file(RootfsName, rootfs(f)), file(KernelName, make([]byte, 1024))
	zr, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	defer zr.Close()
	for _, data := range [][]byte{pack(f, describe(f, nil, root), root), pack(f, describe(f, nil, root, kern), root, kern)} {
		plain, err := zr.DecodeAll(data, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(plain)
	}
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain []byte) { readHostile(t, zw.EncodeAll(plain, nil)) })
}

func readHostile(t *testing.T, data []byte) {
	t.Helper()
	const limit = 1 << 20
	r, err := NewReader(t.Context(), "b", bytes.NewReader(data), Limits{Size: limit})
	if err != nil {
		if fault.Is(err, fault.Internal) {
			t.Errorf("%v", err)
		}
		return
	}
	defer r.Close()
	r.kernel = func(_ context.Context, part io.Reader) error {
		_, err := io.Copy(io.Discard, part)
		return err
	}
	n, err := io.Copy(io.Discard, r)
	if fault.Is(err, fault.Internal) || n > limit || err == nil && n != r.Manifest().Parts[0].Size {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// FuzzKernel: whatever is in a kernel part, nothing is written but plain files below its directory.
func FuzzKernel(f *testing.F) {
	var b bytes.Buffer
	if err := packKernel(f.Context(), kernelDir(f), &b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "k")
		if err := unpackKernel(t.Context(), bytes.NewReader(data), dir); err != nil && errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		err := filepath.WalkDir(parent, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if path != parent && !strings.HasPrefix(path, dir) || !d.IsDir() && !d.Type().IsRegular() {
				t.Errorf("%s is there", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
