// Package builder makes images out of images on this host: builds, whose steps run in VMs, and copies of registered ones.
// It also packs images for elsewhere.
//
// What an image is made of are layers in the blob store. One that has none (it came from a distribution's archive, or is a
// file of the user's) is packed once, in a VM that has it as its root: nothing here mounts or parses a file system that
// somebody else has made.
//
// A VM of this package belongs to one call, which ends and removes it whatever happens; see Machines.
package builder

import (
	"context"
	"log/slog"

	"banger/internal/daemon/library"
	"banger/internal/image/blob"
	"banger/internal/image/layer"
	"banger/internal/image/oci"
	"banger/internal/keylock"
	"banger/internal/paths"
	"banger/internal/progress"
	"banger/internal/vm"
)

// Config is what a Builder needs. All but Step is required.
type Config struct {
	Paths    paths.Paths
	Log      *slog.Logger
	Images   *library.Library
	Kernels  *library.Library
	Shelf    *library.Shelf
	Blobs    *blob.Store
	Machines Machines
	Limits   layer.Limits
	Insecure []string // registries that may be spoken to by plain HTTP
	// StandardKernel is the kernel of images that name none.
	StandardKernel func(ctx context.Context) string
	// Step is called at each of this package's steps. It may be nil.
	Step func(context.Context, library.Step) error
}

// The steps of this package.
const (
	StepLayer    library.Step = "build.layer"    // what a VM has made is in the blob store
	StepPacked   library.Step = "build.packed"   // and the manifest of the image that was packed says so
	StepExported library.Step = "export.written" // an export is complete under its temporary name
)

// Machines makes VMs for this package.
type Machines interface {
	// Boot starts a VM and returns when its guest is ready, with the socket of its supervisor. end kills it and removes
	// all of it; it has to be called, and takes no heed of ctx. On failure nothing is left.
	Boot(ctx context.Context, m Machine) (socket string, end func(), err error)
}

// Machine is a VM that lives as long as one call.
type Machine struct {
	Purpose vm.Purpose
	// Image is what it has as its root. Without a digest it has none: Root makes the root file system at path instead.
	Image  library.Artifact
	Root   func(ctx context.Context, path string) error
	Kernel library.Artifact
	// 0: the defaults
	CPUs   int
	Memory uint64
	Disk   uint64
}

// Builder makes images. It is safe for concurrent use.
type Builder struct {
	cfg      Config
	registry *oci.Registry
	packing  keylock.Map[string] // digests of images that are being packed
}

// New returns a Builder.
func New(cfg Config) *Builder {
	return &Builder{cfg: cfg, registry: oci.NewRegistry(oci.Options{Blobs: cfg.Blobs, Insecure: cfg.Insecure})}
}

func (b *Builder) at(ctx context.Context, step library.Step) error {
	if b.cfg.Step == nil {
		return nil
	}
	return b.cfg.Step(ctx, step)
}

// kernel returns the kernel of an image, which is pulled if it is not here.
func (b *Builder) kernel(ctx context.Context, of string, report progress.Func) (library.Artifact, error) {
	if of == "" {
		of = b.cfg.StandardKernel(ctx)
	}
	return b.cfg.Kernels.Ensure(ctx, library.Request{Reference: of}, report)
}
