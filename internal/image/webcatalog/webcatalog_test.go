package webcatalog

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/signature"
	"banger/internal/transfer"
)

// site is a web server with a catalog, which counts what it is asked.
type site struct {
	*httptest.Server
	dir    string
	key    signature.SecretKey
	mu     sync.Mutex                                    // guards the fields below
	answer func(http.ResponseWriter, *http.Request) bool // instead of the file, if it says so; may be nil
	asked  int
	last   http.Header
}

func serve(t *testing.T) *site {
	t.Helper()
	k, err := signature.Generate()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: t.TempDir(), key: k}
	files := http.FileServer(http.Dir(s.dir))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked++
		if !strings.HasSuffix(r.URL.Path, signature.Suffix) {
			s.last = r.Header
		}
		answer := s.answer
		s.mu.Unlock()
		if answer == nil || !answer(w, r) {
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) set(answer func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.asked = answer, 0
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *site) config() Config {
	return Config{Name: "acme", URL: s.URL + "/sub/catalog.json", Key: s.key.Public().String()}
}

func entry(name string) Entry {
	return Entry{Name: name, Arch: "amd64", URL: "../" + name + ".tar.zst", SHA256: strings.Repeat("a", 64), Size: 1}
}

// publish writes and signs the list.
func (s *site) publish(t *testing.T, l List) {
	t.Helper()
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, data)
}

func (s *site) write(t *testing.T, data []byte) {
	t.Helper()
	path := filepath.Join(s.dir, "sub", "catalog.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signature.SignFile(t.Context(), path, s.key); err != nil {
		t.Fatal(err)
	}
}

// clock is the time that a Cache sees.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newCache(t *testing.T) (*Cache, *clock) {
	t.Helper()
	c := &clock{time.Now()}
	return &Cache{Dir: filepath.Join(t.TempDir(), "c"), Now: c.Now, Client: &transfer.Client{Backoff: []time.Duration{}}}, c
}

func TestLoadKeepsACopy(t *testing.T) {
	s := serve(t)
	s.publish(t, List{Schema: 1, Entries: []Entry{entry("dev")}})
	cache, now := newCache(t)
	check := func(refresh bool, requests int) {
		t.Helper()
		s.set(nil)
		l, warning, err := cache.Load(t.Context(), s.config(), refresh)
		if err != nil || warning != nil || len(l.Entries) != 1 || l.Entries[0].URL != s.URL+"/dev.tar.zst" {
			t.Errorf("%+v, %v, %v", l, warning, err)
		}
		if s.count() != requests {
			t.Errorf("%d requests, want %d", s.count(), requests)
		}
	}
	check(false, 2) // the list and its signature
	check(false, 0)
	check(true, 1) // it has not changed
	if s.last.Get("If-Modified-Since") == "" {
		t.Errorf("the request says nothing of the copy: %v", s.last)
	}
	now.now = now.now.Add(2 * time.Hour)
	check(false, 1)
	check(false, 0)
	now.now = now.now.Add(-24 * time.Hour) // a copy from the future
	check(false, 1)
}

