package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
)

// server is a web server that does one thing after the other, the last for ever, and remembers what it was asked.
type server struct {
	*httptest.Server
	mu     sync.Mutex // guards the fields below
	script []http.HandlerFunc
	asked  []string // the Range of each request
}

func serve(t *testing.T, script ...http.HandlerFunc) *server {
	t.Helper()
	s := &server{script: script}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		h := s.script[min(len(s.asked), len(s.script)-1)]
		s.asked = append(s.asked, r.Header.Get("Range"))
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *server) ranges() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func client() *Client { return clientFor("") }

// clientFor is patient, but in the tests whose name says that it has to run out.
func clientFor(test string) *Client {
	stall := DefaultStall
	if strings.Contains(test, "stalled") {
		stall = 300 * time.Millisecond
	}
	return &Client{Stall: stall, Backoff: []time.Duration{time.Millisecond, time.Millisecond}}
}

// content is what the tests transfer.
func content() []byte {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	return data
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// whole serves the content, and parts of it.
func whole(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"one"`)
	http.ServeContent(w, r, "f", start, bytes.NewReader(content()))
}

// cut sends the first n bytes and breaks off.
func cut(n int, etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if etag != "" {
			w.Header().Set("ETag", etag)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content())))
		_, _ = w.Write(content()[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// stalls sends the first n bytes and then nothing.
func stalls(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Length", strconv.Itoa(len(content())))
		_, _ = w.Write(content()[:n])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func noRanges(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("ETag", `"one"`)
	_, _ = w.Write(content())
}

// partial answers with these headers whatever was asked.
func partial(contentRange string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body)
	}
}

func TestDownload(t *testing.T) {
	size := int64(len(content()))
	for name, tt := range map[string]struct {
		script []http.HandlerFunc
		ranges []string
	}{
		"at once":               {[]http.HandlerFunc{whole}, []string{""}},
		"resumed":               {[]http.HandlerFunc{cut(1000, `"one"`), whole}, []string{"", "bytes=1000-"}},
		"resumed by date":       {[]http.HandlerFunc{dated(1000), dated(-1)}, []string{"", "bytes=1000-"}},
		"resumed twice":         {[]http.HandlerFunc{cut(1000, `"one"`), cutRange(2000), whole}, []string{"", "bytes=1000-", "bytes=3000-"}},
		"changed in between":    {[]http.HandlerFunc{cut(1000, `"old"`), whole}, []string{"", "bytes=1000-"}},
		"weak etag":             {[]http.HandlerFunc{cut(1000, `W/"one"`), whole}, []string{"", ""}},
		"no validator":          {[]http.HandlerFunc{cut(1000, ""), whole}, []string{"", ""}},
		"server without ranges": {[]http.HandlerFunc{cut(1000, `"one"`), noRanges}, []string{"", "bytes=1000-"}},
		"stalled":               {[]http.HandlerFunc{stalls(1000), whole}, []string{"", "bytes=1000-"}},
		"stalled before":        {[]http.HandlerFunc{func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, whole}, []string{"", ""}},
		"busy":                  {[]http.HandlerFunc{status(503), status(429), whole}, []string{"", "", ""}},
		"busy in between":       {[]http.HandlerFunc{cut(1000, `"one"`), status(500), whole}, []string{"", "bytes=1000-", "bytes=1000-"}},
		"range refused":         {[]http.HandlerFunc{cut(1000, `"one"`), status(416), whole}, []string{"", "bytes=1000-", ""}},
		"wrong range":           {[]http.HandlerFunc{cut(1000, `"one"`), partial("bytes 5-9/10", []byte("xxxxx")), whole}, []string{"", "bytes=1000-", ""}},
		"other length":          {[]http.HandlerFunc{cut(1000, `"one"`), partial("bytes 1000-1001/1002", []byte("xx")), whole}, []string{"", "bytes=1000-", ""}},
		"nonsense range":        {[]http.HandlerFunc{cut(1000, `"one"`), partial("everything", []byte("xx")), whole}, []string{"", "bytes=1000-", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tt.script...)
			path := filepath.Join(t.TempDir(), "f")
			var last, total uint64
			n, err := clientFor(name).Download(t.Context(), s.URL+"/f", path, Options{Limit: size, Size: size, Progress: func(done, of uint64) { last, total = done, of }})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content()) || n != size {
				t.Errorf("%d bytes (%d) differ, %v", len(got), n, err)
			}
			if last != uint64(size) || total != uint64(size) {
				t.Errorf("last progress %d of %d", last, total)
			}
			if got := s.ranges(); strings.Join(got, ",") != strings.Join(tt.ranges, ",") {
				t.Errorf("asked for %q, want %q", got, tt.ranges)
			}
		})
	}
}

// dated serves with a date and no ETag; n bytes of it, if n is not negative.
func dated(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if n < 0 {
			http.ServeContent(w, r, "f", start, bytes.NewReader(content()))
			return
		}
		w.Header().Set("Last-Modified", start.Format(http.TimeFormat))
		cut(n, "")(w, r)
	}
}

// cutRange serves n bytes more of what was asked for and breaks off.
func cutRange(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content())-1, len(content())))
		w.Header().Set("Content-Length", strconv.Itoa(len(content())-from))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content()[from : from+n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestDownloadFailures(t *testing.T) {
	size := int64(len(content()))
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(content()); err != nil {
				return
			}
		}
	}
	for name, tt := range map[string]struct {
		script []http.HandlerFunc
		opt    Options
		class  fault.Class
		want   string
	}{
		"not there":      {[]http.HandlerFunc{status(404)}, Options{Limit: size}, fault.NotFound, "URL is not there (404 Not Found)"},
		"gone":           {[]http.HandlerFunc{status(410)}, Options{Limit: size}, fault.NotFound, "URL is not there (410 Gone)"},
		"forbidden":      {[]http.HandlerFunc{status(403)}, Options{Limit: size}, fault.Denied, "the server refuses URL (403 Forbidden)"},
		"password":       {[]http.HandlerFunc{status(401)}, Options{Limit: size}, fault.Denied, "URL asks for a user and a password (401 Unauthorized)"},
		"odd":            {[]http.HandlerFunc{status(418)}, Options{Limit: size}, fault.Unavailable, "URL: 418 I'm a teapot"},
		"broken":         {[]http.HandlerFunc{status(502)}, Options{Limit: size}, fault.Unavailable, "get URL: the server has a fault (502 Bad Gateway)"},
		"too many":       {[]http.HandlerFunc{status(429)}, Options{Limit: size}, fault.Unavailable, "get URL: the server has had too many requests (429 Too Many Requests)"},
		"always cut":     {[]http.HandlerFunc{cut(10, "")}, Options{Limit: size}, fault.Unavailable, "get URL: unexpected EOF"},
		"always stalled": {[]http.HandlerFunc{stalls(10)}, Options{Limit: size}, fault.Timeout, "get URL: nothing was received for 300ms"},
		"too long":       {[]http.HandlerFunc{whole}, Options{Limit: 1000}, fault.Invalid, "URL is larger than the limit of 1000B"},
		"endless":        {[]http.HandlerFunc{endless}, Options{Limit: 10 << 20}, fault.Invalid, "URL is larger than the limit of 10M"},
		"shorter":        {[]http.HandlerFunc{whole}, Options{Limit: 1 << 30, Size: size + 1}, fault.Invalid, "URL has 300000 bytes, not the 300001 it should have"},
		"longer":         {[]http.HandlerFunc{whole}, Options{Limit: 1 << 30, Size: size - 1}, fault.Invalid, "URL has more than the 299999 bytes it should have"},
		"chunked longer": {[]http.HandlerFunc{endless}, Options{Limit: 1 << 30, Size: 12}, fault.Invalid, "URL has more than the 12 bytes it should have"},
		"chunked shorter": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write([]byte("abc"))
		}}, Options{Limit: 1 << 30, Size: 12}, fault.Invalid, "URL has 3 bytes, not the 12 it should have"},
		"round and round": {[]http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/f", http.StatusFound) }}, Options{Limit: size}, fault.Unavailable, "more than 10 redirections"},
		"to a file": {[]http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}}, Options{Limit: size}, fault.Unavailable, `get URL: unsupported protocol scheme "file"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tt.script...)
			dir := t.TempDir()
			_, err := clientFor(name).Download(t.Context(), s.URL+"/f", filepath.Join(dir, "f"), tt.opt)
			if err == nil || !fault.Is(err, tt.class) || err.Error() != strings.ReplaceAll(tt.want, "URL", s.URL+"/f") {
				t.Errorf("%s: %v", fault.ClassOf(err), err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if name != "round and round" && fault.HintOf(err) == "" {
				t.Error("no hint")
			}
		})
	}
}

