package transfer

import (
	"context"
	"io"
	"net/http"

	"banger/internal/fault"
)

// Version is how a server names a state of a file. Both may be empty.
type Version struct {
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"` // Last-Modified as it was sent
}

// Response is what Get brings.
type Response struct {
	Body      []byte
	Version   Version
	Unchanged bool // the server still has the version that was asked about; there is no Body
}

// Get gets a small file of at most limit bytes, unless the server still has the given version of it.
func (c *Client) Get(ctx context.Context, uri string, limit int64, have Version) (Response, error) {
	if err := CheckURL(uri); err != nil {
		return Response{}, err
	}
	header := http.Header{}
	if have.ETag != "" {
		header.Set("If-None-Match", have.ETag)
	}
	if have.Modified != "" {
		header.Set("If-Modified-Since", have.Modified)
	}
	var out Response
	err := c.retry(ctx, uri, func() (bool, error) {
		return false, c.exchange(ctx, uri, header, func(resp *http.Response, body io.Reader) (err error) {
			out, err = response(resp, body, uri, limit, have)
			return err
		})
	})
	return out, err
}

func response(resp *http.Response, body io.Reader, uri string, limit int64, have Version) (Response, error) {
	if err := checkStatus(resp, uri); err != nil {
		return Response{}, err
	}
	if resp.StatusCode == http.StatusNotModified && have != (Version{}) {
		return Response{Version: have, Unchanged: true}, nil
	}
	if resp.StatusCode != http.StatusOK {
		return Response{}, fault.New(fault.Unavailable, "%s: %s to a plain request", Redact(uri), resp.Status).WithHint("%s", hint(uri))
	}
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fault.New(fault.Invalid, "%s is longer than %d bytes", Redact(uri), limit).WithHint("%s", hint(uri))
	}
	return Response{Body: data, Version: versionOf(resp)}, err
}

func versionOf(resp *http.Response) Version {
	v := Version{ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}
	if len(v.ETag) > 256 { // to be kept and sent back: not at any length
		v.ETag = ""
	}
	if _, err := http.ParseTime(v.Modified); err != nil {
		v.Modified = ""
	}
	return v
}
