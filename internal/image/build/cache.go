package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// cacheFormat is part of every key: a new one forgets what older versions have made.
const cacheFormat = "1"

// Cache remembers which layer each step of a build made. Layers themselves are in the blob store. It is a directory with
// a file for each key and is safe for several goroutines and processes: files are replaced by rename, and one that is
// damaged or gone is a step that is carried out again. Nothing is synced to the disk.
type Cache struct{ dir string }

// OpenCache returns the cache in dir, which is made when something is kept in it.
func OpenCache(dir string) *Cache { return &Cache{dir} }

// Entry is a step whose result is kept.
type Entry struct {
	Key   string       `json:"-"`
	Title string       `json:"title"` // "RUN make"
	Layer source.Layer `json:"layer"` // without a digest: the step changed nothing
	Used  time.Time    `json:"-"`     // when it was made or last used
}

var keyForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// get returns the entry of a key and marks it as used now.
func (c *Cache) get(key string) (Entry, bool) {
	path := filepath.Join(c.dir, key)
	e, err := readEntry(path)
	if err != nil {
		return Entry{}, false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // a cache without the time of its last use is still one
	e.Key, e.Used = key, now
	return e, true
}

func readEntry(path string) (Entry, error) {
	var e Entry
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	return e, err
}

// put keeps the result of a step.
func (c *Cache) put(e Entry) (err error) {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, e.Key))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// List returns all entries, those used longest ago first.
func (c *Cache) List() ([]Entry, error) {
	names, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, name := range names {
		if !keyForm.MatchString(name.Name()) {
			continue
		}
		info, err := name.Info()
		if err != nil {
			continue // removed meanwhile
		}
		e, _ := readEntry(filepath.Join(c.dir, name.Name())) // a damaged one is listed, so that it is removed some day
		e.Key, e.Used = name.Name(), info.ModTime()
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return a.Used.Compare(b.Used) })
	return out, nil
}

// Remove forgets a step. The layer stays in the blob store: it may be part of an image or of another step.
func (c *Cache) Remove(key string) error {
	if !keyForm.MatchString(key) {
		return fault.New(fault.Invalid, "%.100q is not a key of the build cache", key)
	}
	if err := os.Remove(filepath.Join(c.dir, key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep removes what a killed build has left: files that were never renamed, and are older than age.
func (c *Cache) Sweep(age time.Duration) error {
	names, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, name := range names {
		info, infoErr := name.Info()
		if infoErr != nil || !strings.HasPrefix(name.Name(), ".new-") || time.Since(info.ModTime()) < age {
			continue
		}
		if err := os.Remove(filepath.Join(c.dir, name.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}

// keyOf hashes a list of words. Each has its length before it, so that no two lists are the same text.
func keyOf(words ...string) string {
	h := sha256.New()
	for _, w := range words {
		fmt.Fprintf(h, "%d:%s,", len(w), w)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// listKey is keyOf for a list inside of a list.
func listKey(words []string) string { return keyOf(words...) }

// layersKey identifies what a stage consists of so far.
func layersKey(platform string, layers []source.Layer) string {
	words := []string{cacheFormat, platform}
	for _, l := range layers {
		words = append(words, l.Digest)
	}
	return keyOf(words...)
}
