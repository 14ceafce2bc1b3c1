package debarchive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"banger/internal/fault"
)

const (
	maxIndex   = 256 << 20 // bytes of an index as it is transferred
	maxText    = 2 << 30   // bytes of an index when it is uncompressed
	maxStanza  = 4 << 20   // bytes of one package in an index
	maxPackage = 2 << 30   // bytes of a package
)

// Package is a binary package that an archive offers.
type Package struct {
	Name     string
	Version  string
	Arch     string
	Depends  []Dependency
	Filename string // below the base URI of the archive
	Size     int64
	SHA256   string

	base string
}

// Dependency is one package that another needs. Of alternatives only the first is kept.
type Dependency struct {
	Name    string
	Version string // exactly this one, or empty for any that the package manager would accept
}

// Newest returns the package of that name with the highest version. An empty version means any.
func Newest(pkgs []Package, name, version string) (Package, bool) {
	var best Package
	for _, p := range pkgs {
		if p.Name != name || version != "" && CompareVersions(p.Version, version) != 0 {
			continue
		}
		if best.Name == "" || CompareVersions(p.Version, best.Version) > 0 {
			best = p
		}
	}
	return best, best.Name != ""
}

// index returns the verified text of Packages for one component and architecture. The gzip form comes first: it is a
// third larger than xz, and read six times as fast (0.2 s instead of 1.1 s for Debian's main).
func (a *Archive) index(ctx context.Context, r repo, rel release, component, arch string) (io.Reader, error) {
	name := component + "/binary-" + arch + "/Packages"
	var failure error = fault.New(fault.NotFound, "no packages of %s for %s", component, arch)
	for _, suffix := range []string{".gz", ".xz", ""} {
		ref, ok := rel.files[name+suffix]
		if !ok {
			continue
		}
		if ref.size > maxIndex {
			return nil, fault.New(fault.Denied, "%s has %d bytes", name+suffix, ref.size)
		}
		data, err := a.indexFile(ctx, r, rel, name+suffix, ref)
		if fault.Is(err, fault.NotFound) { // a Release names forms that no mirror keeps
			failure = err
			continue
		}
		if err != nil {
			return nil, err
		}
		text, err := decompress(suffix, bytes.NewReader(data))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s", name+suffix)
		}
		return io.LimitReader(text, maxText), nil
	}
	return nil, failure
}

// indexFile gets an index by its digest where the archive offers that, which also works while the mirror is updated.
func (a *Archive) indexFile(ctx context.Context, r repo, rel release, name string, ref fileRef) ([]byte, error) {
	plain := []string{"dists", r.suite, name}
	places := [][]string{plain}
	if rel.byHash {
		places = [][]string{{"dists", r.suite, path.Dir(name), "by-hash", "SHA256", ref.sha256}, plain}
	}
	var failure error
	for _, place := range places {
		uri, err := join(r.base, place...)
		if err != nil {
			return nil, err
		}
		data, err := a.fetch.verifiedBytes(ctx, uri, ref.size, ref.sha256)
		if !fault.Is(err, fault.NotFound) {
			return data, err
		}
		failure = err
	}
	return nil, failure
}

// parsePackages reads an index and returns the packages whose name keep accepts.
func parsePackages(r io.Reader, keep func(name string) bool) ([]Package, error) {
	var out []Package
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 256<<10), maxStanza)
	scan.Split(splitStanza)
	for scan.Scan() {
		if !keep(stanzaName(scan.Bytes())) {
			continue
		}
		for _, fields := range parseParagraphs(scan.Bytes()) {
			p, err := newPackage(fields)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
	}
	return out, scan.Err()
}

// splitStanza is a bufio.SplitFunc for text between empty lines.
func splitStanza(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
		return i + 2, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// stanzaName finds the Package field, which is nearly always the first. Most stanzas are never looked at further.
func stanzaName(stanza []byte) string {
	field := []byte("Package: ")
	if !bytes.HasPrefix(stanza, field) {
		i := bytes.Index(stanza, []byte("\nPackage: "))
		if i < 0 {
			return ""
		}
		stanza = stanza[i+1:]
	}
	name, _, _ := bytes.Cut(stanza[len(field):], []byte("\n"))
	return string(bytes.TrimSpace(name))
}

func newPackage(fields map[string]string) (Package, error) {
	p := Package{
		Name: fields["package"], Version: fields["version"], Arch: fields["architecture"],
		Depends: parseDepends(fields["depends"]), Filename: fields["filename"], SHA256: fields["sha256"],
	}
	var err error
	if p.Size, err = strconv.ParseInt(fields["size"], 10, 64); err != nil {
		return Package{}, fmt.Errorf("package %q: size: %w", p.Name, err)
	}
	switch {
	case p.Version == "":
		err = errors.New("no version")
	case p.Size <= 0 || p.Size > maxPackage:
		err = fmt.Errorf("size %d", p.Size)
	case !isDigest(p.SHA256):
		err = errors.New("no sha256")
	case p.Filename == "" || path.Clean("/"+p.Filename) != "/"+strings.TrimPrefix(p.Filename, "./"):
		err = fmt.Errorf("file name %q", p.Filename)
	}
	if err != nil {
		return Package{}, fmt.Errorf("package %q: %w", p.Name, err)
	}
	return p, nil
}

// parseDepends parses a Depends field.
func parseDepends(field string) []Dependency {
	var out []Dependency
	for clause := range strings.SplitSeq(field, ",") {
		first, _, _ := strings.Cut(clause, "|")
		name, constraint, _ := strings.Cut(strings.TrimSpace(first), " ")
		if name == "" {
			continue
		}
		name, _, _ = strings.Cut(name, ":") // an architecture qualifier
		d := Dependency{Name: name}
		constraint = strings.Trim(strings.TrimSpace(constraint), "()")
		if version, ok := strings.CutPrefix(constraint, "="); ok {
			d.Version = strings.TrimSpace(version)
		}
		out = append(out, d)
	}
	return out
}
