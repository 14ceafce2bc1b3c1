package oci

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/fault"
	"banger/internal/nearest"
)

// statusError is an answer that is none.
type statusError struct {
	status int
	host   string // that gave it, which may be another one than was asked
	code   string // of the distribution specification: MANIFEST_UNKNOWN
	text   string // the registry's own words
	after  time.Duration
}

func (e *statusError) Error() string { return http.StatusText(e.status) }

// statusOf reads what an answer says about its failure.
func statusOf(resp *http.Response) error {
	e := &statusError{status: resp.StatusCode, host: resp.Request.URL.Host, after: retryAfter(resp, time.Now())}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		e.code, e.text = body.Errors[0].Code, body.Errors[0].Message
	}
	return e
}

func isStatus(err error, status int) bool {
	var e *statusError
	return errors.As(err, &e) && e.status == status
}

// explain makes a fault of what went wrong while talking to the registry. what names the part that was asked for; empty
// for the image itself. The words of errors are used only where they cannot hold a token: net/http puts URLs into its
// own, and a redirect's URL is as good as a password.
func (s *session) explain(ctx context.Context, err error, what string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if isFault(err) {
		return err
	}
	host := shown(s.repo.RegistryStr())
	out := s.explainTrust(err, host)
	if out == nil {
		out = s.explainStatus(err, host, what)
	}
	if out == nil {
		out = explainNetwork(err, failedHost(err, host))
	}
	return out
}

func isFault(err error) bool {
	var f *fault.Error
	return errors.As(err, &f)
}

// failedHost is the host that a failed request was made to.
func failedHost(err error, otherwise string) string {
	var u *url.Error
	if errors.As(err, &u) {
		if parsed, err := url.Parse(u.URL); err == nil && parsed.Host != "" {
			return shown(parsed.Host)
		}
	}
	return otherwise
}

// explainTrust is about TLS.
func (s *session) explainTrust(err error, host string) *fault.Error {
	host = failedHost(err, host)
	var certificate *tls.CertificateVerificationError
	var op *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate):
		return fault.Wrap(fault.Unavailable, certificate.Err, "registry %s: its certificate is not trusted", host).
			WithHint("curl -v https://%s/v2/", host)
	case errors.As(err, &op) && op.Op == remoteAlert:
		return fault.Wrap(fault.Unavailable, op, "registry %s: no TLS connection", host).WithHint("curl -v https://%s/v2/", host)
	case s.plainAllowed():
		return nil // that it does not speak TLS was expected
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fault.New(fault.Unavailable, "registry %s speaks plain HTTP, which is allowed only for this host and for those that the configuration names as insecure", host).
			WithHint("curl -v http://%s/v2/", host)
	}
	return nil
}

func (s *session) plainAllowed() bool {
	return mayBePlain(s.repo.RegistryStr(), s.opt.Insecure)
}

// explainStatus is about an answer of the registry, or of its token server, which the library asks.
func (s *session) explainStatus(err error, host, what string) *fault.Error {
	var e *statusError
	var t *transport.Error
	switch {
	case errors.As(err, &e):
	case errors.As(err, &t):
		e = &statusError{status: t.StatusCode}
		if t.Request != nil {
			e.host = t.Request.URL.Host
		}
		if len(t.Errors) > 0 {
			e.code, e.text = string(t.Errors[0].Code), t.Errors[0].Message
		}
	default:
		return nil
	}
	if what == "" {
		what = s.repo.RepositoryStr()
	}
	login := loginHint(s.repo.RegistryStr())
	switch {
	case e.status == http.StatusUnauthorized && s.login:
		return fault.New(fault.Denied, "registry %s does not accept the login that is kept for it, or it has no %s%s", host, what, e.says()).
			WithHint("%s", login)
	case e.status == http.StatusUnauthorized:
		return fault.New(fault.Denied, "registry %s wants a login for %s; some also say so of what they do not have%s", host, what, e.says()).
			WithHint("%s", login)
	case e.status == http.StatusForbidden:
		return fault.New(fault.Denied, "registry %s forbids access to %s%s", host, what, e.says()).WithHint("%s", login)
	case e.status == http.StatusNotFound:
		return fault.New(fault.NotFound, "registry %s has no %s%s", host, what, e.says()).WithHint("banger image catalog")
	case e.status == http.StatusTooManyRequests:
		return fault.New(fault.Unavailable, "registry %s gets too many requests from here (429)%s%s", host, e.when(), e.says()).
			WithHint("%s", login) // those who log in may usually ask more often
	case e.status >= 500:
		return fault.New(fault.Unavailable, "registry %s is out of order: %d %s%s", host, e.status, http.StatusText(e.status), e.says()).
			WithHint("curl -v %s://%s/v2/", s.repo.Scheme(), s.repo.RegistryStr())
	}
	return fault.New(fault.Unavailable, "registry %s answers %d %s about %s%s", host, e.status, http.StatusText(e.status), what, e.says())
}

