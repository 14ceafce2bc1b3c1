package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// body is a blob of a registry from some offset on. When the connection is cut it asks for the rest.
type body struct {
	ctx     context.Context
	session *session
	digest  string
	size    int64 // of the whole blob
	off     int64 // where it is

	resp     io.ReadCloser // nil: to be asked for
	skip     int64         // bytes of resp before off
	failures int           // since the last byte
	stalls   int           // likewise
}

// errEnded is the cause when a body ends early, though as if that were its end.
var errEnded = errors.New("it ends too early")

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for {
		n, err := b.once(p)
		switch {
		case n > 0:
			b.failures, b.stalls = 0, 0
			return n, nil // an error comes again
		case err == nil:
			continue
		case err == io.EOF && b.off >= b.size:
			return 0, io.EOF
		case err == io.EOF:
			err = errEnded
		}
		b.disconnect()
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// once connects if need be and reads.
func (b *body) once(p []byte) (int, error) {
	if b.resp == nil {
		if b.off >= b.size {
			return 0, io.EOF
		}
		if err := b.request(); err != nil {
			return 0, err
		}
	}
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, b.resp, b.skip)
		b.skip -= n
		if err != nil {
			return 0, err
		}
	}
	n, err := b.resp.Read(p)
	b.off += int64(n)
	return n, err
}

// request asks for what is missing, and compares what is announced with what is wanted.
func (b *body) request() error {
	header := http.Header{"Accept-Encoding": {"identity"}}
	ok := []int{http.StatusOK}
	if b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.size-1))
		ok = append(ok, http.StatusPartialContent)
	}
	resp, err := b.session.get(b.ctx, b.session.url("blobs", b.digest), header, ok...)
	if err != nil {
		return err
	}
	from, whole := b.off, b.size-b.off
	if resp.StatusCode == http.StatusOK { // ranges are not to every registry's liking
		from, whole = 0, b.size
	} else if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from > b.off {
		resp.Body.Close()
		return invalid("%s: the registry answers with another range (%s) than it was asked for", b.what(), short(resp.Header.Get("Content-Range")))
	}
	if n := resp.ContentLength; n >= 0 && (n > whole+b.off-from || resp.StatusCode == http.StatusOK && n != whole) {
		resp.Body.Close()
		return invalid("%s has %d bytes at the registry, and its manifest says %d", b.what(), n+from, b.size)
	}
	b.resp, b.skip = resp.Body, b.off-from
	return nil
}

func (b *body) disconnect() {
	if b.resp != nil {
		b.resp.Close()
		b.resp = nil
	}
}

// again waits before the next attempt, or says that there will be none.
func (b *body) again(err error) error {
	var refused *statusError
	var stall stalled
	backoff := b.session.opt.Backoff
	b.failures++
	if errors.As(err, &stall) {
		b.stalls++
	}
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case isStatus(err, http.StatusRequestedRangeNotSatisfiable):
		return io.EOF // it is shorter than it should be, and whoever reads says so
	case errors.As(err, &refused) || isFault(err):
		return b.session.explain(b.ctx, err, b.what())
	case b.failures > len(backoff) && errors.Is(err, errEnded):
		return io.EOF
	case b.failures > len(backoff) || b.stalls > 1:
		return b.session.explain(b.ctx, err, b.what())
	}
	return sleep(b.ctx, backoff[b.failures-1])
}

func (b *body) what() string { return "blob " + b.digest }

// Close implements io.Closer.
func (b *body) Close() error {
	b.disconnect()
	return nil
}
