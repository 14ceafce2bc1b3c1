package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// scratchLink is the file in the staging directory that says where the scratch directory is.
const scratchLink = "scratch"

// makeScratch makes the directory for the tree that mmdebstrap builds. The subordinate ids must be able to get there,
// and most homes are closed to others: then it is below a public temporary directory, and the staging directory
// has a symbolic link to it, made first so that Remove finds it whatever happens.
func makeScratch(staging string, root bool) (string, error) {
	base := staging
	if !root && !reachable(staging) {
		base = ""
		for _, dir := range []string{"/var/tmp", "/tmp"} { // /tmp is often memory
			if reachable(dir) && syscall.Access(dir, 2 /* W_OK */) == nil {
				base = dir
				break
			}
		}
	}
	if base == "" {
		return "", fault.New(fault.Unavailable, "no temporary directory can be used: neither /var/tmp nor /tmp is open to all").
			WithHint("sudo chmod 1777 /var/tmp")
	}
	dir := filepath.Join(base, scratchName(staging))
	err := os.Symlink(dir, filepath.Join(staging, scratchLink))
	if err == nil {
		err = os.Mkdir(dir, 0o711) // may be entered, not listed
	}
	if err == nil {
		err = os.Chmod(dir, 0o711) // whatever the umask
	}
	if ext4.NoSpace(err) {
		return "", ext4.Exhausted(err, dir, spaceNeeded)
	}
	return dir, fault.Context(err, "make scratch directory")
}

// scratchName is unique for the staging directory, whose last element is.
func scratchName(staging string) string {
	return fmt.Sprintf("banger-%d-%s", os.Getuid(), filepath.Base(staging))
}

// reachable reports whether every directory on the way to dir, and dir itself, may be entered by anyone.
func reachable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// Remove removes the scratch directory of a build, wherever it is and whoever its files belong to.
func (s Source) Remove(ctx context.Context, staging string) error {
	link := filepath.Join(staging, scratchLink)
	dir, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if filepath.Base(dir) != scratchName(staging) { // not ours: leave it alone
		return fault.New(fault.Internal, "%s points to %s, which is no scratch directory", link, dir)
	}
	if err := s.removeTree(ctx, dir); err != nil {
		return err
	}
	return os.Remove(link)
}

// removeTree removes dir, first as the caller, then in the user namespace whose ids the rest belongs to. It never
// crosses into another file system: something may still be mounted.
func (s Source) removeTree(ctx context.Context, dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() {
		return fault.New(fault.Denied, "%s is not a directory of this user", dir)
	}
	rm := []string{"rm", "--recursive", "--force", "--one-file-system", "--"}
	if quiet(ctx, append(rm, dir)...) == nil {
		return nil
	}
	program, err := s.find()
	if err != nil {
		return err
	}
	// The subordinate root may not change dir itself, only what is in it.
	trees, err := filepath.Glob(filepath.Join(dir, "mmdebstrap.*"))
	if err != nil {
		return err
	}
	for _, tree := range trees {
		empty := []string{program, "--unshare-helper", "find", tree, "-mount", "-mindepth", "1", "-delete"}
		if err := quiet(ctx, empty...); err != nil {
			return fault.Context(err, "remove %s", tree)
		}
	}
	return fault.Context(quiet(ctx, append(rm, dir)...), "remove %s", dir)
}

// quiet runs a command whose output matters only when it fails.
func quiet(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Dir = "/" // find wants to come back to where it started
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	last := strings.TrimSpace(string(out))
	if i := strings.LastIndexByte(last, '\n'); i >= 0 {
		last = last[i+1:]
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, last)
}
