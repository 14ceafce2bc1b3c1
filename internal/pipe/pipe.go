// Package pipe joins two goroutines by a stream of bytes, as io.Pipe does, with a bounded buffer between them: neither
// waits for the other at every write, and the one can be ahead of the other by some megabytes at most.
package pipe

import (
	"errors"
	"io"
	"sync"
)

const (
	chunkSize = 256 << 10
	depth     = 4 // chunks between the two ends of New; each end holds one more
)

// chunks are reused: pipes come and go by the dozen when an image has many layers.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// shared is what both ends know. Chunks go through full to the reader and through free back to the writer; err is set
// before full is closed and read after that.
type shared struct {
	full chan []byte
	free chan []byte
	gone chan struct{} // closed when the reader is
	once sync.Once
	err  error // how the stream ends
}

// New returns the two ends of a pipe. Each end is for one goroutine; Reader.Close may come from any.
func New() (*Reader, *Writer) { return NewDeep(depth * chunkSize) }

// NewDeep is New for a writer that may be ahead by about that many bytes. They are taken when they are needed.
func NewDeep(bytes int) (*Reader, *Writer) {
	chunks := max(1, bytes/chunkSize)
	s := &shared{full: make(chan []byte, chunks), free: make(chan []byte, chunks+2), gone: make(chan struct{})}
	return &Reader{shared: s}, &Writer{shared: s}
}

// Writer is the end that bytes go in.
type Writer struct {
	*shared
	chunk  []byte // being filled
	made   int    // chunks there are
	closed bool
}

// Write hands p over, at the latest when the chunk is full or the writer closed. It fails with io.ErrClosedPipe when the
// reader is gone.
func (w *Writer) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		if err := w.room(); err != nil {
			return done, err
		}
		n := copy(w.chunk[len(w.chunk):cap(w.chunk)], p)
		w.chunk = w.chunk[:len(w.chunk)+n]
		p, done = p[n:], done+n
		if err := w.flushFull(); err != nil {
			return done, err
		}
	}
	return done, nil
}

// ReadFrom writes what r has, without a buffer in between.
func (w *Writer) ReadFrom(r io.Reader) (done int64, err error) {
	for {
		if err := w.room(); err != nil {
			return done, err
		}
		n, err := r.Read(w.chunk[len(w.chunk):cap(w.chunk)])
		w.chunk = w.chunk[:len(w.chunk)+n]
		done += int64(n)
		if flushErr := w.flushFull(); flushErr != nil {
			return done, flushErr
		}
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
}

// room makes sure that there is a chunk to write to.
func (w *Writer) room() error {
	if w.closed {
		return io.ErrClosedPipe
	}
	if w.chunk != nil {
		return nil
	}
	select { // a chunk that is free comes before a new one
	case w.chunk = <-w.free:
		return nil
	default:
	}
	if w.made < cap(w.free) {
		w.made++
		w.chunk = chunks.Get().(*[chunkSize]byte)[:0]
		return nil
	}
	select {
	case w.chunk = <-w.free:
		return nil
	case <-w.gone:
		return io.ErrClosedPipe
	}
}

func (w *Writer) flushFull() error {
	if len(w.chunk) < cap(w.chunk) {
		return nil
	}
	return w.flush()
}

func (w *Writer) flush() error {
	select {
	case <-w.gone:
		return io.ErrClosedPipe
	default:
	}
	select {
	case w.full <- w.chunk:
		w.chunk = nil
		return nil
	case <-w.gone:
		return io.ErrClosedPipe
	}
}

// CloseWithError ends the stream: the reader gets what was written and then err, or io.EOF for a nil err. Only the first
// call counts.
func (w *Writer) CloseWithError(err error) {
	if w.closed {
		return
	}
	if len(w.chunk) > 0 {
		_ = w.flush() // it fails only when nobody reads any more
	}
	w.closed = true
	if err == nil {
		err = io.EOF
	}
	w.err = err
	close(w.full)
}

// Close is CloseWithError(nil).
func (w *Writer) Close() error {
	w.CloseWithError(nil)
	return nil
}

// Reader is the end that bytes come out of.
type Reader struct {
	*shared
	chunk []byte // being read
	rest  []byte // what of it was not read yet
}

// Read implements io.Reader. It fails with io.ErrClosedPipe after Close.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next gives the chunk back that was read and takes another.
func (r *Reader) next() error {
	if r.chunk != nil {
		r.free <- r.chunk[:0] // there is room for all chunks there are
		r.chunk = nil
	}
	select {
	case <-r.gone:
		return io.ErrClosedPipe
	default:
	}
	select {
	case chunk, ok := <-r.full:
		if !ok {
			r.recycle()
			return r.err
		}
		r.chunk, r.rest = chunk, chunk
		return nil
	case <-r.gone:
		return io.ErrClosedPipe
	}
}

// recycle keeps the chunks of a pipe whose writer is done for another.
func (r *Reader) recycle() {
	for {
		select {
		case chunk := <-r.free:
			chunks.Put((*[chunkSize]byte)(chunk[:chunkSize]))
		default:
			return
		}
	}
}

// Close makes Read and the writer's calls fail. It waits for nobody and can be called again.
func (r *Reader) Close() error {
	r.once.Do(func() { close(r.gone) })
	return nil
}
