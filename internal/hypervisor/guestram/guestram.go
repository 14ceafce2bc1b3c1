// Package guestram reads the memory of a guest out of the VMM that runs it, from outside: by what /proc says of the VMM's
// pages and by process_vm_readv(2). The VMM has to be a process that this one may trace (credentials(7), ptrace(2)): a
// child of the same user is.
//
// A guest that was restored has a private mapping of a file as its memory. What it has written since are pages of the
// process's own; all else still is what the file says. So a copy of the file and these pages are its memory, and that
// is far less than all of it.
package guestram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// RAM is where a process has a guest's memory.
type RAM struct {
	PID   int
	Start uint64 // address in the process, of the guest's first byte
	Size  uint64 // bytes
	// File, if it is not nil, is what is mapped there.
	File os.FileInfo
}

// Range is a run of whole pages, counted in bytes from the beginning of the memory.
type Range struct{ Offset, Length uint64 }

// Total is how many bytes they are.
func Total(ranges []Range) (n uint64) {
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// Split returns the first n bytes of the ranges, which begin and end with a page if n does, and the others.
func Split(ranges []Range, n uint64) (first, rest []Range) {
	for i, r := range ranges {
		if r.Length <= n {
			n -= r.Length
			continue
		}
		first, rest = slices.Clone(ranges[:i]), slices.Clone(ranges[i:])
		if n > 0 {
			first = append(first, Range{Offset: r.Offset, Length: n})
			rest[0] = Range{Offset: r.Offset + n, Length: r.Length - n}
		}
		return first, rest
	}
	return ranges, nil
}

// Cover reports whether all of some ranges is in others. Both are in order, as Private returns them.
func Cover(ranges, some []Range) bool {
	for _, s := range some {
		i := sort.Search(len(ranges), func(i int) bool { return ranges[i].Offset+ranges[i].Length > s.Offset })
		if i == len(ranges) || ranges[i].Offset > s.Offset || ranges[i].Offset+ranges[i].Length < s.Offset+s.Length {
			return false
		}
	}
	return true
}

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pageEntry   = 8
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or shared anonymous memory
)

// Check makes sure that the memory is one mapping with these bounds or within them, and of that file, so that an address
// that is wrong is an error and not somebody else's bytes.
func (m RAM) Check() error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.PID))
	if err != nil {
		return err
	}
	return m.checkMaps(string(data))
}

// checkMaps is Check of what /proc/PID/maps says.
func (m RAM) checkMaps(text string) error {
	for line := range strings.Lines(text) {
		var from, to, offset, inode uint64
		var mode, device string
		if n, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &from, &to, &mode, &offset, &device, &inode); n != 6 || err != nil {
			continue
		}
		if from > m.Start || m.Start >= to {
			continue
		}
		if to-m.Start < m.Size {
			return fmt.Errorf("the mapping at %#x has %d bytes, not the %d of the guest", m.Start, to-m.Start, m.Size)
		}
		return m.checkFile(inode, from == m.Start && offset == 0)
	}
	return fmt.Errorf("process %d has nothing at %#x", m.PID, m.Start)
}

// checkFile makes sure that what is mapped is the file, from its beginning.
func (m RAM) checkFile(inode uint64, begins bool) error {
	if m.File == nil {
		return nil
	}
	stat, ok := m.File.Sys().(*syscall.Stat_t)
	if !ok || stat.Ino != inode || !begins {
		return fmt.Errorf("%s is not what is mapped at %#x", m.File.Name(), m.Start)
	}
	return nil
}

// Peek reads the memory's first bytes: whether it may be read at all.
func (m RAM) Peek(buf []byte) error {
	return m.fill(buf, []unix.RemoteIovec{{Base: uintptr(m.Start), Len: len(buf)}})
}

