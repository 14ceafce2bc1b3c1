package daemon

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/store"
	bangerv1 "banger/proto/banger/v1"
)

// kernelService is the wire's KernelService.
type kernelService struct {
	parts *parts
	lib   *library.Library
	ops   *operation.Registry[string]
}

// List implements the RPC.
func (s *kernelService) List(ctx context.Context, _ *connect.Request[bangerv1.ListKernelsRequest]) (*connect.Response[bangerv1.ListKernelsResponse], error) {
	entries, err := s.lib.List(ctx)
	return connect.NewResponse(&bangerv1.ListKernelsResponse{Kernels: convert(entries, kernelProto)}), err
}

// Get implements the RPC.
func (s *kernelService) Get(ctx context.Context, req *connect.Request[bangerv1.GetKernelRequest]) (*connect.Response[bangerv1.Kernel], error) {
	e, err := s.lib.Show(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(kernelProto(e)), nil
}

// Catalog implements the RPC.
func (s *kernelService) Catalog(ctx context.Context, _ *connect.Request[bangerv1.KernelCatalogRequest]) (*connect.Response[bangerv1.KernelCatalogResponse], error) {
	entries, _, err := catalogProto(ctx, s.lib, false, standardKernel(ctx, s.lib))
	return connect.NewResponse(&bangerv1.KernelCatalogResponse{Entries: entries}), err
}

// Pull implements the RPC.
func (s *kernelService) Pull(ctx context.Context, req *connect.Request[bangerv1.PullKernelRequest]) (*connect.Response[bangerv1.PullKernelResponse], error) {
	id, err := s.lib.Pull(ctx, library.Request{
		Reference: orElse(req.Msg.GetReference(), standardKernel(ctx, s.lib)), Force: req.Msg.GetForce(),
	})
	return connect.NewResponse(&bangerv1.PullKernelResponse{OperationId: id}), err
}

// Import implements the RPC.
func (s *kernelService) Import(ctx context.Context, req *connect.Request[bangerv1.ImportKernelRequest]) (*connect.Response[bangerv1.ImportKernelResponse], error) {
	m := req.Msg
	i := library.Import{Image: m.GetImage(), Modules: m.GetModules(), Config: m.GetConfig(), Force: m.GetForce()}
	if err := needPath("kernel", i.Image); err != nil {
		return nil, err
	}
	name, err := s.lib.CheckName(m.GetName())
	if err != nil {
		return nil, err
	}
	i.Name = name
	claim, err := s.lib.ClaimNew(ctx, name, i.Force)
	if err != nil {
		return nil, err
	}
	spec := operation.Spec{Kind: "kernel.import", Target: name}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return name, importKernel(ctx, s.parts, i, claim, report)
	})
	return connect.NewResponse(&bangerv1.ImportKernelResponse{OperationId: id}), err
}

// importKernel makes a kernel of the user's files and publishes it.
func importKernel(ctx context.Context, p *parts, i library.Import, claim *library.Claim, report progress.Func) error {
	staged, a, err := p.kernels.Source().Import(ctx, i, p.daemon.cfg.Paths.Staging(), report)
	if err != nil {
		return err
	}
	return p.kernels.Take(ctx, library.Publication{
		Name: i.Name, Staged: staged, Artifact: a, Before: claim, Happened: store.Happened{Verb: "imported", Message: i.Image},
	})
}

// Remove implements the RPC.
func (s *kernelService) Remove(ctx context.Context, req *connect.Request[bangerv1.RemoveKernelRequest]) (*connect.Response[bangerv1.RemoveKernelResponse], error) {
	if err := s.checkUnneeded(ctx, req.Msg.GetRef()); err != nil {
		return nil, err
	}
	s.parts.vms.pool.release(ctx, s.lib, req.Msg.GetRef())
	gone, err := s.lib.Remove(ctx, req.Msg.GetRef())
	return connect.NewResponse(&bangerv1.RemoveKernelResponse{Name: gone.Name, Digest: gone.Digest, FreedBytes: gone.Freed}), err
}

// checkUnneeded refuses the removal of a kernel that images name and that cannot be pulled again: VMs of those would not
// start any more.
func (s *kernelService) checkUnneeded(ctx context.Context, ref string) error {
	found, err := s.lib.Lookup(ctx, ref)
	if err != nil {
		return err
	}
	if _, err := s.lib.Source().Find(ctx, found.Ref()); !fault.Is(err, fault.NotFound) {
		return nil
	}
	images, err := s.parts.images.List(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range images {
		if e.Kernel != "" && (e.Kernel == found.Name || e.Kernel == found.Digest) {
			names = append(names, e.Ref())
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "kernel %s is the one of image %s", found.Ref(), strings.Join(names, ", ")).
		WithHint("banger image rm %s", strings.Join(names, " "))
}

// kernelProto is a kernel on the wire.
func kernelProto(e library.Entry) *bangerv1.Kernel {
	return &bangerv1.Kernel{
		Name: e.Name, Names: e.Names, Version: e.Version, Digest: e.Digest, Source: e.Source, UsedBytes: e.Used, SharedBytes: e.Shared,
		CreatedAtMs: millis(e.Created), Arch: e.Arch, UsedBy: e.UsedBy, Missing: e.Missing, Problem: e.Problem, Package: e.Package,
	}
}

// standardKernel is the kernel of images that name none: the first of the catalog, or "".
func standardKernel(ctx context.Context, lib *library.Library) string {
	if items, _ := lib.Source().Catalog(ctx, false); len(items) > 0 {
		return items[0].Name
	}
	return ""
}
