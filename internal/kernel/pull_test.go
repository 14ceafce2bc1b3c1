package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/debarchive/debarchivetest"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/progress"
)

const release = fakeRelease

// fakeDepmod puts a depmod into PATH that knows the modules of the fake package.
func fakeDepmod(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "depmod"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

const goodDepmod = `cd "$2/usr/lib/modules/$3" || exit 1
echo 'kernel/virtio.ko.xz:' > modules.dep
for m in virtio_mmio virtio_blk virtio_net virtio_console; do echo "kernel/$m.ko: kernel/virtio.ko.xz" >> modules.dep; done
`

// fakeConfig sets everything that banger needs but CONFIG_POSIX_MQUEUE. What can be a module is one.
func fakeConfig() string {
	var b strings.Builder
	for _, n := range needs() {
		value := "y"
		if n.module != "" && n.module != "ext4" {
			value = "m"
		}
		if n.option != "POSIX_MQUEUE" {
			b.WriteString("CONFIG_" + n.option + "=" + value + "\n")
		}
	}
	return b.String() + "# CONFIG_POSIX_MQUEUE is not set\nCONFIG_LOCALVERSION=\"-cloud\"\n"
}

func fakeFiles(t testing.TB) []debarchivetest.File {
	plain := fakeKernel(pvhNote, 10_000)
	modules := "./lib/modules/" + release
	files := []debarchivetest.File{
		{Name: "./boot/vmlinuz-" + release, Data: bzImage(withSize(lz4Blocks(t, plain), plain))},
		{Name: "./boot/config-" + release, Data: []byte(fakeConfig())},
		{Name: modules + "/build", Type: '2', Link: "/usr/src/x"},
		{Name: modules + "/modules.builtin", Data: []byte("kernel/fs/overlay.ko\n")},
		{Name: modules + "/kernel/virtio.ko.xz", Data: xzipped(t, []byte("\x7fELF virtio"))},
		{Name: "./usr/share/doc/x", Data: []byte("doc")},
	}
	for _, m := range []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console"} {
		files = append(files, debarchivetest.File{Name: modules + "/kernel/" + m + ".ko", Data: []byte("\x7fELF " + m)})
	}
	return files
}

// publish offers a kernel of these files as Debian does: an older one in the release, the newest in the security suite.
func publish(t testing.TB, files []debarchivetest.File) *debarchivetest.Mirror {
	m := debarchivetest.New(t)
	old := debarchivetest.Package{Name: "linux-image-6.1.0-8-cloud-amd64", Version: "6.1.8-1", Deb: []byte("old")}
	m.Publish(debarchivetest.Suite{Name: "bookworm", Packages: []debarchivetest.Package{
		old, {Name: "linux-image-cloud-amd64", Version: "6.1.8-1", Deb: []byte("x"), Depends: old.Name + " (= 6.1.8-1)"},
	}})
	m.Publish(debarchivetest.Suite{Name: "bookworm-security", Packages: []debarchivetest.Package{
		{Name: "linux-image-" + release, Version: "6.1.10-1", Deb: debarchivetest.Deb{Compression: ".xz", Files: files}.Bytes(t)},
		{Name: "linux-image-cloud-amd64", Version: "6.1.10-1", Deb: []byte("x"), Depends: "linux-image-" + release + " (= 6.1.10-1)"},
	}})
	return m
}

const fakeDeb = "pool/main/linux-image-" + release + "_6.1.10-1.deb"

