package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/hostpkg"
	"banger/internal/vm"
)

// features are named one by one, so that a disk is the same whatever the host's /etc/mke2fs.conf says; all of them
// are in any kernel that can be a guest.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// growTo is up to which size room for group descriptors is kept (above it the kernel grows the file system by
// meta_bg). Keeping it for mkfs's own default of 1024 times the size costs 4 MB in every disk.
const growTo = 1 << 40

// Format makes an empty ext4 file system of size bytes at path, which must not exist. It takes a few megabytes on the
// host, leaves the guest's kernel nothing to initialise in the background, and can grow while it is mounted.
func Format(ctx context.Context, path string, size uint64) error {
	size, err := roundUp(size)
	if err != nil {
		return err
	}
	mkfs, err := findTool("mkfs.ext4")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return explain(err, path, blockSize)
	}
	err = f.Truncate(int64(size))
	if err != nil {
		err = explain(err, path, size)
	} else if err = runMkfs(ctx, mkfs, path, size); err == nil {
		err = explain(f.Sync(), path, blockSize)
	}
	if closeErr := f.Close(); err == nil {
		err = explain(closeErr, path, blockSize)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// mkfsArgs is everything but the path.
//
//   - discard: mkfs punches the file out first and then knows that it reads as zeros. With nodiscard it would zero the
//     inode tables by fallocate, which takes real blocks (230 MB of 10 GiB, 34 GB of 2 TiB).
//   - lazy_itable_init=0: tables that are zero are marked so; otherwise the guest's ext4lazyinit thread writes
//     them in the background, which costs guest time and host bytes.
//   - lazy_journal_init=1: the journal is a hole, and zero too.
//   - -m 0: nothing is kept for root, who is the main user of a sandbox.
func mkfsArgs(size uint64) []string {
	extended := "discard,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"
	if size < growTo {
		extended += fmt.Sprintf(",resize=%d", uint64(growTo/blockSize))
	}
	return []string{
		"-q", "-F", "-t", "ext4", "-b", fmt.Sprint(blockSize), "-I", "256", "-i", "16384", "-m", "0",
		"-O", features, "-E", extended,
	}
}

// runMkfs formats the file at path.
func runMkfs(ctx context.Context, mkfs, path string, size uint64) error {
	cmd := exec.CommandContext(ctx, mkfs, append(mkfsArgs(size), path)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C at the terminal is for banger
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch text := strings.TrimSpace(out.String()); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.Context(context.Cause(ctx), "format %s", filepath.Base(path))
	case strings.Contains(text, "No space left"):
		return Exhausted(syscall.ENOSPC, path, 8<<20)
	case strings.Contains(text, "too small") || strings.Contains(text, "Not enough space"):
		return fault.Wrap(fault.Invalid, errors.New(text), "a disk of %s is too small", vm.FormatSize(size))
	default:
		return fault.Wrap(fault.Internal, fmt.Errorf("%s: %w", text, err), "format %s", filepath.Base(path))
	}
}

// findTool looks for a program of e2fsprogs, also where an ordinary user's PATH does not lead.
func findTool(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.Unavailable, "%s is not installed", name).
		WithHint("%s", hostpkg.InstallHint(hostpkg.E2fsprogs))
}
