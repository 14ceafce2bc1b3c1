package kernel

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/debarchive"
	"banger/internal/fault"
)

// Limits on what a package may make this host write.
const (
	maxFile  = 512 << 20 // bytes of one file
	maxTotal = 4 << 30   // bytes of all
)

// tree is an unpacked kernel package.
type tree struct {
	base    string    // has lib/modules/<version>
	version string    // the kernel's release
	kernel  string    // the file boot/vmlinuz-<version>
	modules string    // base/lib/modules/<version>
	time    time.Time // of the kernel file
}

// unpack writes the kernel and the modules of the package to a new directory in work.
func unpack(ctx context.Context, deb, work string) (tree, error) {
	in, err := os.Open(deb)
	if err != nil {
		return tree{}, err
	}
	defer in.Close()
	t := tree{base: filepath.Join(work, "tree")}
	if err := makeBase(t.base); err != nil {
		return tree{}, err
	}
	root, err := os.OpenRoot(t.base) // whatever a name says, nothing is written outside
	if err != nil {
		return tree{}, err
	}
	defer root.Close()
	u := unpacker{ctx: ctx, root: root, tree: &t, left: maxTotal}
	if err := debarchive.Unpack(in, u.visit); err != nil {
		if ctx.Err() != nil {
			return tree{}, context.Cause(ctx)
		}
		return tree{}, err
	}
	return t, t.check()
}

// makeBase makes the directory that depmod is pointed at. A depmod may be built to look below lib or below usr/lib.
func makeBase(base string) error {
	if err := os.MkdirAll(filepath.Join(base, "usr"), 0o755); err != nil {
		return err
	}
	return os.Symlink("../lib", filepath.Join(base, "usr", "lib"))
}

type unpacker struct {
	ctx  context.Context // of one call of unpack
	root *os.Root
	tree *tree
	left int64
}

// visit keeps the kernel and the modules; nothing else of the package is needed. Links are left out: a kernel package
// has them for module builders only ("build", "source").
func (u *unpacker) visit(h *tar.Header, r io.Reader) error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	name := strings.TrimPrefix(h.Name, "usr/") // a merged /usr has both
	version, isKernel := strings.CutPrefix(name, "boot/vmlinuz-")
	switch {
	case h.Typeflag != tar.TypeReg:
		return nil
	case isKernel:
		if u.tree.version != "" {
			return fault.New(fault.Invalid, "a second kernel in one package")
		}
		u.tree.version, u.tree.time = version, h.ModTime
		u.tree.kernel = filepath.Join(u.tree.base, name)
		u.tree.modules = filepath.Join(u.tree.base, "lib", "modules", version)
	case !strings.HasPrefix(name, "lib/modules/"):
		return nil
	}
	return u.write(name, h.Size, r)
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
		return fault.New(fault.Invalid, "twice in one package")
	}
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, r, size)
	return errors.Join(err, f.Close())
}

// check makes sure that the package was a kernel's.
func (t tree) check() error {
	if t.version == "" {
		return fault.New(fault.Invalid, "the package holds no kernel")
	}
	if strings.ContainsAny(t.version, "/ \n") {
		return fault.New(fault.Invalid, "the package holds a kernel of version %q", t.version)
	}
	if _, err := os.Stat(t.modules); err != nil {
		return fault.Wrap(fault.Invalid, err, "the package holds no modules for %s", t.version)
	}
	return nil
}

// extractFile writes the kernel inside the boot file src to the new file dst.
func extractFile(src, dst string) error {
	image, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = extract(image, w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = checkBootable(f)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
