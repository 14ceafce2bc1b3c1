package image

import (
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
	"banger/internal/imageref"
	"banger/internal/nearest"
	"banger/internal/transfer"
)

// catalogHint lists what can be pulled by name.
const catalogHint = "banger image catalog"

// Resolve says what a reference stands for. Without configured catalogs: Index.Resolve knows those too. Entry.Name is the
// name that the image gets on this host.
//
// A reference is, in this order:
//
//   - the name of an image in the embedded catalog: debian-bookworm
//   - oci-layout:PATH[:TAG], oci-archive:PATH[:TAG], docker-archive:PATH[:REFERENCE], bundle:PATH or bundle:URL; a path or
//     URL that ends in .tar.zst is a bundle without the word. Paths are absolute: imageref.Absolute makes them so where the
//     user's directory is known.
//   - a registry reference: [HOST[:PORT]/]PATH[:TAG][@DIGEST], as docker's users know it. A plain word that is close to a
//     name of a catalog is taken for a slip and not for such a reference.
func Resolve(ref string) (Entry, error) {
	if err := checkText(ref); err != nil {
		return Entry{}, err
	}
	return resolve(ref, Catalog())
}

// resolve is Resolve with the entries that have a name. The reference is checked text.
func resolve(ref string, named []Entry) (Entry, error) {
	names := make([]string, len(named))
	for i, e := range named {
		names[i] = e.Name
	}
	if i := slices.Index(names, ref); i >= 0 {
		return named[i], nil
	}
	if kind, rest := imageref.Split(ref); kind != "" {
		return resolveFile(kind, rest)
	}
	if err := notOurs(ref); err != nil {
		return Entry{}, err
	}
	if isWord(ref) {
		if near := nearest.Of(strings.ToLower(ref), names); near != "" {
			return Entry{}, unknownName(ref, near)
		}
	}
	return resolveRegistry(ref)
}

// isWord reports whether a reference could be the short name of an image in a catalog.
func isWord(ref string) bool { return !strings.ContainsAny(ref, "/:@") }

func unknownName(ref, near string) error {
	if near != "" {
		near = "; did you mean " + near + "?"
	}
	return fault.New(fault.NotFound, "no image is called %q%s", ref, near).WithHint(catalogHint)
}

// checkText refuses what is no reference of any kind.
func checkText(ref string) error {
	switch {
	case ref == "":
		return fault.New(fault.Invalid, "an image reference is needed, and this one is empty").WithHint(catalogHint)
	case len(ref) > 4096:
		return fault.New(fault.Invalid, "an image reference of %d bytes is too long", len(ref)).WithHint(catalogHint)
	case strings.ContainsFunc(ref, unicode.IsControl):
		return fault.New(fault.Invalid, "image reference %q has a control character in it", ref).WithHint(catalogHint)
	case strings.TrimSpace(ref) != ref:
		return fault.New(fault.Invalid, "image reference %q begins or ends with a space", ref).WithHint("banger image pull %s", quote(strings.TrimSpace(ref)))
	case strings.HasPrefix(ref, "-"):
		return fault.New(fault.Invalid, "image reference %q begins with a dash", ref).WithHint("banger image pull --help")
	}
	return nil
}

// notOurs knows what people try because other tools take it.
func notOurs(ref string) error {
	if scheme, rest, ok := strings.Cut(ref, "://"); ok {
		if imageref.IsURL(ref) {
			return fault.New(fault.Invalid, "%s is a web page's address: a bundle's ends in %s, and an image in a registry is named without %s://",
				transfer.Redact(ref), imageref.BundleSuffix, scheme).WithHint("banger image pull %s", quote(withoutUser(rest)))
		}
		return fault.New(fault.Invalid, "image references have no scheme such as %.20q", scheme+"://").
			WithHint("banger image pull %s", quote(withoutUser(rest)))
	}
	if isPath(ref) {
		return fault.New(fault.Invalid, "%q is a path: say what kind of image is there", ref).WithHint("banger image pull %s", quote(guessKind(ref)+":"+ref))
	}
	if word, rest, ok := strings.Cut(ref, ":"); ok && isPath(rest) {
		kind := nearest.Of(word, imageref.Kinds())
		if kind == "" {
			kind = guessKind(rest)
		}
		return fault.New(fault.Invalid, "%.40q is not a kind of image: there are %s", word, strings.Join(imageref.Kinds(), ", ")).
			WithHint("banger image pull %s", quote(kind+":"+rest))
	}
	return nil
}

// withoutUser drops credentials before the host.
func withoutUser(rest string) string {
	host, tail, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		rest = strings.TrimSuffix(host[i+1:]+"/"+tail, "/")
	}
	return rest
}

// isPath reports whether text can only be meant as a path.
func isPath(text string) bool {
	for _, prefix := range []string{"/", "./", "../", "~"} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return text == "." || text == ".."
}

// guessKind is what a path most likely holds.
func guessKind(file string) string {
	if strings.Contains(filepath.Base(file), ".tar") || strings.HasSuffix(file, ".tgz") {
		return imageref.DockerArchive
	}
	return imageref.Layout
}

