// Package snapshot keeps the snapshots of one VM: directories with its disk, and of a VM that ran its memory and devices,
// as they were at one instant.
//
// A snapshot is complete in itself: it is a directory that is named after it with the files of a saved machine (package
// vmdir) and snapshot.json, which is written last, while the directory still has a dot-name. The directories are all that
// is known of snapshots; no database has to be right for them. What is in a snapshot is never changed, but for the name of
// its parent: VMs that were restored from it have its memory mapped, so its files are removed and never cut short.
//
// One file beside the directories says which snapshot the VM's present state goes back to.
package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/diskcopy"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/vm"
)

// layout is the generation of a snapshot's directory.
const layout = 1

// Names of files.
const (
	manifestFile = "snapshot.json"
	baseFile     = "base.json" // beside the directories
	newPrefix    = ".new-"     // of a directory that is being filled
	autoPrefix   = "auto-"     // of the generated names of automatic snapshots
	namePrefix   = "snap-"     // and of others
	oldPrefix    = ".removed-" // atomicfile.RemoveDir
	mostListed   = 64 * 1024   // bytes of a manifest; a real one has two thousand
)

// Kinds of snapshots.
const (
	Memory = "memory" // memory, devices and disk
	Disk   = "disk"   // the disk alone
)

// Manifest says what a snapshot is.
type Manifest struct {
	Layout      int       `json:"layout"`
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Parent      string    `json:"parent,omitempty"` // the snapshot that the VM's state went back to
	Kind        string    `json:"kind"`
	Auto        bool      `json:"auto,omitempty"` // taken by itself; the oldest go when there are too many
	Created     time.Time `json:"created"`
	VM          vm.ID     `json:"vm"`
	Spec        vm.Spec   `json:"spec"`                  // of the VM at that time
	ResetToken  string    `json:"reset_token,omitempty"` // vmdir.Record: its next start was to reset the root
	StillUS     int64     `json:"still_us,omitempty"`    // how long the guest stood still for it
	DiskShared  bool      `json:"disk_shared,omitempty"` // the disk was copied by sharing its blocks
	Files       []File    `json:"files"`
	Sum         string    `json:"sum"` // sha256 of all the above
}

// Snapshot is a snapshot as it is found.
type Snapshot struct {
	Manifest
	Dir     string
	Used    uint64 // bytes on the host
	Shared  uint64 // of these, bytes that other files have as well
	Back    int    // how many automatic snapshots one has to go back for it: 1 is the newest; 0 for others
	Problem string // why it cannot be used; only what costs nothing to find out
}

// Set is the directory of all snapshots of one VM. Who changes something in it holds the VM's lock.
type Set struct {
	dir string
	vm  string // name of the VM, for hints
}

// Open returns the snapshots in dir, which need not exist. vm is the VM's name.
func Open(dir string, vm vm.Name) Set { return Set{dir, string(vm)} }

func (s Set) path(name string) string { return filepath.Join(s.dir, name) }

// entries lists the names of what is in the directory.
func (s Set) entries() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Internal, err, "snapshots of vm %s", s.vm)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// List returns every snapshot, the oldest first. Those that cannot be used are among them, with their Problem.
func (s Set) List() ([]Snapshot, error) {
	names, err := s.entries()
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		snap := s.load(name)
		if _, err := os.Stat(snap.Dir); err == nil { // else it was removed meanwhile
			all = append(all, snap)
		}
	}
	slices.SortStableFunc(all, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	back := 0
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Auto {
			back++
			all[i].Back = back
		}
	}
	return all, nil
}

// load reads one snapshot, as far as that can be done.
func (s Set) load(name string) Snapshot {
	snap := Snapshot{Dir: s.path(name)}
	m, err := readManifest(snap.Dir)
	if err != nil {
		snap.Name, snap.Problem = name, err.Error()
		if info, err := os.Stat(snap.Dir); err == nil {
			snap.Created = info.ModTime()
		}
	} else {
		snap.Manifest = m
		if err := checkSizes(snap.Dir, m.Files); err != nil {
			snap.Problem = err.Error()
		}
	}
	snap.Used, snap.Shared = usage(snap.Dir, m.DiskShared)
	return snap
}

