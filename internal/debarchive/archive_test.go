package debarchive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/debarchive"
	"banger/internal/debarchive/debarchivetest"
	"banger/internal/fault"
)

func all(string) bool { return true }

// suite is a release with one package, whose content is big enough to be cut.
func suite() debarchivetest.Suite {
	return debarchivetest.Suite{Name: "bookworm", Packages: []debarchivetest.Package{
		{Name: "hello", Version: "1.0-1", Deb: bytes.Repeat([]byte("package"), 40_000)},
	}}
}

const deb = "pool/main/hello_1.0-1.deb"

// get does all that a user of an archive does.
func get(t *testing.T, opt debarchive.Options) (file string, err error) {
	t.Helper()
	if opt.HostRoot == "" {
		opt.HostRoot = t.TempDir()
	}
	if opt.Backoff == nil {
		opt.Backoff = []time.Duration{time.Millisecond}
	}
	a, err := debarchive.Open(t.Context(), "bookworm", opt)
	if err != nil {
		return "", err
	}
	pkgs, err := a.Packages(t.Context(), "amd64", all)
	if err != nil {
		return "", err
	}
	p, ok := debarchive.Newest(pkgs, "hello", "")
	if !ok {
		return "", errors.New("no package hello")
	}
	file = filepath.Join(t.TempDir(), "x.deb")
	err = a.Download(t.Context(), p, file, nil)
	if _, statErr := os.Stat(file); (statErr == nil) != (err == nil) {
		t.Errorf("after error %v the file is there: %v", err, statErr == nil)
	}
	return file, err
}

func TestDownloadFromEveryKindOfMirror(t *testing.T) {
	for _, tc := range []struct {
		name  string
		suite func(*debarchivetest.Suite)
	}{
		{"as Debian has it", func(*debarchivetest.Suite) {}},
		{"xz only", func(s *debarchivetest.Suite) { s.Forms = []string{".xz"} }},
		{"not compressed", func(s *debarchivetest.Suite) { s.Forms = []string{""} }},
		{"by digest only", func(s *debarchivetest.Suite) { s.ByHashOnly = true }},
		{"still valid", func(s *debarchivetest.Suite) { s.ValidUntil = time.Now().Add(time.Hour) }},
		{"signed by another key first", func(s *debarchivetest.Suite) { s.CoSigner = debarchivetest.New(t) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := debarchivetest.New(t)
			s := suite()
			tc.suite(&s)
			m.Publish(s)
			server := httptest.NewServer(http.StripPrefix("/some/path", http.FileServer(http.Dir(m.Dir))))
			defer server.Close()
			for _, mirror := range []string{m.URI(), server.URL + "/some/path/"} {
				file, err := get(t, debarchive.Options{Mirror: mirror, Keyring: m.Keyring})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, s.Packages[0].Deb) {
					t.Errorf("%s: downloaded %d bytes, %v", mirror, len(got), err)
				}
			}
		})
	}
}