func TestServerFaultsLeaveTheCopy(t *testing.T) {
	answer := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	onlyList := func(f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, ".json") && f(w, r)
		}
	}
	other := serve(t)
	other.publish(t, List{Schema: 1, Entries: []Entry{entry("evil")}})
	if err := os.Chtimes(filepath.Join(other.dir, "sub", "catalog.json"), time.Now(), time.Now().Add(time.Hour)); err != nil { // newer than the copy
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		class  fault.Class
		want   string
	}{
		"not there": {answer(404), fault.NotFound, "is not there (404 Not Found)"},
		"forbidden": {answer(403), fault.Denied, "the server refuses"},
		"fault":     {answer(500), fault.Unavailable, "the server has a fault (500 Internal Server Error)"},
		"stalls":    {func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, fault.Timeout, "nothing was received for 200ms"},
		"changed":   {onlyList(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write([]byte(`{"schema":1}`)); return true }), fault.Denied, "is not what key"},
		"too long": {onlyList(func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(make([]byte, maxList+1))
			return true
		}), fault.Invalid, "is longer than 4194304 bytes"},
		"other's key": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusFound)
			return true
		}, fault.Denied, "was made with key " + other.key.Public().ID() + ", which is not trusted here"},
		"unsigned": {func(w http.ResponseWriter, r *http.Request) bool {
			bad := strings.HasSuffix(r.URL.Path, ".minisig")
			if bad {
				http.NotFound(w, r)
			} else {
				_, _ = w.Write([]byte("{}"))
			}
			return true
		}, fault.Denied, "it is not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.publish(t, List{Schema: 1, Entries: []Entry{entry("dev")}})
			cache, now := newCache(t)
			ask := func(refresh bool) (List, error, error) {
				if name == "stalls" { // only then: elsewhere the host may be slow
					cache.Client.Stall = 200 * time.Millisecond
					defer func() { cache.Client.Stall = 0 }()
				}
				return cache.Load(t.Context(), s.config(), refresh)
			}
			s.set(tt.answer)
			if _, _, err := ask(false); !fault.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "catalog acme: ") {
				t.Errorf("without a copy: %s: %v", fault.ClassOf(err), err)
			}
			s.set(nil)
			if _, _, err := cache.Load(t.Context(), s.config(), false); err != nil {
				t.Fatal(err)
			}
			s.set(tt.answer)
			for _, refresh := range []bool{true, false} { // the second does not ask again so soon
				l, warning, err := ask(refresh)
				if err != nil || warning == nil || !strings.Contains(warning.Error(), tt.want) || len(l.Entries) != 1 || l.Entries[0].Name != "dev" {
					t.Errorf("%+v, %v, %v", l, warning, err)
				}
				s.set(tt.answer)
			}
			if s.count() != 0 {
				t.Errorf("%d requests right after a failure", s.count())
			}
			now.now = now.now.Add(2 * retryAfter)
			s.set(nil)
			if _, warning, err := cache.Load(t.Context(), s.config(), false); warning != nil || err != nil || s.count() == 0 {
				t.Errorf("%v, %v, %d requests", warning, err, s.count())
			}
		})
	}
}

func TestOlderListIsNotTaken(t *testing.T) {
	s := serve(t)
	day := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	s.publish(t, List{Schema: 1, Created: day, Entries: []Entry{entry("new")}})
	cache, _ := newCache(t)
	if _, _, err := cache.Load(t.Context(), s.config(), false); err != nil {
		t.Fatal(err)
	}
	s.publish(t, List{Schema: 1, Created: day.AddDate(0, -1, 0), Entries: []Entry{entry("old")}})
	if err := os.Chtimes(filepath.Join(s.dir, "sub", "catalog.json"), time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	l, warning, err := cache.Load(t.Context(), s.config(), true)
	if err != nil || warning == nil || !strings.Contains(warning.Error(), "is of 2026-04-01 00:00:00, older than the copy that is here (2026-05-01 00:00:00)") || l.Entries[0].Name != "new" {
		t.Errorf("%+v, %v, %v", l, warning, err)
	}
}

// A copy is not believed because it lies in the user's directory.
func TestCopyIsVerifiedEachTime(t *testing.T) {
	s := serve(t)
	s.publish(t, List{Schema: 1, Entries: []Entry{entry("dev")}})
	cache, _ := newCache(t)
	if _, _, err := cache.Load(t.Context(), s.config(), false); err != nil {
		t.Fatal(err)
	}
	path := cache.path(s.config())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f copyFile
	if err := json.Unmarshal(good, &f); err != nil {
		t.Fatal(err)
	}
	f.Catalog = []byte(`{"schema":1}`)
	forged, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"forged": forged, "cut off": good[:len(good)/2], "empty": nil, "huge": make([]byte, maxCopy+1)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s.set(nil)
		l, warning, err := cache.Load(t.Context(), s.config(), false)
		if err != nil || warning != nil || len(l.Entries) != 1 || s.count() != 2 {
			t.Errorf("%s: %+v, %v, %v, %d requests", name, l, warning, err, s.count())
		}
	}
	// Another key is another catalog.
	other := s.config()
	k, err := signature.Generate()
	if err != nil {
		t.Fatal(err)
	}
	other.Key = k.Public().String()
	if _, _, err := cache.Load(t.Context(), other, false); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
}

