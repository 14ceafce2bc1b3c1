// Package image turns a name into a root file system that VMs can share: the catalog of names, the way from a source's
// tar stream to a padded read-only ext4 file, and the manifest beside it.
//
// Publishing the result (rename to its final place, row in the database) is the daemon's job.
package image

import (
	"context"
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/debian"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// cleanupTimeout bounds how long a failed Pull takes to remove what it has made.
const cleanupTimeout = 60 * time.Second

// PullOptions of Pull. Only Staging is required.
type PullOptions struct {
	Staging  string        // existing directory for the new image, on the file system that it will be published to
	Images   string        // directory of the images that are here, to share files with; empty: nothing is shared
	Arch     string        // amd64 or arm64; empty: this host's
	Mirror   string        // base URI of the distribution's archive (config key mirror.debian); empty: what the host uses
	Keyring  string        // file of that archive's keys; empty: the one that the host's apt or Debian has
	Progress progress.Func // stage "image"

	Keys   []string // minisign public keys that a bundle may be signed with, besides the source's own
	SHA256 string   // of a bundle's file, hexadecimal: makes a signature unnecessary

	Sources map[string]source.Source // by kind, see Sources; nil: those that need no options
}

// builtin returns the sources that need no options. Of those that do, os.RemoveAll removes all that they leave.
func builtin() map[string]source.Source {
	return map[string]source.Source{"debian": debian.Source{}}
}

// Pull makes the image of e from the first of its sources that works on this host. It returns the path of a new
// directory below opt.Staging, for the caller to publish by rename or to give to RemoveStaged, and what it holds. On
// failure nothing is left there, and no process.
func Pull(ctx context.Context, e Entry, opt PullOptions) (stagedDir string, m Manifest, err error) {
	if opt.Arch == "" {
		opt.Arch = runtime.GOARCH
	}
	if opt.Sources == nil {
		opt.Sources = builtin()
	}
	var failures []error
	for _, origin := range e.Sources {
		src, ok := opt.Sources[origin.Kind]
		if !ok {
			continue // of a newer catalog
		}
		dir, m, err := pullFrom(ctx, e, origin, src, opt)
		if err == nil {
			return dir, m, nil
		}
		failures = append(failures, err)
		// Only what this host lacks can be made up for by another source.
		if ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
			break
		}
	}
	if len(failures) == 0 {
		return "", Manifest{}, fault.New(fault.Unavailable, "image %s has no source that this banger knows", e.Name)
	}
	return "", Manifest{}, fault.Context(errors.Join(failures...), "image %s", e.Name)
}

// pullFrom is Pull from one source.
func pullFrom(ctx context.Context, e Entry, origin Origin, src source.Source, opt PullOptions) (_ string, _ Manifest, err error) {
	dir, err := os.MkdirTemp(opt.Staging, "image-*")
	if err != nil {
		return "", Manifest{}, explain(err, opt.Staging)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(ctx, dir, opt.Sources))
		}
	}()
	req := source.Request{
		Location: origin.Location, Arch: opt.Arch, Staging: dir, Mirror: opt.Mirror, Keyring: opt.Keyring,
		Keys: opt.Keys, SHA256: opt.SHA256, Size: origin.Size, Progress: opt.Progress,
	}
	if req.SHA256 == "" {
		req.SHA256 = origin.SHA256
	}
	tree, err := src.Fetch(ctx, req)
	if err != nil {
		return "", Manifest{}, err
	}
	m := Manifest{Name: e.Name, Source: origin.String(), Arch: opt.Arch, Kernel: e.Kernel}
	if err = m.make(ctx, tree, dir, opt.Images); err == nil {
		err = src.Remove(ctx, dir)
	}
	if err == nil {
		err = explain(m.write(dir), opt.Staging)
	}
	if err != nil {
		return "", Manifest{}, err
	}
	return dir, m, nil
}

// RemoveStaged removes a directory that Pull has made, or that a banger which was killed has left in the middle of
// one, with what a source has put elsewhere. It does not need the program to be root, though there may be files of
// other users in it. A directory that is not there is no error.
func RemoveStaged(ctx context.Context, dir string) error {
	return removeStaged(ctx, dir, builtin())
}

func removeStaged(ctx context.Context, dir string, sources map[string]source.Source) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, kind := range slices.Sorted(maps.Keys(sources)) {
		if err := sources[kind].Remove(ctx, dir); err != nil {
			return fault.Context(err, "remove %s", dir)
		}
	}
	return os.RemoveAll(dir)
}

// discard is removeStaged for a path that has failed, perhaps because ctx has ended.
func discard(ctx context.Context, dir string, sources map[string]source.Source) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return removeStaged(ctx, dir, sources)
}

// explain gives a full disk and a forbidden directory their class.
func explain(err error, staging string) error {
	switch {
	case ext4.NoSpace(err):
		return ext4.Exhausted(err, Rootfs(strings.TrimSuffix(staging, "/")), 1<<20)
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.Denied, err, "staging directory")
	}
	return err
}
