package daemon

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// removedPrefix is how atomicfile.RemoveDir renames a directory before it removes it.
const removedPrefix = ".removed-"

// maxLog is the size from which the log is rotated at start.
const maxLog = 10 << 20

// Ready tells the process that has started this daemon how that went, on an inherited descriptor: "ok", or a fault as
// one line of JSON. A nil Ready tells nobody.
type Ready struct {
	once sync.Once
	file *os.File
}

// ReadyFromEnv returns the Ready that the environment (BANGER_READY_FD) asks for, or nil. It takes the variable out of
// the environment, and the descriptor is not inherited by children: a supervisor that held it would keep the CLI waiting.
func ReadyFromEnv() *Ready {
	const env = "BANGER_READY_FD"
	fd, err := strconv.Atoi(os.Getenv(env))
	if err != nil || fd < 3 {
		return nil
	}
	os.Unsetenv(env)
	unix.CloseOnExec(fd)
	return &Ready{file: os.NewFile(uintptr(fd), "ready")}
}

// Report says "ok" for a nil error, else what it is. Only the first call counts. That nobody listens any more is no
// concern of the daemon's.
func (r *Ready) Report(err error) {
	if r == nil {
		return
	}
	r.once.Do(func() {
		line := []byte("ok")
		if err != nil {
			line, _ = json.Marshal(map[string]string{
				"class": string(fault.ClassOf(err)), "message": err.Error(), "hint": fault.HintOf(err),
			})
		}
		_, _ = r.file.Write(append(line, '\n'))
		_ = r.file.Close()
	})
}

// lockPatience is how long a daemon waits for the lock of one that seems to run.
const lockPatience = time.Second

// takeLock takes the lock that says that this is the only daemon for these directories.
func takeLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// A child of a daemon that was killed has the lock until it gets as far as exec.
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for end := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(lockPatience / 20)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		f.Close()
		return nil, fault.New(fault.Conflict, "a daemon already runs for %s", filepath.Dir(path)).WithHint("banger daemon status")
	case err != nil:
		f.Close()
		return nil, fault.Wrap(fault.Internal, err, "lock %s", path)
	}
	return func() {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // a child that has not got as far as exec has the descriptor too
		f.Close()
	}, nil
}

// rotateLog moves a log that has grown too large aside and goes on in a new one, if it is where this process's stderr
// goes: who has started the daemon has opened it for appending.
func rotateLog(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() <= maxLog {
		return nil
	}
	if err != nil {
		return err
	}
	if mine, err := os.Stderr.Stat(); err != nil || !os.SameFile(mine, info) {
		return nil
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
}

// list returns the paths of what is in dir; nothing when that cannot be read.
func list(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	all := make([]string, len(entries))
	for i, e := range entries {
		all[i] = filepath.Join(dir, e.Name())
	}
	return all
}

func name(path string) string { return filepath.Base(path) }

// used is how many bytes a file, or the files directly in a directory, really take on the host; 0 for what is not there.
func used(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	total := uint64(st.Blocks) * 512
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		for _, file := range list(path) {
			total += used(file)
		}
	}
	return total
}

// classOf is the class of what the host's file system says.
func classOf(err error) fault.Class {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Exhausted
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return fault.Denied
	}
	return fault.ClassOf(err)
}
