package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"banger/internal/ext4"
)

// passAll reads the layers, the highest first, and sends on the way what is sure to stay: all files of a layer that no
// higher layer touches and whose path is not likely to depend on lower ones. The lowest layer comes last and straight onto the
// tree; then the others are put onto it.
func passAll(ctx context.Context, f *flattener) error {
	if len(f.layers) == 0 {
		return nil
	}
	higher := newTouched()
	defer func() {
		for i := range f.layers {
			f.job.end(i)
		}
	}()
	for i := len(f.layers) - 1; i > 0; i-- {
		f.job.begin(ctx, i, usual)
		f.job.begin(ctx, i-1, farther)
		if err := f.passUpper(ctx, i, higher); err != nil {
			return err
		}
		higher.addAll(f.layers[i].records)
	}
	if err := f.passLowest(ctx, higher); err != nil {
		return err
	}
	return f.job.apply(f.tree, f.layers)
}

// passUpper reads a layer that has others below it.
func (f *flattener) passUpper(ctx context.Context, i int, higher *touched) error {
	p := &upperPass{flattener: f, higher: higher, layer: &f.layers[i]}
	left := f.job.opt.Limits.Memory / 8
	p.alone = newTree(func(n int64) error {
		if left -= n; left < 0 { // names that mean so many directories: nothing more of this layer is sent early
			return errTooMany
		}
		return nil
	})
	p.alone.layer = 1
	err := f.job.read(ctx, i, p.entry)
	if err == nil && p.layer.scratch != nil {
		err = p.layer.scratch.finish()
	}
	return err
}

// errTooMany says that the names of one layer take too much memory to know them beside the tree of all layers.
var errTooMany = errors.New("too many names")

// upperPass is the passage of one upper layer.
type upperPass struct {
	*flattener
	higher *touched
	layer  *indexed
	// alone has the names of this layer, to know when one of them means something else than it says; nil: no longer known.
	alone *tree
}

func (p *upperPass) entry(hdr *tar.Header, contents io.Reader) error {
	r, err := newRecord(hdr)
	if err == nil {
		err = p.job.remember(r.memory())
	}
	if err != nil {
		return err
	}
	at := p.applyAlone(r)
	if p.disturbed {
		return ext4.ErrAnew
	}
	switch {
	case r.kind != isFile || r.entry.IsDir():
	case at.parent != nil && !at.unsure && at.path == r.path && !p.higher.has(r.path):
		err = p.file(r.entry, r.path, contents)
		at.markSent()
		r.sent = true
	case r.entry.Size > 0:
		r.entry.contents, err = p.job.store(&p.layer.scratch, contents, r.entry.Size)
	}
	p.layer.records = append(p.layer.records, r)
	return err
}

// applyAlone applies a record to the names of its layer alone. What that does not know stays nowhere.
func (p *upperPass) applyAlone(r record) spot {
	if p.alone == nil || r.kind == isWhiteout || r.kind == isOpaque || r.path == "" {
		return spot{}
	}
	// The entry itself is for the tree of all layers. A hard link may be to a lower layer; it is a name like others.
	alone := record{path: r.path, entry: &Entry{Type: tar.TypeReg}}
	if r.kind == isFile {
		alone.entry.Type, alone.entry.Linkname = r.entry.Type, r.entry.Linkname
	}
	at, err := p.alone.apply(alone)
	p.disturbed = p.disturbed || p.alone.disturbed
	if err != nil {
		p.alone = nil // the tree of all layers will say whether that is one
		return spot{}
	}
	return at
}

// passLowest reads the lowest layer.
func (f *flattener) passLowest(ctx context.Context, higher *touched) error {
	f.tree.layer = 1
	deferred := &f.layers[0].scratch
	err := f.job.read(ctx, 0, func(hdr *tar.Header, contents io.Reader) error {
		return f.lowestEntry(hdr, contents, higher, deferred)
	})
	if err == nil && *deferred != nil {
		err = (*deferred).finish()
	}
	return err
}

func (f *flattener) lowestEntry(hdr *tar.Header, contents io.Reader, higher *touched, deferred **scratch) error {
	r, err := newRecord(hdr)
	if err != nil {
		return err
	}
	if r.entry != nil {
		if err := f.job.remember(r.entry.memory()); err != nil {
			return err
		}
	}
	at, err := f.tree.apply(r)
	switch {
	case err != nil:
		return err
	case f.tree.disturbed:
		return ext4.ErrAnew
	case at.parent == nil:
		return nil
	}
	e := at.name().Entry
	switch {
	case e.IsDir(): // may be mentioned again
		return nil
	case higher.has(at.path) || r.kind == isLink && !at.linked:
		if r.kind == isFile && e.Size > 0 {
			e.contents, err = f.job.store(deferred, contents, e.Size)
		}
		return err
	case r.kind == isLink:
		err = f.link(e, at.path, at.target)
	default:
		err = f.file(e, at.path, contents)
	}
	at.markSent()
	return err
}
