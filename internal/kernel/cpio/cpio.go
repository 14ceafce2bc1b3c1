// Package cpio reads archives in the "newc" format, in which Linux gets its initial RAM disk (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst), as strictly as Linux itself does.
//
// Linux takes several of them, one after another, each compressed or not, and unpacks all: a file of a later one takes
// the place of one of the same name.
package cpio

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	headerSize = 110
	maxName    = 4096 // bytes with the NUL, PATH_MAX
	trailer    = "TRAILER!!!"
)

// Align is what an archive that is not compressed has to begin at a multiple of, counted from the first one's begin.
const Align = 4

// Magic reports whether data begins with an archive.
func Magic(data []byte) bool {
	return len(data) >= 6 && (string(data[:6]) == "070701" || string(data[:6]) == "070702")
}

// Archive reads one archive to its end and calls visit with the name and the size of everything in it; visit may be nil.
// It returns how many bytes the archive had.
func Archive(r *bufio.Reader, visit func(name string, size int64) error) (n int64, err error) {
	a := archive{r: r}
	for {
		name, size, err := a.entry()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return a.n, fmt.Errorf("cpio archive at byte %d: %w", a.n, err)
		}
		if name == trailer {
			return a.n, nil
		}
		if visit != nil {
			if err := visit(name, size); err != nil {
				return a.n, err
			}
		}
	}
}

// archive is the state of Archive.
type archive struct {
	r *bufio.Reader
	n int64 // bytes read
}

// entry reads one header and skips the content.
func (a *archive) entry() (name string, size int64, err error) {
	header := make([]byte, headerSize)
	if err := a.full(header); err != nil {
		return "", 0, err
	}
	if !Magic(header) {
		return "", 0, errors.New("no header")
	}
	size, err = field(header, 6)
	if err != nil {
		return "", 0, err
	}
	length, err := field(header, 11)
	if err != nil {
		return "", 0, err
	}
	if length < 2 || length > maxName {
		return "", 0, fmt.Errorf("a name of %d bytes", length)
	}
	buf := make([]byte, length)
	if err := a.full(buf); err != nil {
		return "", 0, err
	}
	if buf[length-1] != 0 {
		return "", 0, errors.New("a name without an end")
	}
	name = string(buf[:length-1])
	err = a.pad()
	if name == trailer && size == 0 && err == io.EOF { // it is the end of the file, too
		return name, 0, nil
	}
	if err == nil {
		err = a.skip(size)
	}
	if err == nil {
		err = a.pad()
	}
	return name, size, err
}

// field returns the i-th of the header's fields of eight hexadecimal digits.
func field(header []byte, i int) (int64, error) {
	n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
	if err != nil {
		return 0, errors.New("bad number in a header")
	}
	return int64(n), nil
}

func (a *archive) full(p []byte) error {
	n, err := io.ReadFull(a.r, p)
	a.n += int64(n)
	return err
}

// pad skips up to the next multiple of Align.
func (a *archive) pad() error { return a.skip(-a.n & (Align - 1)) }

func (a *archive) skip(size int64) error {
	n, err := io.CopyN(io.Discard, a.r, size)
	a.n += n
	return err
}
