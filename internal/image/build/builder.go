package build

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// builder is one build.
//
// The goroutines of stages wait for each other's results only upwards in the file, so that they cannot wait in a circle,
// and never while they hold a slot.
type builder struct {
	opt     Options
	slots   chan struct{} // full: as many steps as may be carried out at a time
	steps   atomic.Int64
	context *contextTree // nil: there is none
	cancel  context.CancelCauseFunc
	running sync.WaitGroup // goroutines of stages and images

	mu     sync.Mutex // guards the fields below
	stages map[*dockerfile.Stage]*future[*built]
	images map[imageKey]*future[Base]
	trees  map[string]*future[*imageTree] // by layersKey
	urls   map[string]*future[*download]
	first  error // that a stage failed with
}

type imageKey struct{ ref, platform string }

// built is a stage that is finished.
type built struct {
	resolved *dockerfile.Resolved
	layers   []source.Layer
	arch     string
}

// future is a result that several wait for.
type future[T any] struct {
	done  chan struct{} // closed when the others are set
	value T
	err   error
}

// await waits for the result.
func (f *future[T]) await(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

func newBuilder(opt Options) (*builder, error) {
	b := &builder{
		opt: opt, slots: make(chan struct{}, parallel),
		stages: map[*dockerfile.Stage]*future[*built]{}, images: map[imageKey]*future[Base]{},
		trees: map[string]*future[*imageTree]{}, urls: map[string]*future[*download]{},
	}
	if opt.Context == "" {
		return b, nil
	}
	var err error
	b.context, err = openContext(opt.Context, opt.Ignore)
	return b, err
}

// close releases what the build has open. All its goroutines have ended.
func (b *builder) close() {
	if b.context != nil {
		b.context.close()
	}
	for _, f := range b.trees {
		if f.value != nil {
			f.value.close()
		}
	}
	for _, f := range b.urls {
		if f.value != nil {
			f.value.close()
		}
	}
}

// failure returns what ended the build.
func (b *builder) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.first
}

// fail remembers the first error and ends everything else.
func (b *builder) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == nil {
		b.first = err
		b.cancel(err)
	}
}

// share returns the future of key, which begin fills in in a goroutine of its own if nobody has asked for it before.
func share[K comparable, T any](b *builder, all map[K]*future[T], key K, begin func() (T, error)) *future[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := all[key]; ok {
		return f
	}
	f := &future[T]{done: make(chan struct{})}
	all[key] = f
	b.running.Go(func() {
		defer close(f.done)
		f.value, f.err = begin()
	})
	return f
}

// start begins a stage unless it was begun before.
func (b *builder) start(ctx context.Context, s *dockerfile.Stage) *future[*built] {
	return share(b, b.stages, s, func() (*built, error) {
		out, err := b.buildStage(ctx, s)
		if err != nil {
			b.fail(err)
		}
		return out, err
	})
}

// stage returns a finished stage.
func (b *builder) stage(ctx context.Context, s *dockerfile.Stage) (*built, error) {
	return b.start(ctx, s).await(ctx)
}

// image returns an image that FROM or COPY --from names.
func (b *builder) image(ctx context.Context, ref, platform string) (Base, error) {
	return share(b, b.images, imageKey{ref, platform}, func() (Base, error) {
		if err := b.acquire(ctx); err != nil {
			return Base{}, err
		}
		defer b.release()
		base, err := b.opt.Host.Base(ctx, ref, platform, b.opt.Progress)
		if err != nil {
			return Base{}, err
		}
		return base, b.checkBase(base, ref, platform)
	}).await(ctx)
}

// checkBase finds an image of another architecture, whose commands could not run.
func (b *builder) checkBase(base Base, ref, platform string) error {
	if want := archOf(platform); base.Arch != "" && base.Arch != want {
		return fault.New(fault.Invalid, "image %s is for %s, not for %s", ref, base.Arch, want)
	}
	return nil
}

func archOf(platform string) string {
	parts := strings.Split(platform, "/")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

// tree opens layers to copy from.
func (b *builder) tree(ctx context.Context, layers []source.Layer) (*imageTree, error) {
	return share(b, b.trees, layersKey("", layers), func() (*imageTree, error) {
		return b.openTree(ctx, layers)
	}).await(ctx)
}

func (b *builder) acquire(ctx context.Context) error {
	select {
	case b.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *builder) release() { <-b.slots }

// report is the progress of a copy.
func (b *builder) report(title string) progress.Func {
	if b.opt.Progress == nil {
		return nil
	}
	return func(u progress.Update) {
		u.Stage, u.Message = "build", title
		b.opt.Progress(u)
	}
}
