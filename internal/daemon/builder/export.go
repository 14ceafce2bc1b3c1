package builder

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/library"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/bundle"
	"banger/internal/image/oci"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// Formats of an export. The strings are part of the wire.
const (
	FormatLayout  = "oci-layout"
	FormatArchive = "oci-archive"
	FormatBundle  = "bundle"
)

// Export is an image that is to be written to the host.
type Export struct {
	Image  library.Artifact
	Path   string // must not exist
	Format string
	Kernel bool // with its kernel, in a bundle
}

// CheckExport refuses what cannot be done.
func CheckExport(e Export) error {
	switch {
	case e.Format != FormatLayout && e.Format != FormatArchive && e.Format != FormatBundle:
		return fault.New(fault.Invalid, "format %q is not one of %s, %s and %s", e.Format, FormatLayout, FormatArchive, FormatBundle)
	case e.Kernel && e.Format != FormatBundle:
		return fault.New(fault.Invalid, "only a bundle can have a kernel in it").WithHint("banger image export %s --kernel -o image.tar.zst", e.Image.Ref())
	}
	if _, err := os.Lstat(e.Path); err == nil {
		return fault.New(fault.Exists, "%s exists already", e.Path).WithHint("rm -r %s", e.Path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Invalid, err, "%s", e.Path)
	}
	return nil
}

// Export writes an image. Its file or directory is there when it is whole, or not at all.
func (b *Builder) Export(ctx context.Context, e Export, report progress.Func) (err error) {
	defer b.cfg.Shelf.UseBlobs()()
	layers, err := b.layers(ctx, e.Image, report)
	if err != nil {
		return err
	}
	work, remove, err := b.beside(e.Path)
	if err != nil {
		return fault.Wrap(classOf(err), err, "export to %s", e.Path)
	}
	defer func() {
		if removeErr := remove(); err == nil {
			err = removeErr
		}
	}()
	made := filepath.Join(work, filepath.Base(e.Path))
	switch e.Format {
	case FormatLayout:
		err = oci.WriteLayout(ctx, b.cfg.Blobs, made, described(e.Image, layers), oci.WriteOptions{Progress: report})
	case FormatArchive:
		err = b.writeArchive(ctx, made, described(e.Image, layers), report)
	default:
		err = b.writeBundle(ctx, e, layers, made, work, report)
	}
	if err == nil {
		err = b.at(ctx, StepExported)
	}
	if err != nil {
		return fault.Context(err, "export image %s", e.Image.Ref())
	}
	return settle(made, e.Path)
}

// outside is the name of a link in a staging directory: to a directory elsewhere that is to go with it.
const outside = "outside"

// beside makes a directory beside a path, so that a rename publishes what is made in it: hidden, as it is nothing yet. A
// link in the staging directory leads the next daemon to it, should this one die.
func (b *Builder) beside(path string) (work string, remove func() error, err error) {
	note, err := os.MkdirTemp(b.cfg.Paths.Staging(), "export-*")
	if err != nil {
		return "", nil, err
	}
	work = filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strings.TrimPrefix(filepath.Base(note), "export-"))
	if err = os.Symlink(work, filepath.Join(note, outside)); err == nil {
		err = os.Mkdir(work, 0o700)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(note))
	}
	return work, func() error { return errors.Join(os.RemoveAll(work), os.RemoveAll(note)) }, nil
}

// Sweep removes what an export that was cut off has left elsewhere. dir is its directory in staging.
func Sweep(dir string) error {
	id, ok := strings.CutPrefix(filepath.Base(dir), "export-")
	if !ok {
		return nil
	}
	work, err := os.Readlink(filepath.Join(dir, outside))
	if err != nil || !strings.HasPrefix(filepath.Base(work), ".") || !strings.HasSuffix(work, "."+id) {
		return nil
	}
	return os.RemoveAll(work)
}

// settle gives what was made its name, if nobody else has it by now.
func settle(made, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without this flag
		if _, statErr := os.Lstat(path); statErr == nil {
			err = fs.ErrExist
		} else {
			err = os.Rename(made, path)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "%s was made by somebody else meanwhile", path)
	}
	if err != nil {
		return fault.Wrap(classOf(err), err, "export to %s", path)
	}
	return nil
}

// described is an image in the words of package oci.
func described(a library.Artifact, layers []source.Layer) oci.Image {
	return oci.Image{Config: a.Config, Arch: a.Arch, Layers: layers, Created: a.Created}
}

func (b *Builder) writeArchive(ctx context.Context, path string, img oci.Image, report progress.Func) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = oci.WriteArchive(ctx, b.cfg.Blobs, f, img, oci.WriteOptions{Progress: report})
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if ext4.NoSpace(err) {
		return ext4.Exhausted(err, path, 1<<20)
	}
	return err
}

// writeBundle writes a bundle. work is a private directory.
func (b *Builder) writeBundle(ctx context.Context, e Export, layers []source.Layer, path, work string, report progress.Func) error {
	c := bundle.Contents{Manifest: bundle.Manifest{
		Name: e.Image.Ref(), Arch: e.Image.Arch, Created: e.Image.Created, Config: e.Image.Config, Kernel: e.Image.Kernel,
	}}
	if e.Kernel {
		krn, err := b.kernel(ctx, e.Image.Kernel, report)
		if err != nil {
			return err
		}
		c.KernelDir, c.Manifest.Kernel = krn.Dir, krn.Name
	}
	scratch, err := os.MkdirTemp(b.cfg.Paths.Staging(), "layers-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	stream := b.flatten(ctx, layers, scratch)
	c.Rootfs = report.Reader(stream, progress.Update{Stage: stage, Message: "writing " + filepath.Base(e.Path)})
	_, err = bundle.Write(ctx, path, c)
	if errors.Is(err, ext4.ErrAnew) { // what a bundle has said it cannot take back
		var f *os.File
		if f, err = spool(ctx, stream, work); err == nil {
			c.Rootfs = f
			_, err = bundle.Write(ctx, path, c)
			err = errors.Join(err, f.Close())
		}
	}
	return errors.Join(err, stream.Close())
}

// spool puts the rest of a stream into a file of dir.
func spool(ctx context.Context, r io.Reader, dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "rootfs-*")
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(f, r); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, context.Cause(ctx), f.Close())
	}
	return f, nil
}

// Push sends an image to a registry and returns its digest there. names are those that it has here: where one of them is
// on the same registry, its layers are there already.
func (b *Builder) Push(ctx context.Context, a library.Artifact, names []string, target string, report progress.Func) (digest string, err error) {
	defer b.cfg.Shelf.UseBlobs()()
	layers, err := b.layers(ctx, a, report)
	if err != nil {
		return "", err
	}
	return b.registry.Push(ctx, target, described(a, layers), oci.WriteOptions{Progress: report, From: names})
}

func classOf(err error) fault.Class {
	switch {
	case ext4.NoSpace(err):
		return fault.Exhausted
	case errors.Is(err, fs.ErrPermission):
		return fault.Denied
	}
	return fault.ClassOf(err)
}