func entry(t testing.TB) Entry {
	e, err := Find(Default)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestPullMakesAKernelDirectory(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	m := publish(t, fakeFiles(t))
	staging := t.TempDir()
	var last progress.Update
	dir, got, err := Pull(t.Context(), entry(t), PullOptions{
		Staging: staging, Arch: "amd64", Mirror: m.URI(), Keyring: m.Keyring,
		Progress: func(u progress.Update) {
			if u.Unit == "bytes" {
				last = u
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	order := []string{"virtio", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console"}
	want := Manifest{
		Layout: Layout, Name: Default, Version: release, Arch: "amd64", Package: "linux-image-" + release,
		PackageVersion: "6.1.10-1", Digest: got.Digest, Source: "file://" + filepath.Join(m.Dir, fakeDeb),
		Origin: "debian:bookworm", BootModules: order, Created: got.Created,
		Missing: []string{"CONFIG_HW_RANDOM_VIRTIO (entropy from the host): it is a module, which is not there", "CONFIG_POSIX_MQUEUE (/dev/mqueue)"},
	}
	if diff := cmp.Diff(want, got); diff != "" || !strings.HasPrefix(got.Digest, "sha256:") || got.Created.IsZero() {
		t.Errorf("manifest %+v (-want +got)\n%s", got, diff)
	}
	if loaded, err := Load(dir); err != nil || !cmp.Equal(loaded, got) {
		t.Errorf("Load = %+v, %v", loaded, err)
	}
	if diff := cmp.Diff([]string{BootDir, ManifestFile, ModulesFile, ImageFile}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got)\n%s", diff)
	}
	if filepath.Dir(dir) != staging || last.Done == 0 || last.Done != last.Total || last.Stage != "kernel" {
		t.Errorf("directory %s, last progress %+v", dir, last)
	}
	image, err := os.ReadFile(filepath.Join(dir, ImageFile))
	if err != nil || !bytes.Equal(image, fakeKernel(pvhNote, 10_000)) {
		t.Errorf("kernel of %d bytes, %v", len(image), err)
	}
	for _, module := range order {
		data, err := os.ReadFile(filepath.Join(dir, BootDir, module+".ko"))
		if err != nil || string(data) != "\x7fELF "+module {
			t.Errorf("module %s: %q, %v", module, data, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, ModulesFile)); err != nil || info.Size() != ext4.DefaultSize {
		t.Errorf("modules image: %v, %v", info, err)
	}
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestPullFailsCleanly(t *testing.T) {
	without := func(part string) func([]debarchivetest.File) []debarchivetest.File {
		return func(files []debarchivetest.File) []debarchivetest.File {
			var out []debarchivetest.File
			for _, f := range files {
				if !strings.Contains(f.Name, part) {
					out = append(out, f)
				}
			}
			return out
		}
	}
	with := func(extra debarchivetest.File) func([]debarchivetest.File) []debarchivetest.File {
		return func(files []debarchivetest.File) []debarchivetest.File { return append(files, extra) }
	}
	kernelFile := "./boot/vmlinuz-" + release
	for _, tc := range []struct {
		name   string
		files  func([]debarchivetest.File) []debarchivetest.File
		depmod string
		arch   string
		edit   string // file of the mirror to flip a bit of
		class  fault.Class
		text   string
	}{
		{name: "package flipped", edit: fakeDeb, class: fault.Denied, text: "the archive signed"},
		{name: "index flipped", edit: "dists/bookworm-security/main/binary-amd64/Packages.gz", class: fault.Denied, text: "the archive signed"},
		{name: "signature broken", edit: "dists/bookworm-security/InRelease", class: fault.Denied, text: "InRelease"},
		{name: "no modules", files: without("lib/modules"), class: fault.Invalid, text: "no modules for " + release},
		{name: "no kernel", files: without("vmlinuz"), class: fault.Invalid, text: "no kernel"},
		{name: "a module is missing", files: without("virtio_blk"), class: fault.Invalid, text: "no module virtio_blk"},
		{name: "a second kernel", files: with(debarchivetest.File{Name: "./boot/vmlinuz-7", Data: []byte("x")}), class: fault.Invalid, text: "second kernel"},
		{name: "path outside", files: with(debarchivetest.File{Name: "./lib/modules/../../../../x", Data: []byte("x")}), class: fault.Denied, text: "outside of itself"},
		{name: "same file twice", files: with(debarchivetest.File{Name: "usr/lib/modules/" + release + "/modules.builtin"}), class: fault.Invalid, text: "there twice"},
		{
			name: "kernel cannot start", class: fault.Invalid, text: "lacks CONFIG_PVH (entry point for virtual machines)",
			files: func(files []debarchivetest.File) []debarchivetest.File {
				return append(without("vmlinuz")(files), debarchivetest.File{Name: kernelFile, Data: fakeKernel(pvhNote+1, 1)})
			},
		},
		{name: "depmod fails", depmod: "echo broken >&2; exit 3", class: fault.Internal, text: "depmod: broken"},
		{name: "depmod finds nothing", depmod: `: > "$2/lib/modules/$3/modules.dep"`, class: fault.Unavailable, text: "does not know the compression of modules like virtio"},
		{name: "unknown architecture", arch: "s390x", class: fault.Invalid, text: "none for s390x"},
		{name: "not for this architecture", arch: "arm64", class: fault.NotFound, text: "arm64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.depmod == "" {
				tc.depmod = goodDepmod
			}
			fakeDepmod(t, tc.depmod)
			files := fakeFiles(t)
			if tc.files != nil {
				files = tc.files(files)
			}
			m := publish(t, files)
			if tc.edit != "" {
				m.Edit(tc.edit, debarchivetest.Flip)
			}
			if tc.arch == "" {
				tc.arch = "amd64"
			}
			staging := t.TempDir()
			_, _, err := Pull(t.Context(), entry(t), PullOptions{Staging: staging, Arch: tc.arch, Mirror: m.URI(), Keyring: m.Keyring})
			if !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v (class %s), want class %s and %q", err, fault.ClassOf(err), tc.class, tc.text)
			}
			if left := names(t, staging); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A package that does not have the signed content is named, with both digests.
func TestPullNamesWhatDiffers(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	m := publish(t, fakeFiles(t))
	sum := func() string {
		data, err := os.ReadFile(filepath.Join(m.Dir, fakeDeb))
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(data)
		return hex.EncodeToString(digest[:])
	}
	expected := sum()
	m.Edit(fakeDeb, debarchivetest.Flip)
	_, _, err := Pull(t.Context(), entry(t), PullOptions{Staging: t.TempDir(), Arch: "amd64", Mirror: m.URI(), Keyring: m.Keyring})
	want := fmt.Sprintf("kernel debian-bookworm: %s/%s has sha256 %s, the archive signed %s", m.URI(), fakeDeb, sum(), expected)
	if !fault.Is(err, fault.Denied) || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}

// Newer kernels are in several packages: the kernel, its modules and what is about both.
func TestPullAKernelInParts(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	plain := fakeKernel(pvhNote, 1000)
	modules := "./usr/lib/modules/" + release
	part := map[string][]debarchivetest.File{
		"linux-image": nil,
		"linux-base": {
			{Name: modules + "/config", Data: []byte(fakeConfig())}, {Name: modules + "/modules.builtin", Data: []byte("kernel/fs/overlay.ko\n")},
			{Name: modules + "/System.map", Data: []byte("x")}, {Name: modules + "/dtb/x.dtb", Data: []byte("x")},
		},
		"linux-binary": {{Name: modules + "/vmlinuz", Data: bzImage(withSize(zstandard(t, plain), plain))}},
	}
	for _, f := range fakeFiles(t) {
		if strings.HasPrefix(f.Name, "./lib/modules") && strings.Contains(f.Name, ".ko") {
			f.Name = "./usr" + strings.TrimPrefix(f.Name, ".")
			part["linux-modules"] = append(part["linux-modules"], f)
		}
	}
	m := debarchivetest.New(t)
	publish := func(names ...string) {
		suite := debarchivetest.Suite{Name: "trixie-backports", Origin: "Debian Backports"}
		for _, name := range names {
			depends := fmt.Sprintf("kmod, linux-base-%s (= 7-1)", release)
			if name == "linux-image" {
				depends = fmt.Sprintf("dracut | x, linux-base-%[1]s (= 7-1), linux-binary-%[1]s (= 7-1), linux-modules-%[1]s (= 7-1)", release)
			}
			suite.Packages = append(suite.Packages, debarchivetest.Package{
				Name: name + "-" + release, Version: "7-1", Depends: depends, Deb: debarchivetest.Deb{Files: part[name]}.Bytes(t),
			})
		}
		suite.Packages = append(suite.Packages, debarchivetest.Package{
			Name: "linux-image-cloud-amd64", Version: "7-1", Deb: []byte("x"),
			Depends: "linux-base-cloud-amd64 (= 7-1), linux-image-" + release + " (= 7-1)",
		})
		m.Publish(suite)
	}
	e, err := Find("debian-trixie-backports")
	if err != nil {
		t.Fatal(err)
	}
	opt := PullOptions{Staging: t.TempDir(), Arch: "amd64", Mirror: m.URI(), Keyring: m.Keyring}
	publish("linux-base", "linux-binary", "linux-modules", "linux-image")
	dir, got, err := Pull(t.Context(), e, opt)
	if err != nil {
		t.Fatal(err)
	}
	if got.Origin != "debian:trixie-backports" || got.Package != "linux-image-"+release || got.Version != release || len(got.BootModules) != 5 || len(got.Digest) != 71 {
		t.Errorf("manifest %+v", got)
	}
	if image, err := os.ReadFile(filepath.Join(dir, ImageFile)); err != nil || !bytes.Equal(image, plain) {
		t.Errorf("kernel of %d bytes, %v", len(image), err)
	}

	publish("linux-base", "linux-binary", "linux-image")
	_, _, err = Pull(t.Context(), e, opt)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no package linux-modules-"+release+" (7-1), which linux-image-"+release+" needs") {
		t.Errorf("without a part: %v", err)
	}
	e.Codename = "bookworm" // which this mirror has no backports of
	_, _, err = Pull(t.Context(), e, opt)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no suite bookworm-backports") {
		t.Errorf("without the suite: %v", err)
	}
	if left := names(t, opt.Staging); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// The other architecture's kernel, by its name or by the option.
func TestPullForAnotherArchitecture(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	image := append(make([]byte, 0x38), "ARM\x64 and the rest of it: Linux version "+release+" (x@y)"...)
	files := fakeFiles(t)
	for i := range files {
		if strings.Contains(files[i].Name, "vmlinuz") {
			files[i].Data = zboot("gzip", gzipped(t, image))
		}
	}
	m := debarchivetest.New(t)
	m.Publish(debarchivetest.Suite{Name: "trixie", Arch: "arm64", Packages: []debarchivetest.Package{
		{Name: "linux-image-" + release, Version: "1", Deb: debarchivetest.Deb{Files: files}.Bytes(t)},
		{Name: "linux-image-cloud-arm64", Version: "1", Deb: []byte("x"), Depends: "linux-image-" + release + " (= 1)"},
	}})
	for name, arch := range map[string]string{"debian-trixie-arm64": "", "debian-trixie": "arm64"} {
		e, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		dir, got, err := Pull(t.Context(), e, PullOptions{Staging: t.TempDir(), Arch: arch, Mirror: m.URI(), Keyring: m.Keyring})
		if err != nil || got.Arch != "arm64" {
			t.Fatalf("manifest %+v, %v", got, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, ImageFile)); err != nil || !bytes.Equal(data, image) {
			t.Errorf("kernel of %d bytes, %v", len(data), err)
		}
	}
}

func TestCatalog(t *testing.T) {
	var got []string
	for _, e := range catalog("arm64") {
		got = append(got, e.Name+" "+e.Arch+" "+e.Origin())
	}
	want := []string{
		"debian-bookworm  debian:bookworm", "debian-trixie  debian:trixie",
		"debian-bookworm-backports  debian:bookworm-backports", "debian-trixie-backports  debian:trixie-backports",
		"debian-bookworm-amd64 amd64 debian:bookworm", "debian-trixie-amd64 amd64 debian:trixie",
		"debian-bookworm-backports-amd64 amd64 debian:bookworm-backports", "debian-trixie-backports-amd64 amd64 debian:trixie-backports",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if e, err := Find(Default + "-" + runtime.GOARCH); err != nil || e.Name != Default {
		t.Errorf("the default with this host's architecture: %+v, %v", e, err)
	}
}

func TestPullWithoutTheKernelInTheArchive(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	m := debarchivetest.New(t)
	m.Publish(debarchivetest.Suite{Name: "bookworm", Packages: []debarchivetest.Package{
		{Name: "linux-image-cloud-amd64", Version: "1", Deb: []byte("x"), Depends: "linux-image-gone (= 1)"},
	}})
	_, _, err := Pull(t.Context(), entry(t), PullOptions{Staging: t.TempDir(), Arch: "amd64", Mirror: m.URI(), Keyring: m.Keyring})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no package linux-image-gone") {
		t.Errorf("error %v", err)
	}
}

func TestPullCancelledAtEachStep(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	m := publish(t, fakeFiles(t))
	server := httptest.NewServer(http.FileServer(http.Dir(m.Dir)))
	defer server.Close()
	reason := errors.New("the user has left")
	for _, step := range []string{"reading the index", "downloading", "unpacking", "indexing the modules", "building the modules image"} {
		t.Run(step, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			staging := t.TempDir()
			_, _, err := Pull(ctx, entry(t), PullOptions{
				Staging: staging, Arch: "amd64", Mirror: server.URL, Keyring: m.Keyring,
				Progress: func(u progress.Update) {
					if strings.HasPrefix(u.Message, step) {
						cancel(reason)
					}
				},
			})
			if !errors.Is(err, reason) || !fault.Is(err, fault.Cancelled) {
				t.Errorf("error %v (class %s), want the cause of the cancellation", err, fault.ClassOf(err))
			}
			if left := names(t, staging); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestPullFromAStalledMirror(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	staging := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond) // the second attempt starts after 500 ms
	defer cancel()
	_, _, err := Pull(ctx, entry(t), PullOptions{
		Staging: staging, Arch: "amd64", Mirror: server.URL, Keyring: debarchivetest.New(t).Keyring, Stall: 50 * time.Millisecond,
	})
	if err == nil || len(names(t, staging)) != 0 {
		t.Errorf("error %v, left behind: %v", err, names(t, staging))
	}
}

func TestFindAndLoad(t *testing.T) {
	for _, e := range Catalog() {
		if got, err := Find(e.Name); err != nil || !cmp.Equal(got, e) {
			t.Errorf("Find(%q) = %+v, %v", e.Name, got, err)
		}
	}
	_, err := Find("debian-bokworm")
	if !fault.Is(err, fault.NotFound) || fault.HintOf(err) != "banger kernel catalog" ||
		err.Error() != `no kernel is called "debian-bokworm", did you mean debian-bookworm?` {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
	dir := t.TempDir()
	if _, err := Load(dir); !fault.Is(err, fault.NotFound) {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ManifestFile), []byte(`{"layout": 99, "name": "x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger kernel pull x" {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
}

func TestFullDiskHasItsClass(t *testing.T) {
	dir := t.TempDir()
	err := explain(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, dir)
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) != "df -h "+filepath.Dir(dir) {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
}
