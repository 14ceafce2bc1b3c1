package diskcopy

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Shares reports whether copies in dir share their blocks with the original, so that they take no space at first. It makes
// two small files there to find out, which have no name while it does.
func Shares(dir string) bool {
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(dir, ".probe-*")
		if err != nil {
			return false
		}
		defer func() { _ = f.Close() }()
		if os.Remove(f.Name()) != nil {
			return false
		}
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return false
	}
	shares, err := clone(files[0], files[1])
	return shares && err == nil
}

// The ioctl that tells where the parts of a file are (linux/fiemap.h).
const (
	fsIocFiemap  = 0xc020660b
	extentLast   = 0x1
	extentShared = 0x2000
)

type extent struct {
	Logical, Physical, Length uint64
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	Start, Length uint64
	Flags         uint32 // none: what is not written out yet belongs to nobody else
	Mapped        uint32
	Count         uint32
	_             uint32
	Extents       [512]extent
}

// Shared returns how many bytes of a file are in blocks that another file has as well. Of a file system that does not say
// it is 0.
func Shared(path string) (total uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	m := new(fiemap)
	for start := uint64(0); ; {
		m.Start, m.Length, m.Count = start, ^uint64(0)-start, uint32(len(m.Extents))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(m)))
		runtime.KeepAlive(m)
		switch {
		case errno == unix.EINTR:
			continue
		case errors.Is(errno, unix.ENOTTY) || errors.Is(errno, unix.EOPNOTSUPP):
			return 0, nil
		case errno != 0:
			return 0, os.NewSyscallError("fiemap", errno)
		case m.Mapped == 0:
			return total, nil
		}
		for _, e := range m.Extents[:min(int(m.Mapped), len(m.Extents))] {
			if e.Flags&extentShared != 0 {
				total += e.Length
			}
			if e.Flags&extentLast != 0 || e.Logical+e.Length <= start {
				return total, nil
			}
			start = e.Logical + e.Length
		}
	}
}
