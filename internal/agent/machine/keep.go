package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// keep is a directory that lives on the data disk itself and not in the overlay: it survives a reset of the system,
// and it is a plain ext4, which Docker's own overlays need.
type keep struct {
	name  string // below keepDir
	path  string
	mode  os.FileMode // if the image has none
	users bool        // made for the default user
}

func keeps() []keep {
	return []keep{
		{name: "root", path: "/root", mode: 0o700},
		{name: "home", path: "/home", mode: 0o755},
		{name: "workspace", path: "/workspace", mode: 0o755, users: true},
		{name: "docker", path: "/var/lib/docker", mode: 0o710},
	}
}

// keepDir holds the kept directories on the data disk.
const keepDir = "keep"

// mountKeeps mounts the kept directories. Those that the data disk does not have yet it gets from the image, all or
// nothing for each: a copy has its real name only when it is complete on the disk.
func (m *Machine) mountKeeps(config agentwire.Config) error {
	if config.Build {
		return nil
	}
	base := filepath.Join("/proc/self/fd", strconv.Itoa(m.data), keepDir)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	var usable, fresh []keep
	for _, k := range keeps() {
		made, err := k.ensure()
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ELOOP) {
			continue // there is a file in the way, and it stays
		}
		if err != nil {
			return err
		}
		usable = append(usable, k)
		if _, err := os.Lstat(filepath.Join(base, k.name)); err == nil {
			continue
		}
		if err := k.copyTo(base, made, config.User); err != nil {
			return fault.Wrap(fault.Internal, err, "copy %s of the image", k.path)
		}
		fresh = append(fresh, k)
	}
	if len(fresh) > 0 {
		if err := syncFS(base); err != nil {
			return err
		}
		for _, k := range fresh {
			if err := os.Rename(k.temp(base), filepath.Join(base, k.name)); err != nil {
				return err
			}
		}
	}
	for _, k := range usable {
		if err := bind(m.data, keepDir+"/"+k.name, k.path); err != nil {
			return err
		}
	}
	return nil
}

// ensure makes the directory to mount on. It reports whether the image had none.
func (k keep) ensure() (made bool, err error) {
	if isDir(k.path) {
		return false, nil
	}
	return true, makeDir(k.path, k.mode)
}

// temp is the name of an unfinished copy.
func (k keep) temp(base string) string { return filepath.Join(base, "."+k.name+".new") }

// copyTo copies the image's directory to its unfinished name. Remains of a copy that was interrupted go first.
func (k keep) copyTo(base string, made bool, user string) error {
	temp := k.temp(base)
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := copyTree(k.path, temp); err != nil {
		return err
	}
	if !made || !k.users {
		return nil
	}
	uid, gid, ok := ownerOf(user)
	if !ok {
		return nil
	}
	return os.Lchown(temp, uid, gid)
}

// syncFS makes what was written to path's file system last.
func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// ownerOf finds the numbers of the user that a directory is made for.
func ownerOf(user string) (uid, gid int, ok bool) {
	name, _, _ := strings.Cut(user, ":")
	data, err := os.ReadFile("/etc/passwd")
	if err != nil || name == "" {
		return 0, 0, false
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(line, ":")
		if len(f) != 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		return uid, gid, err1 == nil && err2 == nil
	}
	return 0, 0, false
}
