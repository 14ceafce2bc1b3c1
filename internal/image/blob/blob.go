// Package blob is the content-addressed store of what images are made of: layers and configurations, each a file named by
// its digest, shared by all images and by the steps of builds.
//
// A blob comes in by one of two ways. A Writer takes what is made here and names it when it is complete. A Download brings
// what has a name already: it keeps what has arrived in a partial file, from which a later one goes on, and gives the
// blob its name only when the digest is right; whoever wants the same blob meanwhile, in this process or another, shares
// it, and can read along while it comes.
//
// The store is a cache: nothing is synced to the disk, so that a power cut can leave a blob that is not what its name
// says. Whoever reads one by way of a Download finds that out.
package blob

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// Directories of a store.
const (
	completeDir = "sha256"  // blobs, named by the digest's digits
	partialDir  = "partial" // the same names: what a download has brought so far; locked (flock) while somebody writes
	scratchDir  = "tmp"     // what Writers write; locked likewise
)

// Store is a directory of blobs. It is safe for several goroutines and processes.
type Store struct {
	dir string // fixed

	mu      sync.Mutex // guards flights and every flight's users
	flights map[string]*flight
}

// Open returns the store in dir, which is made when something is written to it.
func Open(dir string) *Store { return &Store{dir: dir, flights: map[string]*flight{}} }

// Dir is where the store is.
func (s *Store) Dir() string { return s.dir }

// Info describes a blob of the store.
type Info struct {
	Digest string
	Size   int64
	Used   time.Time // when it was made or last opened
}

var digestForm = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)

// CheckDigest says whether digest is one that the store can keep, which comes before every use of one as a file name.
func CheckDigest(digest string) error {
	if !digestForm.MatchString(digest) {
		return fault.New(fault.Invalid, "%.100q is not a sha256 digest", digest)
	}
	return nil
}

// path is where the blob is, or is to be, in one of the store's directories.
func (s *Store) path(sub, digest string) string {
	return filepath.Join(s.dir, sub, digest[len("sha256:"):])
}

// Stat returns the size of a blob, and whether the store has it.
func (s *Store) Stat(digest string) (size int64, ok bool) {
	if CheckDigest(digest) != nil {
		return 0, false
	}
	info, err := os.Lstat(s.path(completeDir, digest))
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	return info.Size(), true
}

// Partial returns how much of a blob an earlier download has left, from which the next one goes on.
func (s *Store) Partial(digest string) int64 {
	if CheckDigest(digest) != nil {
		return 0
	}
	info, err := os.Lstat(s.path(partialDir, digest))
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// Open opens a blob for reading. What it reads is not checked again: see Download.
func (s *Store) Open(digest string) (*os.File, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	path := s.path(completeDir, digest)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "blob %s is not in the store", digest)
	}
	if err != nil {
		return nil, explain(err, path, 0)
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // for prune's sake; a store that cannot be written to can be read
	return f, nil
}

// Remove removes a blob. One that is not there is no error; one that is being read stays readable.
func (s *Store) Remove(digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	path := s.path(completeDir, digest)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explain(err, path, 0)
	}
	return nil
}

// List returns every complete blob, in the order of their digests.
func (s *Store) List() ([]Info, error) {
	entries, err := s.readDir(completeDir)
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, e := range entries {
		digest := "sha256:" + e.Name()
		if CheckDigest(digest) != nil {
			continue // nothing of ours
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if info.Mode().IsRegular() {
			out = append(out, Info{Digest: digest, Size: info.Size(), Used: info.ModTime()})
		}
	}
	return out, nil
}

// Sweep removes what writers and downloads that are no more have left, as far as nobody has touched it for age, and
// returns how many bytes that were. What somebody is writing stays.
func (s *Store) Sweep(age time.Duration) (freed int64, err error) {
	var errs []error
	for _, sub := range []string{scratchDir, partialDir} {
		entries, err := s.readDir(sub)
		errs = append(errs, err)
		for _, e := range entries {
			n, err := sweep(filepath.Join(s.dir, sub, e.Name()), age)
			freed += n
			errs = append(errs, err)
		}
	}
	return freed, errors.Join(errs...)
}

// sweep removes one file if nobody holds its lock.
func sweep(path string, age time.Duration) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < age || !tryLock(f) {
		return 0, err
	}
	if !isAt(f, path) { // renamed to its final name, or another one by now
		return 0, nil
	}
	return info.Size(), os.Remove(path)
}

func (s *Store) readDir(sub string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, sub))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// tryLock takes the lock of an open file, which goes with the last descriptor of it, whoever dies.
func tryLock(f *os.File) bool {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// isAt reports whether f is still what path names.
func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// explain gives a failure at a file of the store its class; needed is what would be on the disk by then.
func explain(err error, path string, needed int64) error {
	switch {
	case ext4.NoSpace(err):
		return ext4.Exhausted(err, path, uint64(max(needed, 0)))
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.Denied, err, "blob store")
	}
	return fault.Wrap(fault.Internal, err, "blob store")
}
