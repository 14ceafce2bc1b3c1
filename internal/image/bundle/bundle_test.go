package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/kernel"
)

// rootfs is a small flat tar.
func rootfs(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, err := range []error{
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755}),
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./etc/motd", Mode: 0o644, Size: 6}),
		write(tw, "hello\n"), tw.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

func manifest() Manifest {
	return Manifest{
		Name: "dev", Description: "for development", Arch: "amd64", Kernel: "debian-bookworm",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Config:  source.Config{User: "root", Env: []string{"A=b"}, Cmd: []string{"/bin/sh"}},
	}
}

// kernelDir makes a kernel's directory whose modules are a large sparse file.
func kernelDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "boot"), 0o700); err != nil {
		t.Fatal(err)
	}
	modules := make([]byte, 3*block)
	copy(modules[1024+56:], "\x53\xef")
	modules[2*block] = 1
	for name, data := range map[string][]byte{"vmlinux": []byte("a kernel"), "boot/virtio_blk.ko": []byte("a module"), "modules.ext4": modules} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "modules.ext4"), ext4.DefaultSize); err != nil {
		t.Fatal(err)
	}
	m := kernel.Manifest{Layout: kernel.Layout, Name: "debian-bookworm", Version: "6.1", Arch: "amd64", Digest: "sha256:0", BootModules: []string{"virtio_blk"}}
	if err := atomicfile.WriteJSON(filepath.Join(dir, "manifest.json"), m); err != nil {
		t.Fatal(err)
	}
	return dir
}

// makeBundle writes a bundle and returns its path.
func makeBundle(t testing.TB, kernel string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dev.tar.zst")
	if _, err := Write(t.Context(), path, Contents{Manifest: manifest(), Rootfs: bytes.NewReader(rootfs(t)), KernelDir: kernel}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWrittenBundleIsRead(t *testing.T) {
	path := makeBundle(t, "")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := NewReader(t.Context(), "dev", f, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := r.Manifest()
	sum := sha256.Sum256(rootfs(t))
	want := manifest()
	want.Schema, want.Created = 1, want.Created.Truncate(time.Second)
	want.Parts = []Part{{Name: "rootfs.tar", MediaType: RootfsType, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(rootfs(t)))}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if data, err := io.ReadAll(r); err != nil || !bytes.Equal(data, rootfs(t)) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("beside the bundle: %v", left)
	}
}

// What is written can be unpacked with the programs that everybody has.
func TestTarAndZstdReadIt(t *testing.T) {
	path := makeBundle(t, kernelDir(t))
	out, err := exec.CommandContext(t.Context(), "tar", "--zstd", "-tf", path).CombinedOutput()
	if err != nil || string(out) != "manifest.json\nrootfs.tar\nkernel.tar\n" {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "zstd", "-tq", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// What docs/bundle.md says suffices to make one by hand.
func TestBundleMadeByHand(t *testing.T) {
	dir := t.TempDir()
	root := file(RootfsName, rootfs(t))
	for name, data := range map[string][]byte{ManifestName: describe(t, nil, root).data, RootfsName: root.data} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "tar", "--zstd", "-cf", "b.tar.zst", ManifestName, RootfsName)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "b.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	if err := readAll(t.Context(), data, Limits{}); err != nil {
		t.Error(err)
	}
}

func TestTheSameContentsGiveTheSameBytes(t *testing.T) {
	kernel := kernelDir(t)
	first, err := os.ReadFile(makeBundle(t, kernel))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := os.ReadFile(makeBundle(t, kernel))
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("%d and %d bytes differ, %v", len(first), len(again), err)
		}
	}
}

// zeros is a long sparse file as a tar stream has it.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	n := min(int64(len(p)), z.left)
	clear(p[:n])
	if z.left -= n; z.left == 0 {
		return int(n), io.EOF
	}
	return int(n), nil
}

func TestHolesTakeNoSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.tar.zst")
	m, err := Write(t.Context(), path, Contents{Manifest: manifest(), Rootfs: &zeros{300 << 20}, KernelDir: kernelDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 1<<20 || m.Parts[0].Size != 300<<20 || m.Parts[1].Size > 1<<20 {
		t.Errorf("%d bytes, parts %+v, %v", info.Size(), m.Parts, err)
	}
}

func TestWriteFailuresLeaveNothing(t *testing.T) {
	broken := errors.New("broken")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	notKernel := t.TempDir()
	odd := kernelDir(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(odd, "link")); err != nil {
		t.Fatal(err)
	}
	huge := manifest()
	huge.Config.Env = []string{"A=" + strings.Repeat("x", 2<<20)}
	for name, tt := range map[string]struct {
		ctx   context.Context
		c     Contents
		class fault.Class
		want  string
	}{
		"rootfs fails":   {t.Context(), Contents{Manifest: manifest(), Rootfs: io.MultiReader(strings.NewReader("x"), failing{broken})}, fault.Internal, "broken"},
		"cancelled":      {cancelled, Contents{Manifest: manifest(), Rootfs: &zeros{1 << 30}}, fault.Cancelled, "canceled"},
		"empty":          {t.Context(), Contents{Manifest: manifest(), Rootfs: strings.NewReader("")}, fault.Invalid, "rootfs.tar has 0 bytes"},
		"no kernel":      {t.Context(), Contents{Manifest: manifest(), Rootfs: &zeros{512}, KernelDir: notKernel}, fault.NotFound, "no kernel in " + notKernel},
		"odd kernel":     {t.Context(), Contents{Manifest: manifest(), Rootfs: &zeros{512}, KernelDir: odd}, fault.Invalid, `"link" does not belong there`},
		"huge manifest":  {t.Context(), Contents{Manifest: huge, Rootfs: &zeros{512}}, fault.Invalid, "too large for a bundle"},
		"bad manifest":   {t.Context(), Contents{Manifest: Manifest{Arch: "x y"}, Rootfs: &zeros{512}}, fault.Invalid, "architecture"},
		"exists already": {t.Context(), Contents{Manifest: manifest(), Rootfs: &zeros{512}}, fault.Exists, "exists already"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "b.tar.zst")
			files := 0
			if name == "exists already" {
				if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
				files = 1
			}
			_, err := Write(tt.ctx, path, tt.c)
			if !fault.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", fault.ClassOf(err), err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != files {
				t.Errorf("left: %v", left)
			}
		})
	}
	if _, err := Write(t.Context(), filepath.Join(t.TempDir(), "no", "b"), Contents{Manifest: manifest(), Rootfs: &zeros{512}}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A sender that begins anew does so in the bundle, too.
func TestWriteBeginsAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.tar.zst")
	anew := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), &once{err: ext4.ErrAnew}, bytes.NewReader(rootfs(t)))
	m, err := Write(t.Context(), path, Contents{Manifest: manifest(), Rootfs: anew})
	if err != nil || m.Parts[0].Size != int64(len(rootfs(t))) {
		t.Fatalf("%+v, %v", m.Parts, err)
	}
	want, err := os.ReadFile(makeBundle(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, not %d, %v", len(got), len(want), err)
	}
}

// once fails once and then has ended.
type once struct{ err error }

func (o *once) Read([]byte) (int, error) {
	err := o.err
	o.err = io.EOF
	return 0, err
}

// entry is one of a made-up bundle.
type entry struct {
	hdr  tar.Header
	data []byte
}

func file(name string, data []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}, data}
}

