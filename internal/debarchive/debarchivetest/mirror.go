// Package debarchivetest makes signed package archives for tests, in a directory that can also be served over HTTP.
package debarchivetest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"
)

// Mirror is an archive with a key of its own.
type Mirror struct {
	Dir     string // its root
	Keyring string // the file of its public key, outside of Dir

	t   testing.TB
	key *openpgp.Entity
}

// New returns an empty archive in a directory of the test's.
func New(t testing.TB) *Mirror {
	t.Helper()
	key, err := openpgp.NewEntity("test archive", "", "archive@test.invalid", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA,
		Time:      func() time.Time { return time.Now().Add(-365 * 24 * time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &Mirror{Dir: t.TempDir(), Keyring: filepath.Join(t.TempDir(), "archive.gpg"), t: t, key: key}
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Keyring, public.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// URI is the archive's file URI.
func (m *Mirror) URI() string { return "file://" + m.Dir }

// Package is one that a suite offers.
type Package struct {
	Name    string
	Version string
	Depends string
	Deb     []byte // what is downloaded; see Deb.Bytes
}

// File is the path of the package below the root of the archive.
func (p Package) File() string { return fmt.Sprintf("pool/main/%s_%s.deb", p.Name, p.Version) }

// Suite is what Publish signs. The zero values of all but Name are what Debian has.
type Suite struct {
	Name       string
	Origin     string    // empty: Debian
	Arch       string    // of its packages; empty: amd64
	ValidUntil time.Time // zero: for ever
	Forms      []string  // of Packages that are there: "", ".gz", ".xz"; nil: .gz and .xz
	ByHashOnly bool      // Packages is there under its digest only
	Packages   []Package
	CoSigner   *Mirror // signs too, and first
}

// Publish writes the suite, its packages and the signature over all of it.
func (m *Mirror) Publish(s Suite) {
	m.t.Helper()
	if s.Arch == "" {
		s.Arch = "amd64"
	}
	var index strings.Builder
	for _, p := range s.Packages {
		fmt.Fprintf(&index, "Package: %s\nVersion: %s\nArchitecture: %s\nDescription: a test\n of many lines\n", p.Name, p.Version, s.Arch)
		if p.Depends != "" {
			fmt.Fprintf(&index, "Depends: %s\n", p.Depends)
		}
		fmt.Fprintf(&index, "Filename: %s\nSize: %d\nSHA256: %s\n\n", p.File(), len(p.Deb), digest(p.Deb))
		m.write(p.File(), p.Deb)
	}
	if s.Origin == "" {
		s.Origin = "Debian"
	}
	var release strings.Builder
	fmt.Fprintf(&release, "Origin: %s\nSuite: stable-of-test\nCodename: %s\nAcquire-By-Hash: yes\n", s.Origin, s.Name)
	if !s.ValidUntil.IsZero() {
		fmt.Fprintf(&release, "Valid-Until: %s\n", s.ValidUntil.UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC"))
	}
	release.WriteString("SHA256:\n")
	m.writeIndex(s, index.String(), &release)
	m.sign(s, release.String())
}

func (m *Mirror) writeIndex(s Suite, index string, release *strings.Builder) {
	if s.Forms == nil {
		s.Forms = []string{".gz", ".xz"}
	}
	dir := "main/binary-" + s.Arch + "/"
	fmt.Fprintf(release, " %s %d %sPackages\n", digest([]byte(index)), len(index), dir)
	for _, form := range s.Forms {
		data := compress(m.t, form, []byte(index))
		if form != "" {
			fmt.Fprintf(release, " %s %d %sPackages%s\n", digest(data), len(data), dir, form)
		}
		if s.ByHashOnly {
			m.write("dists/"+s.Name+"/"+dir+"by-hash/SHA256/"+digest(data), data)
		} else {
			m.write("dists/"+s.Name+"/"+dir+"Packages"+form, data)
		}
	}
}

func (m *Mirror) sign(s Suite, release string) {
	keys := []*packet.PrivateKey{m.key.PrivateKey}
	if s.CoSigner != nil {
		keys = []*packet.PrivateKey{s.CoSigner.key.PrivateKey, m.key.PrivateKey}
	}
	var out bytes.Buffer
	w, err := clearsign.EncodeMulti(&out, keys, nil)
	if err == nil {
		_, err = w.Write([]byte(release))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("dists/"+s.Name+"/InRelease", append(out.Bytes(), '\n'))
}

func (m *Mirror) write(name string, data []byte) {
	file := filepath.Join(m.Dir, filepath.FromSlash(name))
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// Edit changes a file of the archive, which its signatures then do not cover.
func (m *Mirror) Edit(name string, change func([]byte) []byte) {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.Dir, filepath.FromSlash(name)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(name, change(data))
}

// Flip returns data with one bit of its middle changed.
func Flip(data []byte) []byte {
	data = bytes.Clone(data)
	data[len(data)/2] ^= 1
	return data
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// compress returns data in the form that a file with that suffix has.
func compress(t testing.TB, suffix string, data []byte) []byte {
	var out bytes.Buffer
	var err error
	switch suffix {
	case "":
		return data
	case ".gz":
		w := gzip.NewWriter(&out)
		_, err = w.Write(data)
		err = firstError(err, w.Close())
	case ".xz":
		w, newErr := xz.NewWriter(&out)
		if newErr != nil {
			t.Fatal(newErr)
		}
		_, err = w.Write(data)
		err = firstError(err, w.Close())
	case ".zst":
		return zstandard(t, data)
	default:
		t.Fatalf("no compression is called %q", suffix)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
