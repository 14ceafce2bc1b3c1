// Package ext4 makes the two kinds of disk that a VM has, without root and without mounting anything: a read-only
// image from a tar stream (FromTar) and an empty writable disk (Format, CopyFormatted).
//
// Every file is sparse: its size is what the guest sees, Usage is what it costs on the host.
package ext4

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/vm"
)

const (
	blockSize = 4096
	maxSize   = 16 << 40 // bytes; 2^32 blocks, the most that 32-bit block numbers reach
)

// Usage returns how many bytes the file takes on the host, which for a sparse file is far less than its size.
func Usage(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Blocks) * 512, nil // st_blocks is in units of 512 bytes whatever the file system's block size
}

// Free returns how many bytes this user can still write where path is or will be.
func Free(path string) (uint64, error) {
	dir := path
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), nil
		}
		if parent := filepath.Dir(dir); errors.Is(err, unix.ENOENT) && parent != dir {
			dir = parent
			continue
		}
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
}

// NoSpace reports whether err says that the host's disk, the user's quota or the file size limit is used up.
func NoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// Exhausted returns the fault for an err of which NoSpace is true: it says how much was needed at least and how much
// is free where path is.
func Exhausted(err error, path string, needed uint64) error {
	free := "unknown"
	if n, freeErr := Free(path); freeErr == nil {
		free = vm.FormatSize(n)
	}
	dir := filepath.Dir(path)
	return fault.Wrap(fault.Exhausted, err, "no space for %s in %s: at least %s needed, %s free",
		filepath.Base(path), dir, vm.FormatSize(needed), free).
		WithHint("df -h %s", filepath.Dir(dir)) // dir itself may be gone by the time somebody reads this
}

// explain gives a failure to write path its class; needed is how much would have been written by then.
func explain(err error, path string, needed uint64) error {
	switch {
	case err == nil:
		return nil
	case NoSpace(err):
		return Exhausted(err, path, needed)
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.Denied, err, "write %s", filepath.Base(path))
	}
	return fault.Context(err, "write %s", filepath.Base(path))
}

// roundUp checks a size for a disk and rounds it up to whole blocks.
func roundUp(size uint64) (uint64, error) {
	if size == 0 || size > maxSize {
		return 0, fault.New(fault.Invalid, "a disk of %s is not possible: it can be up to %s",
			fmt.Sprint(size), vm.FormatSize(maxSize))
	}
	return (size + blockSize - 1) &^ (blockSize - 1), nil
}
