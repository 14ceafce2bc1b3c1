// Package looptest gives tests a directory whose file system shares the blocks of copies (XFS, mkfs.xfs -m reflink=1), where
// the host's own may not: from a file, through a loop device. That takes root, and a kernel that knows both.
package looptest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
)

// size of the file system, which has holes: what is not used takes nothing. mkfs.xfs makes none below 300 MB.
const size = 4 << 30

// XFS mounts an empty file system for a test, at dir, which it makes, or in a place of its own if that is "". It is
// unmounted when the test ends, although something may use it still. Where it cannot be mounted the test is skipped, or
// fails where that must not be (CI=true).
func XFS(t testing.TB, dir string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "xfs.img") // its removal is registered first, so it comes last
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "mnt")
	}
	cannot := t.Skipf
	if os.Getenv("CI") == "true" {
		cannot = t.Fatalf
	}
	if os.Geteuid() != 0 {
		cannot("mounting a file system takes root")
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
		cannot("mkfs.xfs (scripts/setup.sh --test installs it): %v %s", err, out)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) }) // after the one below
	if out, err := exec.Command("mount", "-t", "xfs", "-o", "loop,nodev,nosuid", image, dir).CombinedOutput(); err != nil {
		cannot("mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // the loop device goes with it
			t.Error("unmount:", err)
		}
	})
	if !diskcopy.Shares(dir) {
		t.Fatalf("copies on %s do not share their blocks", dir)
	}
	return dir
}
