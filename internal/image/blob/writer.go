package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
)

// Writer takes the bytes of a new blob. It is not safe for concurrent use.
type Writer struct {
	store *Store
	file  *os.File // locked; nil after Commit or Abort
	hash  hash.Hash
	size  int64
}

// Create begins a new blob. One of Commit and Abort has to follow.
func (s *Store) Create() (*Writer, error) {
	dir := filepath.Join(s.dir, scratchDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, explain(err, dir, 0)
	}
	for {
		f, err := os.CreateTemp(dir, "blob-*")
		if err != nil {
			return nil, explain(err, dir, 0)
		}
		if tryLock(f) && isAt(f, f.Name()) {
			return &Writer{store: s, file: f, hash: sha256.New()}, nil
		}
		f.Close() // a Sweep was faster
	}
}

// Write adds p to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	if w.file == nil {
		return 0, os.ErrClosed
	}
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		return n, explain(err, w.file.Name(), w.size+int64(len(p)-n))
	}
	return n, nil
}

// Commit gives the blob its name. After an error it is gone.
func (w *Writer) Commit() (digest string, size int64, err error) {
	if w.file == nil {
		return "", 0, os.ErrClosed
	}
	digest = "sha256:" + hex.EncodeToString(w.hash.Sum(nil))
	if err := w.store.publish(w.file.Name(), digest); err != nil {
		return "", 0, errors.Join(explain(err, w.file.Name(), w.size), w.Abort())
	}
	w.file.Close() // what was written is in the file system's hands already
	w.file = nil
	return digest, w.size, nil
}

// Abort gives the blob up. After Commit, and a second time, it does nothing.
func (w *Writer) Abort() error {
	if w.file == nil {
		return nil
	}
	err := os.Remove(w.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	w.file.Close()
	w.file = nil
	return err
}

// publish renames a complete file to the name of its digest. One that is there already has the same content.
func (s *Store) publish(path, digest string) error {
	final := s.path(completeDir, digest)
	if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
		return err
	}
	return os.Rename(path, final)
}