// Private returns the pages that are the process's own.
func (m RAM) Private() (ranges []Range, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.PID))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	page := uint64(os.Getpagesize())
	if m.Start%page != 0 || m.Size%page != 0 {
		return nil, errors.New("the guest's memory does not begin and end with a page")
	}
	buf := make([]byte, 64<<10)
	for at := uint64(0); at < m.Size; {
		n := min(uint64(len(buf)), (m.Size-at)/page*pageEntry)
		if _, err := f.ReadAt(buf[:n], int64((m.Start+at)/page*pageEntry)); err != nil {
			return nil, err
		}
		ranges, at = own(ranges, buf[:n], at, page), at+n/pageEntry*page
	}
	return ranges, nil
}

// own appends the pages from at on that the entries say are the process's own.
func own(ranges []Range, entries []byte, at, page uint64) []Range {
	for ; len(entries) >= pageEntry; entries = entries[pageEntry:] {
		bits := binary.NativeEndian.Uint64(entries)
		if bits&(pagePresent|pageSwapped) != 0 && bits&pageOfFile == 0 {
			ranges = add(ranges, at, page)
		}
		at += page
	}
	return ranges
}

// add appends a page to the last range, if it goes on from there.
func add(ranges []Range, at, page uint64) []Range {
	if last := len(ranges) - 1; last >= 0 && ranges[last].Offset+ranges[last].Length == at {
		ranges[last].Length += page
		return ranges
	}
	return append(ranges, Range{Offset: at, Length: page})
}

// maxVectors is how many ranges one call of process_vm_readv takes (IOV_MAX).
const maxVectors = 1024

// Read reads the ranges, one after the other, into buf, which is exactly as long as they are together.
func (m RAM) Read(ranges []Range, buf []byte) error {
	if uint64(len(buf)) != Total(ranges) {
		return fmt.Errorf("%d bytes for ranges of %d", len(buf), Total(ranges))
	}
	for len(ranges) > 0 {
		batch := ranges[:min(len(ranges), maxVectors)]
		ranges = ranges[len(batch):]
		remote := make([]unix.RemoteIovec, 0, len(batch))
		var size int
		for _, r := range batch {
			remote = append(remote, unix.RemoteIovec{Base: uintptr(m.Start + r.Offset), Len: int(r.Length)})
			size += int(r.Length)
		}
		if err := m.fill(buf[:size], remote); err != nil {
			return err
		}
		buf = buf[size:]
	}
	return nil
}

// fill reads until buf is full: a call may return less than was asked for, at most 2 GiB.
func (m RAM) fill(buf []byte, remote []unix.RemoteIovec) error {
	for len(buf) > 0 {
		local := []unix.Iovec{{Base: &buf[0]}}
		local[0].SetLen(len(buf))
		n, err := unix.ProcessVMReadv(m.PID, local, remote, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("process_vm_readv", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		buf = buf[n:]
		for n > 0 { // what was read
			if n < remote[0].Len {
				remote[0].Base += uintptr(n)
				remote[0].Len -= n
				break
			}
			n -= remote[0].Len
			remote = remote[1:]
		}
	}
	return nil
}

// piece is how much is copied at once.
const piece = 4 << 20

// Copy writes the ranges to the same places of a file.
func (m RAM) Copy(ranges []Range, to io.WriterAt) error {
	buf := make([]byte, piece)
	for _, r := range ranges {
		for r.Length > 0 {
			part := Range{Offset: r.Offset, Length: min(r.Length, piece)}
			if err := m.Read([]Range{part}, buf[:part.Length]); err != nil {
				return err
			}
			if _, err := to.WriteAt(buf[:part.Length], int64(part.Offset)); err != nil {
				return err
			}
			r.Offset, r.Length = r.Offset+part.Length, r.Length-part.Length
		}
	}
	return nil
}

// Write writes what Read has read to its places in a file.
func Write(ranges []Range, buf []byte, to io.WriterAt) error {
	for _, r := range ranges {
		if _, err := to.WriteAt(buf[:r.Length], int64(r.Offset)); err != nil {
			return err
		}
		buf = buf[r.Length:]
	}
	return nil
}
