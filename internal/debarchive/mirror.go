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

// findRepos returns, for the release itself, its updates and its security updates, where they may be found. A suite
// for which there is no candidate is left out; the release itself must have one.
func findRepos(codename string, opt Options, conf aptConfig) ([][]repo, error) {
	if opt.Mirror != "" {
		return overrideRepos(codename, opt)
	}
	sources := HostSources(opt.HostRoot)
	var out [][]repo
	for _, role := range []string{"", "-updates", "-security"} {
		candidates := hostRepos(sources, codename, role, opt, isNo(conf["acquire::check-valid-until"]))
		switch {
		case len(candidates) > 0:
			out = append(out, candidates)
		case role == "":
			return nil, fault.New(fault.Unavailable,
				"no Debian mirror is known: this host's apt configuration names none").
				WithHint("banger config set mirror.debian URL")
		}
	}
	return out, nil
}

// hostRepos returns the candidates for one suite, each base URI once. What names the wanted suite itself goes before
// what only names a sibling of it.
func hostRepos(sources []Source, codename, role string, opt Options, noExpiry bool) []repo {
	var named, guessed []repo
	for _, s := range sources {
		if !plausible(s, role) {
			continue
		}
		r := repo{
			base: s.URI, suite: codename + role, components: []string{component},
			keys:     keySource{override: opt.Keyring, files: s.SignedBy, armored: s.Key},
			noExpiry: s.NoExpiry || noExpiry,
			expected: s.Suite == codename+role,
		}
		if r.expected {
			named = append(named, r)
		} else {
			guessed = append(guessed, r)
		}
	}
	var out []repo
	for _, r := range slices.Concat(named, guessed) {
		if !slices.ContainsFunc(out, func(o repo) bool { return o.base == r.base }) {
			out = append(out, r)
		}
	}
	return out
}

// overrideRepos expects every suite at the one mirror that the user chose. Only the release itself must be there.
func overrideRepos(codename string, opt Options) ([][]repo, error) {
	if !supported(opt.Mirror) {
		return nil, fault.New(fault.Invalid, "mirror.debian %q is not an http, https or file URI", redact(opt.Mirror)).
			WithHint("banger config set mirror.debian URL")
	}
	var out [][]repo
	for _, role := range []string{"", "-updates", "-security"} {
		out = append(out, []repo{{
			base: opt.Mirror, suite: codename + role, components: []string{component},
			keys: keySource{override: opt.Keyring},
		}})
	}
	return out, nil
}

// plausible reports whether a source may be a Debian mirror with suites of that role ("", "-updates", "-security").
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
