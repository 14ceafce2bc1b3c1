package template

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// Failure says what went wrong with the template of a shape, in a row.
type Failure struct {
	Key   string    `json:"key"`
	Count int       `json:"count"`
	Last  string    `json:"last"` // in words
	At    time.Time `json:"at"`
}

// failureSuffix ends the names of the files with failures, which are beside the templates.
const failureSuffix = ".failed"

func (s *Store) failurePath(key string) string { return filepath.Join(s.dir, key+failureSuffix) }

// Fail notes that a template could not be made or that a VM could not be started from it, and removes the template.
func (s *Store) Fail(key string, why error) error {
	s.mu.Lock()
	f := s.failure(key)
	f.Key, f.Last, f.At = key, why.Error(), time.Now().UTC().Truncate(time.Second)
	f.Count++
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = atomicfile.WriteJSON(s.failurePath(key), f)
	}
	s.mu.Unlock()
	return errors.Join(err, s.Drop(key))
}

func (s *Store) failure(key string) (f Failure) {
	if atomicfile.ReadJSON(s.failurePath(key), &f) != nil { // a damaged one counts as none
		return Failure{}
	}
	return f
}

// Forget forgets the failures of a shape: a VM was started from its template, or somebody wants it to be tried again.
func (s *Store) Forget(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.failurePath(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Internal, err, "template %s", key)
	}
	return nil
}

// Off returns a fault of class Conflict when templates are switched off for a shape, because they failed too often.
func (s *Store) Off(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.failure(key)
	if f.Count < maxFailures {
		return nil
	}
	return fault.New(fault.Conflict, "template %s failed %d times in a row, the last time: %s", key, f.Count, f.Last).
		WithHint("banger template rm %s", key)
}

// Failures returns all of them.
func (s *Store) Failures() []Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, _ := filepath.Glob(filepath.Join(s.dir, "*"+failureSuffix)) // the pattern is well-formed
	var all []Failure
	for _, file := range files {
		if f := s.failure(strings.TrimSuffix(filepath.Base(file), failureSuffix)); f.Count > 0 {
			all = append(all, f)
		}
	}
	return all
}
