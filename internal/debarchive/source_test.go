package debarchive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

// hostRoot writes files below a new root directory.
func hostRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostSourcesReadsBothFormats(t *testing.T) {
	root := hostRoot(t, map[string]string{
		"etc/apt/sources.list": `
# a comment
deb http://one.test/debian bookworm main contrib # trailing
deb-src http://one.test/debian bookworm main
deb	[ arch=amd64 signed-by=/k1.gpg,/k2.asc check-valid-until=no ]  http://two.test/d/ bookworm-updates main
deb [signed-by=0123456789ABCDEF] http://three.test/d bookworm main
deb [broken http://four.test bookworm main
deb http://five.test
`,
		"etc/apt/sources.list.d/b.sources": `Types: deb deb-src
# within a paragraph
URIs: http://six.test/debian
 http://seven.test/debian
Suites: bookworm bookworm-security
Components: main
Signed-By: /k3.gpg

Types: deb
URIs: http://off.test/
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://src.test/
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.test/
Suites: bookworm
Components: main
Check-Valid-Until: No
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDME
 -----END PGP PUBLIC KEY BLOCK-----
`,
		"etc/apt/sources.list.d/a.list":          "deb http://a.test/ trixie main\n",
		"etc/apt/sources.list.d/a.list.disabled": "deb http://disabled.test/ trixie main\n",
	})
	want := []Source{
		{URI: "http://one.test/debian", Suite: "bookworm", Components: []string{"main", "contrib"}},
		{
			URI: "http://two.test/d/", Suite: "bookworm-updates", Components: []string{"main"},
			SignedBy: []string{"/k1.gpg", "/k2.asc"}, NoExpiry: true,
		},
		{URI: "http://three.test/d", Suite: "bookworm", Components: []string{"main"}},
		{URI: "http://a.test/", Suite: "trixie", Components: []string{"main"}},
		{URI: "http://six.test/debian", Suite: "bookworm", Components: []string{"main"}, SignedBy: []string{"/k3.gpg"}},
		{URI: "http://six.test/debian", Suite: "bookworm-security", Components: []string{"main"}, SignedBy: []string{"/k3.gpg"}},
		{URI: "http://seven.test/debian", Suite: "bookworm", Components: []string{"main"}, SignedBy: []string{"/k3.gpg"}},
		{URI: "http://seven.test/debian", Suite: "bookworm-security", Components: []string{"main"}, SignedBy: []string{"/k3.gpg"}},
		{
			URI: "http://inline.test/", Suite: "bookworm", Components: []string{"main"}, NoExpiry: true,
			Key: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n-----END PGP PUBLIC KEY BLOCK-----\n",
		},
	}
	if diff := cmp.Diff(want, HostSources(root)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := HostSources(t.TempDir()); len(got) != 0 {
		t.Errorf("sources of a host without apt: %v", got)
	}
}

func TestOpenChoosesMirrors(t *testing.T) {
	for _, tc := range []struct {
		name      string
		list      string
		mirror    string
		backports bool
		want      []string // each suite's candidates in one line
		class     fault.Class
	}{
		{
			name: "the release itself",
			list: "deb http://a.test/debian bookworm main\ndeb http://a.test/debian bookworm-updates main\n" +
				"deb http://user:secret@s.test/security bookworm-security main\n",
			want: []string{
				"http://a.test/debian bookworm", "http://a.test/debian bookworm-updates",
				"http://user:xxxxx@s.test/security bookworm-security",
			},
		},
		{
			name: "a host of another release, with aliases",
			list: "deb http://a.test/debian stable main\ndeb http://s.test/s trixie-security main\n",
			want: []string{"http://a.test/debian bookworm", "http://s.test/s bookworm-security"},
		},
		{
			name: "named before guessed, each once",
			list: "deb http://a.test/d trixie main\ndeb http://b.test/d bookworm main\n" +
				"deb http://a.test/d sid main\ndeb http://b.test/d bookworm main contrib\n",
			want: []string{"http://b.test/d bookworm", "http://a.test/d bookworm"},
		},
		{
			name: "other components and schemes do not count",
			list: "deb http://a.test/d bookworm stable\ndeb cdrom:[x]/ bookworm main\ndeb mirror+file:/x bookworm main\n" +
				"deb file:/srv/debian bookworm main\n",
			want: []string{"file:/srv/debian bookworm"},
		},
		{name: "another distribution", list: "deb http://a.test/u noble main\n", class: fault.Unavailable},
		{name: "no apt", class: fault.Unavailable},
		{
			name: "configured mirror only", list: "deb http://a.test/debian bookworm main\n", mirror: "https://m.test/x/",
			want: []string{"https://m.test/x bookworm", "https://m.test/x bookworm-updates", "https://m.test/x bookworm-security"},
		},
		{
			name: "backports, where the host has them", backports: true,
			list: "deb http://a.test/debian trixie main\ndeb http://s.test/s bookworm-security main\n" +
				"deb http://c.test/debian trixie-backports main\ndeb http://b.test/debian bookworm-backports main\n",
			want: []string{
				"http://b.test/debian bookworm-backports", "http://c.test/debian bookworm-backports", "http://a.test/debian bookworm-backports",
			},
		},
		{
			name: "backports in the release's archive", backports: true, list: "deb http://a.test/debian bookworm main\n",
			want: []string{"http://a.test/debian bookworm-backports"},
		},
		{name: "backports of a configured mirror", backports: true, mirror: "https://m.test/x", want: []string{"https://m.test/x bookworm-backports"}},
		{name: "no archive for backports", backports: true, list: "deb http://s.test/s bookworm-security main\n", class: fault.Unavailable},
		{name: "bad mirror", mirror: "ftp://m.test/", class: fault.Invalid},
		{name: "mirror without a host", mirror: "http:///x", class: fault.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := hostRoot(t, map[string]string{"etc/apt/sources.list": tc.list})
			a, err := Open(t.Context(), "bookworm", Options{HostRoot: root, Mirror: tc.mirror, Backports: tc.backports})
			if tc.class != "" {
				if !fault.Is(err, tc.class) || fault.HintOf(err) == "" {
					t.Fatalf("error %v (hint %q), want one of class %s with a hint", err, fault.HintOf(err), tc.class)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, a.Mirrors()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestAptConfigChoosesProxy(t *testing.T) {
	conf := parseAptConfig(`Acquire "";
Acquire::http::Proxy "http://proxy.test:3128/";
Acquire::http::Proxy::direct.test "DIRECT";
Acquire::http::Proxy::other.test "http://other-proxy.test";
Acquire::Check-Valid-Until "false";
garbage
`)
	for uri, want := range map[string]string{
		"http://a.test/x":      "http://proxy.test:3128/",
		"http://direct.test/x": "",
		"http://other.test/x":  "http://other-proxy.test",
	} {
		got, err := conf.proxy(request(t, uri))
		if err != nil {
			t.Fatal(err)
		}
		if got != nil && got.String() != want || got == nil && want != "" {
			t.Errorf("proxy for %s is %v, want %q", uri, got, want)
		}
	}
	if !isNo(conf["acquire::check-valid-until"]) {
		t.Error("Acquire::Check-Valid-Until is lost")
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://x/ y z\n")
	f.Add("Types: deb\nURIs: a b\n c\nSuites: d\nSigned-By:\n -----BEGIN PGP\n .\n x\n\n# y\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseOneLine([]byte(text)), parseDeb822Sources([]byte(text))...) {
			if s.URI == "" || s.Suite == "" || strings.ContainsAny(s.URI+s.Suite, "\n") {
				t.Errorf("bad source %+v", s)
			}
			plausible(s, "-updates")
		}
	})
}
