package debarchive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/google/go-cmp/cmp"

	"banger/internal/debarchive/debarchivetest"
	"banger/internal/fault"
)

func request(t *testing.T, uri string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestParseDepends(t *testing.T) {
	got := parseDepends("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), kmod, base (>= 4.3~), python3:any, a (= 1) | b,")
	want := []Dependency{
		{"linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"}, {"kmod", ""}, {"base", ""}, {"python3", ""}, {"a", "1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPackagesRefusesBadStanzas(t *testing.T) {
	good := map[string]string{
		"Package": "a", "Version": "1", "Filename": "pool/a.deb", "Size": "5", "SHA256": strings.Repeat("ab", 32),
	}
	for field, values := range map[string][]string{
		"":         {"pool/a.deb"},
		"Version":  {""},
		"Size":     {"", "0", "-1", "x", "99999999999999"},
		"SHA256":   {"", "zz", strings.Repeat("AB", 32)},
		"Filename": {"", "../a.deb", "/../a.deb", "pool/../../a", "/etc/passwd"},
	} {
		for _, value := range values {
			var stanza strings.Builder
			for name, v := range good {
				if name == field {
					v = value
				}
				stanza.WriteString(name + ": " + v + "\n")
			}
			_, err := parsePackages(strings.NewReader(stanza.String()), func(string) bool { return true })
			if (err == nil) != (field == "") {
				t.Errorf("%s %q: error %v", field, value, err)
			}
		}
	}
}

func TestKeyrings(t *testing.T) {
	m := debarchivetest.New(t)
	binary, err := os.ReadFile(m.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	var armored bytes.Buffer
	w, err := armor.Encode(&armored, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(binary); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	two := file("two.asc", append(append(bytes.Clone(armored.Bytes()), '\n'), armored.Bytes()...))
	for _, tc := range []struct {
		name  string
		keys  keySource
		count int
		class fault.Class
	}{
		{"binary", keySource{files: []string{m.Keyring}}, 1, ""},
		{"two armored in one", keySource{files: []string{two}}, 2, ""},
		{"several files", keySource{files: []string{m.Keyring, two}}, 3, ""},
		{"in the configuration", keySource{armored: armored.String(), files: []string{"/none"}}, 1, ""},
		{"chosen by the user", keySource{override: m.Keyring, files: []string{"/none"}}, 1, ""},
		{"missing", keySource{files: []string{"/none"}}, 0, fault.Unavailable},
		{"not keys", keySource{files: []string{file("x", []byte("hello"))}}, 0, fault.Invalid},
		{"empty", keySource{files: []string{file("y", nil)}}, 0, fault.Invalid},
	} {
		keys, err := tc.keys.load()
		if len(keys) != tc.count || err != nil && !fault.Is(err, tc.class) || (err == nil) != (tc.class == "") {
			t.Errorf("%s: %d keys, error %v", tc.name, len(keys), err)
		}
	}
}

func debOf(t testing.TB, compression string, files ...debarchivetest.File) []byte {
	return debarchivetest.Deb{Compression: compression, Files: files}.Bytes(t)
}

func TestUnpackReadsEveryCompression(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 5000)
	for _, compression := range []string{"", ".gz", ".xz", ".zst"} {
		deb := debOf(t, compression, debarchivetest.File{Name: "./boot/"}, debarchivetest.File{Name: "./boot/x", Data: content})
		var got []string
		err := Unpack(bytes.NewReader(deb), func(h *tar.Header, r io.Reader) error {
			data, err := io.ReadAll(r)
			if h.Name == "boot/x" && !bytes.Equal(data, content) {
				t.Errorf("%q: content differs", compression)
			}
			got = append(got, h.Name)
			return err
		})
		if diff := cmp.Diff([]string{"boot", "boot/x"}, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got)\n%s", compression, err, diff)
		}
		for _, n := range []int{0, 7, 8, 40, 70, 100, 150, 250, 270, len(deb) / 2, len(deb) - 20} {
			if n >= len(deb) {
				continue
			}
			if err := Unpack(bytes.NewReader(deb[:n]), drain); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%q: the first %d of %d bytes: error %v", compression, n, len(deb), err)
			}
		}
	}
}

func drain(_ *tar.Header, r io.Reader) error {
	_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	return err
}

func TestUnpackRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		deb  []byte
		text string
	}{
		{"parent", debOf(t, "", debarchivetest.File{Name: "../x"}), "outside"},
		{"hidden parent", debOf(t, "", debarchivetest.File{Name: "a/../../x"}), "outside"},
		{"absolute", debOf(t, "", debarchivetest.File{Name: "/etc/x"}), "outside"},
		{"not an archive", []byte("hello, hello, hello"), "not a Debian package"},
		{"no data", []byte("!<arch>\n"), "no data"},
		{"unknown compression", bytes.Replace(debOf(t, ""), []byte("data.tar   "), []byte("data.tar.bz"), 1), "unknown compression"},
		{"other format", bytes.Replace(debOf(t, ""), []byte("2.0\n"), []byte("3.0\n"), 1), "unknown format"},
		{"bad size", bytes.Replace(debOf(t, ""), []byte("4         `"), []byte("-4        `"), 1), "bad archive header"},
	} {
		err := Unpack(bytes.NewReader(tc.deb), drain)
		if err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.text)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	for _, compression := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(debOf(f, compression, debarchivetest.File{Name: "./a/b", Data: []byte("content")}))
	}
	f.Fuzz(func(t *testing.T, deb []byte) {
		_ = Unpack(bytes.NewReader(deb), func(h *tar.Header, r io.Reader) error {
			if !filepath.IsLocal(h.Name) {
				t.Errorf("name %q", h.Name)
			}
			return drain(h, r)
		})
	})
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte("Package: a\nVersion: 1\nFilename: x\nSize: 1\nSHA256: " + strings.Repeat("0a", 32) + "\nDepends: b (= 1) | c\n\nPackage: b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pkgs, err := parsePackages(bytes.NewReader(data), func(string) bool { return true })
		for _, p := range pkgs {
			if err == nil && (p.Size <= 0 || !isDigest(p.SHA256) || strings.Contains(p.Filename, "../")) {
				t.Errorf("bad package %+v", p)
			}
		}
	})
}

func FuzzInRelease(f *testing.F) {
	m := debarchivetest.New(f)
	m.Publish(debarchivetest.Suite{Name: "bookworm"})
	signed, err := os.ReadFile(filepath.Join(m.Dir, "dists/bookworm/InRelease"))
	if err != nil {
		f.Fatal(err)
	}
	keys, err := readKeyring(m.Keyring)
	if err != nil {
		f.Fatal(err)
	}
	good, err := verifyClearsigned(signed, keys, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever is done to the file: what passes is what was signed.
		if text, err := verifyClearsigned(data, keys, time.Now()); err == nil && !bytes.Equal(text, good) {
			t.Errorf("accepted as signed: %q", text)
		}
		_, _ = parseRelease(data)
	})
}
