package layer

import (
	"archive/tar"
	"slices"
	"strings"
	"time"
)

// tree is the union of the layers that were applied to it so far. It is for one goroutine.
type tree struct {
	root  *Entry
	layer int32 // the one that is being applied, from 1
	// remember is told how many bytes each new name takes, and may refuse.
	remember func(int64) error

	// disturbed is set when something was removed that is in the stream already.
	disturbed bool

	// The directory that the last entry was in: most are in the same one. It is forgotten when a directory or a symbolic
	// link is removed, since nothing else changes where a path leads that has led to a directory.
	lastDir   string
	lastPlace place
}

func newTree(remember func(int64) error) *tree {
	return &tree{remember: remember, root: &Entry{
		Type: tar.TypeDir, Mode: 0o755, Links: 1, ModTime: time.Unix(0, 0).UTC(), children: map[string]name{},
	}}
}

// add enters a name, which is not there yet.
func (t *tree) add(parent *Entry, base string, e *Entry) error {
	parent.children[base] = name{Entry: e, layer: t.layer}
	return t.remember(nameSize + int64(len(base)))
}

// step is one directory on the way to a place. Its entry is nil when there is none, and may be something else than a
// directory.
type step struct {
	name string
	*Entry
}

// place is where a path leads, all symbolic links followed: the steps from the root, which is not one of them.
type place struct {
	steps []step
	path  string // the same as text, "usr/lib"
}

// dir returns the directory at the place; nil if there is none.
func (t *tree) dir(p place) *Entry {
	if e := t.entry(p); e != nil && e.IsDir() {
		return e
	}
	return nil
}

// join is the path of a name in the place.
func (p place) join(base string) string {
	if p.path == "" {
		return base
	}
	return p.path + "/" + base
}

// unsure reports whether the place may be elsewhere when there are lower layers: a directory on the way, which this one
// does not mention, is likely to be a symbolic link there.
func (p place) unsure() bool {
	return slices.ContainsFunc(p.steps, func(s step) bool {
		return s.implied && (strings.HasPrefix(s.name, "lib") || slices.Contains(oftenLinks, s.name))
	})
}

// oftenLinks are directories that distributions have in one place and a symbolic link in another, besides /lib*.
var oftenLinks = []string{"bin", "sbin", "run", "lock", "tmp", "man", "mail"}

// find is walk for directories of entries.
func (t *tree) find(dir string) (place, error) {
	if dir == t.lastDir && t.lastPlace.path != "" {
		return t.lastPlace, nil
	}
	p, err := t.walk(dir)
	if err == nil && p.path != "" && t.dir(p) != nil {
		t.lastDir, t.lastPlace = dir, p
	}
	return p, err
}

// walk follows a clean path with all its symbolic links, also at its end. A link that is absolute begins at the root and
// ".." at the root stays there, so that nothing leads out. What is not there has no links: its name is taken as it is.
func (t *tree) walk(dir string) (place, error) {
	var steps []step
	links := 0
	for rest := dir; rest != ""; {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			steps = steps[:max(len(steps)-1, 0)]
			continue
		}
		child := t.child(steps, part)
		if child == nil || child.Type != tar.TypeSymlink {
			steps = append(steps, step{part, child})
			continue
		}
		if links++; links > maxLinks {
			return place{}, invalid("too many symbolic links on the way to %q", short(dir))
		}
		if child.Linkname[0] == '/' {
			steps = steps[:0]
		}
		rest = child.Linkname + "/" + rest
	}
	p := place{steps: steps, path: pathOf(steps)}
	if len(p.path) > maxPath {
		return place{}, invalid("path of %d bytes is longer than %d", len(p.path), maxPath)
	}
	return p, nil
}

// entry returns what is at the place; nil if there is nothing.
func (t *tree) entry(p place) *Entry {
	if len(p.steps) == 0 {
		return t.root
	}
	return p.steps[len(p.steps)-1].Entry
}

// child returns what is called so in the last of the steps.
func (t *tree) child(steps []step, base string) *Entry {
	parent := t.dir(place{steps: steps})
	if parent == nil {
		return nil
	}
	return parent.children[base].Entry // nil if there is none
}

func pathOf(steps []step) string {
	var b strings.Builder
	for i, s := range steps {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(s.name)
	}
	return b.String()
}

// makeDirs makes the directories of p that are not there, as root's and with the time of what needs them, and returns
// the last. The directories on the way are marked as touched by the current layer.
func (t *tree) makeDirs(p place, modTime time.Time) (*Entry, error) {
	parent := t.root
	parent.touched = t.layer
	for i := range p.steps {
		s := &p.steps[i]
		if s.Entry == nil {
			s.Entry = &Entry{
				Type: tar.TypeDir, Mode: 0o755, Links: 1, ModTime: modTime, children: map[string]name{}, implied: true,
			}
			if err := t.add(parent, strings.Clone(s.name), s.Entry); err != nil {
				return nil, err
			}
		}
		if !s.IsDir() {
			return nil, invalid("%q is not a directory", short(pathOf(p.steps[:i+1])))
		}
		s.touched = t.layer
		parent = s.Entry
	}
	return parent, nil
}

// remove takes a name out of a directory, with all that is below it.
func (t *tree) remove(parent *Entry, base string) {
	child, ok := parent.children[base]
	if !ok {
		return
	}
	delete(parent.children, base)
	t.drop(child)
}

// drop counts what goes with a name that was removed.
func (t *tree) drop(n name) {
	t.disturbed = t.disturbed || n.sent
	if n.Type == tar.TypeDir || n.Type == tar.TypeSymlink {
		t.lastDir, t.lastPlace = "", place{}
	}
	if !n.IsDir() {
		n.Links--
	}
	for _, child := range n.children {
		t.drop(child)
	}
}

// isTouched reports whether the current layer has made the name, or something below it.
func (t *tree) isTouched(n name) bool {
	if n.IsDir() {
		return n.touched == t.layer
	}
	return n.layer == t.layer
}

// whiteOut removes what lower layers have at a name.
func (t *tree) whiteOut(parent *Entry, base string) {
	child, ok := parent.children[base]
	switch {
	case !ok:
	case !t.isTouched(child):
		t.remove(parent, base)
	case child.IsDir():
		t.sweep(child.Entry)
	}
}

// sweep removes what lower layers have below a directory.
func (t *tree) sweep(dir *Entry) {
	if dir.swept == t.layer { // and nothing of them can have come since
		return
	}
	dir.swept = t.layer
	for base := range dir.children {
		t.whiteOut(dir, base)
	}
}
