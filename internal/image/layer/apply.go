package layer

import (
	"archive/tar"
	"strings"

	"banger/internal/fault"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// record is an entry of a layer: a file, a hard link, or that something of lower layers is gone.
type record struct {
	path   string // clean; of what is gone, without the prefix
	kind   recordKind
	target string // clean, of a hard link
	entry  *Entry // of a file
	sent   bool   // it is in the stream already, at that very path
}

type recordKind byte

const (
	isFile recordKind = iota
	isLink
	isWhiteout // of the path and all below it
	isOpaque   // of all below the path, which is a directory
)

// newRecord returns what hdr says.
func newRecord(hdr *tar.Header) (record, error) {
	clean, err := cleanName(hdr.Name)
	if err != nil {
		return record{}, err
	}
	dir, base := splitName(clean)
	if base == opaqueMarker {
		return record{path: dir, kind: isOpaque}, nil
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if hidden == "" || hidden == "." || hidden == ".." {
			return record{}, invalid("whiteout of %q", hidden)
		}
		return record{path: place{path: dir}.join(hidden), kind: isWhiteout}, nil
	}
	if clean == "" && hdr.Typeflag != tar.TypeDir {
		return record{}, invalid("the root must be a directory")
	}
	if hdr.Typeflag == tar.TypeLink {
		target, err := cleanName(hdr.Linkname)
		return record{path: clean, kind: isLink, target: target}, err
	}
	entry, err := newEntry(hdr)
	return record{path: clean, entry: entry}, err
}

// memory is about what the record takes here.
func (r record) memory() int64 {
	n := int64(len(r.path)+len(r.target)) + recordSize
	if r.entry != nil {
		n += r.entry.memory()
	}
	return n
}

// spot is where a record was applied.
type spot struct {
	parent *Entry // nil: nowhere
	base   string
	path   string // from the root, without symbolic links
	unsure bool   // the path may be another when there are lower layers
	target string // of a hard link: likewise, the name it was made from
	linked bool   // that name is in the stream
}

// name returns what is there now.
func (s spot) name() name { return s.parent.children[s.base] }

// apply changes the tree as the record says. The contents of a file, if any, are the caller's business. It returns where
// there is a new name; a directory that was there already is not one.
func (t *tree) apply(r record) (spot, error) {
	switch {
	case r.kind == isOpaque:
		p, err := t.find(r.path)
		if dir := t.dir(p); err == nil && dir != nil {
			t.sweep(dir)
		}
		return spot{}, err
	case r.path == "":
		t.root.describe(r.entry)
		t.root.touched = t.layer
		return spot{}, nil
	}
	dir, base := splitName(r.path)
	p, err := t.find(dir)
	if err != nil {
		return spot{}, err
	}
	if r.kind == isWhiteout {
		if parent := t.dir(p); parent != nil {
			t.whiteOut(parent, base)
		}
		return spot{}, nil
	}
	if len(p.path)+1+len(base) > maxPath {
		return spot{}, invalid("path of %d bytes is longer than %d", len(p.path)+1+len(base), maxPath)
	}
	return t.put(r, p, base)
}

// put applies a file or a hard link.
func (t *tree) put(r record, p place, base string) (spot, error) {
	var modTime = t.root.ModTime
	if r.entry != nil {
		modTime = r.entry.ModTime
	}
	parent, err := t.makeDirs(p, modTime)
	if err != nil {
		return spot{}, err
	}
	if old := parent.children[base]; old.Entry != nil {
		if old.IsDir() && r.kind == isFile && r.entry.IsDir() {
			old.describe(r.entry)
			old.touched, old.implied = t.layer, false
			return spot{}, nil
		}
		t.remove(parent, base)
	}
	s := spot{parent: parent, base: strings.Clone(base), path: p.join(base), unsure: p.unsure()}
	entry := r.entry
	switch {
	case r.kind == isLink:
		target, path, err := t.linkTarget(r.target)
		if err != nil {
			return spot{}, err
		}
		entry, s.target, s.linked = target.Entry, path, target.sent
	case entry.IsDir():
		entry.children, entry.touched = map[string]name{}, t.layer
	}
	entry.Links++
	return s, t.add(parent, s.base, entry)
}

// linkTarget returns the name that a hard link is made from, and its path without symbolic links.
func (t *tree) linkTarget(target string) (name, string, error) {
	dir, base := splitName(target)
	p, err := t.find(dir)
	if err != nil {
		return name{}, "", err
	}
	var found name
	if parent := t.dir(p); parent != nil {
		found = parent.children[base]
	}
	switch {
	case found.Entry == nil:
		return name{}, "", invalid("hard link to %q, which is not there", short(target))
	case found.IsDir():
		return name{}, "", invalid("hard link to %q, which is a directory", short(target))
	}
	return found, p.join(base), nil
}

// applyAll applies the records of a layer.
func (t *tree) applyAll(number int, records []record) error {
	t.layer = int32(number)
	for _, r := range records {
		at, err := t.apply(r)
		if err != nil {
			return fault.Context(err, "entry %q", short(r.path))
		}
		if r.sent {
			t.disturbed = t.disturbed || at.path != r.path
			at.markSent()
		}
	}
	return nil
}

// markSent notes that what is at the spot is in the stream.
func (s spot) markSent() {
	if s.parent != nil {
		n := s.name()
		n.Entry.sent, n.sent = true, true
		s.parent.children[s.base] = n
	}
}