// readManifest reads and checks the manifest in dir.
func readManifest(dir string) (m Manifest, err error) {
	path := filepath.Join(dir, manifestFile)
	info, err := os.Stat(path)
	if err == nil && info.Size() > mostListed {
		return m, fault.New(fault.Conflict, "its file %s is damaged", manifestFile)
	}
	if err == nil {
		err = atomicfile.ReadJSON(path, &m)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, fault.New(fault.Conflict, "its file %s is gone", manifestFile)
	case err != nil:
		return Manifest{}, fault.New(fault.Conflict, "its file %s is damaged", manifestFile)
	case m.Layout != layout:
		return Manifest{}, fault.New(fault.Conflict, "it was taken by another banger (layout %d, this one has %d)", m.Layout, layout)
	case m.Name != filepath.Base(dir) || m.Sum != m.sum() || m.Kind != Memory && m.Kind != Disk:
		return Manifest{}, fault.New(fault.Conflict, "its file %s is damaged", manifestFile)
	}
	return m, nil
}

// sum is the checksum of the other fields.
func (m *Manifest) sum() string {
	c := *m
	c.Sum = ""
	text, err := json.Marshal(c)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// write seals a manifest and writes it.
func (m *Manifest) write(dir string) error {
	m.Layout = layout
	m.Sum = m.sum()
	return atomicfile.WriteJSON(filepath.Join(dir, manifestFile), m)
}

// usage is what the files of a snapshot take on the host, and how much of that others have as well: a memory that a
// suspended or restored VM has has several names, and where copies share their blocks the file system is asked.
func usage(dir string, sharesBlocks bool) (used, shared uint64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		n, err := ext4.Usage(path)
		if err != nil {
			continue
		}
		used += n
		if links(e) > 1 {
			shared += n
		} else if sharesBlocks {
			if blocks, err := diskcopy.Shared(path); err == nil {
				shared += min(n, blocks)
			}
		}
	}
	return used, shared
}

// Get returns the snapshot of that name. One that is there and cannot be used is returned, too: see Problem.
func (s Set) Get(name string) (Snapshot, error) {
	all, err := s.List()
	if err != nil {
		return Snapshot{}, err
	}
	if i := slices.IndexFunc(all, func(snap Snapshot) bool { return snap.Name == name }); i >= 0 {
		return all[i], nil
	}
	var names []string
	for _, snap := range all {
		names = append(names, snap.Name)
	}
	f := fault.New(fault.NotFound, "vm %s has no snapshot %q", s.vm, name).WithHint("banger snapshot list %s", s.vm)
	if near := nearest.Of(name, names); near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return Snapshot{}, f
}

// Automatic returns the automatic snapshot that is so many back: 1 is the newest.
func (s Set) Automatic(back int) (Snapshot, error) {
	all, err := s.List()
	if err != nil {
		return Snapshot{}, err
	}
	count := 0
	for _, snap := range all {
		if snap.Back == back && snap.Auto {
			return snap, nil
		}
		count = max(count, snap.Back)
	}
	switch {
	case back < 1:
		return Snapshot{}, fault.New(fault.Invalid, "%d is no checkpoint: 1 is the newest", back).WithHint("banger vm rewind --to 1 %s", s.vm)
	case count == 0:
		return Snapshot{}, fault.New(fault.NotFound, "vm %s has no checkpoints", s.vm).
			WithHint("banger vm exec --checkpoint %s -- true   # takes one before the command", s.vm)
	}
	return Snapshot{}, fault.New(fault.NotFound, "vm %s has %d checkpoints, none is %d back", s.vm, count, back).
		WithHint("banger snapshot list %s", s.vm)
}

