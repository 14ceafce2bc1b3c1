package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"banger/internal/fault"
)

// errDamaged marks the faults of files that cannot be read as a database any more.
type errDamaged struct{ cause error }

func (e errDamaged) Error() string { return e.cause.Error() }
func (e errDamaged) Unwrap() error { return e.cause }

// IsDamaged reports whether err says that the database cannot be read any more, as opposed to: must not be touched.
func IsDamaged(err error) bool {
	_, ok := errors.AsType[errDamaged](err)
	return ok
}

// CheckFile returns a fault when the path does not lead to the open database any more: somebody has removed or replaced
// the file. What is written from then on is lost when the process ends, unless Rescue puts it back.
func (s *Store) CheckFile() error {
	now, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.Unavailable, "the database %s was removed while it was in use", s.path)
	case err != nil:
		return s.wrap(err)
	case !os.SameFile(now, s.file):
		return fault.New(fault.Unavailable, "the database %s was replaced while it was in use", s.path)
	}
	return nil
}

// Rescue writes the database to its path again if somebody has removed the file. One that was replaced by another is
// left as it is: somebody wants that one.
func (s *Store) Rescue(ctx context.Context) (rescued bool, err error) {
	if _, err := os.Stat(s.path); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	// Those beside it belong to what was removed, or to nothing.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(s.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, s.wrap(err)
		}
	}
	if _, err := s.db.ExecContext(ctx, "VACUUM INTO ?", s.path); err != nil {
		return false, s.wrap(errors.Join(err, removeFile(s.path)))
	}
	return true, s.wrap(os.Chmod(s.path, 0o600))
}

// MoveAside renames a database and the files that belong to it, so that a new one can be made. It returns where it is.
func MoveAside(path, stamp string) (string, error) {
	aside := path + ".corrupt-" + stamp
	// The database itself last: as long as it is there the move is not done, and a restart does it again.
	for _, suffix := range []string{"-wal", "-shm", ""} {
		err := os.Rename(path+suffix, aside+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fault.Wrap(classOf(err), err, "move the damaged database aside")
		}
	}
	return aside, nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// splitList and joinList are how lists are stored.
func splitList(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func joinList(list []string) string { return strings.Join(list, ",") }
