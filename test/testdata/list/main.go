// Command list prints what is known of every file below some directories, one line each: what `find -xdev -printf` and
// getfattr would say. It is static and small, for images that have neither.
//
// The columns are path, type and mode, owner, size, links, the first name of its inode, time of change of contents,
// device number, target, extended attributes, checksum of contents. Of directories, size, links and times are left out:
// they are the file system's own affair.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	for _, root := range os.Args[1:] {
		l := lister{root: filepath.Clean(root), out: out, first: map[uint64]string{}}
		if err := l.tree(); err != nil {
			fmt.Fprintln(os.Stderr, "list:", err)
			os.Exit(1)
		}
	}
	if err := out.Flush(); err != nil {
		os.Exit(1)
	}
	_ = os.Stdout.Sync()
}

type lister struct {
	root  string
	out   io.Writer
	dev   uint64
	first map[uint64]string // the first name of each inode with several
}

func (l *lister) tree() error {
	var st syscall.Stat_t
	if err := syscall.Lstat(l.root, &st); err != nil {
		return err
	}
	l.dev = st.Dev
	return l.entry("", &st)
}

func (l *lister) entry(name string, st *syscall.Stat_t) error {
	path := filepath.Join(l.root, name)
	line, err := l.line(path, name, st)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(l.out, line); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, child := range names {
		rel := name + "/" + child
		var st syscall.Stat_t
		if err := syscall.Lstat(l.root+rel, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: rel, Err: err}
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFDIR && st.Dev != l.dev {
			continue
		}
		if err := l.entry(rel, &st); err != nil {
			return err
		}
	}
	return nil
}

const summed = 64 << 10 // contents of files up to this size are read

func (l *lister) line(path, name string, st *syscall.Stat_t) (string, error) {
	kind := st.Mode & syscall.S_IFMT
	size, links, first, changed, device, target, sum := "-", "-", "-", "-", "-", "-", "-"
	if kind != syscall.S_IFDIR {
		links, changed = fmt.Sprint(st.Nlink), fmt.Sprint(st.Mtim.Sec)
		if st.Nlink > 1 {
			if l.first[st.Ino] == "" {
				l.first[st.Ino] = name
			}
			first = strconv.Quote(l.first[st.Ino])
		}
	}
	switch kind {
	case syscall.S_IFREG:
		size = fmt.Sprint(st.Size)
		if st.Size <= summed {
			data, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			sum = fmt.Sprintf("%08x", crc32.ChecksumIEEE(data))
		}
	case syscall.S_IFLNK:
		size = fmt.Sprint(st.Size)
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		target = strconv.Quote(to)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		device = fmt.Sprintf("%x", st.Rdev)
	}
	attributes, err := xattrs(path, kind)
	return strings.Join([]string{
		strconv.Quote("/" + strings.TrimPrefix(name, "/")), fmt.Sprintf("%07o", st.Mode), fmt.Sprintf("%d:%d", st.Uid, st.Gid), size, links, first, changed,
		device, target, attributes, sum,
	}, "\t"), err
}

// xattrs lists the attributes of what is no symbolic link: syscall has no call for those, and only the kernel's own
// namespaces would be allowed there.
func xattrs(path string, kind uint32) (string, error) {
	if kind == syscall.S_IFLNK {
		return "-", nil
	}
	buf := make([]byte, 64<<10)
	n, err := syscall.Listxattr(path, buf)
	if err == syscall.ENOTSUP || err == nil && n == 0 {
		return "-", nil
	}
	if err != nil {
		return "", &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var all []string
	for _, name := range names {
		n, err := syscall.Getxattr(path, name, buf)
		if err != nil {
			return "", &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		all = append(all, name+"="+hex.EncodeToString(buf[:n]))
	}
	return strings.Join(all, ","), nil
}