// FreeName returns a name that no snapshot has.
func (s Set) FreeName(auto bool) (string, error) {
	names, err := s.entries()
	if err != nil {
		return "", err
	}
	prefix := namePrefix
	if auto {
		prefix = autoPrefix
	}
	last := 0
	for _, name := range names {
		if digits, ok := strings.CutPrefix(name, prefix); ok {
			if n, err := strconv.Atoi(digits); err == nil && n < 1<<30 {
				last = max(last, n)
			}
		}
	}
	return fmt.Sprint(prefix, last+1), nil
}

// Base returns the name of the snapshot that the VM's present state goes back to, "" for none.
func (s Set) Base() string {
	var b struct {
		Snapshot string `json:"snapshot"`
	}
	if atomicfile.ReadJSON(s.path(baseFile), &b) != nil { // nothing but the order of a list depends on it
		return ""
	}
	if _, err := os.Stat(s.path(b.Snapshot)); err != nil || vm.BrokenRule(b.Snapshot) != "" {
		return ""
	}
	return b.Snapshot
}

// SetBase notes which snapshot the VM's present state goes back to.
func (s Set) SetBase(name string) error {
	return atomicfile.WriteJSON(s.path(baseFile), map[string]string{"snapshot": name})
}

// Begin makes the directory for a new snapshot, which is not listed before Publish. A name that is taken is a fault of
// class Exists. The directory is another one each time: a supervisor may still write to the last one, for somebody who has
// given up.
func (s Set) Begin(name string) (dir string, err error) {
	if _, err := os.Lstat(s.path(name)); err == nil {
		return "", fault.New(fault.Exists, "vm %s has a snapshot %s already", s.vm, name).WithHint("banger snapshot rm %s %s", s.vm, name)
	}
	if err := os.Mkdir(s.dir, 0o700); err == nil {
		err = atomicfile.SyncDir(filepath.Dir(s.dir)) // or the first snapshot could be gone after a power cut
		if err != nil {
			return "", err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return os.MkdirTemp(s.dir, newPrefix+name+".")
}

// Publish makes a snapshot of the directory that Begin has made and that was filled; Files are those of the manifest.
func (s Set) Publish(dir string, m Manifest) (Snapshot, error) {
	m.Parent = s.Base()
	if err := m.write(dir); err != nil {
		return Snapshot{}, err
	}
	if err := os.Rename(dir, s.path(m.Name)); err != nil {
		return Snapshot{}, err
	}
	if err := errors.Join(atomicfile.SyncDir(s.dir), s.SetBase(m.Name)); err != nil {
		return Snapshot{}, errors.Join(err, atomicfile.RemoveDir(s.path(m.Name)))
	}
	return s.load(m.Name), nil
}

// Remove removes a snapshot. What went back to it goes back to its parent from now on. VMs that were restored from it go
// on: they have its memory mapped, and a file that is mapped lives until it is not.
func (s Set) Remove(name string) error {
	gone := s.load(name)
	all, err := s.List()
	if err != nil {
		return err
	}
	for _, child := range all {
		if child.Parent != name {
			continue
		}
		m := child.Manifest
		m.Parent = gone.Parent
		if err := m.write(child.Dir); err != nil {
			return err
		}
	}
	if s.Base() == name {
		if err := s.SetBase(gone.Parent); err != nil {
			return err
		}
	}
	return atomicfile.RemoveDir(s.path(name))
}

// Leftovers lists the directories that a daemon which was killed has left half made or half removed.
func (s Set) Leftovers() []string {
	names, _ := s.entries()
	var left []string
	for _, name := range names {
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, oldPrefix) {
			left = append(left, s.path(name))
		}
	}
	return left
}

// Clean removes them.
func (s Set) Clean() error {
	var errs []error
	for _, dir := range s.Leftovers() {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
