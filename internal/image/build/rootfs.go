package build

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"banger/internal/fault"
	"banger/internal/image/layer"
	"banger/internal/image/source"
)

// rootfs is what the layers of a stage hold: where links lead, what is a directory. It is for one goroutine.
//
// The layers that were there when a step first asked are in a layer.Tree. What later steps make is laid over it, so that
// a base image is read once for each stage and not for each COPY. An entry laid over hides the one of the same path; a
// directory that took the place of something else also hides what was below that, which is all that is older than it.
type rootfs struct {
	lower  *imageTree // nil: nothing
	over   map[string]*laid
	layers int   // of the stage that are in here
	now    int64 // of the next entry
}

// laid is an entry over the tree.
type laid struct {
	node  *node // nil: there is nothing
	since int64
	hides int64 // what is below it and not newer than this is gone
}

func newRootfs(lower *imageTree, layers int) *rootfs {
	return &rootfs{lower: lower, over: map[string]*laid{}, layers: layers, now: 1}
}

func (r *rootfs) close() {
	if r.lower != nil {
		r.lower.close()
	}
}

// rootfs returns what is in the stage's layers so far.
func (sb *stageBuild) rootfs(ctx context.Context) (*rootfs, error) {
	if sb.root == nil {
		var lower *imageTree
		if len(sb.layers) > 0 {
			var err error
			if lower, err = sb.b.openTree(ctx, sb.layers); err != nil {
				return nil, err
			}
		}
		sb.root = newRootfs(lower, len(sb.layers))
	}
	for ; sb.root.layers < len(sb.layers); sb.root.layers++ {
		if err := sb.b.apply(ctx, sb.root, sb.layers[sb.root.layers]); err != nil {
			return nil, err
		}
	}
	return sb.root, nil
}

// find implements finder, for a path without symbolic links on the way.
func (r *rootfs) find(at string) (*node, error) {
	n, _, err := r.look(at)
	return n, err
}

// look returns what is at a path, and its entry over the tree if it has one.
func (r *rootfs) look(at string) (*node, *laid, error) {
	var hides int64
	dir := "/"
	var l *laid
	n := &node{typ: tar.TypeDir, mode: 0o755}
	if top := r.over["/"]; top != nil {
		hides, l, n = top.hides, top, top.node
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		if part == "" {
			continue
		}
		dir = path.Join(dir, part)
		l = r.over[dir]
		switch {
		case l != nil && l.since > hides:
			n, hides = l.node, max(hides, l.hides)
		case hides > 0 || r.lower == nil:
			return nil, nil, nil
		default:
			l = nil
			var err error
			if n, err = r.lower.find(dir); err != nil {
				return nil, nil, err
			}
		}
		if n == nil || !n.isDir() && dir != at {
			return nil, nil, nil
		}
	}
	return n, l, nil
}

// put lays n at a path whose directory is there. A directory over another one keeps what is in it.
func (r *rootfs) put(at string, n *node) error {
	old, l, err := r.look(at)
	if err != nil {
		return err
	}
	entry := &laid{node: n, since: r.now, hides: r.now - 1}
	if n != nil && n.isDir() && old != nil && old.isDir() {
		entry.hides = 0
		if l != nil {
			entry.hides = l.hides
		}
	}
	r.now++
	r.over[at] = entry
	return nil
}

// empty makes a directory opaque: what is in it now is gone.
func (r *rootfs) empty(at string) error {
	n, _, err := r.look(at)
	if err != nil || n == nil || !n.isDir() {
		return err
	}
	r.over[at] = &laid{node: n, since: r.now, hides: r.now - 1}
	r.now++
	return nil
}

// gone is an entry of a layer that takes something away.
type gone struct {
	path   string
	opaque bool
}

// apply lays a layer that a step has made over what is there. Its deletions are about what is below it, so they come
// first, wherever they are in the layer.
func (b *builder) apply(ctx context.Context, r *rootfs, l source.Layer) error {
	var deletions []gone
	type added struct {
		at   string
		node *node
	}
	var additions []added
	err := b.readLayer(ctx, l, func(hdr *tar.Header, contents io.Reader) error {
		at := path.Clean("/" + hdr.Name)
		dir, base := path.Split(at)
		if base == ".wh..wh..opq" {
			deletions = append(deletions, gone{path.Clean(dir), true})
			return nil
		}
		if name, ok := strings.CutPrefix(base, ".wh."); ok {
			deletions = append(deletions, gone{path.Join(dir, name), false})
			return nil
		}
		n, err := nodeOf(hdr, at, contents)
		additions = append(additions, added{at, n})
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range deletions {
		if err := r.delete(d); err != nil {
			return err
		}
	}
	for _, a := range additions {
		dir, err := follow(r.find, "/", path.Dir(a.at), true)
		if err == nil {
			err = r.imply(dir)
		}
		if err == nil {
			err = r.put(path.Join(dir, path.Base(a.at)), a.node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// imply makes a directory that a layer has something in without naming it.
func (r *rootfs) imply(dir string) error {
	n, err := r.find(dir)
	if err != nil || n != nil && n.isDir() {
		return err
	}
	if err := r.imply(path.Dir(dir)); err != nil {
		return err
	}
	return r.put(dir, &node{typ: tar.TypeDir, mode: 0o755, at: dir})
}

func (r *rootfs) delete(d gone) error {
	dir, err := follow(r.find, "/", path.Dir(d.path), true)
	if err != nil {
		return err
	}
	at := path.Join(dir, path.Base(d.path))
	if d.opaque {
		return r.empty(at)
	}
	return r.put(at, nil)
}

// keptContents is how long a file may be whose contents are kept: enough for the lists of users and groups.
const keptContents = 1 << 20

// nodeOf is what a tar header says. Contents are kept only of the files that names are looked up in.
func nodeOf(hdr *tar.Header, at string, contents io.Reader) (*node, error) {
	n := headerNode(hdr, at)
	if n.typ != tar.TypeReg || at != passwdFile && at != groupFile {
		return n, nil
	}
	data, err := io.ReadAll(io.LimitReader(contents, keptContents))
	n.from, n.size = memory(data), int64(len(data))
	return n, err
}

func headerNode(hdr *tar.Header, at string) *node {
	n := &node{
		typ: hdr.Typeflag, mode: hdr.Mode & 0o7777, uid: hdr.Uid, gid: hdr.Gid, size: hdr.Size, mtime: hdr.ModTime,
		link: hdr.Linkname, major: hdr.Devmajor, minor: hdr.Devminor, at: at,
	}
	switch hdr.Typeflag {
	case tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink:
		n.typ = tar.TypeReg
	}
	if n.typ != tar.TypeSymlink {
		n.link = ""
	}
	return n
}

// readLayer calls each for the entries of a layer.
func (b *builder) readLayer(ctx context.Context, l source.Layer, each func(*tar.Header, io.Reader) error) error {
	f, err := b.opt.Blobs.Open(l.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := layer.Decompress(l.MediaType, cancellable{ctx, f})
	if err != nil {
		return fault.Context(err, "layer %.19s", l.Digest)
	}
	defer plain.Close()
	tr := tar.NewReader(cancellable{ctx, plain})
	for n := 0; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && n > maxPicked {
			err = fault.New(fault.Exhausted, "more than %d files", maxPicked)
		}
		if err == nil && hdr.Typeflag != tar.TypeXGlobalHeader {
			err = each(hdr, tr)
		}
		if err != nil {
			return fault.Context(err, "layer %.19s", l.Digest)
		}
	}
}
