// Package build makes images from Dockerfiles.
//
// Build carries out a plan of package dockerfile. Each stage that the target needs has a goroutine of its own, which
// waits for the stages below it and for those it copies from; of the steps of all stages, two are carried out at a time.
// RUN is left to the Host, which boots a VM on the layers so far and returns what the command changed as one more layer.
// COPY, ADD and WORKDIR are made here: their files are collected and hashed (collect), placed in the stage's tree as
// BuildKit does it (place), and written as a layer (writeLayer). Nothing is unpacked on this machine and no owner is
// changed, so that no privileges are needed.
//
// Every step has a key in the Cache: a hash of the layers below, the expanded instruction and what is copied. A step
// whose key is there, and whose layer is in the blob store, is not carried out. Since the layers themselves are in the
// key, a step that was run again and came out the same does not spoil what follows it.
package build

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"

	"banger/internal/image/blob"
	"banger/internal/image/dockerfile"
	"banger/internal/image/layer"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// parallel is how many steps are carried out at a time. Each RUN is a VM.
const parallel = 2

// Host is what a build needs of its surroundings.
type Host interface {
	// Base returns the configuration and the layers of an image, all of which are in the blob store; it pulls the image
	// if it is not here. Several can be asked for at once.
	Base(ctx context.Context, ref, platform string, report progress.Func) (Base, error)
	// Run boots a VM whose root is the given layers, runs the command in it, and returns what it changed as a new layer
	// in the blob store; a layer without a digest if that is nothing. A command that fails is an *ExitError. Several run
	// at once. When ctx ends, it takes everything down and returns.
	Run(ctx context.Context, job RunJob) (source.Layer, error)
}

// Base is an image that a stage begins with or copies from.
type Base struct {
	Config source.Config
	Layers []source.Layer // lowest first
	Arch   string         // amd64, arm64; empty: that of the platform asked for
}

// RunJob is the command of one RUN.
type RunJob struct {
	Title    string         // "RUN make"
	Platform string         // linux/amd64
	Layers   []source.Layer // lowest first
	Argv     []string
	Env      []string // NAME=VALUE
	User     string   // empty: root
	Workdir  string   // absolute; made if it is not there
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer
	Size
}

// Size is that of a VM; what is 0 is left to the Host.
type Size struct {
	CPUs         int
	Memory, Disk uint64 // bytes
}

// ExitError says that the command of a RUN failed.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// Options are what a build is made of and with.
type Options struct {
	Plan    *dockerfile.Plan
	Context string             // directory; empty: COPY from it is an error
	Ignore  *dockerfile.Ignore // may be nil
	Labels  map[string]string  // added to the image's
	NoCache bool               // carry out every step; what comes out is still kept
	Size    Size               // of the VMs

	Host     Host
	Blobs    *blob.Store
	Cache    *Cache
	Scratch  string // existing private directory for temporary files
	Limits   layer.Limits
	Client   *http.Client // for ADD; nil: one with timeouts
	Log      Log          // may be nil
	Progress progress.Func
}

// Result is an image that has no name yet.
type Result struct {
	Config source.Config
	Layers []source.Layer // in the blob store, lowest first
	Arch   string
}

// Build carries out opt.Plan and returns the image of its target. Everything that it has started has ended when it
// returns; of a build that fails, the layers of finished steps stay in the cache.
func Build(ctx context.Context, opt Options) (Result, error) {
	b, err := newBuilder(opt)
	if err != nil {
		return Result{}, err
	}
	defer b.close()
	for _, w := range opt.Plan.Warnings {
		b.warn(w)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.cancel = cancel
	for _, s := range opt.Plan.Needed() {
		b.start(ctx, s)
	}
	target, err := b.stage(ctx, opt.Plan.Target)
	cancel(nil)
	b.running.Wait()
	if first := b.failure(); first != nil {
		return Result{}, first
	}
	if err != nil {
		return Result{}, err
	}
	out := Result{Config: target.resolved.Config, Layers: target.layers, Arch: target.arch}
	if len(opt.Labels) > 0 {
		all := maps.Clone(opt.Labels)
		for name, value := range out.Config.Labels {
			if _, ok := all[name]; !ok {
				all[name] = value
			}
		}
		out.Config.Labels = all
	}
	return out, nil
}
