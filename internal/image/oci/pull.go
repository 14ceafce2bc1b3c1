package oci

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/layer"
	"banger/internal/image/source"
)

// pull brings the layers of one image into the store, and is the tar stream that is made of them meanwhile, or fills a file
// system with them. A few workers go through the layers, the largest first; Close ends them and waits.
type pull struct {
	ctx     context.Context // of the workers and of unpacking
	parent  context.Context // of the caller
	cancel  context.CancelCauseFunc
	store   *blob.Store
	items   []*item // each digest once
	meter   *meter
	workers sync.WaitGroup
	scratch string
	tar     *layer.Stream
	cleanup func() // of the place, after everything else

	mu   sync.Mutex // guards the fields below
	err  error      // of the first worker that has failed
	idle bool       // workers begin nothing new

	closing sync.Once
}

// errStopped is why a pull's context ends when its stream has failed or was closed.
var errStopped = errors.New("stopped")

// item is a layer of a pull.
type item struct {
	want    blob.Wanted
	name    string // in messages
	open    blob.Opener
	started chan struct{}  // closed when download is set
	share   *blob.Download // closed by pull.Close
}

// tree begins to bring an image and returns it. cleanup is called when the stream is closed, or when this fails.
func (o Options) tree(ctx context.Context, req source.Request, img found, verb string, cleanup func()) (_ source.Tree, err error) {
	defer func() {
		if err != nil {
			cleanup()
		}
	}()
	scratch := filepath.Join(req.Staging, scratchName)
	if err := o.checkSpace(req.Staging, img); err != nil {
		return source.Tree{}, err
	}
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return source.Tree{}, stagingError(err, scratch)
	}
	p := &pull{parent: ctx, store: o.Blobs, scratch: scratch, cleanup: cleanup}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	blobs := p.plan(img)
	p.meter = newMeter(req.Progress, verb, p.items, o.Blobs)
	queue := make(chan *item, len(p.items))
	order := slices.Clone(p.items) // that in which layer.Fill reads them
	slices.SortStableFunc(order, func(a, b *item) int { return cmp.Compare(b.want.Size, a.want.Size) })
	for _, it := range order {
		queue <- it
	}
	close(queue)
	for range min(o.Parallel, len(p.items)) {
		p.workers.Go(func() { p.work(queue) })
	}
	p.tar = layer.Flatten(p.ctx, blobs, layer.Options{Scratch: scratch, Limits: o.Limits, Progress: p.meter.unpacked})
	return source.Tree{
		Tar: p, Config: img.config.config, Arch: img.arch, Digest: identity(img.configDigest, sourceLayers(img.layers)),
		Layers: sourceLayers(img.layers),
	}, nil
}

func sourceLayers(layers []foundLayer) []source.Layer {
	out := make([]source.Layer, len(layers))
	for i, l := range layers {
		out[i] = l.Layer
	}
	return out
}

// plan makes the items, and the blobs for unpacking. A layer may be there twice.
func (p *pull) plan(img found) []layer.Blob {
	known := map[string]*item{}
	blobs := make([]layer.Blob, len(img.layers))
	for i, l := range img.layers {
		it := known[l.Digest]
		if it == nil {
			it = &item{
				want: blob.Wanted{Digest: l.Digest, Size: l.Size}, name: label(i, len(img.layers)), open: l.open,
				started: make(chan struct{}),
			}
			known[l.Digest] = it
			p.items = append(p.items, it)
		}
		blobs[i] = layer.Blob{
			MediaType: l.MediaType, Digest: l.Digest, Size: l.Size,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return p.open(ctx, it) },
		}
	}
	return blobs
}

// work brings layers until there is none left or something has failed.
func (p *pull) work(queue <-chan *item) {
	for it := range queue {
		if p.stopped() {
			return
		}
		it.share = p.store.Download(it.want, it.open, p.meter.arrived(it))
		close(it.started)
		if err := it.share.Wait(p.ctx); err != nil {
			p.fail(fault.Context(err, "%s", it.name))
			return
		}
		p.meter.landed(it)
	}
}

// open is layer.Blob.Open.
func (p *pull) open(ctx context.Context, it *item) (io.ReadCloser, error) {
	select {
	case <-it.started:
		return it.share.Reader(ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// fail keeps the first failure and ends everything. That of a worker which was told to end is none.
func (p *pull) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && !errors.Is(err, errStopped) {
		p.err = err
	}
	p.cancel(errStopped)
}

// stop tells the workers to end: at once, or when they have brought what they are at.
func (p *pull) stop(atOnce bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = true
	if atOnce {
		p.cancel(errStopped)
	}
}

func (p *pull) stopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idle || p.ctx.Err() != nil
}

func (p *pull) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Read implements io.Reader. io.EOF says that every layer is in the store and verified.
func (p *pull) Read(b []byte) (int, error) {
	n, err := p.tar.Read(b)
	if err == nil || errors.Is(err, ext4.ErrAnew) {
		return n, err
	}
	if ended := p.ended(err); ended != nil {
		err = ended
	}
	return n, err
}

// Fill implements ext4.Filler. Every layer is in the store and verified when it does not fail.
func (p *pull) Fill(ctx context.Context, w *ext4.Writer) (root *ext4.Node, read uint64, entries int, err error) {
	root, read, entries, err = p.tar.Fill(ctx, w)
	if ended := p.ended(err); ended != nil {
		err = ended
	}
	return root, read, entries, err
}

// Bring implements source.Bringer.
func (p *pull) Bring(context.Context) error { return p.ended(nil) }

// ended waits for the workers when unpacking has ended, and returns the failure that counts more than that of unpacking.
func (p *pull) ended(err error) error {
	if err != nil && err != io.EOF {
		// A layer that makes no sense may be damaged on the way, which is known when all of it has come.
		p.stop(!fault.Is(err, fault.Invalid))
	}
	p.workers.Wait() // at the end, too: unpacking need not have read the blobs to their ends
	if p.parent.Err() != nil {
		return context.Cause(p.parent)
	}
	return p.failure()
}

// Close implements io.Closer.
func (p *pull) Close() error {
	var err error
	p.closing.Do(func() {
		p.stop(true)
		err = p.tar.Close()
		p.workers.Wait()
		for _, it := range p.items {
			if it.share != nil {
				it.share.Close()
			}
		}
		err = errors.Join(err, os.RemoveAll(p.scratch))
		p.cleanup()
	})
	return err
}

// stagingError gives a failure to write to the staging directory its class.
func stagingError(err error, path string) error {
	switch {
	case ext4.NoSpace(err):
		return ext4.Exhausted(err, path, 0)
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.Denied, err, "staging directory")
	}
	return err
}
