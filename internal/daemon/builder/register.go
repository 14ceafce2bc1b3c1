package builder

import (
	"context"
	"errors"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/store"
)

// Registration is an image of the user's, with a kernel of the user's or without.
type Registration struct {
	Image  library.Registration // Kernel is a name; empty with a kernel of the user's
	Kernel library.Import       // Image is empty: none. It gets the image's name
	// Before is what the names must still stand for; nil: whatever has them loses them.
	Before       *library.Claim
	BeforeKernel *library.Claim
}

// Register makes a registered image and gives it its name.
func (b *Builder) Register(ctx context.Context, r Registration, report progress.Func) error {
	staging := b.cfg.Paths.Staging()
	var kernelDir string
	var krn library.Artifact
	if r.Kernel.Image != "" {
		var err error
		if kernelDir, krn, err = b.cfg.Kernels.Source().Import(ctx, r.Kernel, staging, report); err != nil {
			return err
		}
		r.Image.Kernel = r.Kernel.Name
	}
	dir, a, err := b.cfg.Images.Source().Register(ctx, r.Image, staging, report)
	if err != nil {
		return errors.Join(err, b.cfg.Kernels.Discard(ctx, kernelDir))
	}
	undo, err := b.takeKernel(ctx, r, kernelDir, krn)
	if err != nil {
		return errors.Join(err, b.cfg.Images.Discard(ctx, dir))
	}
	err = b.cfg.Images.Take(ctx, library.Publication{
		Name: r.Image.Name, Staged: dir, Artifact: a, Before: r.Before, Happened: store.Happened{Verb: "registered", Message: r.Image.Rootfs},
	})
	if err != nil {
		undo()
	}
	return err
}

// takeKernel publishes the kernel that is registered with an image. undo takes that back, as far as nobody has begun to
// use it.
func (b *Builder) takeKernel(ctx context.Context, r Registration, dir string, krn library.Artifact) (undo func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	err = b.cfg.Kernels.Take(ctx, library.Publication{
		Name: r.Kernel.Name, Staged: dir, Artifact: krn, Before: r.BeforeKernel,
		Happened: store.Happened{Verb: "imported", Message: r.Kernel.Image},
	})
	return func() {
		ctx := context.WithoutCancel(ctx)
		if _, err := b.cfg.Kernels.Remove(ctx, r.Kernel.Name); err != nil && !fault.Is(err, fault.NotFound) {
			b.cfg.Log.WarnContext(ctx, "cannot take back the kernel of an image", "kernel", r.Kernel.Name, "error", err)
		}
	}, err
}
