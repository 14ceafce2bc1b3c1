package machine

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// mount is one mount. The tables below are what the agent mounts besides the disks.
type mount struct {
	source string
	target string
	fstype string
	flags  uintptr
	data   string
	mode   os.FileMode // of the directory if it has to be made
	// optional: the guest works without it, for example because the kernel does not know the file system.
	optional bool
}

// bootMounts is what the agent needs to find its devices. Its mounts move to the new root.
func bootMounts() []mount {
	return []mount{
		{source: "devtmpfs", target: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
		{source: "proc", target: "/proc", fstype: "proc", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{source: "sysfs", target: "/sys", fstype: "sysfs", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	}
}

const runDir = "/run"

// systemMounts is what programs expect of a running system.
func systemMounts() []mount {
	return []mount{
		{source: "devpts", target: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "gid=5,mode=620,ptmxmode=666"},
		{source: "tmpfs", target: "/dev/shm", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		{source: "mqueue", target: "/dev/mqueue", fstype: "mqueue", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, optional: true},
		{source: "tmpfs", target: runDir, fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755"},
		{source: "cgroup2", target: "/sys/fs/cgroup", fstype: "cgroup2", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, data: "nsdelegate", optional: true},
	}
}

// do makes the directory and mounts on it.
func (m mount) do() error {
	mode := m.mode
	if mode == 0 {
		mode = 0o755
	}
	err := makeDir(m.target, mode)
	if err == nil {
		err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	}
	if err != nil && !m.optional {
		return fault.Wrap(mountClass(err), err, "mount %s on %s", m.fstype, m.target)
	}
	return nil
}

// mountClass tells a missing part from a failure.
func mountClass(err error) fault.Class {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return fault.Unavailable
	}
	return fault.Internal
}

// openDir opens a directory as a place in the tree, whatever is mounted over it later.
func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// bind mounts the directory name below dir on target. Unlike a bind mount by path it needs no path to dir, and target
// is resolved in the root that the process has now.
func bind(dir int, name, target string) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	tree, err := unix.OpenTree(dir, name, flags)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "bind %s", target)
	}
	defer func() { _ = unix.Close(tree) }()
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "bind %s", target)
	}
	return nil
}
