package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/image/layer"
	"banger/internal/image/source"
)

// External are the files of a registered image. They are their owner's: banger reads them and never changes or removes
// them.
type External struct {
	Rootfs File `json:"rootfs"` // an ext4 file system
}

// File is a file as it was when it was registered.
type File struct {
	Path    string    `json:"path"` // absolute
	Size    int64     `json:"size"`
	ModTime time.Time `json:"mtime"`
}

// Registration says what to register.
type Registration struct {
	Staging string // as in PullOptions
	Name    string
	Rootfs  string // absolute path of an ext4 file system, or of a tar file, perhaps compressed
	Arch    string // amd64 or arm64; empty: this host's
	Kernel  string // kernel reference of VMs that name none
	Config  source.Config
	Limits  Limits
}

// Register makes an image directory for a file of the user's: of an ext4 file system one that only points to it
// (Manifest.External), of a tar file one with a root file system of its own made from that, as no guest can read a tar.
// As with Pull, the directory is for the caller to publish or to remove.
func Register(ctx context.Context, r Registration) (dir string, m Manifest, err error) {
	if r.Arch == "" {
		r.Arch = runtime.GOARCH
	}
	f, info, err := openFile(r.Rootfs)
	if err != nil {
		return "", Manifest{}, fault.Context(err, "register %s", r.Name)
	}
	defer f.Close()
	m = Manifest{Name: r.Name, Source: "file:" + r.Rootfs, Arch: r.Arch, Kernel: r.Kernel}
	isExt4, err := checkExt4(f, info.Size())
	switch {
	case err != nil:
	case isExt4:
		dir, m, err = r.pointTo(m, info)
	default:
		dir, m, err = r.convert(ctx, m, info)
	}
	return dir, m, fault.Context(err, "register %s", r.Name)
}

// openFile opens a plain file, and nothing that a Read could wait for.
func openFile(path string) (*os.File, os.FileInfo, error) {
	if !filepath.IsAbs(path) {
		return nil, nil, fault.New(fault.Invalid, "%q is not an absolute path", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, fault.New(fault.NotFound, "there is no file %s", path).WithHint("ls -l %s", quote(filepath.Dir(path)))
	case errors.Is(err, os.ErrPermission):
		return nil, nil, fault.New(fault.Denied, "%s may not be read", path).WithHint("ls -l %s", quote(path))
	case err != nil:
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "%s is not a file", path).WithHint("ls -ld %s", quote(path))
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// pointTo registers the file system as it is.
func (r Registration) pointTo(m Manifest, info os.FileInfo) (string, Manifest, error) {
	m.External = &External{Rootfs: File{Path: r.Rootfs, Size: info.Size(), ModTime: info.ModTime()}}
	m.Origin, m.Config, m.Size = r.Rootfs, r.Config, uint64(info.Size())
	m.Digest = source.Identity(source.ConfigDigest(r.Config, r.Arch),
		[]string{fmt.Sprintf("file:%s:%d:%d", r.Rootfs, info.Size(), info.ModTime().UnixNano()), "kernel:" + r.Kernel})
	dir, err := os.MkdirTemp(r.Staging, "image-*")
	if err == nil {
		if err = m.write(dir); err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err != nil {
		return "", Manifest{}, explain(err, r.Staging)
	}
	return dir, m, nil
}

// convert makes a root file system of a tar file. It goes through package layer, which knows what tar files hold: paths
// that are there twice, entries below links.
func (r Registration) convert(ctx context.Context, m Manifest, info os.FileInfo) (_ string, _ Manifest, err error) {
	scratch, err := os.MkdirTemp(r.Staging, "register-*")
	if err != nil {
		return "", Manifest{}, explain(err, r.Staging)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	blob := layer.Blob{Size: info.Size(), Open: func(context.Context) (io.ReadCloser, error) {
		f, _, err := openFile(r.Rootfs)
		return f, err
	}}
	stream := layer.Flatten(ctx, []layer.Blob{blob}, layer.Options{
		Scratch: scratch, Limits: layer.Limits{Size: int64(r.Limits.Size), Entries: r.Limits.Entries},
	})
	dir, m, err := FromTree(ctx, r.Staging, m, source.Tree{Tar: stream, Origin: r.Rootfs, Config: r.Config})
	if fault.Is(err, fault.Invalid) {
		err = fault.Wrap(fault.Invalid, err, "%s is neither an ext4 file system nor a tar file of one", r.Rootfs).
			WithHint("file %s", quote(r.Rootfs))
	}
	return dir, m, err
}

// checkExt4 reports whether the file is an ext4 file system, and whether a guest could mount it as it is, read-only.
func checkExt4(f *os.File, size int64) (bool, error) {
	var sb [256]byte
	if _, err := f.ReadAt(sb[:], 1024); err != nil { // too short
		return false, nil
	}
	// Offsets of the superblock: "Ext4 disk layout" in the kernel's documentation.
	if binary.LittleEndian.Uint16(sb[0x38:]) != 0xef53 {
		return false, nil
	}
	blocks, shift := int64(binary.LittleEndian.Uint32(sb[0x4:])), binary.LittleEndian.Uint32(sb[0x18:])
	const needsRecovery = 0x4
	switch incompatible := binary.LittleEndian.Uint32(sb[0x60:]); {
	case shift > 6:
		return true, fault.New(fault.Invalid, "%s is damaged: its blocks have an impossible size", f.Name()).WithHint("e2fsck -f %s", quote(f.Name()))
	case blocks<<(10+shift) > size:
		return true, fault.New(fault.Invalid, "%s is cut off: its file system has %d bytes, the file %d", f.Name(), blocks<<(10+shift), size).
			WithHint("e2fsck -fn %s", quote(f.Name()))
	case incompatible&needsRecovery != 0:
		return true, fault.New(fault.Conflict, "%s was not unmounted: its journal has to be played back first", f.Name()).
			WithHint("e2fsck -fp %s", quote(f.Name()))
	}
	return true, nil
}

// CheckExternal reports a fault of class Conflict when the files of a registered image are not what they were. For a
// managed image it reports nothing.
func (m Manifest) CheckExternal() error {
	if m.External == nil {
		return nil
	}
	was := m.External.Rootfs
	info, err := os.Stat(was.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Conflict, "image %s: %s, which it was registered from, is gone", m.Name, was.Path).WithHint("banger image rm %s", quote(m.Name))
	case err != nil:
		return fault.Wrap(fault.Conflict, err, "image %s", m.Name).WithHint("ls -l %s", quote(was.Path))
	case info.Size() != was.Size || !info.ModTime().Equal(was.ModTime):
		return fault.New(fault.Conflict, "image %s: %s has changed since it was registered", m.Name, was.Path).
			WithHint("banger image register --force %s --rootfs %s", quote(m.Name), quote(was.Path))
	}
	return nil
}
