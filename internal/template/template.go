// Package template keeps machines that were booted once and saved while their agent waited: every VM of the same shape
// is started from one in a fraction of the time of a boot.
//
// Nothing that a guest does before it is told which VM it is depends on the VM's name, image, disk or network, so one
// template serves all of them (see ARCHITECTURE.md, "One start"). What it does depend on, the Shape of the machine, is the
// key: another VMM, kernel, agent, processor, number of CPUs or size of memory makes another template.
//
// A prepared template goes further: it has a certain image and a disk, and its guest is configured but for what makes one
// VM differ from another. See Preparation.
//
// A template is a directory with three files: the memory, which all VMs that were started from it have mapped privately,
// the state of the devices, and meta.json, written last, which says what they must be. A template is never changed. It
// is in the cache: whatever is wrong with one, it is removed and made anew.
package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// Names of the files in a template's directory.
const (
	memoryFile = "memory"
	stateFile  = "state"
	diskFile   = "disk.ext4" // of a prepared one only
	metaFile   = "meta.json"
)

// layout is the generation of such a directory.
const layout = 1

// maxFailures is how many failures in a row switch templates off for a shape, until somebody removes what is noted of
// them (Forget).
const maxFailures = 3

// Meta says what a template is.
type Meta struct {
	Layout      int               `json:"layout"`
	Key         string            `json:"key"`
	Shape       string            `json:"shape"` // hypervisor.Shaper
	Driver      string            `json:"driver"`
	CPUs        int               `json:"cpus"`
	Memory      uint64            `json:"memory_bytes"`
	Kernel      string            `json:"kernel"`  // its release
	Purpose     string            `json:"purpose"` // what VMs ask for: see Request.purpose
	Created     time.Time         `json:"created"`
	StateSum    string            `json:"state_sha256"`
	Disks       map[string]uint64 `json:"disks"`           // see hypervisor.Saved
	MemoryMTime int64             `json:"memory_mtime_ns"` // nobody writes to it after the template was made
	// Of a prepared one: see Preparation.
	Image     string `json:"image,omitempty"` // for people
	DiskSize  int64  `json:"disk_bytes,omitempty"`
	DiskMTime int64  `json:"disk_mtime_ns,omitempty"`

	Sum string `json:"sum"` // sha256 of all the above
}

// Template is a template that can be used.
type Template struct {
	Meta
	Saved hypervisor.Saved
	// Disk is what the own disk of a VM that is started from it has to be a copy of; empty unless it is prepared.
	Disk string
	Used uint64    // bytes on the host
	Last time.Time // when a VM was started from it
}

// Key is the name of the template of a shape.
func Key(shape string) string {
	sum := sha256.Sum256([]byte(shape))
	return hex.EncodeToString(sum[:12])
}

// Store is the directory of templates. It is safe for several goroutines of one process; the daemon's lock sees to it that
// there is only one process.
type Store struct {
	dir string

	mu sync.Mutex // held while a directory gets its name or goes, and for the notes about failures
}

// Open returns the store in dir, which need not exist.
func Open(dir string) *Store { return &Store{dir: dir} }

func (s *Store) path(key string) string { return filepath.Join(s.dir, key) }

// Get returns the template of that key. A fault of class NotFound says that there is none; any other that there is one
// which cannot be used: Drop it.
func (s *Store) Get(key string) (Template, error) {
	t, err := s.load(key)
	if err != nil {
		return Template{}, err
	}
	state, err := os.ReadFile(t.Saved.State)
	if err != nil {
		return Template{}, fault.Wrap(fault.Conflict, err, "template %s", key)
	}
	if sum := sha256.Sum256(state); hex.EncodeToString(sum[:]) != t.StateSum {
		return Template{}, fault.New(fault.Conflict, "template %s: its file %s was changed", key, stateFile)
	}
	info, err := os.Stat(t.Saved.Memory)
	if err != nil {
		return Template{}, fault.Wrap(fault.Conflict, err, "template %s", key)
	}
	if info.ModTime().UnixNano() != t.MemoryMTime || uint64(info.Size()) != t.Memory {
		return Template{}, fault.New(fault.Conflict, "template %s: its file %s was changed", key, memoryFile)
	}
	if t.Disk != "" {
		info, err := os.Stat(t.Disk)
		if err != nil {
			return Template{}, fault.Wrap(fault.Conflict, err, "template %s", key)
		}
		if info.ModTime().UnixNano() != t.DiskMTime || info.Size() != t.DiskSize {
			return Template{}, fault.New(fault.Conflict, "template %s: its file %s was changed", key, diskFile)
		}
	}
	return t, nil
}

