package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/debarchive"
	"banger/internal/fault"
)

// Limits on what a package, or a modules directory, may make this host write.
const (
	maxFile  = 512 << 20 // bytes of one file
	maxTotal = 4 << 30   // bytes of all
	maxFiles = 200_000
)

// tree is an unpacked kernel.
type tree struct {
	base    string    // has lib/modules/<version>
	version string    // the kernel's release
	kernel  string    // the file base/vmlinuz
	modules string    // base/lib/modules/<version>; empty: the kernel has none
	config  string    // file of its configuration; it may be missing
	time    time.Time // of the kernel file
}

// newTree makes the directory that depmod is pointed at. A depmod may be built to look below lib or below usr/lib.
func newTree(base string) (tree, error) {
	if err := os.MkdirAll(filepath.Join(base, "usr"), 0o755); err != nil {
		return tree{}, err
	}
	return tree{base: base, kernel: filepath.Join(base, "vmlinuz")}, os.Symlink("../lib", filepath.Join(base, "usr", "lib"))
}

// setVersion is called when the release is known.
func (t *tree) setVersion(version string) {
	t.version = version
	t.modules = filepath.Join(t.base, "lib", "modules", version)
	t.config = filepath.Join(t.modules, "config")
}

// unpack writes the kernel and the modules of the packages to a new directory in work.
func unpack(ctx context.Context, debs []string, work string) (tree, error) {
	t, err := newTree(filepath.Join(work, "tree"))
	if err != nil {
		return tree{}, err
	}
	root, err := os.OpenRoot(t.base) // whatever a name says, nothing is written outside
	if err != nil {
		return tree{}, err
	}
	defer root.Close()
	u := unpacker{ctx: ctx, root: root, tree: &t, left: maxTotal, modules: map[string]bool{}}
	for _, deb := range debs {
		if err := u.unpack(deb); err != nil {
			return tree{}, err
		}
	}
	return t, u.check()
}

type unpacker struct {
	ctx     context.Context // of one call of unpack
	root    *os.Root
	tree    *tree
	left    int64
	modules map[string]bool // releases that there were files of modules for
}

func (u *unpacker) unpack(deb string) error {
	in, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer in.Close()
	err = debarchive.Unpack(in, u.visit)
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	return err
}

// visit keeps the kernel, its configuration and the modules; nothing else of a package is needed. Links are left out:
// a kernel package has them for module builders only ("build", "source").
func (u *unpacker) visit(h *tar.Header, r io.Reader) error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	name := strings.TrimPrefix(h.Name, "usr/") // a merged /usr has both
	kind, version := classify(name)
	switch kind {
	case kernelFile:
		if u.tree.version != "" {
			return fault.New(fault.Invalid, "a second kernel")
		}
		u.tree.setVersion(version)
		u.tree.time = h.ModTime
		name = filepath.Base(u.tree.kernel)
	case configFile:
		name = "lib/modules/" + version + "/config"
	case moduleFile:
		u.modules[version] = true
	case otherFile:
		return nil
	}
	return u.write(name, h.Size, r)
}

// What a file of a kernel package is.
const (
	otherFile = iota
	kernelFile
	configFile
	moduleFile
)

// classify tells by its name what a file is. Debian has kernels in /boot up to Linux 6.18, and below /lib/modules, with
// what is about them, since then.
func classify(name string) (kind int, version string) {
	if version, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok {
		return kernelFile, version
	}
	if version, ok := strings.CutPrefix(name, "boot/config-"); ok {
		return configFile, version
	}
	rest, ok := strings.CutPrefix(name, "lib/modules/")
	if !ok {
		return otherFile, ""
	}
	version, file, _ := strings.Cut(rest, "/")
	switch {
	case file == "vmlinuz":
		return kernelFile, version
	case file == "config":
		return configFile, version
	case unwanted(file):
		return otherFile, version
	}
	return moduleFile, version
}

// unwanted reports whether a file of a modules directory is of no use in a guest: links to sources, symbols, kernels and
// hardware descriptions.
func unwanted(file string) bool {
	first, _, _ := strings.Cut(file, "/")
	return slices.Contains([]string{"build", "source", "vmlinuz", "vmlinux", "System.map", "symvers.gz", "symvers.xz", "dtb", "vdso"}, first)
}

func (u *unpacker) write(name string, size int64, r io.Reader) error {
	if u.left -= size; size > maxFile || u.left < 0 {
		return fault.New(fault.Invalid, "too large (%d bytes)", size)
	}
	if err := u.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Invalid, "there twice")
	}
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, r, size)
	return errors.Join(err, f.Close())
}

// check makes sure that the packages were a kernel's.
func (u *unpacker) check() error {
	switch version := u.tree.version; {
	case version == "":
		return fault.New(fault.Invalid, "the package holds no kernel")
	case strings.ContainsAny(version, "/ \n") || !filepath.IsLocal(version):
		return fault.New(fault.Invalid, "the package holds a kernel of version %q", version)
	case !u.modules[version]:
		return fault.New(fault.Invalid, "the package holds no modules for %s", version)
	}
	return nil
}
