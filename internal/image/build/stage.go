package build

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
)

// stageBuild is a stage in the making. It belongs to one goroutine.
type stageBuild struct {
	b        *builder
	stage    *dockerfile.Stage
	resolved *dockerfile.Resolved
	arch     string
	layers   []source.Layer // so far
	number   int            // of the step that comes next, as progress shows it
	root     *rootfs        // what the layers hold; nil until a step needs it
}

func (b *builder) buildStage(ctx context.Context, s *dockerfile.Stage) (*built, error) {
	sb := &stageBuild{b: b, stage: s, number: 1}
	defer sb.close()
	if err := sb.from(ctx); err != nil {
		return nil, err
	}
	for _, w := range sb.resolved.Warnings {
		b.warn(w)
	}
	for _, step := range sb.resolved.Steps {
		if err := sb.do(ctx, step); err != nil {
			return nil, err
		}
		sb.number++
	}
	return &built{sb.resolved, sb.layers, sb.arch}, nil
}

func (sb *stageBuild) close() {
	if sb.root != nil {
		sb.root.close()
	}
}

// from brings what the stage begins with.
func (sb *stageBuild) from(ctx context.Context) (err error) {
	s := sb.stage
	sb.arch = archOf(s.Platform)
	switch {
	case s.Base != nil:
		below, err := sb.b.stage(ctx, s.Base)
		if err != nil {
			return err
		}
		sb.layers, sb.arch = slices.Clone(below.layers), below.arch
		sb.resolved, err = s.ResolveOn(below.resolved)
		return err
	case s.From == dockerfile.Scratch:
		sb.resolved, err = s.Resolve(source.Config{})
		return err
	}
	r := sb.b.begin(sb.title(s.Steps, "FROM "+s.From, false))
	sb.number++
	base, err := sb.b.image(ctx, s.From, s.Platform)
	if err != nil {
		err = sb.where(ctx, s.Line, "FROM "+s.From, err)
	}
	r.end(false, told(ctx, err))
	if err != nil {
		return err
	}
	sb.layers = slices.Clone(base.Layers)
	if base.Arch != "" {
		sb.arch = base.Arch
	}
	sb.resolved, err = s.Resolve(base.Config)
	return err
}

// title is how progress calls a step: "[builder 2/3] RUN make".
func (sb *stageBuild) title(total int, text string, trigger bool) string {
	label := sb.stage.Label
	if label != "" {
		label += " "
	}
	if trigger {
		text = "ONBUILD " + text
	}
	width := len(fmt.Sprint(total))
	return fmt.Sprintf("[%s%*d/%d] %s", label, width, sb.number, total, text)
}

// where says in which line of the file something failed. The end of ctx is nobody's fault.
func (sb *stageBuild) where(ctx context.Context, line int, text string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if sb.b.opt.Plan.Name == "" {
		return fault.Context(err, "%s", text)
	}
	return fault.Context(err, "%s:%d: %s", sb.b.opt.Plan.Name, line, text)
}

// told is an error as the log of its step has it: that another step failed is no news there.
func told(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errCancelled
	}
	return err
}

var errCancelled = fault.New(fault.Cancelled, "cancelled")

// do carries out one step, or finds out that it need not.
func (sb *stageBuild) do(ctx context.Context, step dockerfile.Step) error {
	// What the step copies from comes first: whoever waits must not hold a slot.
	from, err := sb.copySource(ctx, step)
	if err != nil {
		return sb.where(ctx, step.Line, step.Text, err)
	}
	if err := sb.b.acquire(ctx); err != nil {
		return err
	}
	defer sb.b.release()
	r := sb.b.begin(sb.title(sb.resolved.Total, step.Title, step.Trigger))
	made, cached, err := sb.make(ctx, step, from, r)
	if err != nil {
		err = sb.where(ctx, step.Line, step.Text, err)
	}
	if err == nil && made.Digest != "" {
		sb.layers = append(sb.layers, made)
	}
	r.end(cached, told(ctx, err))
	return err
}

// make returns the layer of a step and whether it was there already.
func (sb *stageBuild) make(ctx context.Context, step dockerfile.Step, from *copySource, r *reporter) (source.Layer, bool, error) {
	below := layersKey(sb.stage.Platform, sb.layers)
	switch {
	case step.Run != nil:
		return sb.cached(step, runKey(below, step), func() (source.Layer, error) { return sb.run(ctx, step, r) })
	case step.Copy != nil:
		return sb.copy(ctx, below, step, from, r)
	}
	return sb.cached(step, keyOf(below, "workdir", step.Workdir, step.User), func() (source.Layer, error) { return sb.workdir(ctx, step) })
}

// cached returns what the cache has for a key, or makes it and keeps it.
func (sb *stageBuild) cached(step dockerfile.Step, key string, produce func() (source.Layer, error)) (source.Layer, bool, error) {
	if made, ok := sb.find(key); ok {
		return made, true, nil
	}
	made, err := produce()
	if err != nil {
		return source.Layer{}, false, err
	}
	return made, false, sb.keep(key, step, made)
}

// find looks a key up. An entry whose blob is gone is no hit.
func (sb *stageBuild) find(key string) (source.Layer, bool) {
	if sb.b.opt.NoCache {
		return source.Layer{}, false
	}
	e, ok := sb.b.opt.Cache.get(key)
	if !ok {
		return source.Layer{}, false
	}
	if e.Layer.Digest == "" {
		return e.Layer, true
	}
	size, ok := sb.b.opt.Blobs.Stat(e.Layer.Digest)
	return e.Layer, ok && size == e.Layer.Size
}

func (sb *stageBuild) keep(key string, step dockerfile.Step, made source.Layer) error {
	err := sb.b.opt.Cache.put(Entry{Key: key, Title: step.Title, Layer: made})
	return fault.Context(err, "build cache")
}

// runKey is everything that the result of a command depends on, as far as it can be known.
func runKey(below string, step dockerfile.Step) string {
	words := []string{below, "run", listKey(step.Run.Argv), listKey(step.Run.Env), step.User, step.Workdir}
	if s := step.Run.Script; s != nil {
		words = append(words, s.Path, string(s.Data))
	}
	return keyOf(words...)
}

// run carries out a RUN.
func (sb *stageBuild) run(ctx context.Context, step dockerfile.Step, r *reporter) (source.Layer, error) {
	layers := slices.Clone(sb.layers)
	if s := step.Run.Script; s != nil {
		// A layer of its own, which is in no image: what the command changes does not have the script in it.
		script, err := sb.b.scriptLayer(ctx, s)
		if err != nil {
			return source.Layer{}, err
		}
		layers = append(layers, script)
	}
	out := &lines{r: r}
	defer out.flush()
	made, err := sb.b.opt.Host.Run(ctx, RunJob{
		Title: step.Title, Platform: sb.stage.Platform, Layers: layers, Argv: step.Run.Argv,
		Env: slices.Concat(step.Run.Env, step.Run.Proxy), User: step.User, Workdir: step.Workdir,
		Stdout: out, Stderr: out, Size: sb.b.opt.Size,
	})
	var exit *ExitError
	if errors.As(err, &exit) {
		return source.Layer{}, fault.Wrap(fault.Invalid, exit, "the command failed")
	}
	return made, err
}
