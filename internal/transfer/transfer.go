// Package transfer gets files from web servers that may be slow, cut connections, answer nonsense or send for ever. What
// it brings is not verified: that is its caller's job, with a signature or a digest.
//
// A transfer that breaks off is tried again, and goes on where it stopped if the server can and says by an ETag or a date
// that it is still the same file. A server that sends nothing for Client.Stall counts as one that broke off.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
)

// DefaultStall is how long a server may send nothing.
const DefaultStall = 30 * time.Second

// Client gets files. The zero value is ready; it may be used by several goroutines.
type Client struct {
	HTTP    *http.Client    // nil: one with the environment's proxy and sensible timeouts
	Stall   time.Duration   // 0: DefaultStall
	Backoff []time.Duration // before each further attempt; nil: a few seconds altogether

	once sync.Once
	made *http.Client // set by once
}

// errStalled is the cause when a server has sent nothing for too long.
var errStalled = errors.New("nothing was received for")

// transient wraps a failure that may go away when the transfer is tried again.
type transient struct{ error }

func (t transient) Unwrap() error { return t.error }

func (c *Client) http() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	c.once.Do(func() {
		c.made = &http.Client{CheckRedirect: checkRedirect, Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout:    15 * time.Second,
			ForceAttemptHTTP2:      true,
			IdleConnTimeout:        10 * time.Second,
			DisableCompression:     true, // what is signed is the file as it is
			MaxResponseHeaderBytes: 64 << 10,
		}}
	})
	return c.made
}

// checkRedirect follows what net/http would, but never from https to http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fault.New(fault.Unavailable, "more than 10 redirections")
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fault.New(fault.Denied, "it redirects from https to %s", Redact(req.URL.String()))
	}
	return nil
}

func (c *Client) stall() time.Duration {
	if c.Stall == 0 {
		return DefaultStall
	}
	return c.Stall
}

func (c *Client) backoff() []time.Duration {
	if c.Backoff == nil {
		return []time.Duration{500 * time.Millisecond, 2 * time.Second, 5 * time.Second}
	}
	return c.Backoff
}

// CheckURL reports a fault of class Invalid unless text is the URL of a file on a web server.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "%q is not a URL", Redact(text))
	case u.Scheme != "http" && u.Scheme != "https":
		return fault.New(fault.Invalid, "%s is not an http or https URL", Redact(text))
	case u.Hostname() == "":
		return fault.New(fault.Invalid, "%s names no server", Redact(text))
	case u.Path == "" || strings.HasSuffix(u.Path, "/"):
		return fault.New(fault.Invalid, "%s names no file", Redact(text))
	}
	return nil
}

// Redact returns a URL for people: without credentials and without its query, which often is one.
func Redact(text string) string {
	u, err := url.Parse(text)
	if err != nil { // a password may be why: nothing is shown of which it is not sure that it is none
		at, query := strings.LastIndexByte(text, '@'), strings.IndexByte(text, '?')
		if query >= 0 && query < at {
			return "..."
		}
		if at >= 0 {
			text = "..." + text[at:]
		}
		text, _, _ = strings.Cut(text, "?")
		if len(text) > 40 {
			text = text[:40] + "..."
		}
		return text
	}
	u.User, u.Fragment = nil, ""
	if u.RawQuery != "" {
		u.RawQuery = "..."
	}
	return u.String()
}

// hint is a command that shows what the server says.
func hint(uri string) string {
	return "curl -sSI '" + strings.ReplaceAll(Redact(uri), "'", "%27") + "'"
}

// retry calls attempt until it succeeds, fails for good, or has failed too often without getting on: attempt returns
// whether it has.
func (c *Client) retry(ctx context.Context, uri string, attempt func() (progress bool, err error)) error {
	for failures := 0; ; {
		progress, err := attempt()
		var again transient
		if err == nil || !errors.As(err, &again) {
			return err
		}
		if ctx.Err() != nil {
			return fault.Context(context.Cause(ctx), "get %s", Redact(uri))
		}
		if progress {
			failures = 0
		}
		if failures == len(c.backoff()) {
			return giveUp(again.error, uri)
		}
		wait := time.NewTimer(c.backoff()[failures])
		failures++
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return fault.Context(context.Cause(ctx), "get %s", Redact(uri))
		}
	}
}

// giveUp is the fault for the last of several failures.
func giveUp(err error, uri string) error {
	class := fault.Unavailable
	if errors.Is(err, errStalled) {
		class = fault.Timeout
	}
	return fault.Wrap(class, err, "get %s", Redact(uri)).WithHint("%s", hint(uri))
}

// exchange sends one request and hands the answer to use. It ends when the server has sent nothing for c.Stall.
func (c *Client) exchange(ctx context.Context, uri string, header http.Header, use func(*http.Response, io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.stall(), func() { cancel(fmt.Errorf("%w %v", errStalled, c.stall())) })
	defer watchdog.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return fault.New(fault.Invalid, "%q is not a URL", Redact(uri))
	}
	req.Header = header.Clone()
	req.Header.Set("User-Agent", "banger")
	resp, err := c.http().Do(req)
	if err != nil {
		return failure(ctx, err)
	}
	defer resp.Body.Close()
	body := &watched{ctx: ctx, r: resp.Body, alive: func() { watchdog.Reset(c.stall()) }}
	err = use(resp, body)
	if body.err != nil { // whatever use made of it, the transport is to blame
		return transient{body.err}
	}
	return err
}

// failure sorts what net/http returns: a fault of ours comes out as it is, the rest may go away.
func failure(ctx context.Context, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL, which may hold a password
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return transient{err}
}

// watched passes a body through, remembers why it failed and stops at the context's end.
type watched struct {
	ctx   context.Context //nolint:containedctx // of this one exchange
	r     io.Reader
	alive func()
	err   error
}

func (w *watched) Read(p []byte) (int, error) {
	if cause := context.Cause(w.ctx); cause != nil {
		w.err = cause
		return 0, cause
	}
	n, err := w.r.Read(p)
	if n > 0 {
		w.alive()
	}
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		w.err = err
		if cause := context.Cause(w.ctx); cause != nil {
			w.err = cause
		}
		err = w.err
	}
	return n, err
}

// checkStatus gives each refusal its own message.
func checkStatus(resp *http.Response, uri string) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK, code == http.StatusPartialContent, code == http.StatusNotModified:
		return nil
	case code == http.StatusNotFound || code == http.StatusGone:
		return fault.New(fault.NotFound, "%s is not there (%s)", Redact(uri), resp.Status).WithHint("%s", hint(uri))
	case code == http.StatusUnauthorized:
		return fault.New(fault.Denied, "%s asks for a user and a password (%s)", Redact(uri), resp.Status).WithHint("%s", hint(uri))
	case code == http.StatusForbidden:
		return fault.New(fault.Denied, "the server refuses %s (%s)", Redact(uri), resp.Status).WithHint("%s", hint(uri))
	case code == http.StatusTooManyRequests:
		return transient{fmt.Errorf("the server has had too many requests (%s)", resp.Status)}
	case code >= 500 || code == http.StatusRequestTimeout:
		return transient{fmt.Errorf("the server has a fault (%s)", resp.Status)}
	default:
		return fault.New(fault.Unavailable, "%s: %s", Redact(uri), resp.Status).WithHint("%s", hint(uri))
	}
}