func TestEverythingIsVerified(t *testing.T) {
	cut := func(b []byte) []byte { return b[:len(b)-7] }
	lengthen := func(b []byte) []byte { return append(b, "more"...) }
	for _, tc := range []struct {
		name  string
		suite func(*debarchivetest.Suite)
		edit  map[string]func([]byte) []byte
		key   bool // use a foreign keyring
		class fault.Class
		text  string
	}{
		{name: "package flipped", edit: map[string]func([]byte) []byte{deb: debarchivetest.Flip}, class: fault.Denied, text: "the archive signed"},
		{name: "package cut", edit: map[string]func([]byte) []byte{deb: cut}, class: fault.Denied, text: "has 279993 bytes, the archive signed 280000"},
		{name: "package longer", edit: map[string]func([]byte) []byte{deb: lengthen}, class: fault.Denied, text: "longer than"},
		{
			name: "index flipped", class: fault.Denied, text: "has sha256",
			edit: map[string]func([]byte) []byte{"dists/bookworm/main/binary-amd64/Packages.gz": debarchivetest.Flip},
		},
		{
			name: "index cut", class: fault.Denied, text: "has",
			edit: map[string]func([]byte) []byte{"dists/bookworm/main/binary-amd64/Packages.gz": cut},
		},
		{
			name: "release flipped", class: fault.Denied, text: "InRelease",
			edit: map[string]func([]byte) []byte{"dists/bookworm/InRelease": func(b []byte) []byte {
				return bytes.Replace(b, []byte("stable-of-test"), []byte("stable-of-tesT"), 1)
			}},
		},
		{
			name: "release cut", class: fault.Denied, text: "InRelease",
			edit: map[string]func([]byte) []byte{"dists/bookworm/InRelease": func(b []byte) []byte { return b[:len(b)/2] }},
		},
		{
			name: "release too large", class: fault.Denied, text: "larger than",
			edit: map[string]func([]byte) []byte{"dists/bookworm/InRelease": func([]byte) []byte { return make([]byte, 9<<20) }},
		},
		{
			name: "text before the signature is not read", class: "",
			edit: map[string]func([]byte) []byte{"dists/bookworm/InRelease": func(b []byte) []byte {
				return append([]byte("Origin: evil\nValid-Until: never\n\n"), b...)
			}},
		},
		{name: "another key", key: true, class: fault.Denied, text: "not signed by a key of the keyring"},
		{
			name: "expired", class: fault.Denied, text: "valid until",
			suite: func(s *debarchivetest.Suite) { s.ValidUntil = time.Now().Add(-time.Hour) },
		},
		{
			name: "of another suite", class: fault.Denied, text: `of suite "bullseye"`,
			suite: func(s *debarchivetest.Suite) { s.Name = "bullseye" },
		},
		{
			name: "of another vendor", class: fault.NotFound, text: "not Debian's archive",
			suite: func(s *debarchivetest.Suite) { s.Origin = "Other" },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := debarchivetest.New(t)
			s := suite()
			if tc.suite != nil {
				tc.suite(&s)
			}
			m.Publish(s)
			if s.Name != "bookworm" {
				rename(t, filepath.Join(m.Dir, "dists", s.Name), filepath.Join(m.Dir, "dists", "bookworm"))
			}
			for name, change := range tc.edit {
				m.Edit(name, change)
			}
			keyring := m.Keyring
			if tc.key {
				keyring = debarchivetest.New(t).Keyring
			}
			_, err := get(t, debarchive.Options{Mirror: m.URI(), Keyring: keyring})
			check(t, err, tc.class, tc.text)
		})
	}
}

// Backports have a name of their own, and nothing else may go by it.
func TestBackportsAreVerifiedToo(t *testing.T) {
	for _, tc := range []struct {
		name   string
		suite  string
		origin string
		class  fault.Class
		text   string
	}{
		{name: "good", suite: "bookworm-backports", origin: "Debian Backports"},
		{name: "another origin", suite: "bookworm-backports", class: fault.NotFound, text: "no suite bookworm-backports"},
		{name: "not there", suite: "bookworm", class: fault.NotFound, text: "no suite bookworm-backports"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := debarchivetest.New(t)
			s := suite()
			s.Name, s.Origin = tc.suite, tc.origin
			m.Publish(s)
			_, err := get(t, debarchive.Options{Mirror: m.URI(), Keyring: m.Keyring, Backports: true})
			check(t, err, tc.class, tc.text)
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// check compares an error with a class ("" for none) and a part of its text.
func check(t *testing.T, err error, class fault.Class, text string) {
	t.Helper()
	if class == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if !fault.Is(err, class) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v (class %s), want class %s and text %q", err, fault.ClassOf(err), class, text)
	}
}

func TestHostConfigurationDecidesWhatMustBeThere(t *testing.T) {
	m, other := debarchivetest.New(t), debarchivetest.New(t)
	m.Publish(suite())
	foreign := suite()
	foreign.Origin = "Other"
	other.Publish(foreign)
	expired := debarchivetest.New(t)
	s := suite()
	s.ValidUntil = time.Now().Add(-time.Hour)
	expired.Publish(s)
	signedBy := func(m *debarchivetest.Mirror) string { return "deb [signed-by=" + m.Keyring + "] " + m.URI() }
	for _, tc := range []struct {
		name  string
		list  string
		class fault.Class
	}{
		{"release only", signedBy(m) + " bookworm main\n", ""},
		{"guessed updates are missing", signedBy(m) + " trixie main\n" + signedBy(m) + " trixie-updates main\n", ""},
		{"named updates are missing", signedBy(m) + " bookworm main\n" + signedBy(m) + " bookworm-updates main\n", fault.NotFound},
		{"another vendor's source comes first", signedBy(other) + " bookworm main\n" + signedBy(m) + " bookworm main\n", ""},
		{"a broken source comes first", signedBy(expired) + " bookworm main\n" + signedBy(m) + " bookworm main\n", ""},
		{"expired", signedBy(expired) + " bookworm main\n", fault.Denied},
		{
			"expiry switched off by the host",
			"deb [check-valid-until=no signed-by=" + expired.Keyring + "] " + expired.URI() + " bookworm main\n", "",
		},
		{"keyring is missing", "deb [signed-by=/nonexistent.gpg] " + m.URI() + " bookworm main\n", fault.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "etc/apt"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte(tc.list), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := get(t, debarchive.Options{HostRoot: root})
			check(t, err, tc.class, "")
		})
	}
}

// flaky serves a directory after it has treated the first requests for a path in another way.
type flaky struct {
	files http.Handler
	path  string
	times atomic.Int32 // how many more requests are treated so
	how   http.HandlerFunc
	seen  atomic.Int32
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, f.path) {
		f.seen.Add(1)
		if f.times.Add(-1) >= 0 {
			f.how(w, r)
			return
		}
	}
	f.files.ServeHTTP(w, r)
}

