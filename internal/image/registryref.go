package image

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

// parseRegistry reads a registry reference. What is wrong with it is said in words of its own for each case: the library's
// are about its grammar.
func parseRegistry(ref string) (name.Reference, error) {
	if err := checkRegistry(ref); err != nil {
		return nil, err
	}
	full := ref
	if rest, ok := strings.CutPrefix(ref, "localhost/"); ok { // the library takes this for a path on docker's registry
		full = "localhost:80/" + rest
	}
	parsed, err := name.ParseReference(full)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%q is not an image reference: %s", ref, firstLine(err.Error())).WithHint(catalogHint)
	}
	return parsed, nil
}

// checkRegistry finds the usual slips.
func checkRegistry(ref string) error {
	rest, digest, hasDigest := strings.Cut(ref, "@")
	if hasDigest {
		if err := checkDigest(ref, rest, digest); err != nil {
			return err
		}
	}
	host, repository := "", rest
	if first, tail, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		host, repository = first, tail
	}
	if err := checkHost(ref, host); err != nil {
		return err
	}
	repository, tag, hasTag := strings.Cut(repository, ":")
	switch {
	case strings.Contains(tag, "/"):
		return fault.New(fault.Invalid, "%q has a ':' before a '/', and nothing before it is a host", ref).WithHint(catalogHint)
	case hasTag && tag == "":
		return fault.New(fault.Invalid, "%q has an empty tag", ref).WithHint("banger image pull %s", quote(strings.TrimSuffix(rest, ":")))
	case hasTag && !regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`).MatchString(tag):
		return fault.New(fault.Invalid, "%q has a bad tag: up to 128 letters, digits, '_', '.' and '-'", ref).WithHint(catalogHint)
	}
	return checkRepository(ref, repository)
}

func checkDigest(ref, before, digest string) error {
	if strings.Contains(digest, "/") || strings.Contains(before, ":") && !strings.Contains(digest, ":") {
		return fault.New(fault.Invalid, "an image reference holds no user and no password: docker's configuration does").
			WithHint("docker login %s", quote(strings.SplitN(digest, "/", 2)[0]))
	}
	algorithm, hash, _ := strings.Cut(digest, ":")
	if algorithm != "sha256" && regexp.MustCompile(`^[a-z0-9+._-]+$`).MatchString(algorithm) && hash != "" {
		return fault.New(fault.Invalid, "%q: only sha256 digests are known", ref).WithHint("banger image pull %s", quote(before))
	}
	if !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(digest) {
		return fault.New(fault.Invalid, "%q has a bad digest: sha256: and 64 hexadecimal digits", ref).WithHint("banger image pull %s", quote(before))
	}
	return nil
}

func checkHost(ref, host string) error {
	if host == "" {
		return nil
	}
	address, port, hasPort := strings.Cut(host, ":")
	if strings.HasPrefix(host, "[") {
		i := strings.IndexByte(host, ']')
		if i < 0 {
			return fault.New(fault.Invalid, "%q has a '[' without a ']' in its host", ref).WithHint(catalogHint)
		}
		address, hasPort = host[:i+1], i+1 < len(host)
		port = strings.TrimPrefix(host[i+1:], ":")
	}
	if n, err := strconv.ParseUint(port, 10, 16); hasPort && (err != nil || n == 0) {
		return fault.New(fault.Invalid, "%q has %q for the port of its host", ref, port).WithHint(catalogHint)
	}
	if address == "" {
		return fault.New(fault.Invalid, "%q has no host before the port", ref).WithHint(catalogHint)
	}
	if !regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])$`).MatchString(address) {
		return fault.New(fault.Invalid, "%q has %q for its host: a name or an address is needed", ref, address).WithHint(catalogHint)
	}
	return nil
}

func checkRepository(ref, repository string) error {
	switch {
	case repository == "":
		return fault.New(fault.Invalid, "%q names a host and no image", ref).WithHint(catalogHint)
	case strings.HasPrefix(repository, "/") || strings.HasSuffix(repository, "/") || strings.Contains(repository, "//"):
		return fault.New(fault.Invalid, "%q has an empty part between slashes", ref).WithHint(catalogHint)
	case repository != strings.ToLower(repository):
		f := fault.New(fault.Invalid, "%q has capital letters: names of images are lower case", ref)
		if checkRepository(ref, strings.ToLower(repository)) != nil {
			return f.WithHint(catalogHint)
		}
		return f.WithHint("banger image pull %s", quote(strings.Replace(ref, repository, strings.ToLower(repository), 1)))
	case len(repository) > 255:
		return fault.New(fault.Invalid, "image reference %.40q... is too long: 255 characters without the host", ref).WithHint(catalogHint)
	}
	if bad := regexp.MustCompile(`[^a-z0-9._/-]`).FindString(repository); bad != "" {
		return fault.New(fault.Invalid, "%q has %q in it: names of images have letters, digits, '.', '_', '-' and '/'", ref, bad).WithHint(catalogHint)
	}
	if !regexp.MustCompile(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`).MatchString(repository) {
		return fault.New(fault.Invalid, "%q: each part of an image's name begins and ends with a letter or digit", ref).WithHint(catalogHint)
	}
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
