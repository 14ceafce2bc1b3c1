package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/fault"
)

// templateVersion is part of a template's name: raise it when Format changes what it makes.
const templateVersion = 1

// CopyFormatted makes an empty formatted disk of size bytes at dst, which must not exist, by copying one that is
// formatted once for each size and kept in cacheDir. Callers of any process that need the same size at once share
// one formatting. On failure there is no dst.
//
// Copies have the same UUID and directory hash seed. Both matter only inside one guest, and no guest sees two.
func CopyFormatted(ctx context.Context, cacheDir string, size uint64, dst string) error {
	size, err := roundUp(size)
	if err != nil {
		return err
	}
	template := filepath.Join(cacheDir, fmt.Sprintf("ext4-v%d-%d.img", templateVersion, size))
	src, err := openTemplate(template, size)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeTemplate(ctx, template, size); err == nil {
			src, err = openTemplate(template, size)
		}
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := diskcopy.From(ctx, src, dst); err != nil {
		needed, _ := Usage(src.Name()) // only for the message
		return explain(err, dst, needed)
	}
	return nil
}

// openTemplate opens a template; one of the wrong size is as good as none.
func openTemplate(path string, size uint64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && uint64(info.Size()) != size {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeTemplate formats a template and publishes it by rename, under a lock that other processes respect. A crash
// leaves at most one temporary file for each size, which the next call removes.
func makeTemplate(ctx context.Context, path string, size uint64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return explain(err, path, blockSize)
	}
	unlock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return fault.Context(err, "format a disk of %d bytes", size)
	}
	defer unlock()
	if f, err := openTemplate(path, size); err == nil {
		return f.Close() // somebody else has made it meanwhile
	}
	temporary := path + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := Format(ctx, temporary, size); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// lockFile waits for the lock on the file at path, which is made and stays.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, explain(err, path, blockSize)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond): // formatting takes about 20
		}
	}
}