func TestTransfersAreTriedAgain(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	stall := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the beginning")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	hangUp := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "280000")
		w.Write([]byte("the beginning"))
		panic(http.ErrAbortHandler)
	}
	for _, tc := range []struct {
		name  string
		how   http.HandlerFunc
		times int32
		seen  int32
		class fault.Class
		text  string
	}{
		{"overloaded once", status(503), 1, 2, "", ""},
		{"overloaded", status(503), 99, 3, fault.Unavailable, "503"},
		{"hangs up once", hangUp, 1, 2, "", ""},
		{"hangs up", hangUp, 99, 3, fault.Unavailable, "EOF"},
		{"stalls once", stall, 1, 2, "", ""},
		{"stalls", stall, 99, 3, fault.Unavailable, "nothing received for too long"},
		{"silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 99, 3, fault.Unavailable, "nothing received"},
		{"forbidden", status(403), 99, 1, fault.Unavailable, "403"},
		{"missing", status(404), 99, 1, fault.NotFound, "404"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := debarchivetest.New(t)
			m.Publish(suite())
			f := &flaky{files: http.FileServer(http.Dir(m.Dir)), path: deb, how: tc.how}
			f.times.Store(tc.times)
			server := httptest.NewServer(f)
			defer server.Close()
			stall := time.Minute
			if strings.HasPrefix(tc.name, "stall") || tc.name == "silent" {
				stall = 500 * time.Millisecond // more than a busy machine needs for what does come
			}
			_, err := get(t, debarchive.Options{
				Mirror: server.URL, Keyring: m.Keyring, Stall: stall,
				Backoff: []time.Duration{time.Millisecond, time.Millisecond},
			})
			check(t, err, tc.class, tc.text)
			if got := f.seen.Load(); got < tc.seen { // net/http adds some of its own when a connection breaks
				t.Errorf("%d requests, want at least %d", got, tc.seen)
			}
		})
	}
}

func TestUnreachableMirror(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	mirror := strings.Replace(server.URL, "http://", "http://user:secret@", 1)
	_, err := get(t, debarchive.Options{Mirror: mirror, Keyring: debarchivetest.New(t).Keyring})
	check(t, err, fault.Unavailable, "connection refused")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the password: %v", err)
	}
	if fault.HintOf(err) == "" {
		t.Error("no hint")
	}
}

func TestCancelledDownloadLeavesNothing(t *testing.T) {
	m := debarchivetest.New(t)
	m.Publish(suite())
	f := &flaky{files: http.FileServer(http.Dir(m.Dir)), path: deb}
	f.times.Store(99)
	f.how = func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the beginning")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	server := httptest.NewServer(f)
	defer server.Close()
	a, err := debarchive.Open(t.Context(), "bookworm", debarchive.Options{Mirror: server.URL, Keyring: m.Keyring, HostRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := a.Packages(t.Context(), "amd64", all)
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("the user has left")
	ctx, cancel := context.WithCancelCause(t.Context())
	dir := t.TempDir()
	err = a.Download(ctx, pkgs[0], filepath.Join(dir, "x.deb"), func(uint64) { cancel(reason) })
	if !errors.Is(err, reason) {
		t.Errorf("error %v, want the cause of the cancellation", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNewestFollowsVersions(t *testing.T) {
	pkgs := []debarchive.Package{
		{Name: "a", Version: "6.1.9-1"}, {Name: "a", Version: "6.1.10-1"}, {Name: "a", Version: "6.1.10~rc1-1"}, {Name: "b", Version: "9"},
	}
	for _, tc := range []struct {
		name, version, want string
		ok                  bool
	}{
		{"a", "", "6.1.10-1", true}, {"a", "6.1.9-01", "6.1.9-1", true}, {"a", "7", "", false}, {"c", "", "", false},
	} {
		got, ok := debarchive.Newest(pkgs, tc.name, tc.version)
		if ok != tc.ok || got.Version != tc.want {
			t.Errorf("Newest(%q, %q) = %q, %v", tc.name, tc.version, got.Version, ok)
		}
	}
}