// resolveFile is for references that say their kind.
func resolveFile(kind, rest string) (Entry, error) {
	if rest == "" {
		return Entry{}, fault.New(fault.Invalid, "%s: names no file", kind).WithHint("banger image pull %s:PATH", kind)
	}
	e := Entry{Sources: []Origin{{Kind: kind, Location: rest}}}
	if kind == KindBundle && imageref.IsURL(rest) {
		if err := transfer.CheckURL(rest); err != nil {
			return Entry{}, fault.Context(err, "bundle")
		}
		u, err := url.Parse(rest)
		if err != nil {
			return Entry{}, err
		}
		e.Name = nameOfFile(u.Path)
		return e, nil
	}
	if !filepath.IsAbs(rest) {
		return Entry{}, fault.New(fault.Invalid, "%s:%s: the path is not absolute", kind, rest).
			WithHint("banger image pull %s:\"$PWD\"/%s", kind, quote(strings.TrimPrefix(rest, "~/")))
	}
	if kind == KindBundle {
		e.Name = nameOfFile(rest)
		return e, nil
	}
	var err error
	e.Name, err = nameOfLayout(kind, rest)
	return e, err
}

// nameOfFile makes a local name of a file's: /srv/Dev_1.tar.zst is dev_1.
func nameOfFile(file string) string {
	base := strings.ToLower(path.Base(file))
	for _, suffix := range []string{imageref.BundleSuffix, ".tar", ".tar.gz", ".tgz", ".tar.xz", ".oci"} {
		if rest, ok := strings.CutSuffix(base, suffix); ok {
			base = rest
			break
		}
	}
	base = regexp.MustCompile(`[^a-z0-9._-]+`).ReplaceAllString(base, "-")
	base = regexp.MustCompile(`[._-]*([._-])`).ReplaceAllString(base, "$1")
	if base = strings.Trim(base, "._-"); base == "" {
		return "image"
	}
	return base[:min(len(base), 128)]
}

// nameOfLayout is the local name of PATH[:TAG] or PATH[:REFERENCE]: the reference, or the file's name with the tag.
func nameOfLayout(kind, location string) (string, error) {
	file, tag := splitLocation(location)
	if tag == "" {
		return nameOfFile(file) + ":latest", nil
	}
	if kind == KindDockerArchive || strings.ContainsAny(tag, "/:") {
		e, err := resolveRegistry(tag)
		return e.Name, err
	}
	return ParseName(nameOfFile(file) + ":" + tag)
}

// splitLocation takes PATH[:TAG|@DIGEST] apart as package oci does: the shortest path that is there wins.
func splitLocation(location string) (file, tag string) {
	if _, err := os.Lstat(location); err == nil {
		return location, ""
	}
	if i := strings.LastIndex(location, "@sha256:"); i > 0 {
		return location[:i], ""
	}
	for i := 1; i < len(location)-1; i++ {
		if location[i] != ':' {
			continue
		}
		if _, err := os.Lstat(location[:i]); err == nil {
			return location[:i], location[i+1:]
		}
	}
	if i := strings.LastIndexByte(location, ':'); i > strings.LastIndexByte(location, '/') {
		return location[:i], location[i+1:]
	}
	return location, ""
}

// resolveRegistry is for registry references.
func resolveRegistry(ref string) (Entry, error) {
	parsed, err := parseRegistry(ref)
	if err != nil {
		return Entry{}, err
	}
	return Entry{
		Name:    familiar(parsed),
		Sources: []Origin{{Kind: KindRegistry, Location: strings.Replace(parsed.Name(), name.DefaultRegistry, "docker.io", 1)}},
	}, nil
}

// familiar is a reference as people write it: without docker's own registry and its "library", with the tag or digest.
// "bundle:latest" would be read as another kind of reference, so that one keeps them.
func familiar(ref name.Reference) string {
	full, ok := strings.CutPrefix(ref.Name(), name.DefaultRegistry+"/")
	if !ok {
		return full
	}
	short := strings.TrimPrefix(full, "library/")
	if kind, _ := imageref.Split(short); kind != "" {
		return "docker.io/" + full
	}
	return short
}

// LocalNames returns the names by which a reference may be known on this host, the likeliest first: as it stands, and as
// Resolve would name it ("alpine" is also "alpine:latest").
func LocalNames(ref string) []string {
	names := []string{ref}
	if kind, rest := imageref.Split(ref); kind != "" || checkText(ref) != nil || notOurs(rest) != nil {
		return names
	}
	if e, err := resolveRegistry(ref); err == nil && e.Name != ref {
		names = append(names, e.Name)
	}
	return names
}

// ParseName checks a name that a user gives to an image on this host and returns it as it is kept. The grammar is that of
// registry references without a digest: [HOST[:PORT]/]PATH[:TAG], where PATH is made of lower-case letters, digits,
// '.', '_', '-' and '/', and TAG of up to 128 letters, digits, '_', '.' and '-'. A name without a tag stays without one.
// What would be taken for another kind of reference or for a digest is refused.
func ParseName(text string) (string, error) {
	if err := checkText(text); err != nil {
		return "", err
	}
	if kind, _ := imageref.Split(text); kind != "" {
		return "", fault.New(fault.Invalid, "%q is a reference to a file and cannot be a name", text).WithHint("banger image list")
	}
	if err := notOurs(text); err != nil {
		return "", err
	}
	if strings.Contains(text, "@") {
		return "", fault.New(fault.Invalid, "%q has a digest and cannot be a name", text).WithHint("banger image list")
	}
	if regexp.MustCompile(`^(sha256:)?[0-9a-f]{6,64}$`).MatchString(text) {
		return "", fault.New(fault.Invalid, "%q would be taken for a digest", text).WithHint("banger image list")
	}
	parsed, err := parseRegistry(text)
	if err != nil {
		return "", err
	}
	full := familiar(parsed)
	if !strings.Contains(text[strings.LastIndexByte(text, '/')+1:], ":") {
		full = strings.TrimSuffix(full, ":"+name.DefaultTag)
	}
	return full, nil
}

// quote makes text one word of a shell.
func quote(text string) string {
	if regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`).MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
