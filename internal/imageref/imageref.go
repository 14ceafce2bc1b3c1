// Package imageref takes image references apart as far as both ends of the daemon's wire need it: which kind one is, and
// which file of the user's it names. What it stands for is decided in package image.
package imageref

import (
	"path/filepath"
	"slices"
	"strings"
)

// Kinds of references that begin with a word and a colon.
const (
	Layout        = "oci-layout"     // oci-layout:PATH[:TAG]
	LayoutArchive = "oci-archive"    // the same in a tar file
	DockerArchive = "docker-archive" // docker-archive:PATH
	Bundle        = "bundle"         // bundle:PATH or bundle:URL
)

// BundleSuffix ends the file name of a bundle, which makes a path or URL one without a word before it.
const BundleSuffix = ".tar.zst"

// Kinds lists them.
func Kinds() []string { return []string{Layout, LayoutArchive, DockerArchive, Bundle} }

// Split returns the kind of a reference and what follows the colon: bundle for a bare path or URL that ends in .tar.zst.
// The kind is empty for names and registry references.
func Split(ref string) (kind, rest string) {
	if word, rest, ok := strings.Cut(ref, ":"); ok && slices.Contains(Kinds(), word) {
		return word, rest
	}
	if file, _, _ := strings.Cut(ref, "?"); strings.HasSuffix(ref, BundleSuffix) || IsURL(ref) && strings.HasSuffix(file, BundleSuffix) {
		return Bundle, ref
	}
	return "", ref
}

// IsURL reports whether text is written as a URL of a web server.
func IsURL(text string) bool {
	scheme, _, ok := strings.Cut(text, "://")
	return ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https"))
}

// Absolute returns the reference with the path in it, if there is one, made absolute: dir is the user's directory, which
// the daemon does not know.
func Absolute(ref, dir string) string {
	kind, rest := Split(ref)
	if kind == "" || rest == "" || IsURL(rest) || filepath.IsAbs(rest) {
		return ref
	}
	return kind + ":" + filepath.Join(dir, rest)
}
