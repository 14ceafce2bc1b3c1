package build

import (
	"archive/tar"
	"context"
	"io"
	"io/fs"
	"path"

	"banger/internal/fault"
	"banger/internal/image/layer"
	"banger/internal/image/source"
)

// imageTree is a finished stage or an image that files are copied from. It is safe for several goroutines.
type imageTree struct{ tree *layer.Tree }

// openTree reads layers of the blob store.
func (b *builder) openTree(ctx context.Context, layers []source.Layer) (*imageTree, error) {
	blobs := make([]layer.Blob, 0, len(layers))
	for _, l := range layers {
		blobs = append(blobs, layer.Blob{
			MediaType: l.MediaType, Digest: l.Digest, Size: l.Size,
			Open: func(context.Context) (io.ReadCloser, error) { return b.opt.Blobs.Open(l.Digest) },
		})
	}
	tree, err := layer.OpenTree(ctx, blobs, layer.Options{Scratch: b.opt.Scratch, Limits: b.opt.Limits})
	if err != nil {
		return nil, err
	}
	return &imageTree{tree}, nil
}

func (t *imageTree) close() { t.tree.Close() }

// treeFile is the contents of one file of the tree.
type treeFile struct {
	tree  *layer.Tree
	entry *layer.Entry
}

func (f treeFile) open(context.Context, *node) (io.ReadCloser, error) { return f.tree.Open(f.entry) }

func (t *imageTree) node(at string, e *layer.Entry) *node {
	n := &node{
		typ: e.Type, mode: int64(e.Mode), uid: int(e.UID), gid: int(e.GID), size: e.Size, mtime: e.ModTime,
		link: e.Linkname, major: int64(e.Devmajor), minor: int64(e.Devminor), xattrs: e.Xattrs, at: at,
	}
	if e.Type == tar.TypeReg {
		n.from = treeFile{t.tree, e}
		if e.Links > 1 {
			n.same = e
		}
	}
	return n
}

// find implements finder.
func (t *imageTree) find(at string) (*node, error) {
	e, ok := t.tree.LookupNoFollow(at)
	if !ok {
		return nil, nil
	}
	return t.node(at, e), nil
}

// list returns what is in a directory, in the order of names.
func (t *imageTree) list(at string) ([]*node, error) {
	var out []*node
	first := true
	err := t.tree.Walk(at, func(name string, e *layer.Entry) error {
		if first { // the directory itself
			first = false
			return nil
		}
		out = append(out, t.node(path.Join("/", name), e))
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	return out, fault.Context(err, "%s", shown(at))
}
