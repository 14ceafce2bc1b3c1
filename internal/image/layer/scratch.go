package layer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/sparse"
)

// scratch is where contents wait: memory as long as they are few, then a file without a name. One goroutine writes it;
// then any number may read it.
type scratch struct {
	dir string
	f   *os.File // nil: everything is in buf
	w   *sparse.Writer
	buf []byte
	n   int64 // bytes in it, with those in buf
}

// scratchBuffer is a multiple of the block size, so that blocks of zeros are found.
const scratchBuffer = 256 << 10

// store takes the contents of a file of that size.
func (s *scratch) store(contents io.Reader, size int64) (extent, error) {
	at := extent{file: s, off: s.n}
	for size > 0 {
		if len(s.buf) == scratchBuffer {
			if err := s.flush(); err != nil {
				return extent{}, err
			}
		}
		piece := int(min(int64(scratchBuffer-len(s.buf)), size))
		s.buf = slices.Grow(s.buf, piece)
		n, err := io.ReadFull(contents, s.buf[len(s.buf):len(s.buf)+piece])
		s.buf = s.buf[:len(s.buf)+n]
		s.n += int64(n)
		size -= int64(n)
		if err != nil {
			return extent{}, cutOff(err)
		}
	}
	return at, nil
}

// cutOff is the error of a contents reader that has ended too early.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// flush writes the buffer to the file.
func (s *scratch) flush() error {
	if s.f == nil {
		if err := s.create(); err != nil {
			return s.explain(err)
		}
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	return s.explain(err)
}

// create makes the file. Nothing of it is left when it is closed or banger is killed.
func (s *scratch) create() error {
	f, err := os.CreateTemp(s.dir, "layer-*")
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(err, f.Close())
	}
	s.f, s.w = f, sparse.NewWriter(f)
	return nil
}

// finish makes everything that was stored readable.
func (s *scratch) finish() error {
	if s.f == nil {
		s.buf = bytes.Clone(s.buf) // it has grown by doubling
		return nil
	}
	err := s.flush()
	s.buf = nil
	if finishErr := s.w.Finish(); err == nil {
		err = s.explain(finishErr)
	}
	return err
}

func (s *scratch) explain(err error) error {
	if ext4.NoSpace(err) {
		return ext4.Exhausted(err, filepath.Join(s.dir, "layer"), uint64(s.n))
	}
	return fault.Context(err, "scratch file")
}

// open returns the contents of a regular file. Those that are not in scratch are empty, or were sent.
func (e *Entry) open() io.Reader {
	switch s := e.contents.file; {
	case s == nil:
		return bytes.NewReader(nil)
	case s.f == nil:
		return bytes.NewReader(s.buf[e.contents.off : e.contents.off+e.Size])
	default:
		return io.NewSectionReader(s.f, e.contents.off, e.Size)
	}
}

func (s *scratch) close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}
