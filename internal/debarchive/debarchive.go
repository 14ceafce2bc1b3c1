// Package debarchive reads Debian-style package archives: which mirror of one this host uses, what it offers, and a
// package from it.
//
// Trust comes from the archive's own signature and from nothing else: InRelease is checked against a keyring, it names
// the size and SHA-256 of each index, and an index names those of each package. Nothing is parsed before that check has
// passed, but for InRelease itself. The transport may therefore be plain HTTP, a directory or any mirror. apt's
// "trusted=yes" is not honoured.
//
// Mirrors come from the caller or from the host's apt configuration; none is known to this package.
package debarchive

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
)

// DefaultStall is how long a mirror may send nothing.
const DefaultStall = 30 * time.Second

// Options of New. The zero value is what a user's machine needs.
type Options struct {
	Mirror    string           // base URI of the archive, instead of the host's apt configuration
	Keyring   string           // file of keys, instead of the one that the source or Debian has
	HostRoot  string           // where etc/apt is; empty: /
	Backports bool             // the release's backports instead of the release with its updates
	Stall     time.Duration    // 0: DefaultStall
	Backoff   []time.Duration  // pauses between attempts; nil: a default
	Now       func() time.Time // nil: time.Now
}

// Archive is what one distribution release offers on this host. It is safe for concurrent use.
type Archive struct {
	suites [][]repo // the candidates for each suite, the one that must be there first
	fetch  *fetcher
	now    func() time.Time
}

// Open finds the mirrors of the Debian release with that codename. It reads configuration only; a host without any
// mirror is a fault of class Unavailable.
func Open(ctx context.Context, codename string, opt Options) (*Archive, error) {
	if opt.HostRoot == "" {
		opt.HostRoot = "/"
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	var conf aptConfig
	if opt.HostRoot == "/" {
		conf = readAptConfig(ctx)
	}
	suites, err := findRepos(codename, opt, conf)
	if err != nil {
		return nil, err
	}
	return &Archive{suites: suites, fetch: newFetcher(opt, conf), now: opt.Now}, nil
}

// Mirrors lists the base URI and suite of everything that would be asked, without credentials.
func (a *Archive) Mirrors() []string {
	var out []string
	for _, candidates := range a.suites {
		for _, r := range candidates {
			out = append(out, redact(r.base)+" "+r.suite)
		}
	}
	return out
}

// Packages returns the packages for arch, in all suites of the release, whose name keep accepts.
func (a *Archive) Packages(ctx context.Context, arch string, keep func(name string) bool) ([]Package, error) {
	found := make([][]Package, len(a.suites))
	g, ctx := errgroup.WithContext(ctx)
	for i, candidates := range a.suites {
		g.Go(func() (err error) {
			found[i], err = a.suitePackages(ctx, candidates, i == 0, arch, keep)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// suitePackages asks the candidates for one suite until one of them is Debian's. Another vendor's archive may have the
// same suite name and is passed over. The first suite is required. The updates and security suites may be missing from a mirror that was only
// guessed to have them, but one that the host uses and that does not answer or verify is a failure: falling back to
// what is older would let anyone on the way choose a kernel with known holes.
func (a *Archive) suitePackages(ctx context.Context, candidates []repo, required bool, arch string, keep func(string) bool) ([]Package, error) {
	var failure, absent error
	for _, r := range candidates {
		pkgs, err := a.repoPackages(ctx, r, arch, keep)
		switch {
		case err == nil:
			return pkgs, nil
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, errOtherVendor) || fault.Is(err, fault.NotFound) && !r.expected:
			absent = cmp.Or(absent, err)
		default:
			failure = cmp.Or(failure, err)
		}
	}
	if failure == nil && required {
		return nil, fault.Context(absent, "no suite %s of Debian's", candidates[0].suite)
	}
	return nil, failure
}

func (a *Archive) repoPackages(ctx context.Context, r repo, arch string, keep func(string) bool) ([]Package, error) {
	rel, err := a.release(ctx, r)
	if err != nil {
		return nil, fault.Context(err, "%s %s", redact(r.base), r.suite)
	}
	var out []Package
	for _, component := range r.components {
		index, err := a.index(ctx, r, rel, component, arch)
		if err != nil {
			return nil, fault.Context(err, "%s %s", redact(r.base), r.suite)
		}
		pkgs, err := parsePackages(index, keep)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s %s: index of %s", redact(r.base), r.suite, component)
		}
		out = append(out, pkgs...)
	}
	for i := range out {
		out[i].base = r.base
	}
	return out, nil
}

// Download writes the package to a new file at path, and removes that again unless every byte is as the archive
// signed it. report gets the number of bytes so far, which starts again at 0 when a transfer is repeated.
func (a *Archive) Download(ctx context.Context, p Package, path string, report func(done uint64)) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	uri, err := join(p.base, p.Filename)
	if err != nil {
		return err
	}
	return a.fetch.verified(ctx, uri, p.Size, p.SHA256, f, report)
}

// URI is where the package is downloaded from, without credentials.
func (p Package) URI() string {
	uri, err := join(p.base, p.Filename)
	if err != nil {
		return p.Filename
	}
	return redact(uri)
}

// join appends the elements, which are relative slash-separated paths, to a base URI.
func join(base string, elem ...string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "mirror")
	}
	return u.JoinPath(elem...).String(), nil
}

// redact removes the password from a URI.
func redact(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "(not a URI)"
	}
	return strings.TrimRight(u.Redacted(), "/")
}