func TestCopyThatCannotBeKept(t *testing.T) {
	s := serve(t)
	s.publish(t, List{Schema: 1, Entries: []Entry{entry("dev")}})
	cache, _ := newCache(t)
	if err := os.WriteFile(cache.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, warning, err := cache.Load(t.Context(), s.config(), false)
	if err != nil || len(l.Entries) != 1 || warning == nil || !strings.Contains(warning.Error(), "keep a copy of catalog acme") {
		t.Errorf("%+v, %v, %v", l, warning, err)
	}
}

func TestCancelledLoad(t *testing.T) {
	s := serve(t)
	s.publish(t, List{Schema: 1, Entries: []Entry{entry("dev")}})
	cache, _ := newCache(t)
	if _, _, err := cache.Load(t.Context(), s.config(), false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := cache.Load(ctx, s.config(), true); !fault.Is(err, fault.Cancelled) {
		t.Error(err)
	}
}

func TestParseList(t *testing.T) {
	const good = `{"name":"dev","arch":"amd64","url":"dev.tar.zst","sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":1}`
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, tt := range map[string]struct{ entries, want string }{
		"one":             {good, ""},
		"two machines":    {good + "," + with("amd64", "arm64"), ""},
		"newer field":     {with(`"size"`, `"more":{},"size"`), ""},
		"absolute":        {with("dev.tar.zst", "http://other/x.tar.zst"), ""},
		"twice":           {good + "," + good, "it has dev for amd64 twice"},
		"name":            {with("dev", "a/b"), `entry 1 ("a/b"): its name is not one`},
		"no name":         {with("dev", ""), `entry 1 (""): its name is not one`},
		"description":     {with(`"arch"`, `"description":"a\nb","arch"`), `its description is not one line of up to 200 bytes`},
		"architecture":    {with("amd64", ""), `its architecture "" is not one`},
		"kernel":          {with(`"arch"`, `"kernel":"../x","arch"`), `its kernel "../x" is not a kernel's name`},
		"sha256":          {with("aaaa", "AAAA"), `it has no sha256 of 64 hexadecimal digits`},
		"size":            {with(`:1}`, `:-1}`), `it has -1 bytes`},
		"file":            {with("dev.tar.zst", "file:///etc/passwd"), `file:///etc/passwd is not an http or https URL`},
		"no url":          {with("dev.tar.zst", ""), `its url "" is not one`},
		"directory":       {with("dev.tar.zst", "x/"), `http://h/d/x/ names no file`},
		"not a number":    {with(`:1}`, `:"1"}`), `it cannot be read: cannot unmarshal string`},
		"number of floor": {with(`:1}`, `:1e30}`), `it cannot be read: cannot unmarshal number`},
	} {
		_, err := ParseList([]byte(`{"schema":1,"entries":[`+tt.entries+`]}`), "http://h/d/c.json")
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !fault.Is(err, fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, want := range map[string]string{
		`{"schema":2,"entries":7}`: "it has schema 2, this banger reads 1",
		`{}`:                       "it says no schema: it is not a catalog of banger",
		``:                         "it cannot be read: EOF",
		`{"schema":1}}`:            "it cannot be read: something follows its end",
		`{"schema":1,"entries":[` + strings.Repeat(`{},`, maxEntries) + `{}]}`: "it has 10001 entries, more than 10000",
	} {
		if _, err := ParseList([]byte(text), "http://h/c.json"); err == nil || err.Error() != want {
			t.Errorf("%.50q: %v", text, err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	data, err := json.Marshal(List{Schema: 1, Created: time.Now(), Entries: []Entry{entry("dev"), entry("other")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseList(data, "https://me:secret@h/d/catalog.json")
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("%v", err)
			}
			return
		}
		for _, e := range l.Entries {
			if transfer.CheckURL(e.URL) != nil || e.Size <= 0 || e.Name == "" || strings.ContainsAny(e.Name+e.Description+e.Kernel, "\x1b\n\x00") {
				t.Errorf("%+v", e)
			}
		}
	})
}
