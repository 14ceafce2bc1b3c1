package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// reader reads a blob of a Download: from the partial file while that grows, or from the store. It is for one goroutine;
// only Close may come from another.
type reader struct {
	ctx      context.Context
	download *Download
	flight   *flight   // nil: the blob was in the store before
	landing  bool      // the blob has come for this Download, and was verified on the way
	sum      hash.Hash // of a blob that was in the store before: who knows what has become of it; nil: not needed
	off      int64

	once   sync.Once
	closed chan struct{} // ends a Read that waits

	mu   sync.Mutex // held by Read
	file *os.File   // opened by the first Read that needs it
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.once.Do(func() { close(r.closed) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	return nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read(p)
}

func (r *reader) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-r.closed:
			return 0, os.ErrClosed
		default:
		}
		if r.flight == nil {
			n, err := r.readStored(p)
			if n > 0 || err != nil {
				return n, err
			}
			continue
		}
		n, wait, err := r.readPartial(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-wait:
		case <-r.flight.done:
			if err := r.landed(); err != nil {
				return 0, err
			}
		case <-r.ctx.Done():
		case <-r.closed:
		}
	}
}

// readPartial reads what there is, or returns the channel to wait for.
func (r *reader) readPartial(p []byte) (int, <-chan struct{}, error) {
	f := r.flight
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.file == nil && f.file != nil && !f.hold {
		fd, err := unix.FcntlInt(f.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, nil, os.NewSyscallError("dup", err)
		}
		r.file = os.NewFile(uintptr(fd), f.file.Name())
	}
	if r.file == nil || r.off >= f.written {
		return 0, f.changed, nil
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), f.written-r.off)], r.off)
	r.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, nil, err
}

// landed turns to the flight's end: io.EOF, or what is to be read next.
func (r *reader) landed() error {
	f := r.flight
	switch {
	case f.err == nil && r.off == f.want.Size:
		return io.EOF
	case f.err == nil && r.file != nil:
		return nil // all of it can be read from here
	case f.err == nil:
		r.flight, r.landing = nil, true // before anything was read
		return nil
	case r.off > 0:
		return f.err
	}
	if r.file != nil { // of the flight that failed, and removed with it
		_ = r.file.Close()
		r.file = nil
	}
	next, err := r.download.next(f)
	r.flight = next
	return err
}

// readStored reads a blob of the store, and checks it on the way.
func (r *reader) readStored(p []byte) (int, error) {
	want := r.download.want
	if r.file == nil {
		file, err := r.download.store.Open(want.Digest)
		if fault.Is(err, fault.NotFound) { // pruned since
			r.landing = false
			r.flight, err = r.download.again()
			return 0, err
		}
		if err != nil {
			return 0, err
		}
		if r.file = file; !r.landing {
			r.sum = sha256.New()
		}
	}
	n, err := r.file.Read(p)
	if r.sum != nil {
		r.sum.Write(p[:n])
	}
	r.off += int64(n)
	if err == io.EOF && r.sum != nil {
		if got := digestOf(r.sum); got != want.Digest {
			// Without it the next one downloads it again.
			return n, errors.Join(wrongDigest(want, got), r.download.store.Remove(want.Digest))
		}
	}
	return n, err
}
