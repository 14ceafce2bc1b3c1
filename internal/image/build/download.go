package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/vm"
)

// Bounds of what ADD downloads.
const (
	maxDownload = 4 << 30
	stallLimit  = 60 * time.Second // without a byte
)

// download is a file that ADD has brought.
type download struct {
	file  *os.File // without a name
	size  int64
	mtime time.Time
	sum   string
}

func (d *download) close() { d.file.Close() }

// open implements opener.
func (d *download) open(context.Context, *node) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(d.file, 0, d.size)), nil
}

// collectURL adds a file that is downloaded.
func (sb *stageBuild) collectURL(col *collector, c *dockerfile.Copy, word string) error {
	name := "__unnamed__"
	u, err := url.Parse(word)
	if err != nil || u.Host == "" {
		return fault.New(fault.Invalid, "%s is not a URL", shown(word))
	}
	if base := path.Base(u.Path); base != "." && base != "/" {
		name = base
	}
	want := strings.TrimPrefix(c.Checksum, "sha256:")
	top := &node{typ: tar.TypeReg, mode: 0o600, mtime: old, at: name, digest: want}
	bring := func(ctx context.Context) error {
		col.note("downloading %s", u.Redacted())
		d, err := sb.b.download(ctx, word)
		if err != nil {
			return err
		}
		if want != "" && want != d.sum {
			return fault.New(fault.Invalid, "%s has the checksum sha256:%s instead of %s: the file was changed, or the checksum is wrong", u.Redacted(), d.sum, c.Checksum)
		}
		top.size, top.mtime, top.from, top.digest = d.size, d.mtime, d, d.sum
		return nil
	}
	p := picked{word: u.Redacted(), name: name, top: top}
	if want != "" {
		p.bring = bring
	} else if err := bring(col.ctx); err != nil {
		return err
	}
	col.out = append(col.out, p)
	return nil
}

// download brings a file, once in a build.
func (b *builder) download(ctx context.Context, word string) (*download, error) {
	return share(b, b.urls, word, func() (*download, error) {
		d, err := b.fetch(ctx, word)
		u, parseErr := url.Parse(word)
		if parseErr == nil {
			word = u.Redacted()
		}
		return d, fault.Context(err, "download %s", shown(word))
	}).await(ctx)
}

func (b *builder) fetch(ctx context.Context, word string) (*download, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallLimit, func() {
		cancel(fault.New(fault.Timeout, "nothing came for %s", stallLimit))
	})
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, word, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is not a URL")
	}
	res, err := b.client().Do(req)
	if err != nil {
		return nil, networkFault(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, statusFault(res)
	}
	return b.spool(ctx, res, stalled)
}

func (b *builder) client() *http.Client {
	if b.opt.Client != nil {
		return b.opt.Client
	}
	return &http.Client{Transport: &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, TLSHandshakeTimeout: 30 * time.Second,
		DisableKeepAlives: true, ForceAttemptHTTP2: true,
		// What is asked for is the file as it is.
		DisableCompression: true,
	}}
}

// spool writes a response into a file without a name.
func (b *builder) spool(ctx context.Context, res *http.Response, stalled *time.Timer) (_ *download, err error) {
	f, err := os.CreateTemp(b.opt.Scratch, "download-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	d := &download{file: f, mtime: old}
	if at, err := http.ParseTime(res.Header.Get("Last-Modified")); err == nil {
		d.mtime = at
	}
	h := sha256.New()
	body := &alive{io.LimitReader(res.Body, maxDownload+1), stalled}
	if d.size, err = io.Copy(io.MultiWriter(f, h), body); err != nil {
		return nil, networkFault(ctx, err)
	}
	if d.size > maxDownload {
		return nil, fault.New(fault.Exhausted, "it has more than %s: download it outside of the build, and COPY it", vm.FormatSize(maxDownload))
	}
	d.sum = hex.EncodeToString(h.Sum(nil))
	return d, nil
}

// alive sets the timer back with every byte.
type alive struct {
	r     io.Reader
	timer *time.Timer
}

func (a *alive) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.timer.Reset(stallLimit)
	}
	return n, err
}

func networkFault(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL is in the message anyway, without its password
	}
	return fault.Wrap(fault.Unavailable, err, "the server does not answer as it should")
}

func statusFault(res *http.Response) error {
	class := fault.Unavailable
	switch res.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		class = fault.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		class = fault.Denied
	}
	return fault.New(class, "the server says %d %s", res.StatusCode, http.StatusText(res.StatusCode))
}
