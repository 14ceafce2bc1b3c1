package daemon

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/daemon/builder"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	bangerv1 "banger/proto/banger/v1"
)

// Register implements the RPC.
func (s *imageService) Register(ctx context.Context, req *connect.Request[bangerv1.RegisterImageRequest]) (*connect.Response[bangerv1.RegisterImageResponse], error) {
	r, err := s.registration(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	spec := operation.Spec{Kind: "image.register", Target: r.Image.Name}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return r.Image.Name, s.builder.Register(ctx, r, report)
	})
	return connect.NewResponse(&bangerv1.RegisterImageResponse{OperationId: id}), err
}

// registration reads and checks a request, as far as that takes no time.
func (s *imageService) registration(ctx context.Context, m *bangerv1.RegisterImageRequest) (r builder.Registration, err error) {
	if err := needPath("root file system", m.GetRootfs()); err != nil {
		return r, err
	}
	name, err := s.lib.CheckName(m.GetName())
	if err != nil {
		return r, err
	}
	r.Image = library.Registration{Name: name, Rootfs: m.GetRootfs()}
	if r.Before, err = s.lib.ClaimNew(ctx, name, m.GetForce()); err != nil {
		return r, err
	}
	if !strings.HasPrefix(m.GetKernel(), "/") {
		if m.GetInitrd() != "" || m.GetModules() != "" {
			return r, fault.New(fault.Invalid, "an initial RAM disk and modules belong to a kernel file, and none is named").
				WithHint("banger image register %s --rootfs %s --kernel /path/of/vmlinux", name, m.GetRootfs())
		}
		r.Image.Kernel = m.GetKernel()
		if r.Image.Kernel == "" {
			return r, nil
		}
		return r, s.kernels.Check(ctx, r.Image.Kernel)
	}
	r.Kernel = library.Import{Name: kernelNameFor(name), Image: m.GetKernel(), Modules: m.GetModules(), Initrd: m.GetInitrd()}
	r.BeforeKernel, err = s.kernels.ClaimNew(ctx, r.Kernel.Name, m.GetForce())
	return r, err
}

// kernelNameFor is the name of the kernel that comes with an image: kernels have fewer letters.
func kernelNameFor(image string) string {
	return strings.NewReplacer("/", "-", ":", "-").Replace(image)
}

// Promote implements the RPC.
func (s *imageService) Promote(ctx context.Context, req *connect.Request[bangerv1.PromoteImageRequest]) (*connect.Response[bangerv1.PromoteImageResponse], error) {
	a, err := s.lib.Get(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	if err := builder.Registered(a); err != nil {
		return nil, err
	}
	spec := operation.Spec{Kind: "image.promote", Target: a.Ref(), Key: "promote/" + a.Ref() + "/" + a.Digest}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return a.Ref(), s.builder.Promote(ctx, a, report)
	})
	return connect.NewResponse(&bangerv1.PromoteImageResponse{OperationId: id}), err
}
