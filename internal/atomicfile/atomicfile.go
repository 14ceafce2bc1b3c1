// Package atomicfile writes files that are either wholly there or not at all, also after a crash.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write writes data to path: a temporary file in the same directory, fsync, rename, fsync of the directory. On error
// path is as it was and the temporary file is gone.
func Write(path string, data []byte, perm fs.FileMode) error {
	if err := replace(path, data, perm, (*os.File).Sync); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// replace is Write without the last step. sync is given the complete file.
func replace(path string, data []byte, perm fs.FileMode, sync func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = sync(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// WriteJSON writes v as indented JSON, mode 0600.
func WriteJSON(path string, v any) error {
	data, err := encode(path, v)
	if err != nil {
		return err
	}
	return Write(path, data, 0o600)
}

// WriteVolatileJSON is WriteJSON for what means nothing after the host has gone down, and costs no fsync: the file may be
// unreadable then. However a process ends meanwhile, the file is whole.
func WriteVolatileJSON(path string, v any) error {
	data, err := encode(path, v)
	if err != nil {
		return err
	}
	return replace(path, data, 0o600, func(*os.File) error { return nil })
}

func encode(path string, v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return append(data, '\n'), nil
}

// ReadJSON reads what WriteJSON wrote. A missing file is fs.ErrNotExist.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the entries of dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RemoveDir removes a directory tree so that nobody sees it half gone: it is renamed to a dot-name first, which every
// listing of banger skips and the next start of the daemon finishes. A missing directory is no error.
func RemoveDir(dir string) error {
	doomed := filepath.Join(filepath.Dir(dir), ".removed-"+filepath.Base(dir))
	if err := os.Rename(dir, doomed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(doomed); err != nil { // an earlier removal that was cut off stands in the way
			return err
		}
		if err := os.Rename(dir, doomed); err != nil {
			return err
		}
	}
	return os.RemoveAll(doomed)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