// load reads the metadata of a template.
func (s *Store) load(key string) (Template, error) {
	dir := s.path(key)
	t := Template{Saved: hypervisor.Saved{Memory: filepath.Join(dir, memoryFile), State: filepath.Join(dir, stateFile)}}
	err := atomicfile.ReadJSON(filepath.Join(dir, metaFile), &t.Meta)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Template{}, fault.New(fault.NotFound, "no template has the key %q", key).WithHint("banger template list")
	case err != nil:
		return Template{}, fault.Wrap(fault.Conflict, err, "template %s", key)
	case t.Layout != layout || t.Key != key || Key(t.Shape) != key || t.Sum != t.sum():
		return Template{}, fault.New(fault.Conflict, "template %s: its file %s is damaged", key, metaFile)
	}
	t.Saved.Disks = t.Disks
	files := []string{t.Saved.Memory, t.Saved.State}
	if t.DiskSize > 0 {
		t.Disk = filepath.Join(dir, diskFile)
		files = append(files, t.Disk)
	}
	for _, file := range files {
		used, err := ext4.Usage(file)
		if err != nil {
			return Template{}, fault.Wrap(fault.Conflict, err, "template %s", key)
		}
		t.Used += used
	}
	if info, err := os.Stat(filepath.Join(dir, metaFile)); err == nil {
		t.Last = info.ModTime()
	}
	return t, nil
}

// sum is the checksum of the other fields.
func (m *Meta) sum() string {
	c := *m
	c.Sum = ""
	text, err := json.Marshal(c)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Touch notes that a VM is started from a template.
func (s *Store) Touch(key string) {
	now := time.Now()
	_ = os.Chtimes(filepath.Join(s.path(key), metaFile), now, now) // only the order of eviction depends on it
}

// List returns every template, the one that was used last first. Of those that are damaged it has the key only.
func (s *Store) List() ([]Template, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Internal, err, "templates")
	}
	var all []Template
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		t, err := s.load(e.Name())
		if err != nil {
			t = Template{Meta: Meta{Key: e.Name()}}
		}
		all = append(all, t)
	}
	slices.SortStableFunc(all, func(a, b Template) int { return b.Last.Compare(a.Last) })
	return all, nil
}

// Drop removes a template. VMs that were started from it go on: they have its memory mapped, and a file that is mapped
// lives until it is not.
func (s *Store) Drop(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fault.Context(atomicfile.RemoveDir(s.path(key)), "template %s", key)
}

// Evict removes the templates that have a successor, and those that were used longest ago until the others take at most
// limit bytes. Those that inUse names are kept: their pages are in memory, and a second copy of them would be made. It
// returns what it removed.
func (s *Store) Evict(limit uint64, inUse func(key string) bool) ([]Template, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	latest := make(map[string]time.Time)
	for _, t := range all {
		if t.Created.After(latest[t.Purpose]) {
			latest[t.Purpose] = t.Created
		}
	}
	var total uint64
	var gone []Template
	for _, t := range all {
		total += t.Used
		old := t.Purpose != "" && t.Created.Before(latest[t.Purpose])
		if total <= limit && t.Layout == layout && !old || inUse(t.Key) {
			continue
		}
		if err := s.Drop(t.Key); err != nil {
			return gone, err
		}
		total -= t.Used
		gone = append(gone, t)
	}
	return gone, nil
}

// Clean removes what a daemon that was killed has left unfinished.
func (s *Store) Clean(context.Context) error {
	left, err := filepath.Glob(filepath.Join(s.dir, ".*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
