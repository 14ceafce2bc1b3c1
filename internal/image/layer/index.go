package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
)

// maxReaders is how many layers are read at once. Each takes some megabytes.
const maxReaders = 4

// indexed is a layer that was read: its entries in their order, with contents in scratch.
type indexed struct {
	records []record
	scratch *scratch // nil: it has no contents
}

// index reads the layers into out, several at once. The caller closes them all, whether it fails or not.
func (j *job) index(ctx context.Context, out []indexed) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(min(runtime.GOMAXPROCS(0), maxReaders))
	for i := range j.layers {
		group.Go(func() error { return j.indexLayer(ctx, i, &out[i]) })
	}
	return group.Wait()
}

// indexLayer reads one layer into out.
func (j *job) indexLayer(ctx context.Context, i int, out *indexed) error {
	err := j.read(ctx, i, func(hdr *tar.Header, contents io.Reader) error {
		r, err := newRecord(hdr)
		if err == nil {
			err = j.remember(r.memory())
		}
		if err == nil && r.kind == isFile && r.entry.Size > 0 {
			r.entry.contents, err = j.store(&out.scratch, contents, r.entry.Size)
		}
		out.records = append(out.records, r)
		return err
	})
	if err == nil && out.scratch != nil {
		err = out.scratch.finish()
	}
	return err
}

// store puts contents into scratch, which is made when there is none yet.
func (j *job) store(s **scratch, contents io.Reader, size int64) (extent, error) {
	if *s == nil {
		*s = &scratch{dir: j.opt.Scratch}
	}
	return (*s).store(contents, size)
}

// apply puts the layers onto the tree, lowest first, and forgets their entries.
func (j *job) apply(t *tree, layers []indexed) error {
	for i := range layers {
		if err := t.applyAll(i+1, layers[i].records); err != nil {
			return fault.Context(err, "%s", j.layers[i].describe(i+1))
		}
		layers[i].records = nil
	}
	return nil
}

// closeAll closes the scratch files of layers.
func closeAll(layers []indexed) error {
	var errs []error
	for _, l := range layers {
		if l.scratch != nil {
			errs = append(errs, l.scratch.close())
		}
	}
	return errors.Join(errs...)
}