// pack makes a bundle of entries as they are.
func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	zw, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// describe is the manifest of these parts, after change.
func describe(t testing.TB, change func(*Manifest), parts ...entry) entry {
	t.Helper()
	m := manifest()
	m.Schema = Schema
	for i, p := range parts {
		sum := sha256.Sum256(p.data)
		m.Parts = append(m.Parts, Part{p.hdr.Name, []string{RootfsType, KernelType}[min(i, 1)], hex.EncodeToString(sum[:]), int64(len(p.data))})
	}
	if change != nil {
		change(&m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return file(ManifestName, data)
}

// readAll reads a bundle as an image's source does.
func readAll(ctx context.Context, data []byte, limits Limits) error {
	r, err := NewReader(ctx, "b", bytes.NewReader(data), limits)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

func TestBadBundles(t *testing.T) {
	root, kern := file(RootfsName, rootfs(t)), file(KernelName, make([]byte, 1024))
	good := pack(t, describe(t, nil, root, kern), root, kern)
	if err := readAll(t.Context(), good, Limits{}); err != nil {
		t.Fatal(err)
	}
	text := func(old, new string) entry {
		e := describe(t, nil, root)
		return file(ManifestName, bytes.Replace(e.data, []byte(old), []byte(new), 1))
	}
	link := func(name, target string) entry {
		return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, nil}
	}
	window := bytes.Clone(good)
	for name, tt := range map[string]struct {
		data   []byte
		limits Limits
		want   string
	}{
		"empty file":      {nil, Limits{}, "bundle b ends where manifest.json should be"},
		"web page":        {[]byte("<html>not found</html>"), Limits{}, "bundle b is not compressed with zstd"},
		"empty tar":       {pack(t), Limits{}, "bundle b ends where manifest.json should be"},
		"no manifest":     {pack(t, root), Limits{}, `bundle b has "rootfs.tar" where manifest.json should be`},
		"late manifest":   {pack(t, root, describe(t, nil, root)), Limits{}, `bundle b has "rootfs.tar" where manifest.json should be`},
		"manifest only":   {pack(t, describe(t, nil, root)), Limits{}, "bundle b ends where rootfs.tar should be"},
		"no kernel":       {pack(t, describe(t, nil, root, kern), root), Limits{}, "kernel: bundle b ends where kernel.tar should be"},
		"reordered":       {pack(t, describe(t, nil, root, kern), kern, root), Limits{}, `bundle b has "kernel.tar" where rootfs.tar should be`},
		"extra":           {pack(t, describe(t, nil, root), root, kern), Limits{}, `bundle b holds "kernel.tar", which its manifest does not list`},
		"twice":           {pack(t, describe(t, nil, root), root, root), Limits{}, `bundle b holds "rootfs.tar", which its manifest does not list`},
		"path":            {pack(t, describe(t, nil, root), file("../../rootfs.tar", root.data)), Limits{}, `bundle b has "../../rootfs.tar" where rootfs.tar should be`},
		"absolute":        {pack(t, file("/manifest.json", describe(t, nil, root).data), root), Limits{}, `bundle b has "/manifest.json" where manifest.json should be`},
		"symlink":         {pack(t, link(ManifestName, "/etc/passwd")), Limits{}, "bundle b: manifest.json is not a plain file"},
		"symlinked part":  {pack(t, describe(t, nil, root), link(RootfsName, "/etc/passwd")), Limits{}, "bundle b: rootfs.tar is not a plain file"},
		"size lie":        {pack(t, describe(t, func(m *Manifest) { m.Parts[0].Size++ }, root), root), Limits{}, "bundle b: rootfs.tar has 2560 bytes, its manifest says 2561"},
		"hash lie":        {pack(t, describe(t, func(m *Manifest) { m.Parts[0].SHA256 = strings.Repeat("0", 64) }, root), root), Limits{}, "bundle b: rootfs.tar has sha256 SUM, its manifest says " + strings.Repeat("0", 64)},
		"kernel hash lie": {pack(t, describe(t, func(m *Manifest) { m.Parts[1].SHA256 = strings.Repeat("1", 64) }, root, kern), root, kern), Limits{}, "kernel: bundle b: kernel.tar has sha256 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef, its manifest says " + strings.Repeat("1", 64)},
		"newer schema":    {pack(t, text(`"schema":1`, `"schema":2,"parts":5`), root), Limits{}, "bundle b: manifest.json has schema 2, this banger reads 1"},
		"no schema":       {pack(t, text(`"schema"`, `"version"`), root), Limits{}, "bundle b: manifest.json says no schema: this is not a bundle of banger"},
		"not json":        {pack(t, file(ManifestName, []byte("hello")), root), Limits{}, "bundle b: manifest.json cannot be read: invalid character 'h' looking for beginning of value"},
		"two values":      {pack(t, file(ManifestName, append(describe(t, nil, root).data, '{')), root), Limits{}, "bundle b: manifest.json cannot be read: something follows its end"},
		"no parts":        {pack(t, describe(t, nil), root), Limits{}, "bundle b: manifest.json: its first part is not rootfs.tar"},
		"three parts":     {pack(t, describe(t, nil, root, kern, kern), root), Limits{}, "bundle b: manifest.json: it lists 3 parts: more than rootfs.tar and kernel.tar"},
		"unknown part":    {pack(t, describe(t, nil, root, file("x", nil)), root), Limits{}, `bundle b: manifest.json: its second part is "x" and not kernel.tar`},
		"media type":      {pack(t, describe(t, func(m *Manifest) { m.Parts[0].MediaType = "text/html" }, root), root), Limits{}, `bundle b: manifest.json: rootfs.tar has the unknown media type "text/html", not application/vnd.banger.rootfs.v1.tar`},
		"negative size":   {pack(t, describe(t, func(m *Manifest) { m.Parts[0].Size = -1 }, root), root), Limits{}, "bundle b: manifest.json: rootfs.tar has -1 bytes"},
		"bad sha256":      {pack(t, describe(t, func(m *Manifest) { m.Parts[0].SHA256 = "zz" }, root), root), Limits{}, "bundle b: manifest.json: rootfs.tar has no sha256 of 64 hexadecimal digits"},
		"too large":       {pack(t, describe(t, nil, root), root), Limits{Size: 1024}, "bundle b: manifest.json: rootfs.tar has 2.5K, more than the limit of 1K"},
		"too large said":  {pack(t, describe(t, func(m *Manifest) { m.Parts[0].Size = 1 << 50 }, root), root), Limits{}, "bundle b: manifest.json: rootfs.tar has 1P, more than the limit of 64G"},
		"huge kernel":     {pack(t, describe(t, func(m *Manifest) { m.Parts[1].Size = 1 << 50 }, root, kern), root), Limits{}, "bundle b: manifest.json: kernel.tar has 1P, more than the 4G that a kernel can have"},
		"bad config":      {pack(t, text(`"A=b"`, `"=b"`), root), Limits{}, `bundle b: manifest.json: the image's configuration has an environment variable without a name: "=b"`},
		"terminal codes":  {pack(t, text(`"for development"`, `"\u001b[2J"`), root), Limits{}, "bundle b: manifest.json: its description is not one line"},
		"kernel's name":   {pack(t, text(`"debian-bookworm"`, `"../x"`), root), Limits{}, `bundle b: manifest.json: its kernel "../x" is not a kernel's name`},
		"long manifest":   {pack(t, file(ManifestName, make([]byte, maxManifest+1))), Limits{}, "bundle b: manifest.json has 1048577 bytes, more than 1048576"},
		"cut off":         {good[:len(good)/2], Limits{}, "bundle b is cut off"},
		"goes on":         {append(bytes.Clone(good), pack(t, root)...), Limits{}, "bundle b goes on after its end"},
		"goes on raw":     {append(bytes.Clone(good), "hello, this is no zstd"...), Limits{}, "bundle b is not compressed with zstd"},
		"window":          {append(bytes.Clone(window[:4]), append([]byte{0x00, 0xff}, window[6:]...)...), Limits{}, "bundle b needs more than 64M of memory to unpack"},
	} {
		t.Run(name, func(t *testing.T) {
			err := readAll(t.Context(), tt.data, tt.limits)
			sum := sha256.Sum256(root.data)
			want := strings.ReplaceAll(tt.want, "SUM", hex.EncodeToString(sum[:]))
			if err == nil || err.Error() != want || !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v\nwant %s", fault.ClassOf(err), err, want)
			}
		})
	}
}

// Whatever byte of a bundle is changed and wherever it is cut: it is noticed, or it says the same.
func TestEveryDamageIsNoticed(t *testing.T) {
	root := file(RootfsName, rootfs(t))
	good := pack(t, describe(t, nil, root), root)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		for _, data := range [][]byte{bad, good[:i]} {
			r, err := NewReader(t.Context(), "b", bytes.NewReader(data), Limits{})
			if err != nil {
				if fault.Is(err, fault.Internal) {
					t.Errorf("byte %d: %v", i, err)
				}
				continue
			}
			got, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(got, root.data) || fault.Is(err, fault.Internal) {
				t.Errorf("byte %d: %d bytes, %v", i, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestBombIsStopped(t *testing.T) {
	var b bytes.Buffer
	zw, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	root := file(RootfsName, rootfs(t))
	m := describe(t, nil, root)
	for _, err := range []error{
		tw.WriteHeader(&m.hdr), write(tw, string(m.data)), tw.WriteHeader(&root.hdr), write(tw, string(root.data)), tw.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(zw, &zeros{1 << 30}); err != nil { // a gigabyte of padding
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := readAll(t.Context(), b.Bytes(), Limits{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "goes on after its end") {
		t.Error(err)
	}
}

func TestCloseEndsARead(t *testing.T) {
	path := makeBundle(t, "")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, _ = pw.Write(data) // the reader waits for more when it has all of this
	}()
	r, err := NewReader(t.Context(), "b", pr, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r)
		ended <- err
	}()
	r.cancel()
	pw.CloseWithError(errors.New("closed")) // as the owner of a file would
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the read came to an end")
	}
	if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after Close: %v", err)
	}
}
