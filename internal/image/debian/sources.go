package debian

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/debarchive"
	"banger/internal/fault"
	"banger/internal/image/source"
)

// debianKeyring is where the package debian-archive-keyring has the keys, on a host and in the image.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// mirrorHint says how to choose another archive.
const mirrorHint = "banger config set mirror.debian URL"

// aptSources are the archives that a build and then the guest's apt use, in the format of *.sources files. All empty:
// those that mmdebstrap knows.
type aptSources struct {
	build string
	guest string   // without credentials and without what only this host can reach
	keys  []string // files of keys that the guest needs and does not have, below its /etc/apt/keyrings
	names []string // base URI and suite of each, without credentials
}

// String says where the image comes from.
func (s aptSources) String() string {
	if len(s.names) == 0 {
		return "the mirror that mmdebstrap chose"
	}
	return strings.Join(s.names, ", ")
}

// chooseSources decides which archives are used: the mirror of the request, else what the host's own apt is configured
// to use, else none, which leaves it to mmdebstrap. Wanted are the release, its updates and its security updates.
func chooseSources(ctx context.Context, hostRoot string, req source.Request) (aptSources, error) {
	if hostRoot == "" {
		hostRoot = "/"
	}
	var list []debarchive.Source
	if req.Mirror != "" {
		var err error
		if list, err = mirrorSources(ctx, req.Mirror, req.Location); err != nil {
			return aptSources{}, err
		}
	} else {
		list = hostSources(debarchive.HostSources(hostRoot), req.Location)
	}
	for i := range list {
		switch {
		case req.Keyring != "":
			list[i].SignedBy, list[i].Key = []string{req.Keyring}, ""
		case len(list[i].SignedBy) == 0 && list[i].Key == "" && exists(debianKeyring):
			list[i].SignedBy = []string{debianKeyring} // not every host's apt trusts Debian
		}
	}
	return render(list), nil
}

// hostSources picks the sources of the release. A host that runs another Debian release has mirrors which have this one
// too.
func hostSources(all []debarchive.Source, codename string) []debarchive.Source {
	var out []debarchive.Source
	for _, role := range []string{"", "-updates", "-security"} {
		var exact, other []debarchive.Source
		for _, s := range all {
			if !slices.Contains(s.Components, "main") {
				continue
			}
			base, ok := strings.CutSuffix(s.Suite, role)
			switch {
			case ok && base == codename:
				exact = append(exact, s)
			case ok && slices.Contains(debianReleases(), base):
				s.Suite, s.Components = codename+role, []string{"main"}
				other = append(other, s)
			}
		}
		if len(exact) == 0 {
			exact = other[:min(1, len(other))]
		}
		out = append(out, exact...)
	}
	if len(out) > 0 && out[0].Suite != codename {
		return nil // updates of a release that is not there are of no use
	}
	return out
}

// debianReleases are the names by which a host can name a Debian release.
func debianReleases() []string {
	return []string{
		"bullseye", "bookworm", "trixie", "forky", "duke", "sid", "stable", "oldstable", "testing", "unstable",
	}
}

// mirrorSources expects the release at the mirror that the user chose, and takes its updates and security updates
// from there if it has them.
func mirrorSources(ctx context.Context, mirror, codename string) ([]debarchive.Source, error) {
	u, err := url.Parse(mirror)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) {
		return nil, fault.New(fault.Invalid, "mirror.debian is not an http, https or file URI").WithHint(mirrorHint)
	}
	var out []debarchive.Source
	for _, suite := range []string{codename, codename + "-updates", codename + "-security"} {
		if suite != codename && !hasSuite(ctx, u, suite) {
			continue
		}
		out = append(out, debarchive.Source{URI: mirror, Suite: suite, Components: []string{"main"}})
	}
	return out, nil
}

// hasSuite asks a mirror for a suite. No answer counts as no: apt says so about the release itself, if it is so.
func hasSuite(ctx context.Context, mirror *url.URL, suite string) bool {
	inRelease := mirror.JoinPath("dists", suite, "InRelease")
	if mirror.Scheme == "file" {
		return exists(inRelease.Path)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, inRelease.String(), nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// render writes the sources for the build and for the guest.
func render(list []debarchive.Source) aptSources {
	var out aptSources
	for _, s := range list {
		clean, local := strip(s.URI)
		out.names = append(out.names, clean+" "+s.Suite)
		out.build += stanza(s, s.URI, s.SignedBy)
		if local {
			continue
		}
		inGuest := make([]string, len(s.SignedBy))
		for i, key := range s.SignedBy {
			inGuest[i] = key
			if key != debianKeyring {
				inGuest[i] = path.Join("/etc/apt/keyrings", filepath.Base(key))
				out.keys = append(out.keys, key)
			}
		}
		out.guest += stanza(s, clean, inGuest)
	}
	slices.Sort(out.keys)
	out.keys = slices.Compact(out.keys)
	if out.build != "" && out.guest == "" {
		out.guest = "# This image was made from a mirror that only its host can reach. Add one here.\n"
	}
	return out
}

// stanza is one paragraph of a *.sources file.
func stanza(s debarchive.Source, uri string, keys []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n", uri, s.Suite, strings.Join(s.Components, " "))
	switch {
	case s.Key != "":
		b.WriteString("Signed-By:\n")
		for line := range strings.Lines(s.Key) {
			if line = strings.TrimSpace(line); line == "" {
				line = "."
			}
			b.WriteString(" " + line + "\n")
		}
	case len(keys) > 0:
		fmt.Fprintf(&b, "Signed-By: %s\n", strings.Join(keys, " "))
	}
	if s.NoExpiry {
		b.WriteString("Check-Valid-Until: no\n")
	}
	return b.String() + "\n"
}

// strip removes the credentials of a URI and says whether only this host can reach it.
func strip(uri string) (clean string, local bool) {
	u, err := url.Parse(uri)
	if err != nil {
		return "(not a URI)", true
	}
	u.User = nil
	host := u.Hostname()
	return u.String(), host == "" || host == "localhost" || strings.HasPrefix(host, "127.") || host == "::1"
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, os.ErrNotExist)
}
