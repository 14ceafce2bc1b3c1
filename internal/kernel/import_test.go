package kernel

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/progress"
)

// write makes files below a directory of the test's; a name that ends in a slash is a directory, and a content of
// "-> x" a link to x.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		target, isLink := strings.CutPrefix(content, "-> ")
		switch {
		case err != nil:
		case isLink:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ownModules is a modules directory as an installation leaves it.
func ownModules(t testing.TB) map[string]string {
	mod := func(name string) string {
		return "\x7fELF " + name + "\x00license=GPL\x00vermagic=" + fakeRelease + " SMP mod_unload \x00"
	}
	return map[string]string{
		"modules.dep": "kernel/virtio.ko.xz:\nkernel/virtio_mmio.ko.gz: kernel/virtio.ko.xz\nkernel/virtio_blk.ko.zst: kernel/virtio.ko.xz\n" +
			"extra/virtio_net.ko: kernel/virtio.ko.xz\nkernel/virtio_console.ko:\n",
		"modules.builtin":          "kernel/fs/ext4/ext4.ko\nkernel/fs/overlay.ko\n",
		"kernel/virtio.ko.xz":      string(xzipped(t, []byte(mod("virtio")))),
		"kernel/virtio_mmio.ko.gz": string(gzipped(t, []byte(mod("virtio_mmio")))),
		"kernel/virtio_blk.ko.zst": string(zstandard(t, []byte(mod("virtio_blk")))),
		"extra/virtio_net.ko":      "-> ../elsewhere.ko",
		"elsewhere.ko":             mod("virtio_net"),
		"kernel/virtio_console.ko": mod("virtio_console"),
		"build":                    "-> /usr/src/linux-headers",
		"source":                   "-> .",
		"vmlinuz":                  "a second copy",
		"loop":                     "-> .",
	}
}

// withConfig adds the configuration to a kernel as CONFIG_IKCONFIG does.
func withConfig(t testing.TB, kernel []byte, config string) []byte {
	return append(append(append(kernel, "IKCFG_ST"...), gzipped(t, []byte(config))...), "IKCFG_ED"...)
}

func doImport(t testing.TB, opt ImportOptions) (dir string, m Manifest, err error) {
	t.Helper()
	opt.Staging = t.TempDir()
	if opt.Name == "" {
		opt.Name = "mine"
	}
	dir, m, err = Import(t.Context(), opt)
	if left := names(t, opt.Staging); err != nil && len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	return dir, m, err
}

func TestImportMakesAKernelDirectory(t *testing.T) {
	modules := write(t, ownModules(t))
	before := tree0(t, modules)
	plain := withConfig(t, fakeKernel(pvhNote, 10_000), fakeConfig())
	files := write(t, map[string]string{"bzImage": string(bzImage(withSize(zstandard(t, plain), plain))), "initrd": "070701" + trailerRest})
	image := filepath.Join(files, "bzImage")
	dir, got, err := doImport(t, ImportOptions{Image: image, Modules: modules, Initrd: filepath.Join(files, "initrd")})
	if err != nil {
		t.Fatal(err)
	}
	order := []string{"virtio", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console"}
	want := Manifest{
		Layout: Layout, Name: "mine", Version: fakeRelease, Arch: "amd64", Origin: OriginImport, Source: image, Initrd: true,
		Digest: got.Digest, BootModules: order, Created: got.Created,
		Missing: []string{"CONFIG_HW_RANDOM_VIRTIO (entropy from the host): it is a module, which is not there", "CONFIG_POSIX_MQUEUE (/dev/mqueue)"},
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got.Digest) != 71 || got.Created.IsZero() {
		t.Errorf("manifest %+v (-want +got)\n%s", got, diff)
	}
	if loaded, err := Load(dir); err != nil || !cmp.Equal(loaded, got) {
		t.Errorf("Load = %+v, %v", loaded, err)
	}
	if diff := cmp.Diff([]string{BootDir, InitrdFile, ManifestFile, ModulesFile, ImageFile}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got)\n%s", diff)
	}
	if kernel, err := os.ReadFile(filepath.Join(dir, ImageFile)); err != nil || !bytes.Equal(kernel, plain) {
		t.Errorf("kernel of %d bytes, %v", len(kernel), err)
	}
	for _, module := range order {
		data, err := os.ReadFile(filepath.Join(dir, BootDir, module+".ko"))
		if err != nil || !strings.HasPrefix(string(data), "\x7fELF "+module+"\x00") {
			t.Errorf("module %s: %q, %v", module, data, err)
		}
	}
	if used, err := ext4.Usage(filepath.Join(dir, ModulesFile)); err != nil || used == 0 {
		t.Errorf("modules image takes %d bytes, %v", used, err)
	}
	if diff := cmp.Diff(before, tree0(t, modules)); diff != "" {
		t.Errorf("the user's files have changed (-want +got)\n%s", diff)
	}
}

// trailerRest ends an archive with nothing in it, after its magic.
var trailerRest = strings.Repeat("0", 88) + "0000000B" + "00000000" + "TRAILER!!!\x00"

// tree0 lists the files of a directory with sizes and times.
func tree0(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		out[path] = info.Mode().String() + info.ModTime().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A kernel that has all it needs in itself, given as a vmlinux, and its digest: what counts is the content.
func TestImportWithoutModules(t *testing.T) {
	config := strings.ReplaceAll(fakeConfig(), "=m", "=y")
	plain := fakeKernel(pvhNote, 1000)
	files := write(t, map[string]string{
		"vmlinux": string(plain), "bzImage": string(bzImage(withSize(xzipped(t, plain), plain))),
		"config": config, "config.gz": string(gzipped(t, []byte(config))), "less": strings.Replace(config, "CONFIG_SMP=y", "", 1),
	})
	digests := map[string]string{}
	for name, opt := range map[string]ImportOptions{
		"vmlinux":        {Image: "vmlinux", Config: "config"},
		"bzImage":        {Image: "bzImage", Config: "config.gz", Name: "other"},
		"another config": {Image: "vmlinux", Config: "less"},
		"no config":      {Image: "vmlinux"},
	} {
		opt.Image = filepath.Join(files, opt.Image)
		if opt.Config != "" {
			opt.Config = filepath.Join(files, opt.Config)
		}
		dir, m, err := doImport(t, opt)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		digests[name] = m.Digest
		if len(m.BootModules) != 0 || len(names(t, filepath.Join(dir, BootDir))) != 0 {
			t.Errorf("%s: boot modules %v", name, m.BootModules)
		}
		if info, err := os.Stat(filepath.Join(dir, ModulesFile)); err != nil || info.Size() != ext4.DefaultSize {
			t.Errorf("%s: modules image: %v, %v", name, info, err)
		}
		missing, unknown := "CONFIG_POSIX_MQUEUE (/dev/mqueue)", 0
		switch name {
		case "another config":
			missing += "; CONFIG_SMP (more than one processor)"
		case "no config":
			missing, unknown = "", len(needs())-2 // but for PVH and what arm64 needs
		}
		if strings.Join(m.Missing, "; ") != missing || len(m.Unknown) != unknown {
			t.Errorf("%s: missing %q, unknown %q", name, m.Missing, m.Unknown)
		}
		if lacks := m.Lacks(); unknown > 0 && (len(lacks) != 1 || lacks[0] !=
			"perhaps CONFIG_ACPI, CONFIG_VIRTIO_MMIO, CONFIG_VIRTIO_BLK and 25 more: nothing says what it was built with") {
			t.Errorf("%s: it lacks %q", name, lacks)
		}
	}
	if digests["vmlinux"] != digests["bzImage"] || digests["vmlinux"] == digests["another config"] || digests["vmlinux"] == digests["no config"] {
		t.Errorf("digests %v", digests)
	}
}

func TestImportRefuses(t *testing.T) {
	config := fakeConfig()
	good := withConfig(t, fakeKernel(pvhNote, 1), config)
	without := func(line string) string { return strings.Replace(config, line+"\n", "", 1) }
	for _, tc := range []struct {
		name   string
		opt    ImportOptions
		files  map[string]string // relative to the test's directory, besides vmlinux and m/ with the modules
		class  fault.Class
		text   string
		forced bool // Force helps
	}{
		{name: "no image", opt: ImportOptions{Image: "gone"}, class: fault.NotFound, text: "gone"},
		{name: "image is a directory", opt: ImportOptions{Image: "m"}, class: fault.Invalid, text: "not a regular file"},
		{name: "no modules", opt: ImportOptions{Modules: "gone"}, class: fault.NotFound, text: "modules"},
		{name: "modules are a file", opt: ImportOptions{Modules: "vmlinux"}, class: fault.Invalid, text: "not a directory"},
		{name: "not modules", opt: ImportOptions{Modules: "d"}, files: map[string]string{"d/x": ""}, class: fault.Invalid, text: "no modules of Linux " + fakeRelease},
		{name: "no config", opt: ImportOptions{Config: "gone"}, class: fault.NotFound, text: "configuration"},
		{name: "no initrd", opt: ImportOptions{Initrd: "gone"}, class: fault.NotFound, text: "initrd"},
		{name: "not a kernel", opt: ImportOptions{Image: "x"}, files: map[string]string{"x": "hello"}, class: fault.Invalid, text: "it is no kernel that banger can read: kernel: compressed in an unknown way (68 65 6c 6c)"},
		{name: "empty", opt: ImportOptions{Image: "x"}, files: map[string]string{"x": ""}, class: fault.Invalid, text: "unknown way"},
		{name: "a program", opt: ImportOptions{Image: "x"}, files: map[string]string{"x": elfProgram()}, class: fault.Invalid, text: "type ET_DYN"},
		{
			name: "no release", opt: ImportOptions{Image: "x"}, class: fault.Invalid, text: "which version of Linux",
			files: map[string]string{"x": strings.Replace(string(good), "Linux version", "Minix version", 1)},
		},
		{
			name: "another architecture", opt: ImportOptions{Image: "x", Modules: "-", Config: "c"}, class: fault.Invalid, forced: true,
			text: "it is for arm64, this host is amd64",
			files: map[string]string{
				"x": strings.Repeat("\x00", 0x38) + "ARM\x64 and the rest: Linux version 6.1.0 (x)",
				"c": strings.ReplaceAll(config, "=m", "=y"),
			},
		},
		{name: "not a configuration", opt: ImportOptions{Config: "x"}, files: map[string]string{"x": "hello"}, class: fault.Invalid, text: "not a kernel's configuration"},
		{
			name: "no PVH", opt: ImportOptions{Image: "x"}, class: fault.Invalid, forced: true,
			text:  "it lacks CONFIG_PVH (entry point for virtual machines)",
			files: map[string]string{"x": string(withConfig(t, fakeKernel(pvhNote+1, 1), config))},
		},
		{
			name: "options", opt: ImportOptions{Config: "x"}, class: fault.Invalid, forced: true, text: "it lacks CONFIG_DEVTMPFS (device files)",
			files: map[string]string{"x": without("CONFIG_DEVTMPFS=y")},
		},
		{
			name: "no modules given", opt: ImportOptions{Modules: "-"}, class: fault.Invalid, forced: true,
			text: "CONFIG_VIRTIO_MMIO (virtio devices): it is a module, which is not there, CONFIG_VIRTIO_BLK (disks)",
		},
		{
			name: "too old", opt: ImportOptions{Image: "x"}, class: fault.Invalid, forced: true, text: "Linux 5.2 or later (it is 4.19.0-x)",
			files: map[string]string{"x": strings.Replace(string(good), fakeRelease, "4.19.0-x", 1)},
		},
		{
			name: "modules of another kernel", class: fault.Invalid, forced: true, text: "it is for Linux 5.0, the kernel is " + fakeRelease,
			files: map[string]string{"m/kernel/virtio_console.ko": "\x7fELF\x00vermagic=5.0 SMP\x00"},
		},
		{name: "broken module", class: fault.Invalid, text: "virtio_console.ko", files: map[string]string{"m/kernel/virtio_console.ko": "\xfd7zXZ\x00cut"}},
		{name: "not an initrd", opt: ImportOptions{Initrd: "x"}, files: map[string]string{"x": "hello"}, class: fault.Invalid, text: "no cpio archive at byte 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"vmlinux": string(good)}
			for name, content := range ownModules(t) {
				files["m/"+name] = content
			}
			for name, content := range tc.files {
				files[name] = content
			}
			dir := write(t, files)
			opt := tc.opt
			for field, fallback := range map[*string]string{&opt.Image: "vmlinux", &opt.Modules: "m", &opt.Config: "", &opt.Initrd: ""} {
				if *field == "" {
					*field = fallback
				}
				if *field == "-" {
					*field = ""
				}
				if *field != "" {
					*field = filepath.Join(dir, *field)
				}
			}
			_, _, err := doImport(t, opt)
			if !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v (class %s), want class %s and %q", err, fault.ClassOf(err), tc.class, tc.text)
			}
			opt.Force = true
			if _, _, err := doImport(t, opt); (err == nil) != tc.forced {
				t.Errorf("with force: %v", err)
			}
		})
	}
}

