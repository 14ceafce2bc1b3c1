package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// maxRetryAfter is the longest pause that a registry may ask for. Beyond it, people would rather know.
const maxRetryAfter = time.Minute

// newTransport returns the bottom of the chain: connections.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     10 * time.Second,
		// A blob is what its digest says, and nothing that a server has compressed on the way.
		DisableCompression: true,
	}
}

// stalled is the error of a request that has gone nowhere for too long.
type stalled struct{ after time.Duration }

func (s stalled) Error() string { return fmt.Sprintf("nothing received for %v", s.after) }

// staller ends requests of which nothing comes any more, be it the answer or a part of its body. What the caller takes to
// use a part does not count.
type staller struct {
	next  http.RoundTripper
	after time.Duration
}

// RoundTrip implements http.RoundTripper.
func (s staller) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(s.after, func() { cancel(stalled{s.after}) })
	req = req.Clone(ctx)
	if req.Body != nil {
		req.Body = &sending{ReadCloser: req.Body, timer: timer, after: s.after}
	}
	resp, err := s.next.RoundTrip(req)
	timer.Stop()
	if err != nil {
		err = cause(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &receiving{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, after: s.after}
	return resp, nil
}

// sending is the body of a request: every part that is taken is a sign of life.
type sending struct {
	io.ReadCloser
	timer *time.Timer
	after time.Duration
}

func (b *sending) Read(p []byte) (int, error) {
	b.timer.Reset(b.after)
	return b.ReadCloser.Read(p)
}

// receiving is the body of an answer.
type receiving struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

func (b *receiving) Read(p []byte) (int, error) {
	b.timer.Reset(b.after)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF {
		err = cause(b.ctx, err)
	}
	return n, err
}

func (b *receiving) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// retrier makes requests again after failures that pass: an overloaded registry, a cut connection.
type retrier struct {
	next    http.RoundTripper
	backoff []time.Duration
}

// RoundTrip implements http.RoundTripper.
func (r retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		this := req
		if attempt > 0 && req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			this = req.Clone(req.Context())
			this.Body = body
		}
		resp, err := r.next.RoundTrip(this)
		if attempt == len(r.backoff) || req.Body != nil && req.GetBody == nil {
			return resp, err
		}
		wait, again := r.backoff[attempt], false
		if err != nil {
			again = repeatable(req.Method) && passes(err)
		} else if again = overloaded(resp.StatusCode); again {
			asked := retryAfter(resp, time.Now())
			wait, again = max(wait, asked), asked <= maxRetryAfter
		}
		if !again {
			return resp, err
		}
		if resp != nil {
			_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
			resp.Body.Close()
		}
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
	}
}

// repeatable methods change nothing when they come twice. Uploads begin anew as a whole (see push).
func repeatable(method string) bool {
	return slices.Contains([]string{"", http.MethodGet, http.MethodHead}, method)
}

// overloaded tells the statuses that may be others soon.
func overloaded(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter is how long the registry asks to wait: a number of seconds or a date.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// remoteAlert is what crypto/tls calls it when the other side has ended a handshake.
const remoteAlert = "remote error"

// passes reports whether a failed request may work the next time. Who refuses a connection, is not known or is not to be
// trusted will be all that in a second; and who has stalled was waited for.
func passes(err error) bool {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	var stall stalled
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ECONNREFUSED),
		errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &stall),
		errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, errPlain):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsNotFound
	case errors.As(err, &op):
		return op.Op != "dial" && op.Op != remoteAlert // a dial has waited long enough for a host that is not there
	}
	return true
}

// sleep waits, or returns why ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errPlain is the refusal to speak plain HTTP.
var errPlain = errors.New("plain HTTP is not allowed")

// scheme keeps credentials off the open network: what is not allowed plain HTTP does not get it, whatever the library
// or a redirect makes of it.
type scheme struct {
	next  http.RoundTripper
	plain bool // allowed
}

// RoundTrip implements http.RoundTripper.
func (s scheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !s.plain {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, errPlain
	}
	return s.next.RoundTrip(req)
}

// checkRedirect follows redirects as browsers do, but not from the world into this host or its network.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("redirected more than ten times")
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	if from != to && isPrivate(to) && !isPrivate(from) {
		return fmt.Errorf("redirected to %s, which is in a private network", to)
	}
	return nil
}

// isPrivate tells addresses of this host and of private networks; a name is judged by itself.
func isPrivate(host string) bool {
	if mayBePlain(host, nil) {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified())
}
