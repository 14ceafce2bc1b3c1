package debarchive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"banger/internal/fault"
)

// errStalled is the cause when a mirror has sent nothing for too long.
var errStalled = errors.New("nothing received for too long")

// transient wraps a failure of the transport, which may go away when the transfer is tried again.
type transient struct{ error }

func (t transient) Unwrap() error { return t.error }

// fetcher gets files by http, https and file URIs.
type fetcher struct {
	client  *http.Client
	stall   time.Duration
	backoff []time.Duration
}

func newFetcher(opt Options, conf aptConfig) *fetcher {
	f := &fetcher{stall: opt.Stall, backoff: opt.Backoff}
	if f.stall == 0 {
		f.stall = DefaultStall
	}
	if f.backoff == nil {
		f.backoff = []time.Duration{500 * time.Millisecond, 2 * time.Second, 5 * time.Second}
	}
	f.client = &http.Client{Transport: &http.Transport{
		Proxy:               conf.proxy,
		DialContext:         (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		IdleConnTimeout:     10 * time.Second,
		// A mirror may label Packages.gz as an encoding of Packages; what is signed is the file as it is.
		DisableCompression: true,
	}}
	return f
}

// bytes gets a file of at most limit bytes whose digest is not known.
func (f *fetcher) bytes(ctx context.Context, uri string, limit int64) ([]byte, error) {
	var data []byte
	err := f.get(ctx, uri, func(r io.Reader) (err error) {
		data, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err == nil && int64(len(data)) > limit {
			return fault.New(fault.Denied, "%s is larger than %d bytes", redact(uri), limit)
		}
		return err
	})
	return data, err
}

// verifiedBytes gets a file of known size and digest into memory.
func (f *fetcher) verifiedBytes(ctx context.Context, uri string, size int64, digest string) ([]byte, error) {
	buf := &memory{}
	if err := f.verified(ctx, uri, size, digest, buf, nil); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// sink is what a transfer writes to; it is emptied when the transfer starts again.
type sink interface {
	io.Writer
	Truncate(size int64) error
	Seek(offset int64, whence int) (int64, error)
}

// memory is a sink.
type memory struct{ bytes.Buffer }

func (m *memory) Truncate(int64) error           { m.Reset(); return nil }
func (m *memory) Seek(int64, int) (int64, error) { return 0, nil }

// verified writes a file of known size and digest to w. What w holds after an error must not be used.
func (f *fetcher) verified(ctx context.Context, uri string, size int64, digest string, w sink, report func(uint64)) error {
	return f.get(ctx, uri, func(r io.Reader) error {
		if err := w.Truncate(0); err != nil {
			return err
		}
		if _, err := w.Seek(0, io.SeekStart); err != nil {
			return err
		}
		hash := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, hash, counter(report)), io.LimitReader(r, size+1))
		switch {
		case err != nil:
			return err
		case n > size:
			return fault.New(fault.Denied, "%s is longer than the %d bytes that the archive signed", redact(uri), size)
		case n < size:
			return fault.New(fault.Denied, "%s has %d bytes, the archive signed %d", redact(uri), n, size)
		}
		if got := hex.EncodeToString(hash.Sum(nil)); got != digest {
			return fault.New(fault.Denied, "%s has sha256 %s, the archive signed %s", redact(uri), got, digest)
		}
		return nil
	})
}

// counter returns a writer that reports how much was written to it.
func counter(report func(uint64)) io.Writer {
	var done uint64
	return writerFunc(func(p []byte) (int, error) {
		done += uint64(len(p))
		if report != nil {
			report(done)
		}
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// get hands the content of uri to use, and does so again, from the start, after a failure of the transport.
func (f *fetcher) get(ctx context.Context, uri string, use func(io.Reader) error) error {
	for attempt := 0; ; attempt++ {
		err := f.once(ctx, uri, use)
		var again transient
		if err == nil || !errors.As(err, &again) {
			return err
		}
		if ctx.Err() != nil {
			return fault.Context(context.Cause(ctx), "get %s", redact(uri))
		}
		if attempt == len(f.backoff) {
			return fault.Wrap(fault.Unavailable, again.error, "get %s", redact(uri)).WithHint("banger doctor")
		}
		select {
		case <-time.After(f.backoff[attempt]):
		case <-ctx.Done():
			return fault.Context(context.Cause(ctx), "get %s", redact(uri))
		}
	}
}

// once makes one attempt, which ends when the other side has sent nothing for f.stall.
func (f *fetcher) once(ctx context.Context, uri string, use func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(f.stall, func() { cancel(fmt.Errorf("%w (%v)", errStalled, f.stall)) })
	defer watchdog.Stop()

	body, err := f.open(ctx, uri)
	if err != nil {
		return err
	}
	defer body.Close()
	r := &watched{ctx: ctx, r: body, alive: func() { watchdog.Reset(f.stall) }}
	err = use(r)
	if r.err != nil { // whatever use made of it, the transport is to blame
		return transient{r.err}
	}
	return err
}

// watched passes a body through, remembers why it failed and stops at the context's end.
type watched struct {
	ctx   context.Context // of this one transfer
	r     io.Reader
	alive func()
	err   error
}

func (w *watched) Read(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		w.err = context.Cause(w.ctx)
		return 0, w.err
	}
	n, err := w.r.Read(p)
	if n > 0 {
		w.alive()
	}
	if err != nil && err != io.EOF {
		w.err = err
		if cause := context.Cause(w.ctx); cause != nil {
			w.err = cause
		}
		err = w.err
	}
	return n, err
}

func (f *fetcher) open(ctx context.Context, uri string) (io.ReadCloser, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "mirror")
	}
	if u.Scheme == "file" || u.Scheme == "copy" {
		file, err := os.Open(u.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Wrap(fault.NotFound, err, "mirror")
		}
		return file, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "mirror")
	}
	req.Header.Set("User-Agent", "banger")
	resp, err := f.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, transient{redactError(err)}
	}
	if err := checkStatus(resp, uri); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// redactError drops the URI that net/http puts into its errors: it may hold a password, and the caller adds it anyway.
func redactError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func checkStatus(resp *http.Response, uri string) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusNotFound || code == http.StatusGone:
		return fault.New(fault.NotFound, "%s: %s", redact(uri), resp.Status)
	case code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
		return transient{errors.New(resp.Status)}
	default:
		return fault.New(fault.Unavailable, "%s: %s", redact(uri), resp.Status).WithHint("banger doctor")
	}
}
