package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

const (
	chunk    = 256 << 10             // how much is written before readers hear of it
	lockPoll = 50 * time.Millisecond // how often the lock of another process is tried
)

// flight brings one blob, for all Downloads of this Store that want it. It ends when the blob is there, when it cannot
// come, or when the last user has left, who waits for that.
type flight struct {
	store  *Store
	want   Wanted
	cancel context.CancelFunc
	users  int // guarded by store.mu

	done chan struct{} // closed when the goroutine has ended
	err  error         // how; set before done is closed

	mu      sync.Mutex // guards the fields below
	reports map[*Download]func(int64)
	changed chan struct{} // closed and made anew whenever one of the following changes
	written int64         // bytes of the partial file
	file    *os.File      // the partial file while it is written, for readers
	hold    bool          // readers wait for the end: part of the file is from an earlier download, which may be damaged
}

// join enters d as a user of the flight of its blob, which is begun if there is none; led tells that.
func (s *Store) join(d *Download) (f *flight, led bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f = s.flights[d.want.Digest]
	if f == nil {
		ctx, cancel := context.WithCancel(context.Background()) // it may outlive who began it; see leave
		f = &flight{
			store: s, want: d.want, cancel: cancel, done: make(chan struct{}),
			reports: map[*Download]func(int64){}, changed: make(chan struct{}),
		}
		s.flights[d.want.Digest] = f
		led = true
		go f.run(ctx, d.from)
	}
	f.users++
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports[d] = d.report
	d.report(f.written)
	return f, led
}

// leave takes d from the users; the last one ends the flight.
func (f *flight) leave(d *Download) {
	f.mu.Lock()
	delete(f.reports, d)
	f.mu.Unlock()
	f.store.mu.Lock()
	f.users--
	last := f.users == 0
	f.store.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

// run is the flight's goroutine.
func (f *flight) run(ctx context.Context, from Opener) {
	defer f.cancel()
	err := f.bring(ctx, from)
	f.store.mu.Lock()
	delete(f.store.flights, f.want.Digest) // first, so that who sees the error begins a new one
	f.store.mu.Unlock()
	f.err = err
	close(f.done)
}

// update changes what readers see and tells everybody.
func (f *flight) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
	for _, report := range f.reports {
		report(f.written)
	}
}

// bring is the whole of the flight.
func (f *flight) bring(ctx context.Context, from Opener) (err error) {
	file, err := f.open(ctx)
	if err != nil || file == nil {
		return err
	}
	path := file.Name()
	defer func() {
		f.update(func() { f.file = nil })
		if err != nil && !keep(file, err) {
			err = errors.Join(err, ignoreMissing(os.Remove(path)))
		}
		file.Close() // and with it the lock
	}()
	sum, err := f.prefix(ctx, file)
	if err != nil {
		return err
	}
	resumed := f.written > 0
	f.update(func() { f.file, f.hold = file, resumed })
	err = f.fill(ctx, from, file, sum)
	if resumed && fault.Is(err, fault.Invalid) {
		// The earlier part may be the wrong one. Nobody has read of it yet.
		if err := file.Truncate(0); err != nil {
			return explain(err, path, 0)
		}
		f.update(func() { f.written, f.hold = 0, false })
		err = f.fill(ctx, from, file, sha256.New())
	}
	if err != nil {
		return err
	}
	if err := f.store.publish(path, f.want.Digest); err != nil {
		return explain(err, path, f.want.Size)
	}
	return nil
}

// keep reports whether the partial file is worth being gone on with after err.
func keep(file *os.File, err error) bool {
	info, statErr := file.Stat()
	return statErr == nil && info.Size() > 0 && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Exhausted)
}

// open opens the partial file and locks it, for which another process may have to be waited for. It returns nil when
// that one has brought the blob.
func (f *flight) open(ctx context.Context) (*os.File, error) {
	path := f.store.path(partialDir, f.want.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, explain(err, path, 0)
	}
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, explain(err, path, 0)
		}
		switch {
		case !tryLock(file):
			file.Close()
			select {
			case <-time.After(lockPoll):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		case !isAt(file, path): // it was renamed or removed between opening and locking
			file.Close()
		case f.store.has(f.want):
			err := ignoreMissing(os.Remove(path))
			file.Close()
			f.update(func() { f.written = f.want.Size })
			return nil, err
		default:
			return file, nil
		}
	}
}

// prefix takes in what an earlier download has left.
func (f *flight) prefix(ctx context.Context, file *os.File) (hash.Hash, error) {
	sum := sha256.New()
	info, err := file.Stat()
	if err == nil && info.Size() > f.want.Size {
		return sum, file.Truncate(0)
	}
	if err != nil {
		return nil, explain(err, file.Name(), 0)
	}
	buf := make([]byte, chunk)
	for f.written < info.Size() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := file.ReadAt(buf, f.written)
		if n == 0 {
			return nil, explain(err, file.Name(), 0)
		}
		sum.Write(buf[:n])
		f.update(func() { f.written += int64(n) })
	}
	return sum, nil
}

// fill writes what is missing of the file, and checks all of it. Only this goroutine changes f.written.
func (f *flight) fill(ctx context.Context, from Opener, file *os.File, sum hash.Hash) error {
	if f.written == f.want.Size {
		return f.check(sum)
	}
	r, err := from(ctx, f.written)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := f.add(file, sum, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return f.check(sum)
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

func (f *flight) add(file *os.File, sum hash.Hash, p []byte) error {
	if over := f.written + int64(len(p)) - f.want.Size; over > 0 {
		sum.Write(p[:int64(len(p))-over])
		return fault.New(fault.Invalid, "%s is longer than the %d bytes that were announced, which have the digest %s",
			f.want.Digest, f.want.Size, digestOf(sum))
	}
	if _, err := file.WriteAt(p, f.written); err != nil {
		return explain(err, file.Name(), f.want.Size)
	}
	sum.Write(p)
	f.update(func() { f.written += int64(len(p)) })
	return nil
}

func (f *flight) check(sum hash.Hash) error {
	got := digestOf(sum)
	switch {
	case f.written < f.want.Size:
		return fault.New(fault.Invalid, "%s is cut off after %d of %d bytes, which have the digest %s",
			f.want.Digest, f.written, f.want.Size, got)
	case got != f.want.Digest:
		return wrongDigest(f.want, got)
	}
	return nil
}

func digestOf(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
