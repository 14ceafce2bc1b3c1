// Package sparse writes files whose blocks of zeros are holes: they read the same and take nothing on the disk.
package sparse

import (
	"bytes"
	"io"
	"os"
)

const blockSize = 4096

var zeros [blockSize]byte

// WriteAt writes p at off but for its blocks of zeros: nothing else was ever written there. It returns how many bytes were
// written.
func WriteAt(w io.WriterAt, p []byte, off int64) (written int, err error) {
	for len(p) > 0 {
		n, zero := run(p, off)
		if !zero {
			if _, err := w.WriteAt(p[:n], off); err != nil {
				return written, err
			}
			written += n
		}
		p, off = p[n:], off+int64(n)
	}
	return written, nil
}

// run returns how much of the beginning of p is of one kind, in pieces that end where blocks of the file do.
func run(p []byte, off int64) (length int, zero bool) {
	for length < len(p) {
		end := min(len(p), length+blockSize-int((off+int64(length))%blockSize))
		z := isZero(p[length:end])
		if length > 0 && z != zero {
			break
		}
		length, zero = end, z
	}
	return length, zero
}

func isZero(p []byte) bool {
	return p[0] == 0 && p[len(p)-1] == 0 && bytes.Equal(p, zeros[:len(p)])
}

// Writer writes to a new, empty file from its beginning. Finish sets the size. It is for one goroutine.
type Writer struct {
	f   *os.File
	pos int64
}

// NewWriter returns a Writer to f.
func NewWriter(f *os.File) *Writer { return &Writer{f: f} }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if _, err := WriteAt(w.f, p, w.pos); err != nil {
		return 0, err
	}
	w.pos += int64(len(p))
	return len(p), nil
}

// Finish gives the file its size, with the hole at its end.
func (w *Writer) Finish() error { return w.f.Truncate(w.pos) }
