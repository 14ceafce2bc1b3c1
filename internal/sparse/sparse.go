// Package sparse writes files whose blocks of zeros are holes: they read the same and take nothing on the disk.
package sparse

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	// writeback is after how many bytes the kernel is asked to begin to write them to the disk, so that the final fsync
	// has little left to do. It is large enough for long extents.
	writeback = 16 << 20
)

var zeros [blockSize]byte

// Writer writes to a new, empty file. What was never written or is zero beyond the highest byte written so far is a hole;
// Finish sets the size. It is for one goroutine.
type Writer struct {
	f    *os.File
	pos  int64
	high int64 // where the file ends, or will: beyond it there are only zeros

	early   chan span     // what is to be written back; nil: nothing
	done    chan struct{} // closed when the goroutine behind early has ended
	started int64         // up to here it was asked for
	pending int64         // bytes written since
}

type span struct{ off, len int64 }

// NewWriter returns a Writer to f.
func NewWriter(f *os.File) *Writer { return &Writer{f: f} }

// WriteBack makes the kernel begin early to write to the disk what Write was given. Finish ends the goroutine behind it.
func (w *Writer) WriteBack() {
	w.early, w.done = make(chan span, 1), make(chan struct{})
	go func() {
		defer close(w.done)
		for s := range w.early {
			// It is only a hint, and blocks when the disk has much to do: then the next is larger.
			_ = unix.SyncFileRange(int(w.f.Fd()), s.off, s.len, unix.SYNC_FILE_RANGE_WRITE)
		}
	}()
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := w.piece(p[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// piece writes or skips the beginning of p.
func (w *Writer) piece(p []byte) (int, error) {
	var n int
	var err error
	switch {
	case w.pos < w.high: // something is there
		n, err = w.f.WriteAt(p[:min(int64(len(p)), w.high-w.pos)], w.pos)
	default:
		length, zero := w.run(p)
		if n = length; !zero {
			n, err = w.f.WriteAt(p[:length], w.pos)
			w.pending += int64(n)
		}
	}
	w.pos += int64(n)
	w.high = max(w.high, w.pos)
	if w.early != nil && w.pending >= writeback {
		w.begin()
	}
	return n, err
}

// run returns how much of the beginning of p is of one kind, in pieces that end where blocks of the file do.
func (w *Writer) run(p []byte) (length int, zero bool) {
	for length < len(p) {
		end := min(len(p), length+blockSize-int((w.pos+int64(length))%blockSize))
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

// begin asks for what was written since the last time.
func (w *Writer) begin() {
	select {
	case w.early <- span{w.started, w.high - w.started}:
		w.started, w.pending = w.high, 0
	default: // still at the last one
	}
}

// Read implements io.Reader, for writers that look at what they have written.
func (w *Writer) Read(p []byte) (int, error) {
	if w.pos >= w.high {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), w.high-w.pos)]
	n, err := w.f.ReadAt(p, w.pos)
	if errors.Is(err, io.EOF) { // a hole at the end that Finish has not made yet
		clear(p[n:])
		n, err = len(p), nil
	}
	w.pos += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (w *Writer) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += w.pos
	case io.SeekEnd:
		offset += w.high
	}
	if offset < 0 {
		return w.pos, os.ErrInvalid
	}
	w.pos = offset
	return offset, nil
}

// Size is what the file has so far, with the hole at its end.
func (w *Writer) Size() int64 { return w.high }

// Finish ends the early writing back, and gives the file its size. It must be called whatever has failed.
func (w *Writer) Finish() error {
	if w.early != nil {
		close(w.early)
		<-w.done
		w.early = nil
	}
	return w.f.Truncate(w.high)
}
