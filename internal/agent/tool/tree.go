package tool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agent/pax"
)

// tree writes files of one file system to an archive. The working directory of the process is always the directory that
// is being written: of the system calls for extended attributes none takes a directory.
type tree struct {
	out   *pax.Writer
	links map[uint64]string // the names in the archive of files with several, by inode
	names []byte            // room for a directory's entries, and for the names of attributes
	value []byte            // room for an attribute's value, and for the target of a link
}

// maxXattr is what the kernel allows for a value and for a list of names.
const maxXattr = 64 << 10

func newTree(w io.Writer) *tree {
	return &tree{
		out: pax.NewWriter(w), links: map[uint64]string{}, names: make([]byte, maxXattr), value: make([]byte, maxXattr),
	}
}

// openDir opens the directory name in dir for reading.
func openDir(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// within calls do with the subdirectory name of dir open and as the working directory, which is dir's again after it.
func within(dir int, name string, do func(fd int) error) error {
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fchdir(fd); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := do(fd); err != nil {
		return err
	}
	return os.NewSyscallError("fchdir", unix.Fchdir(dir))
}

// list returns the names in a directory, sorted.
func (t *tree) list(fd int) ([]string, error) {
	var names []string
	for {
		n, err := unix.ReadDirent(fd, t.names)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("getdents", err)
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(t.names[:n], -1, names)
	}
	slices.Sort(names)
	return names, nil
}

// stat looks at a file of the working directory.
func stat(name string) (st unix.Stat_t, err error) {
	if err := unix.Lstat(name, &st); err != nil {
		return st, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return st, nil
}

// add writes one file of the working directory, which is dir in the archive. It leaves out a socket: there is no such
// file in an archive, and nobody can listen on it.
func (t *tree) add(dir, name string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	h, err := t.header(dir, name, st)
	if err == nil {
		err = t.out.WriteHeader(h)
	}
	if err == nil && h.Type == pax.Regular && h.Size > 0 {
		err = t.content(name, st)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", join(dir, name), err)
	}
	return nil
}

// header says everything of a file but its content.
func (t *tree) header(dir, name string, st *unix.Stat_t) (*pax.Header, error) {
	h := &pax.Header{
		Name: join(dir, name), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := t.links[st.Ino]; ok {
			h.Type, h.Link = pax.HardLink, first
			return h, nil
		}
		t.links[st.Ino] = h.Name
	}
	switch kind {
	case unix.S_IFREG:
		h.Type, h.Size = pax.Regular, st.Size
	case unix.S_IFDIR:
		h.Type = pax.Directory
		h.Name += "/"
	case unix.S_IFLNK:
		n, err := unix.Readlink(name, t.value)
		if err != nil {
			return nil, os.NewSyscallError("readlink", err)
		}
		h.Type, h.Link = pax.Symlink, string(t.value[:n])
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Type = pax.Char
		if kind == unix.S_IFBLK {
			h.Type = pax.Block
		}
		h.Major, h.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		h.Type = pax.Fifo
	default:
		return nil, fmt.Errorf("unknown type of file %o", kind)
	}
	var err error
	h.Xattrs, err = t.xattrs(name)
	return h, err
}

// xattrs returns the extended attributes of a file, sorted, without those that are the overlay's own.
func (t *tree) xattrs(name string) ([]pax.Xattr, error) {
	size, err := unix.Llistxattr(name, t.names)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("listxattr", err)
	}
	var out []pax.Xattr
	for key := range strings.SplitSeq(strings.TrimSuffix(string(t.names[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(key, overlayPrefix) {
			continue
		}
		n, err := unix.Lgetxattr(name, key, t.value)
		if err != nil {
			return nil, os.NewSyscallError("getxattr "+key, err)
		}
		out = append(out, pax.Xattr{Name: key, Value: string(t.value[:n])})
	}
	slices.SortFunc(out, func(a, b pax.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// content writes what is in a regular file. The holes of a sparse one are not read.
func (t *tree) content(name string, st *unix.Stat_t) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	f := file(fd)
	defer func() { _ = unix.Close(fd) }()
	const sector = 512
	if st.Blocks*sector >= st.Size {
		return t.out.CopyFrom(f, st.Size)
	}
	for at := int64(0); at < st.Size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return t.out.Hole(st.Size - at)
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err == nil {
			_, err = unix.Seek(fd, start, io.SeekStart)
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		start, end = min(start, st.Size), min(end, st.Size)
		if err := t.out.Hole(start - at); err != nil {
			return err
		}
		if err := t.out.CopyFrom(f, end-start); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// file reads a descriptor without what an os.File does besides, which would be the better part of the work for a small
// one.
type file int

// Read implements io.Reader.
func (f file) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// join is the path in the archive of a file in a directory, which is "" for the root.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
