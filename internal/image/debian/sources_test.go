package debian

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// hostWith makes a root directory whose apt configuration is the text.
func hostWith(t *testing.T, name, text string) string {
	t.Helper()
	root := t.TempDir()
	file := filepath.Join(root, "etc/apt", name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestChooseSourcesFromTheHost(t *testing.T) {
	for name, tc := range map[string]struct {
		file, text string
		want       []string
		guest      string // must be in the guest's sources
		notGuest   string
	}{
		"same release": {
			"sources.list", "deb [signed-by=/k.gpg] http://u:pw@m.invalid/debian bookworm main contrib\n" +
				"deb http://m.invalid/debian bookworm-updates main\ndeb http://s.invalid/sec bookworm-security main\n" +
				"deb http://other.invalid/x stable-foo main\n",
			[]string{"http://m.invalid/debian bookworm", "http://m.invalid/debian bookworm-updates", "http://s.invalid/sec bookworm-security"},
			"Components: main contrib\nSigned-By: /etc/apt/keyrings/k.gpg", "pw",
		},
		"another release": {
			"sources.list.d/debian.sources", "Types: deb\nURIs: http://m.invalid/debian\nSuites: trixie trixie-updates\n" +
				"Components: main non-free-firmware\n\nTypes: deb\nURIs: http://s.invalid/sec\nSuites: trixie-security\nComponents: main\n",
			[]string{"http://m.invalid/debian bookworm", "http://m.invalid/debian bookworm-updates", "http://s.invalid/sec bookworm-security"},
			"Suites: bookworm\nComponents: main\n", "trixie",
		},
		"another distribution": {"sources.list", "deb http://u.invalid/ubuntu noble main\n", nil, "", "ubuntu"},
		"updates only":         {"sources.list", "deb http://m.invalid/debian bookworm-updates main\n", nil, "", "m.invalid"},
		"local mirror": {
			"sources.list", "deb [check-valid-until=no] file:/srv/debian bookworm main\n", []string{"file:/srv/debian bookworm"},
			"only its host can reach", "URIs",
		},
		"nothing": {"sources.list", "", nil, "", "Types"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := chooseSources(t.Context(), hostWith(t, tc.file, tc.text), source.Request{Location: "bookworm"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got.names); diff != "" {
				t.Error(diff)
			}
			if !strings.Contains(got.guest, tc.guest) || strings.Contains(got.guest, tc.notGuest) {
				t.Errorf("guest's sources:\n%s", got.guest)
			}
			if (got.build == "") != (tc.want == nil) {
				t.Errorf("build's sources:\n%s", got.build)
			}
		})
	}
}

func TestChooseSourcesFromAMirror(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/debian/dists/bookworm-updates/InRelease" {
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	req := source.Request{Location: "bookworm", Mirror: server.URL + "/debian", Keyring: "/my.gpg"}
	got, err := chooseSources(t.Context(), hostWith(t, "sources.list", "deb http://m.invalid/debian bookworm main\n"), req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{req.Mirror + " bookworm", req.Mirror + " bookworm-updates"}, got.names); diff != "" {
		t.Error(diff)
	}
	if strings.Count(got.build, "Signed-By: /my.gpg") != 2 {
		t.Errorf("build's sources:\n%s", got.build)
	}
	for _, bad := range []string{"mirror", "ftp://m.invalid", "http://[::1"} {
		req.Mirror = bad
		if _, err := chooseSources(t.Context(), "", req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestInlineKeyKeepsItsShape(t *testing.T) {
	text := "Types: deb\nURIs: http://m.invalid/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n" +
		" -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n"
	got, err := chooseSources(t.Context(), hostWith(t, "sources.list.d/d.sources", text), source.Request{Location: "bookworm"})
	if err != nil || strings.TrimSpace(got.build) != strings.TrimSpace(text) {
		t.Errorf("err %v, build:\n%s", err, got.build)
	}
}
