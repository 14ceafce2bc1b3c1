package debarchive

import (
	"net/url"
	"slices"
	"strings"

	"banger/internal/fault"
)

// component is the only one that is read: the kernels of a Debian release are in it.
const component = "main"

// repo is one suite of the archive at one base URI.
type repo struct {
	base       string
	suite      string
	components []string
	keys       keySource
	noExpiry   bool
	expected   bool // the host's configuration says that it is there
}

// debianSuites are the names by which a host's apt configuration can name a Debian release. A mirror that has one of
// them has the others too, so that a host of any release can get the packages of each.
func debianSuites() []string {
	return []string{
		"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
		"stable", "oldstable", "oldoldstable", "testing", "unstable",
	}
}

// backports is the role of the suite with newer versions of some packages. It is in the archive of the release itself.
const backports = "-backports"

// roles are the suites of a release that are read; the first of them must be there.
func (opt Options) roles() []string {
	if opt.Backports {
		return []string{backports}
	}
	return []string{"", "-updates", "-security"}
}

// findRepos returns, for each suite that is read, where it may be found. A suite for which there is no candidate is
// left out, unless it is the first, which must have one.
func findRepos(codename string, opt Options, conf aptConfig) ([][]repo, error) {
	if opt.Mirror != "" {
		return overrideRepos(codename, opt)
	}
	sources := HostSources(opt.HostRoot)
	var out [][]repo
	for i, role := range opt.roles() {
		candidates := hostRepos(sources, codename, role, opt, isNo(conf["acquire::check-valid-until"]))
		switch {
		case len(candidates) > 0:
			out = append(out, candidates)
		case i == 0:
			return nil, fault.New(fault.Unavailable,
				"no Debian mirror is known: this host's apt configuration names none").
				WithHint("banger config set mirror.debian URL")
		}
	}
	return out, nil
}

// hostRepos returns the candidates for one suite, each base URI once. What names the wanted suite itself goes before
// what only names a sibling of it, and that before an archive that may have it, too.
func hostRepos(sources []Source, codename, role string, opt Options, noExpiry bool) []repo {
	var named, guessed, archives []repo
	for _, s := range sources {
		archive := role == backports && plausible(s, "")
		if !plausible(s, role) && !archive {
			continue
		}
		r := repo{
			base: s.URI, suite: codename + role, components: []string{component},
			keys:     keySource{override: opt.Keyring, files: s.SignedBy, armored: s.Key},
			noExpiry: s.NoExpiry || noExpiry,
			expected: s.Suite == codename+role,
		}
		switch {
		case r.expected:
			named = append(named, r)
		case archive:
			archives = append(archives, r)
		default:
			guessed = append(guessed, r)
		}
	}
	var out []repo
	for _, r := range slices.Concat(named, guessed, archives) {
		if !slices.ContainsFunc(out, func(o repo) bool { return o.base == r.base }) {
			out = append(out, r)
		}
	}
	return out
}

// overrideRepos expects every suite at the one mirror that the user chose. Only the first must be there.
func overrideRepos(codename string, opt Options) ([][]repo, error) {
	if !supported(opt.Mirror) {
		return nil, fault.New(fault.Invalid, "mirror.debian %q is not an http, https or file URI", redact(opt.Mirror)).
			WithHint("banger config set mirror.debian URL")
	}
	var out [][]repo
	for _, role := range opt.roles() {
		out = append(out, []repo{{
			base: opt.Mirror, suite: codename + role, components: []string{component},
			keys: keySource{override: opt.Keyring},
		}})
	}
	return out, nil
}

// plausible reports whether a source may be a Debian mirror with suites of that role ("", "-updates", ...).
func plausible(s Source, role string) bool {
	base, ok := strings.CutSuffix(s.Suite, role)
	return ok && slices.Contains(debianSuites(), base) && slices.Contains(s.Components, component) && supported(s.URI)
}

// supported reports whether a base URI is one that fetcher can read.
func supported(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil {
		return false
	}
	switch u.Scheme {
	case "http", "https":
		return u.Host != ""
	case "file", "copy":
		return u.Path != "" && (u.Host == "" || u.Host == "localhost")
	}
	return false
}
