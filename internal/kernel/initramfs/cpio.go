package initramfs

import (
	"bytes"
	"fmt"
)

// File types of an entry's mode (inode(7)).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// archive is a cpio archive in the "newc" format, the one that the kernel unpacks (its Documentation/driver-api/
// early-userspace/buffer-format.rst). The kernel makes no parent directories: they have to come first.
type archive struct {
	buf   bytes.Buffer
	inode int
}

// entry is one file in it, owned by root and of time 0.
type entry struct {
	name         string // without a leading slash
	mode         uint32
	major, minor int // of a device
	data         []byte
}

func (a *archive) add(e entry) {
	a.inode++
	links := 1
	if e.mode&modeDir != 0 {
		links = 2
	}
	a.write(a.inode, links, e)
}

// finish appends the end marker and returns the archive.
func (a *archive) finish() []byte {
	a.write(0, 1, entry{name: "TRAILER!!!"})
	return a.buf.Bytes()
}

func (a *archive) write(inode, links int, e entry) {
	const uid, gid, mtime, devMajor, devMinor, check = 0, 0, 0, 0, 0, 0
	fmt.Fprintf(&a.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, e.mode, uid, gid, links, mtime, len(e.data), devMajor, devMinor, e.major, e.minor, len(e.name)+1, check)
	a.buf.WriteString(e.name + "\x00")
	a.pad()
	a.buf.Write(e.data)
	a.pad()
}

// pad fills up to a multiple of four bytes, which the headers, names and contents begin at.
func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
