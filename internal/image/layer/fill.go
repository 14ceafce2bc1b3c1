package layer

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// Fill implements ext4.Filler: nothing has to be in any order there, so that several layers are read at once and every
// file is written as it comes. What a higher layer turns out to have removed is given back. It is for a stream that was
// not read.
func (s *Stream) Fill(ctx context.Context, w *ext4.Writer) (root *ext4.Node, read uint64, entries int, err error) {
	defer context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })()
	j := newJob(s.layers, s.opt)
	f := &filling{job: j, w: w, tree: newTree(j.remember), layers: make([]filled, len(s.layers))}
	if err = f.read(s.ctx); err == nil {
		err = f.apply()
	}
	read = uint64(j.uncompressed.Load())
	if err != nil {
		return nil, read, 0, err
	}
	n := &nodes{shared: map[*Entry]*ext4.Node{}}
	return n.dir(f.tree.root), read, n.names, nil
}

// filling is one Fill.
type filling struct {
	job    *job
	w      *ext4.Writer
	tree   *tree
	layers []filled
}

// filled is a layer whose contents were written. Each is for the goroutine that reads it.
type filled struct {
	records []record // that wait for those of lower layers; of the lowest, which goes straight onto the tree, none
	files   []*Entry // with contents
}

// read reads all layers, several at once and the largest first, so that all processors have something to do to the end.
func (f *filling) read(ctx context.Context) error {
	order := make([]int, len(f.layers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(f.job.layers[b].Size, f.job.layers[a].Size) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(2, min(runtime.GOMAXPROCS(0), maxReaders)))
	for _, i := range order {
		group.Go(func() error { return f.readLayer(ctx, i) })
	}
	return group.Wait()
}

func (f *filling) readLayer(ctx context.Context, i int) error {
	out, to := f.w.Stream(), &f.layers[i]
	if i == 0 {
		f.tree.layer = 1
	}
	err := f.job.read(ctx, i, func(hdr *tar.Header, contents io.Reader) error {
		r, err := newRecord(hdr)
		if err != nil {
			return err
		}
		if r.kind == isFile && r.entry.Size > 0 {
			if r.entry.contents.at, err = out.Put(contents, r.entry.Size); err != nil {
				return err
			}
			to.files = append(to.files, r.entry)
		}
		if i > 0 {
			to.records = append(to.records, r)
			return f.job.remember(r.memory())
		}
		if r.entry != nil {
			if err := f.job.remember(r.entry.memory()); err != nil {
				return err
			}
		}
		_, err = f.tree.apply(r)
		return err
	})
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}

// apply puts the upper layers onto the lowest and gives back the contents that nobody sees any more.
func (f *filling) apply() error {
	for i := range f.layers {
		l := &f.layers[i]
		if err := f.tree.applyAll(i+1, l.records); err != nil {
			return fault.Context(err, "%s", f.job.layers[i].describe(i+1))
		}
		l.records = nil
	}
	var errs []error
	for _, l := range f.layers {
		for _, e := range l.files {
			if e.Links == 0 {
				errs = append(errs, f.w.Discard(e.contents.at, e.Size))
			}
		}
	}
	return errors.Join(errs...)
}

// nodes turns a tree into one for package ext4. The old one is used up on the way.
type nodes struct {
	shared map[*Entry]*ext4.Node // those with several names
	names  int
}

func (n *nodes) dir(from *Entry) *ext4.Node {
	out := newNode(from)
	out.Children = make(map[string]*ext4.Node, len(from.children))
	for base, child := range from.children {
		out.Children[base] = n.node(child.Entry)
		n.names++
	}
	from.children = nil
	return out
}

func (n *nodes) node(from *Entry) *ext4.Node {
	switch {
	case from.IsDir():
		return n.dir(from)
	case from.Links == 1:
		return newNode(from)
	case n.shared[from] == nil:
		n.shared[from] = newNode(from)
	}
	return n.shared[from]
}

func newNode(e *Entry) *ext4.Node {
	return &ext4.Node{
		Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID, Devmajor: e.Devmajor, Devminor: e.Devminor, ModTime: e.ModTime,
		Size: e.Size, Contents: e.contents.at, Linkname: e.Linkname, Xattrs: e.Xattrs,
	}
}