// elfProgram is an ELF file that is no kernel.
func elfProgram() string {
	program := fakeKernel(pvhNote, 1)
	program[16] = 3
	return string(program)
}

// Modules that nobody has indexed: depmod does.
func TestImportIndexesModules(t *testing.T) {
	fakeDepmod(t, goodDepmod)
	modules := map[string]string{"lib/modules/" + fakeRelease + "/modules.builtin": "kernel/fs/overlay.ko\n"}
	for _, m := range []string{"virtio.ko.xz", "virtio_mmio.ko", "virtio_blk.ko", "virtio_net.ko", "virtio_console.ko"} {
		modules["lib/modules/"+fakeRelease+"/kernel/"+m] = "\x7fELF"
	}
	modules["lib/modules/"+fakeRelease+"/kernel/virtio.ko.xz"] = string(xzipped(t, []byte("\x7fELF")))
	modules["vmlinux"] = string(withConfig(t, fakeKernel(pvhNote, 1), fakeConfig()))
	dir := write(t, modules)
	_, m, err := doImport(t, ImportOptions{Image: filepath.Join(dir, "vmlinux"), Modules: dir}) // the parent of lib/modules will do
	if err != nil || len(m.BootModules) != 5 || m.BootModules[0] != "virtio" {
		t.Errorf("boot modules %v, %v", m.BootModules, err)
	}
}

func TestImportCancelledAtEachStep(t *testing.T) {
	files := ownModules(t)
	files["../vmlinux"] = string(withConfig(t, fakeKernel(pvhNote, 1), fakeConfig()))
	dir := write(t, files)
	image := filepath.Join(filepath.Dir(dir), "vmlinux")
	reason := errors.New("the user has left")
	for _, step := range []string{"copying " + image, "copying " + dir, "building the modules image"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		staging := t.TempDir()
		_, _, err := Import(ctx, ImportOptions{
			Name: "mine", Image: image, Modules: dir, Staging: staging,
			Progress: func(u progress.Update) {
				if u.Message == step && u.Stage == stageName {
					cancel(reason)
				}
			},
		})
		cancel(nil)
		if !errors.Is(err, reason) || !fault.Is(err, fault.Cancelled) || len(names(t, staging)) != 0 {
			t.Errorf("%s: error %v (class %s), left behind %v", step, err, fault.ClassOf(err), names(t, staging))
		}
	}
}
