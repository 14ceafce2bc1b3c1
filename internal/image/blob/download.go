package blob

import (
	"context"
	"io"
	"os"
	"sync"

	"banger/internal/fault"
)

// Wanted names a blob that is to come.
type Wanted struct {
	Digest string
	Size   int64 // exactly
}

// Opener opens a blob at its place of origin, from offset on. What it returns goes on by itself after failures that pass;
// an error of it, or of a Read, ends the download. What has come is kept for the next one then, except when the error is
// a fault of class Invalid.
type Opener func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Download is one user's share in bringing a blob into the store. The bytes come once however many Downloads want them,
// by the Opener of the first; when that fails, the next one tries its own.
type Download struct {
	store  *Store
	want   Wanted
	from   Opener
	report func(done int64)
	err    error // of the request itself

	mu     sync.Mutex // guards the fields below
	flight *flight    // nil: the blob was there
	led    bool       // the flight uses this Download's Opener
	closed bool
}

// Download begins to bring a blob, joins those who are at it, or does nothing when the blob is there. report, which may be
// nil, is told how many bytes have come; it must not block. Close has to follow.
func (s *Store) Download(want Wanted, from Opener, report func(done int64)) *Download {
	d := &Download{store: s, want: want, from: from, report: report}
	if report == nil {
		d.report = func(int64) {}
	}
	if d.err = CheckDigest(want.Digest); d.err == nil && want.Size < 0 {
		d.err = fault.New(fault.Invalid, "%s has an impossible size: %d bytes", want.Digest, want.Size)
	}
	if d.err != nil {
		return d
	}
	if s.has(want) {
		d.report(want.Size)
		return d
	}
	d.flight, d.led = s.join(d)
	return d
}

// has reports whether a blob is there and as long as it has to be; one of another length is damaged.
func (s *Store) has(want Wanted) bool {
	size, ok := s.Stat(want.Digest)
	return ok && size == want.Size
}

// Wait returns when the blob is in the store, complete and verified, or cannot come. Only when it was there before is it
// not verified anew.
func (d *Download) Wait(ctx context.Context) error {
	if d.err != nil {
		return d.err
	}
	for f := d.current(); f != nil; {
		select {
		case <-f.done:
		case <-ctx.Done():
			select {
			case <-f.done: // what is known is better than that nobody waits for it any more
			default:
				return context.Cause(ctx)
			}
		}
		if f.err == nil {
			return nil
		}
		var err error
		if f, err = d.next(f); err != nil {
			return err
		}
	}
	return nil
}

// Close gives up the share, and ends the download and waits for that when nobody else has one.
func (d *Download) Close() {
	d.mu.Lock()
	f := d.flight
	d.flight, d.closed = nil, true
	d.mu.Unlock()
	if f != nil {
		f.leave(d)
	}
}

func (d *Download) current() *flight {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flight
}

// next returns the flight to turn to after one that has failed. When it failed by this Download's own Opener, that is
// the end.
func (d *Download) next(failed *flight) (*flight, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, os.ErrClosed
	case d.flight != failed:
		return d.flight, nil // Wait and a reader of the same Download both come here
	case d.led:
		return nil, failed.err
	}
	failed.leave(d)
	d.flight, d.led = d.store.join(d)
	return d.flight, nil
}

// again begins a flight for a blob that was there and is no more.
func (d *Download) again() (*flight, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, os.ErrClosed
	}
	if d.flight == nil {
		d.flight, d.led = d.store.join(d)
	}
	return d.flight, nil
}

// Reader returns the blob, while it comes if need be. An io.EOF says that all of it is verified; anything else than the
// blob of that name is a fault of class Invalid in place of io.EOF. Close ends a Read that waits. Readers end before their
// Download is closed.
func (d *Download) Reader(ctx context.Context) (io.ReadCloser, error) {
	if d.err != nil {
		return nil, d.err
	}
	return &reader{ctx: ctx, download: d, flight: d.current(), closed: make(chan struct{})}, nil
}

// wrongDigest is the fault of a blob whose bytes are not what its name says.
func wrongDigest(want Wanted, got string) error {
	return fault.New(fault.Invalid, "%s is damaged: its %d bytes have the digest %s", want.Digest, want.Size, got)
}
