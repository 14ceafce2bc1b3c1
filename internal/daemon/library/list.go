package library

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/store"
)

// Entry is one of what is here, with what a list says of it.
type Entry struct {
	Artifact
	Names  []string // all that stand for it
	UsedBy []string // names of VMs
	Busy   bool     // a VM uses it, if only one of the daemon's own
	Used   uint64   // bytes on the host
	Shared uint64   // the part of Used that others have, too
}

// List returns everything that is here, each once, by name. What has no name (any more) comes last.
func (l *Library) List(ctx context.Context) ([]Entry, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return nil, err
	}
	users, err := l.users(ctx)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for digest, n := range l.byName(rows, users) {
		all = append(all, l.entry(digest, n, users[digest]))
	}
	slices.SortFunc(all, func(a, b Entry) int {
		if (a.Name == "") != (b.Name == "") {
			return len(b.Name) - len(a.Name)
		}
		return strings.Compare(a.Ref(), b.Ref())
	})
	return all, nil
}

// byName groups rows by digest. What VMs use counts although it has no row.
func (l *Library) byName(rows []store.Artifact, users map[string][]store.VM) map[string]names {
	all := map[string]names{}
	for _, a := range rows {
		if all[a.Digest] == nil {
			all[a.Digest] = names{}
		}
		all[a.Digest][a.Name] = a.CreatedAt
	}
	for digest := range users {
		if all[digest] == nil && exists(l.dir(digest)) {
			all[digest] = nil
		}
	}
	return all
}

func (l *Library) entry(digest string, n names, users []store.VM) Entry {
	real := n.real(digest)
	found := Found{Digest: digest}
	if len(real) > 0 {
		found.Name = real[0]
	}
	e := Entry{Artifact: l.load(found), Names: real, UsedBy: visible(users), Busy: len(users) > 0}
	if e.Created.IsZero() && len(real) > 0 { // it cannot be read
		e.Created = n[real[0]]
	}
	e.Used, e.Shared = usage(l.dir(digest))
	return e
}

// Show returns one entry, under the name that it was asked for by.
func (l *Library) Show(ctx context.Context, ref string) (Entry, error) {
	found, err := l.Lookup(ctx, ref)
	if err != nil {
		return Entry{}, err
	}
	n, err := l.namesOf(ctx, found.Digest)
	if err != nil {
		return Entry{}, err
	}
	users, err := l.users(ctx)
	if err != nil {
		return Entry{}, err
	}
	e := l.entry(found.Digest, n, users[found.Digest])
	if found.Name != "" {
		e.Name = found.Name
	}
	return e, nil
}

// Present is the set of names that are here.
func (l *Library) Present(ctx context.Context) (map[string]bool, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(rows))
	for _, r := range rows {
		set[r.Name] = true
	}
	return set, nil
}

// inode tells files on the host apart.
type inode struct{ dev, ino uint64 }

// files calls visit for what is at path and below it.
func files(path string, visit func(st *unix.Stat_t)) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	visit(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	for _, file := range children(path) {
		files(file, visit)
	}
}

func bytes(st *unix.Stat_t) uint64 { return uint64(st.Blocks) * 512 }

// linked reports whether a file has other names.
func linked(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 }

// usage is how many bytes a directory takes on the host, and how many of them other directories have, too.
func usage(dir string) (used, shared uint64) {
	files(dir, func(st *unix.Stat_t) {
		used += bytes(st)
		if linked(st) {
			shared += bytes(st)
		}
	})
	return used, shared
}

// reclaimable is how many bytes become free with each of the directories if they go in that order: what they have among
// themselves goes with the last one.
func reclaimable(dirs []string) map[string]uint64 {
	seen := map[inode]uint64{}
	out := map[string]uint64{}
	for _, dir := range dirs {
		files(dir, func(st *unix.Stat_t) {
			if linked(st) {
				id := inode{st.Dev, st.Ino}
				if seen[id]++; seen[id] < uint64(st.Nlink) {
					return
				}
			}
			out[dir] += bytes(st)
		})
	}
	return out
}

// DiskUse is how many bytes the directory takes on the host. Files that have several names in it count once.
func DiskUse(dir string) (used uint64) {
	seen := map[inode]bool{}
	files(dir, func(st *unix.Stat_t) {
		if id := (inode{st.Dev, st.Ino}); linked(st) {
			if seen[id] {
				return
			}
			seen[id] = true
		}
		used += bytes(st)
	})
	return used
}

// Usage is how many bytes a file or directory takes on the host; 0 for what is not there.
func Usage(path string) uint64 {
	used, _ := usage(path)
	return used
}