func TestCancelIsPrompt(t *testing.T) {
	s := serve(t, stalls(1000))
	cause := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	dir := t.TempDir()
	c := &Client{}
	_, err := c.Download(ctx, s.URL+"/f", filepath.Join(dir, "f"), Options{Limit: 1 << 20, Progress: func(done, _ uint64) {
		if done == 1000 {
			cancel(cause)
		}
	}})
	if !errors.Is(err, cause) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNobodyListens(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	_, err := client().Get(t.Context(), s.URL+"/f", 10, Version{})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "connection refused") || fault.HintOf(err) != "curl -sSI '"+s.URL+"/f'" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
}

func TestRedirectFromHTTPSToHTTPIsRefused(t *testing.T) {
	plain := serve(t, whole)
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/f", http.StatusFound))
	defer secure.Close()
	hc := secure.Client()
	hc.CheckRedirect = checkRedirect
	_, err := (&Client{HTTP: hc}).Get(t.Context(), secure.URL+"/f", 1<<20, Version{})
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "it redirects from https to "+plain.URL) {
		t.Error(err)
	}
}

func TestGet(t *testing.T) {
	s := serve(t, whole)
	c := client()
	first, err := c.Get(t.Context(), s.URL+"/f", 1<<20, Version{})
	if err != nil || !bytes.Equal(first.Body, content()) || first.Version.ETag != `"one"` || first.Version.Modified == "" {
		t.Fatalf("%+v, %v", first.Version, err)
	}
	again, err := c.Get(t.Context(), s.URL+"/f", 1<<20, first.Version)
	if err != nil || !again.Unchanged || again.Version != first.Version {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := c.Get(t.Context(), s.URL+"/f", 1000, Version{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "longer than 1000 bytes") {
		t.Error(err)
	}
	lying := serve(t, status(http.StatusNotModified))
	if _, err := c.Get(t.Context(), lying.URL+"/f", 1000, Version{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("not modified, and nothing was asked: %v", err)
	}
}

func TestNoPasswordInMessages(t *testing.T) {
	s := serve(t, status(404))
	uri := strings.Replace(s.URL, "http://", "http://me:secret@", 1) + "/f?token=secret#secret"
	_, err := client().Get(t.Context(), uri, 10, Version{})
	if text := fmt.Sprint(err, fault.HintOf(err)); strings.Contains(text, "secret") || !strings.Contains(text, s.URL+"/f") {
		t.Error(text)
	}
	s.Close()
	if _, err := client().Get(t.Context(), uri, 10, Version{}); strings.Contains(fmt.Sprint(err, fault.HintOf(err)), "secret") {
		t.Error(err)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"http://me:secret@h:80/f?token=secret":     "http://h:80/f?...",
		"https://h/a/b.tar.zst#part":               "https://h/a/b.tar.zst",
		"http://me:sec ret%zz@h/f?token=secret":    "...@h/f", // these cannot be parsed
		"http://me:se?cret@h:port/f":               "...",
		"http://me:secret@x@h:port/f?y@z=secret":   "...",
		"http://h:port/" + strings.Repeat("f", 60): "http://h:port/" + strings.Repeat("f", 26) + "...",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"http://h/f", "https://u:p@h:8443/a/b.tar.zst?x=y", "http://[::1]:80/f"} {
		if err := CheckURL(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "f", "/f", "file:///f", "ftp://h/f", "http://", "http:///f", "http://h", "http://h/", "http://h/d/", "http://[::1", "http:f", "https://h:x/f"} {
		if err := CheckURL(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDownloadTakesNoFileThatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, whole)
	if _, err := client().Download(t.Context(), s.URL+"/f", path, Options{Limit: 1 << 20}); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("%q", got)
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 5-9/*")
	f.Add("bytes */10")
	f.Fuzz(func(t *testing.T, text string) {
		if start, total, ok := contentRange(text); ok && (start < 0 || total < 0 || total > 0 && start >= total) {
			t.Errorf("%q: %d of %d", text, start, total)
		}
	})
}
