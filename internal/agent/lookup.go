package agent

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// findCommand checks the working directory and finds the file of a command, with the eyes of the user that will run it:
// what that user may not enter or execute is not there for it either.
func findCommand(cred *syscall.Credential, name, dir, path string) (file string, err error) {
	look := func() {
		if err = checkDir(dir); err == nil {
			file, err = search(name, dir, path)
		}
	}
	if cred == nil || cred.Uid == 0 {
		look()
		return file, err
	}
	if failed := asUser(cred, look); failed != nil {
		return "", failed
	}
	return file, err
}

// asUser runs f on a thread that has the user's rights in the file system.
func asUser(cred *syscall.Credential, f func()) error {
	done := make(chan error)
	go func() {
		// The system calls below change one thread, unlike those of package syscall. It is never unlocked, so that it
		// ends with this goroutine and nothing else can run on it.
		runtime.LockOSThread()
		err := become(cred)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fault.Wrap(fault.Internal, err, "become user %d", cred.Uid)
	}
	return nil
}

// become changes the effective user and groups of the calling thread.
func become(cred *syscall.Credential) error {
	const keep = ^uintptr(0)
	if err := setThreadGroups(cred.Groups); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(cred.Gid), keep); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(cred.Uid), keep); errno != 0 {
		return errno
	}
	return nil
}

// checkDir checks that a command can start in dir.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fault.New(fault.Invalid, "working directory %s: permission denied", dir)
	case err != nil:
		return fault.New(fault.Invalid, "working directory %s does not exist", dir)
	case !info.IsDir():
		return fault.New(fault.Invalid, "working directory %s is not a directory", dir)
	case unix.Faccessat(unix.AT_FDCWD, dir, unix.X_OK, unix.AT_EACCESS) != nil:
		return fault.New(fault.Invalid, "working directory %s: permission denied", dir)
	}
	return nil
}

// search finds the file of a command: name itself if it has a slash, else the first that can be executed in path.
func search(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		file := inDir(dir, name)
		switch found, err := executable(file); {
		case !found:
			return "", fault.New(fault.NotFound, "%s: no such file in the guest", name)
		case err != nil:
			return "", fault.Wrap(fault.Denied, err, "%s", name)
		}
		return file, nil
	}
	var denied error
	for elem := range strings.SplitSeq(path, ":") {
		file := filepath.Join(inDir(dir, elem), name)
		found, err := executable(file)
		switch {
		case found && err == nil:
			return file, nil
		case found && denied == nil && !errors.Is(err, unix.EISDIR):
			denied = fault.Wrap(fault.Denied, err, "%s", file)
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fault.New(fault.NotFound, "%s: command not found in the guest", name)
}

// inDir makes name absolute.
func inDir(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// executable says whether the file is there and, by err, why it cannot be executed.
func executable(file string) (found bool, err error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.ELOOP):
		return true, unix.EACCES
	case err != nil:
		return false, nil
	case info.IsDir():
		return true, unix.EISDIR
	}
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
		return true, unix.EACCES
	}
	return true, nil
}
