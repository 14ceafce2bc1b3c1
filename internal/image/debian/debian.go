// Package debian makes a root file system from a Debian archive with mmdebstrap, which verifies all of it through apt.
//
// As root it runs in a mount namespace of its own; as an ordinary user in a user namespace too, where the files belong
// to the user's subordinate ids. Either way killing its processes leaves no mounts, only files, and Source.Remove gets
// rid of those.
package debian

import (
	"context"
	_ "embed" // the hook scripts
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/hostpkg"
	"banger/internal/image/source"
)

//go:embed setup.sh
var setupHook string

//go:embed customize.sh
var customizeHook string

// Source is the source of kind "debian"; a location is the codename of a release.
type Source struct {
	Program  string // mmdebstrap; empty: the one in PATH
	HostRoot string // where the host's etc/apt is; empty: /
}

// User is the ordinary user of the image: uid 1000, may use sudo without a password.
const User = "banger"

// packages are what the image has beyond the essential ones. apt brings what they depend on and nothing that they
// only recommend.
func packages() []string {
	return []string{
		"bash", "ca-certificates", "curl", "e2fsprogs", "git", "iproute2", "iputils-ping", "jq", "kmod", "less", "login",
		"mount", "netbase", "openssh-client", "passwd", "procps", "python3-minimal", "rsync", "sudo", "tmux", "tzdata",
		"unzip", "usr-is-merged", "vim-tiny", "xz-utils",
	}
}

// spaceNeeded is what a build takes while it runs (350 MB measured), with room for a newer release of everything.
const spaceNeeded = 500 << 20

// Fetch starts mmdebstrap; what it builds comes out of the tree's stream.
func (s Source) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	program, err := s.find()
	if err != nil {
		return source.Tree{}, err
	}
	if req.Arch != runtime.GOARCH {
		return source.Tree{}, fault.New(fault.Unavailable, "an image for %s cannot be built on %s", req.Arch, runtime.GOARCH)
	}
	host := thisHost()
	if err := host.check(); err != nil {
		return source.Tree{}, err
	}
	sources, err := chooseSources(ctx, s.HostRoot, req)
	if err != nil {
		return source.Tree{}, err
	}
	dir, err := makeScratch(req.Staging, host.root)
	if err != nil {
		return source.Tree{}, err
	}
	if free, err := ext4.Free(dir); err == nil && free < spaceNeeded {
		return source.Tree{}, ext4.Exhausted(errTooLittle, dir, spaceNeeded)
	}
	b := &build{
		argv:     argv(program, req, sources.build != ""),
		stdin:    sources.build,
		scratch:  dir,
		isolate:  host.root && host.canMount,
		guest:    sources,
		progress: newMeter(req.Progress),
	}
	if err := b.start(ctx); err != nil {
		return source.Tree{}, err
	}
	return source.Tree{
		Tar: b, Origin: sources.String(),
		Config: source.Config{User: "root", Shell: "/bin/bash", Env: []string{"LANG=C.UTF-8"}},
	}, nil
}

// find returns the program to run.
func (s Source) find() (string, error) {
	name := s.Program
	if name == "" {
		name = string(hostpkg.Mmdebstrap)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "mmdebstrap is needed to build the image").
			WithHint("%s", hostpkg.InstallHint(hostpkg.Mmdebstrap))
	}
	return path, nil
}

// argv is the command line; fromStdin says that the sources are read from there. It holds no mirror: a URI may have a password in it, and anyone may read a command line.
//
// Mode unshare is asked for as root too: mmdebstrap then mounts in a namespace that it leaves behind.
func argv(program string, req source.Request, fromStdin bool) []string {
	args := []string{
		program, "--verbose", "--mode=unshare", "--format=tar", "--variant=apt", "--architectures=" + req.Arch,
		"--include=" + strings.Join(slices.Sorted(slices.Values(packages())), ","),
		"--setup-hook=" + setupHook,
		"--customize-hook=" + customizeHook,
		"--skip=cleanup/apt", // it runs apt-get twice to do what two lines of the hook do
		req.Location, "-",    // the target is stdout
	}
	switch {
	case fromStdin:
		args = append(args, "-")
	case req.Keyring != "":
		args = append(args, "--keyring="+req.Keyring)
	case exists(debianKeyring): // mmdebstrap would need gpg to find out that the host's apt does not trust Debian
		args = append(args, "--keyring="+debianKeyring)
	}
	return args
}

// errTooLittle is the cause of a build that was not started.
var errTooLittle = fmt.Errorf("a build would fill the disk")
