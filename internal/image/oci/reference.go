package oci

import (
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

// parseReference reads a registry reference. The words of an error never hold what may be a password.
func parseReference(location string, insecure []string) (name.Reference, error) {
	switch before, _, _ := strings.Cut(location, "/"); {
	case location == "":
		return nil, invalid("no image reference given")
	case strings.Contains(location, "://"):
		return nil, invalid("an image reference has no scheme and no password: it looks like registry.example/name:tag")
	case strings.Contains(before, "@") && !strings.Contains(before, "@sha256:"):
		host := before[strings.LastIndexByte(before, '@')+1:]
		return nil, fault.New(fault.Invalid, "an image reference holds no user and no password: docker's configuration does").
			WithHint("docker login %s", host)
	}
	ref, err := name.ParseReference(location)
	if err == nil && mayBePlain(ref.Context().RegistryStr(), insecure) {
		ref, err = name.ParseReference(location, name.Insecure)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "image reference %q", location)
	}
	if d, ok := ref.(name.Digest); ok && !strings.HasPrefix(d.DigestStr(), "sha256:") {
		return nil, invalid("image reference %q: only sha256 digests are supported", location)
	}
	return ref, nil
}

// mayBePlain reports whether a registry may be spoken to by plain HTTP: it is on this host, or the user has said so.
func mayBePlain(registry string, insecure []string) bool {
	host := hostOf(registry)
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return true
	}
	return slices.Contains(insecure, registry) || slices.Contains(insecure, host)
}

// hostOf returns the host of "host", "host:port" or "[::1]:port".
func hostOf(registry string) string {
	if host, _, err := net.SplitHostPort(registry); err == nil {
		return host
	}
	return strings.Trim(registry, "[]")
}

// shown is a name of the library as people write it.
func shown(name_ string) string {
	if rest, ok := strings.CutPrefix(name_, name.DefaultRegistry); ok {
		return "docker.io" + rest
	}
	return name_
}

// splitPath takes PATH[:TAG|@DIGEST] apart. A file that is there under the whole name has no tag.
func splitPath(location string) (path, tag, digest string, err error) {
	if location == "" {
		return "", "", "", invalid("no path given")
	}
	if _, err := os.Lstat(location); err == nil {
		return location, "", "", nil
	}
	if i := strings.LastIndex(location, "@sha256:"); i > 0 {
		return location[:i], "", location[i+1:], nil
	}
	// A reference may have colons and slashes of its own ("localhost:5000/a:b"): the shortest path that is there wins.
	for i := range len(location) {
		if location[i] != ':' || i == 0 || i == len(location)-1 {
			continue
		}
		if _, err := os.Lstat(location[:i]); err == nil {
			return location[:i], location[i+1:], "", nil
		}
	}
	path = location
	if i := strings.LastIndexByte(location, ':'); i > 0 && !strings.Contains(location[i:], "/") {
		path = location[:i]
	}
	return "", "", "", fault.New(fault.NotFound, "no file %s", path).WithHint("ls -l %s", path)
}
