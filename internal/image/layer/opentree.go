package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"
)

// Tree is the union of layers, with the contents of all files. Its methods can be called by several goroutines.
type Tree struct {
	tree   *tree
	layers []indexed

	closing  sync.Once
	closeErr error
}

// OpenTree reads all layers and returns their union. Close releases what it takes in Options.Scratch.
func OpenTree(ctx context.Context, layers []Blob, opt Options) (*Tree, error) {
	j := newJob(layers, opt)
	t := &Tree{tree: newTree(j.remember), layers: make([]indexed, len(layers))}
	err := j.index(ctx, t.layers)
	if err == nil {
		err = j.apply(t.tree, t.layers)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Lookup returns what is at path, which is relative to the root whether it begins with a slash or not. Symbolic links are
// followed inside the root, also the last.
func (t *Tree) Lookup(path string) (*Entry, bool) {
	p, err := t.tree.walk(clean(path))
	if err != nil {
		return nil, false
	}
	e := t.tree.entry(p)
	return e, e != nil
}

// LookupNoFollow is Lookup, but a symbolic link at the end of path is returned as what it is.
func (t *Tree) LookupNoFollow(path string) (*Entry, bool) {
	dir, base := splitName(clean(path))
	parent, ok := t.Lookup(dir)
	if !ok || base == "" {
		return parent, ok
	}
	child, ok := parent.children[base]
	return child.Entry, ok
}

// Walk calls visit for what is at root (as Lookup finds it) and all below it, in the order of names. Paths begin with
// root, cleaned and without a slash at the beginning; that of the root of all is ".". Symbolic links below root are not
// followed, and a hard link is the same Entry at each of its paths. When visit returns fs.SkipDir for a directory, what
// is below it is left out; any other error ends the walk.
func (t *Tree) Walk(root string, visit func(path string, e *Entry) error) error {
	e, ok := t.Lookup(root)
	if !ok {
		return &fs.PathError{Op: "walk", Path: root, Err: fs.ErrNotExist}
	}
	if err := walk(clean(root), e, visit); !errors.Is(err, fs.SkipDir) {
		return err
	}
	return nil
}

func walk(at string, e *Entry, visit func(string, *Entry) error) error {
	name := at
	if name == "" {
		name = "."
	}
	if err := visit(name, e); err != nil || !e.IsDir() {
		return err
	}
	for _, base := range slices.Sorted(maps.Keys(e.children)) {
		child := e.children[base].Entry
		if err := walk(place{path: at}.join(base), child, visit); err != nil && !(child.IsDir() && errors.Is(err, fs.SkipDir)) {
			return err
		}
	}
	return nil
}

// Open returns the contents of a regular file of the tree. It must not be read after the tree was closed.
func (t *Tree) Open(e *Entry) (io.ReadCloser, error) {
	if e.Type != tar.TypeReg {
		return nil, invalid("not a regular file")
	}
	return io.NopCloser(e.open()), nil
}

// Close releases the contents. It can be called again.
func (t *Tree) Close() error {
	t.closing.Do(func() { t.closeErr = closeAll(t.layers) })
	return t.closeErr
}

// clean makes any path relative to the root.
func clean(name string) string { return path.Clean("/" + name)[1:] }
