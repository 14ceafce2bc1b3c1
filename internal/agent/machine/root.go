package machine

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// switchRoot makes the overlay the root of this process, and so of every other. The initramfs stays below it, without
// the files that it does not need any more; Shutdown goes back there to unmount the disks.
func (m *Machine) switchRoot() error {
	var err error
	if m.oldRoot, err = openDir("/"); err != nil {
		return err
	}
	for _, mnt := range bootMounts() {
		target := rootDir + mnt.target
		if info, err := os.Lstat(target); err == nil && !info.IsDir() {
			// Followed, a symbolic link would lead out of the new root.
			return fault.New(fault.Invalid, "in the image %s is no directory", mnt.target)
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(mnt.target, target, "", unix.MS_MOVE, ""); err != nil {
			return fault.Wrap(fault.Internal, err, "move %s to the new root", mnt.target)
		}
	}
	if err := unix.Chdir(rootDir); err != nil {
		return err
	}
	// Moved over the old root and not only chrooted to: the kernel refuses user namespaces to who is chrooted.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fault.Wrap(fault.Internal, err, "move the new root")
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	m.switched = true
	for _, file := range m.initramfs {
		_ = unix.Unlinkat(m.oldRoot, file[1:], 0) // only memory
	}
	return nil
}

// mountSystem mounts what programs expect and makes the links of /dev that the kernel leaves to others. In a build
// nothing is mounted or made where commands write what becomes part of the image.
func mountSystem(build bool) error {
	for _, mnt := range systemMounts() {
		if build && mnt.target == runDir {
			continue
		}
		if err := mnt.do(); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// Everybody may ping.
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	if build {
		return nil
	}
	for _, dir := range []string{"/tmp", runDir + "/lock"} {
		if err := sticky(dir); err != nil {
			return err
		}
	}
	writeBackEarly()
	return nil
}

// sticky makes sure that there is a directory for everybody.
func sticky(dir string) error {
	const mode = 0o777 | os.ModeSticky
	info, err := os.Stat(dir)
	if err == nil && info.IsDir() && info.Mode()&(os.ModePerm|os.ModeSticky) == mode {
		return nil
	}
	if err := makeDir(dir, 0o777); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// mountModules mounts the kernel's modules where modprobe looks for them. A build has a place for them or does without.
func (m *Machine) mountModules(build bool) error {
	if m.modules < 0 {
		return nil
	}
	name, err := release()
	if err != nil {
		return err
	}
	dir := "/lib/modules/" + name
	if build && !isDir(dir) {
		return nil
	}
	if err := makeDir(dir, 0o755); err != nil {
		m.Error("no place for the kernel's modules: " + err.Error()) // an image with a file in the way has no modprobe
		return nil
	}
	return bind(m.modules, "", dir)
}
