package daemon

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/store"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// imageService is the wire's ImageService.
type imageService struct {
	bangerv1connect.UnimplementedImageServiceHandler // TODO(daemon): goes when every call is there
	lib                                              *library
	store                                            *store.Store
	standard                                         string // the image of VMs that name none
}

// List implements the RPC.
func (s *imageService) List(ctx context.Context, _ *connect.Request[bangerv1.ListImagesRequest]) (*connect.Response[bangerv1.ListImagesResponse], error) {
	vms, err := s.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, v := range vms {
		users[v.ImageDigest] = append(users[v.ImageDigest], string(v.Name()))
	}
	out := &bangerv1.ListImagesResponse{}
	err = s.lib.each(ctx, func(a Artifact, used uint64) {
		out.Images = append(out.Images, &bangerv1.Image{
			Name: a.Name, Digest: a.Digest, Source: a.Source, SizeBytes: a.Size, UsedBytes: used,
			CreatedAtMs: millis(a.Created), Kernel: a.Kernel, UsedBy: users[a.Digest],
		})
	})
	return connect.NewResponse(out), err
}

// Catalog implements the RPC.
func (s *imageService) Catalog(ctx context.Context, _ *connect.Request[bangerv1.ImageCatalogRequest]) (*connect.Response[bangerv1.ImageCatalogResponse], error) {
	entries, err := s.lib.catalog(ctx, s.standard)
	return connect.NewResponse(&bangerv1.ImageCatalogResponse{Entries: entries}), err
}

// Pull implements the RPC.
func (s *imageService) Pull(_ context.Context, req *connect.Request[bangerv1.PullImageRequest]) (*connect.Response[bangerv1.PullImageResponse], error) {
	id, err := s.lib.begin(orElse(req.Msg.GetReference(), s.standard), req.Msg.GetForce())
	return connect.NewResponse(&bangerv1.PullImageResponse{OperationId: id}), err
}

// kernelService is the wire's KernelService.
type kernelService struct {
	bangerv1connect.UnimplementedKernelServiceHandler // TODO(daemon): goes when every call is there
	lib                                               *library
}

// List implements the RPC.
func (s *kernelService) List(ctx context.Context, _ *connect.Request[bangerv1.ListKernelsRequest]) (*connect.Response[bangerv1.ListKernelsResponse], error) {
	out := &bangerv1.ListKernelsResponse{}
	err := s.lib.each(ctx, func(a Artifact, used uint64) {
		out.Kernels = append(out.Kernels, &bangerv1.Kernel{
			Name: a.Name, Version: a.Version, Digest: a.Digest, Source: a.Source, UsedBytes: used, CreatedAtMs: millis(a.Created),
		})
	})
	return connect.NewResponse(out), err
}

// Catalog implements the RPC.
func (s *kernelService) Catalog(ctx context.Context, _ *connect.Request[bangerv1.KernelCatalogRequest]) (*connect.Response[bangerv1.KernelCatalogResponse], error) {
	entries, err := s.lib.catalog(ctx, s.lib.standard())
	return connect.NewResponse(&bangerv1.KernelCatalogResponse{Entries: entries}), err
}

// Pull implements the RPC.
func (s *kernelService) Pull(_ context.Context, req *connect.Request[bangerv1.PullKernelRequest]) (*connect.Response[bangerv1.PullKernelResponse], error) {
	id, err := s.lib.begin(orElse(req.Msg.GetReference(), s.lib.standard()), req.Msg.GetForce())
	return connect.NewResponse(&bangerv1.PullKernelResponse{OperationId: id}), err
}

// standard is the first item of the catalog, or "".
func (l *library) standard() string {
	if items := l.source.Catalog(); len(items) > 0 {
		return items[0].Name
	}
	return ""
}

// catalog is the library's catalog for the wire.
func (l *library) catalog(ctx context.Context, standard string) ([]*bangerv1.CatalogEntry, error) {
	here, err := l.present(ctx)
	if err != nil {
		return nil, err
	}
	return convert(l.source.Catalog(), func(i Item) *bangerv1.CatalogEntry {
		return &bangerv1.CatalogEntry{
			Name: i.Name, Description: i.Description, Source: i.Source, Present: here[i.Name], IsDefault: i.Name == standard,
		}
	}), nil
}

// orElse returns s, or fallback when s is empty.
func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