// says quotes the registry.
func (e *statusError) says() string {
	switch {
	case e.text != "":
		return ": it says \"" + short(e.text) + "\""
	case e.code != "":
		return ": it says " + short(e.code)
	}
	return ""
}

func (e *statusError) when() string {
	if e.after > 0 {
		return "; it may be asked again in " + e.after.Round(time.Second).String()
	}
	return ""
}

// schemeOf is how a registry is asked first.
func schemeOf(host string) string {
	if mayBePlain(host, nil) {
		return "http"
	}
	return "https"
}

// explainNetwork is about registries that cannot be reached.
func explainNetwork(err error, host string) *fault.Error {
	var stall stalled
	var dns *net.DNSError
	var op *net.OpError
	plain := hostOf(host)
	switch {
	case errors.As(err, &stall):
		return fault.New(fault.Unavailable, "registry %s has stalled: nothing has come from it for %v", host, stall.after).
			WithHint("curl -v %s://%s/v2/", schemeOf(host), host)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fault.New(fault.Unavailable, "there is no host called %s", plain).WithHint("getent hosts %s", plain)
	case errors.As(err, &dns):
		return fault.New(fault.Unavailable, "the name of registry %s cannot be looked up: %s", plain, dns.Err).WithHint("getent hosts %s", plain)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault.New(fault.Unavailable, "no registry is listening at %s", host).WithHint("curl -v http://%s/v2/", host)
	case errors.Is(err, errPlain):
		return fault.New(fault.Unavailable, "registry %s leads to plain HTTP, which is not allowed", host)
	case errors.As(err, &op):
		return fault.Wrap(fault.Unavailable, op, "registry %s", host)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fault.New(fault.Unavailable, "registry %s has cut the connection several times", host)
	case errors.Is(err, errEnded):
		return fault.New(fault.Unavailable, "registry %s ends its answers too early", host)
	}
	return fault.New(fault.Unavailable, "registry %s: %s", host, safeWords(err))
}

// safeWords are an error's own if they are of a kind that holds no secrets.
func safeWords(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	text := err.Error()
	for _, known := range []string{"redirected ", "http2: ", "http: ", "net/http: ", "tls: ", "x509: ", "malformed www-authenticate", "invalid realm", "proxyconnect "} {
		if strings.HasPrefix(text, known) {
			return short(text)
		}
	}
	return "its answer cannot be understood"
}

// missing says what of a reference the registry has not got. Registries do not always tell a repository from a tag.
func (s *session) missing(ctx context.Context, identifier string, refusal error) error {
	host, repo := shown(s.repo.RegistryStr()), s.repo.RepositoryStr()
	tags, known, err := s.tags(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var refused *statusError
	unknown := errors.As(refusal, &refused) && refused.code == string(transport.NameUnknownErrorCode)
	if !known && (unknown || isStatus(err, http.StatusNotFound)) {
		return fault.New(fault.NotFound, "registry %s has no repository %s", host, repo).WithHint("banger image catalog")
	}
	if strings.HasPrefix(identifier, "sha256:") {
		return fault.New(fault.NotFound, "repository %s at %s has no image with the digest %s", repo, host, identifier).
			WithHint("banger image catalog")
	}
	out := fault.New(fault.NotFound, "repository %s at %s has no tag %q%s", repo, host, identifier, listTags(tags))
	if near := nearest.Of(identifier, tags); near != "" {
		return out.WithHint("banger image pull %s:%s", shown(s.repo.Name()), near)
	}
	return out.WithHint("banger image catalog")
}

// tagForm is what a tag can be.
var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// listTags shows a few tags.
func listTags(tags []string) string {
	const most = 10
	switch {
	case len(tags) == 0:
		return ""
	case len(tags) > most:
		return "; it has " + strings.Join(tags[:most], ", ") + ", ..."
	}
	return "; it has " + strings.Join(tags, ", ")
}
