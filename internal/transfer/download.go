package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/vm"
)

// enough is how much an attempt has to bring so that the count of failures begins anew.
const enough = 1 << 20

// Options of Download.
type Options struct {
	Limit    int64                    // the most that is taken; required
	Size     int64                    // what the file is known to have; 0: not known
	Progress func(done, total uint64) // total is 0 when it is not known; may be nil
}

// Download writes the file at uri to path, which must not exist, and returns its length. On failure path is removed.
func (c *Client) Download(ctx context.Context, uri, path string, opt Options) (size int64, err error) {
	if err := CheckURL(uri); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	d := &download{uri: uri, opt: opt, file: f}
	err = c.retry(ctx, uri, func() (bool, error) {
		before := d.most
		err := c.exchange(ctx, uri, d.header(), d.take)
		d.most = max(d.most, d.done)
		return d.most-before >= enough, err
	})
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, errors.Join(d.explain(err), os.Remove(path))
	}
	return d.done, nil
}

// download is one file on its way. It is used by one goroutine.
type download struct {
	uri  string
	opt  Options
	file *os.File

	done    int64   // bytes in file
	most    int64   // that it has ever had: a server that cannot go on begins anew each time
	total   int64   // of the whole, as far as the server has said; 0: not known
	version Version // of what is in file
}

// header asks for the rest, where the server can say that it is still the rest of the same file.
func (d *download) header() http.Header {
	h := http.Header{}
	if same := d.validator(); d.done > 0 && same != "" {
		h.Set("Range", fmt.Sprintf("bytes=%d-", d.done))
		h.Set("If-Range", same)
	}
	return h
}

// validator is what If-Range takes: a strong ETag, else the date.
func (d *download) validator() string {
	if d.version.ETag != "" && !strings.HasPrefix(d.version.ETag, "W/") {
		return d.version.ETag
	}
	return d.version.Modified
}

// take writes what an answer brings behind what is there, or from the start.
func (d *download) take(resp *http.Response, body io.Reader) error {
	if err := d.begin(resp); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, err := d.file.Write(buf[:n]); err != nil {
				return err
			}
			d.done += int64(n)
			if err := d.checkLength(d.done); err != nil {
				return err
			}
			d.report()
		}
		if errors.Is(err, io.EOF) {
			return d.end()
		}
		if err != nil {
			return err
		}
	}
}

// begin looks at the head of an answer and sets the file to where its body goes.
func (d *download) begin(resp *http.Response) error {
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && d.done > 0 {
		d.version = Version{} // the next attempt starts over
		return transient{errors.New("the server does not go on where it stopped")}
	}
	if err := checkStatus(resp, d.uri); err != nil {
		return err
	}
	length := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		start, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != d.done || d.total > 0 && total > 0 && total != d.total {
			d.version = Version{}
			return transient{fmt.Errorf("the server answers bytes %d- with %q", d.done, resp.Header.Get("Content-Range"))}
		}
		d.total = max(d.total, total)
	} else {
		d.done, d.total, d.version = 0, max(length, 0), versionOf(resp)
	}
	if err := d.checkLength(d.total); err != nil {
		return err
	}
	if err := d.checkTotal(); err != nil {
		return err
	}
	if err := d.file.Truncate(d.done); err != nil {
		return err
	}
	_, err := d.file.Seek(d.done, io.SeekStart)
	d.report()
	return err
}

// checkLength holds a length against the limits.
func (d *download) checkLength(n int64) error {
	switch {
	case d.opt.Size > 0 && n > d.opt.Size:
		return fault.New(fault.Invalid, "%s has more than the %d bytes it should have", Redact(d.uri), d.opt.Size).WithHint("%s", hint(d.uri))
	case n > d.opt.Limit:
		return fault.New(fault.Invalid, "%s is larger than the limit of %s", Redact(d.uri), vm.FormatSize(uint64(d.opt.Limit))).
			WithHint("banger config show")
	}
	return nil
}

// checkTotal refuses a file whose length is wrong before it is transferred.
func (d *download) checkTotal() error {
	if d.opt.Size > 0 && d.total > 0 && d.total != d.opt.Size {
		return fault.New(fault.Invalid, "%s has %d bytes, not the %d it should have", Redact(d.uri), d.total, d.opt.Size).WithHint("%s", hint(d.uri))
	}
	return nil
}

// end is called when a body has come to its end.
func (d *download) end() error {
	switch {
	case d.total > 0 && d.done != d.total:
		return transient{io.ErrUnexpectedEOF}
	case d.opt.Size > 0 && d.done != d.opt.Size:
		return fault.New(fault.Invalid, "%s has %d bytes, not the %d it should have", Redact(d.uri), d.done, d.opt.Size).WithHint("%s", hint(d.uri))
	}
	return nil
}

func (d *download) report() {
	if d.opt.Progress != nil {
		d.opt.Progress(uint64(d.done), uint64(max(d.total, d.opt.Size)))
	}
}

// explain gives a full disk its class.
func (d *download) explain(err error) error {
	if ext4.NoSpace(err) {
		return ext4.Exhausted(err, d.file.Name(), uint64(max(d.total, d.done)))
	}
	if errors.Is(err, os.ErrPermission) {
		return fault.Wrap(fault.Denied, err, "write %s", filepath.Base(d.file.Name()))
	}
	return err
}

// contentRange reads "bytes 5-9/10"; total is 0 for "bytes 5-9/*".
func contentRange(text string) (start, total int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, whole, ok := strings.Cut(text, "/")
	first, last, ok2 := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || !ok2 || err != nil || err2 != nil || start < 0 || end < start {
		return 0, 0, false
	}
	if whole == "*" {
		return start, 0, true
	}
	total, err = strconv.ParseInt(whole, 10, 64)
	return start, total, err == nil && total > end
}
