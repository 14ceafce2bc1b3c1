package cli

import (
	"context"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// fakeLibrary is the images and kernels of a fakeDaemon. Every job is done at once and has the result; what was asked is
// kept.
type fakeLibrary struct {
	images   []*bangerv1.Image
	kernels  []*bangerv1.Kernel
	catalog  []*bangerv1.CatalogEntry
	warnings []string
	cache    uint64
	used     uint64
	pruned   []*bangerv1.Pruned
	fault    *bangerv1.Fault // of every job
	result   string
	watch    func(send func(*bangerv1.Operation) error) error // what is seen of a job; nil: its end
	asked    []proto.Message
}

// begin is the beginning of a job.
func (f *fakeDaemon) begin(req proto.Message) string {
	f.library.asked = append(f.library.asked, proto.Clone(req))
	op := &bangerv1.Operation{Id: "op", Kind: "fake", State: opDone, ResultId: f.library.result}
	if f.library.fault != nil {
		op.State, op.Fault = opFailed, f.library.fault
	}
	f.ops = []*bangerv1.Operation{op}
	f.opStates = func(_ string, send func(*bangerv1.Operation) error) error {
		if f.library.watch != nil {
			return f.library.watch(send)
		}
		return send(op)
	}
	return "op"
}

func (s fakeImages) find(ref string) (*bangerv1.Image, error) {
	for _, m := range s.f.library.images {
		if m.GetName() == ref || m.GetDigest() == ref || slices.Contains(m.GetNames(), ref) {
			return m, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no image %q", ref).WithHint("banger image list")
}

func (s fakeImages) List(context.Context, *connect.Request[bangerv1.ListImagesRequest]) (*connect.Response[bangerv1.ListImagesResponse], error) {
	return connect.NewResponse(&bangerv1.ListImagesResponse{Images: s.f.library.images, CacheBytes: s.f.library.cache, UsedBytes: s.f.library.used}), nil
}

func (s fakeImages) Get(_ context.Context, req *connect.Request[bangerv1.GetImageRequest]) (*connect.Response[bangerv1.Image], error) {
	return answer(s.find(req.Msg.GetRef()))
}

func (s fakeImages) Catalog(_ context.Context, req *connect.Request[bangerv1.ImageCatalogRequest]) (*connect.Response[bangerv1.ImageCatalogResponse], error) {
	s.f.library.asked = append(s.f.library.asked, proto.Clone(req.Msg))
	return connect.NewResponse(&bangerv1.ImageCatalogResponse{Entries: s.f.library.catalog, Warnings: s.f.library.warnings}), nil
}

func (s fakeImages) Pull(_ context.Context, req *connect.Request[bangerv1.PullImageRequest]) (*connect.Response[bangerv1.PullImageResponse], error) {
	return connect.NewResponse(&bangerv1.PullImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Register(_ context.Context, req *connect.Request[bangerv1.RegisterImageRequest]) (*connect.Response[bangerv1.RegisterImageResponse], error) {
	return connect.NewResponse(&bangerv1.RegisterImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Promote(_ context.Context, req *connect.Request[bangerv1.PromoteImageRequest]) (*connect.Response[bangerv1.PromoteImageResponse], error) {
	return connect.NewResponse(&bangerv1.PromoteImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Build(_ context.Context, req *connect.Request[bangerv1.BuildImageRequest]) (*connect.Response[bangerv1.BuildImageResponse], error) {
	return connect.NewResponse(&bangerv1.BuildImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Export(_ context.Context, req *connect.Request[bangerv1.ExportImageRequest]) (*connect.Response[bangerv1.ExportImageResponse], error) {
	return connect.NewResponse(&bangerv1.ExportImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Push(_ context.Context, req *connect.Request[bangerv1.PushImageRequest]) (*connect.Response[bangerv1.PushImageResponse], error) {
	return connect.NewResponse(&bangerv1.PushImageResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeImages) Tag(_ context.Context, req *connect.Request[bangerv1.TagImageRequest]) (*connect.Response[bangerv1.Image], error) {
	s.f.library.asked = append(s.f.library.asked, proto.Clone(req.Msg))
	return connect.NewResponse(&bangerv1.Image{Name: req.Msg.GetName(), Digest: "sha256:00"}), nil
}

func (s fakeImages) Remove(_ context.Context, req *connect.Request[bangerv1.RemoveImageRequest]) (*connect.Response[bangerv1.RemoveImageResponse], error) {
	m, err := s.find(req.Msg.GetRef())
	if err == nil && len(m.GetUsedBy()) > 0 {
		err = fault.New(fault.Conflict, "image %s is used by vm %s", m.GetName(), m.GetUsedBy()[0]).WithHint("banger vm rm %s", m.GetUsedBy()[0])
	}
	return answer(&bangerv1.RemoveImageResponse{Name: m.GetName(), Digest: m.GetDigest(), FreedBytes: m.GetUsedBytes()}, err)
}

func (s fakeImages) Prune(_ context.Context, req *connect.Request[bangerv1.PruneImagesRequest]) (*connect.Response[bangerv1.PruneImagesResponse], error) {
	s.f.library.asked = append(s.f.library.asked, proto.Clone(req.Msg))
	out := &bangerv1.PruneImagesResponse{Pruned: s.f.library.pruned}
	for _, p := range out.GetPruned() {
		out.FreedBytes += p.GetBytes()
	}
	return connect.NewResponse(out), nil
}

func (s fakeKernels) List(context.Context, *connect.Request[bangerv1.ListKernelsRequest]) (*connect.Response[bangerv1.ListKernelsResponse], error) {
	return connect.NewResponse(&bangerv1.ListKernelsResponse{Kernels: s.f.library.kernels}), nil
}

func (s fakeKernels) find(ref string) (*bangerv1.Kernel, error) {
	for _, m := range s.f.library.kernels {
		if m.GetName() == ref || m.GetDigest() == ref {
			return m, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no kernel %q", ref).WithHint("banger kernel list")
}

func (s fakeKernels) Get(_ context.Context, req *connect.Request[bangerv1.GetKernelRequest]) (*connect.Response[bangerv1.Kernel], error) {
	return answer(s.find(req.Msg.GetRef()))
}

func (s fakeKernels) Catalog(context.Context, *connect.Request[bangerv1.KernelCatalogRequest]) (*connect.Response[bangerv1.KernelCatalogResponse], error) {
	return connect.NewResponse(&bangerv1.KernelCatalogResponse{Entries: s.f.library.catalog}), nil
}

func (s fakeKernels) Pull(_ context.Context, req *connect.Request[bangerv1.PullKernelRequest]) (*connect.Response[bangerv1.PullKernelResponse], error) {
	return connect.NewResponse(&bangerv1.PullKernelResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeKernels) Import(_ context.Context, req *connect.Request[bangerv1.ImportKernelRequest]) (*connect.Response[bangerv1.ImportKernelResponse], error) {
	return connect.NewResponse(&bangerv1.ImportKernelResponse{OperationId: s.f.begin(req.Msg)}), nil
}

func (s fakeKernels) Remove(_ context.Context, req *connect.Request[bangerv1.RemoveKernelRequest]) (*connect.Response[bangerv1.RemoveKernelResponse], error) {
	m, err := s.find(req.Msg.GetRef())
	return answer(&bangerv1.RemoveKernelResponse{Name: m.GetName(), Digest: m.GetDigest(), FreedBytes: m.GetUsedBytes()}, err)
}
