package daemon

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/daemon/builder"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/operation"
	bangerv1 "banger/proto/banger/v1"
)

// imageService is the wire's ImageService. What makes images is in makeimage.go, prune in prune.go.
type imageService struct {
	parts   *parts
	lib     *library.Library
	kernels *library.Library
	blobs   *blob.Store
	builder *builder.Builder
	ops     *operation.Registry[string]
	// standard is the image of VMs that name none.
	standard string
}

// List implements the RPC.
func (s *imageService) List(ctx context.Context, _ *connect.Request[bangerv1.ListImagesRequest]) (*connect.Response[bangerv1.ListImagesResponse], error) {
	entries, err := s.lib.List(ctx)
	if err != nil {
		return nil, err
	}
	p := s.parts.daemon.cfg.Paths
	return connect.NewResponse(&bangerv1.ListImagesResponse{
		Images: convert(entries, s.proto), CacheBytes: library.Usage(p.Blobs()) + library.Usage(p.BuildCache()),
		UsedBytes: library.DiskUse(p.Images()),
	}), nil
}

// Get implements the RPC.
func (s *imageService) Get(ctx context.Context, req *connect.Request[bangerv1.GetImageRequest]) (*connect.Response[bangerv1.Image], error) {
	return s.show(ctx, req.Msg.GetRef())
}

func (s *imageService) show(ctx context.Context, ref string) (*connect.Response[bangerv1.Image], error) {
	e, err := s.lib.Show(ctx, ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(e)), nil
}

// Catalog implements the RPC.
func (s *imageService) Catalog(ctx context.Context, req *connect.Request[bangerv1.ImageCatalogRequest]) (*connect.Response[bangerv1.ImageCatalogResponse], error) {
	entries, warnings, err := catalogProto(ctx, s.lib, req.Msg.GetRefresh(), s.standard)
	return connect.NewResponse(&bangerv1.ImageCatalogResponse{Entries: entries, Warnings: warnings}), err
}

// Pull implements the RPC.
func (s *imageService) Pull(ctx context.Context, req *connect.Request[bangerv1.PullImageRequest]) (*connect.Response[bangerv1.PullImageResponse], error) {
	m := req.Msg
	arch, err := library.ParsePlatform(m.GetPlatform())
	if err != nil {
		return nil, err
	}
	id, err := s.lib.Pull(ctx, library.Request{
		Reference: orElse(m.GetReference(), s.standard), Name: m.GetName(), Arch: arch, Force: m.GetForce(), Keys: m.GetKeys(), SHA256: m.GetSha256(),
	})
	return connect.NewResponse(&bangerv1.PullImageResponse{OperationId: id}), err
}

// Tag implements the RPC.
func (s *imageService) Tag(ctx context.Context, req *connect.Request[bangerv1.TagImageRequest]) (*connect.Response[bangerv1.Image], error) {
	found, err := s.lib.Tag(ctx, req.Msg.GetRef(), req.Msg.GetName(), req.Msg.GetForce())
	if err != nil {
		return nil, err
	}
	return s.show(ctx, found.Name)
}

// Remove implements the RPC.
func (s *imageService) Remove(ctx context.Context, req *connect.Request[bangerv1.RemoveImageRequest]) (*connect.Response[bangerv1.RemoveImageResponse], error) {
	s.parts.vms.pool.release(ctx, s.lib, req.Msg.GetRef())
	gone, err := s.lib.Remove(ctx, req.Msg.GetRef())
	return connect.NewResponse(&bangerv1.RemoveImageResponse{Name: gone.Name, Digest: gone.Digest, FreedBytes: gone.Freed}), err
}

// proto is an image on the wire.
func (s *imageService) proto(e library.Entry) *bangerv1.Image {
	out := &bangerv1.Image{
		Name: e.Name, Names: e.Names, Digest: e.Digest, Source: e.Source, Origin: e.Origin, Arch: e.Arch, SizeBytes: e.Size,
		UsedBytes: e.Used, SharedBytes: e.Shared, CreatedAtMs: millis(e.Created), Kernel: e.Kernel, UsedBy: e.UsedBy,
		Unmanaged: e.Unmanaged, Problem: e.Problem, Config: configProto(e.Config),
	}
	if !e.Lost {
		out.Rootfs = rootfsOf(e.Artifact)
	}
	for _, l := range e.Layers {
		_, present := s.blobs.Stat(l.Digest)
		out.Layers = append(out.Layers, &bangerv1.ImageLayer{
			MediaType: l.MediaType, Digest: l.Digest, SizeBytes: uint64(max(l.Size, 0)), Present: present,
		})
	}
	return out
}

func configProto(c source.Config) *bangerv1.ImageConfig {
	return &bangerv1.ImageConfig{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User, Workdir: c.Workdir, Env: c.Env, ExposedPorts: c.ExposedPorts,
		Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell,
	}
}

// catalogProto is the catalog of a library on the wire.
func catalogProto(ctx context.Context, lib *library.Library, refresh bool, standard string) ([]*bangerv1.CatalogEntry, []string, error) {
	here, err := lib.Present(ctx)
	if err != nil {
		return nil, nil, err
	}
	items, warnings := lib.Source().Catalog(ctx, refresh)
	return convert(items, func(i Item) *bangerv1.CatalogEntry {
		return &bangerv1.CatalogEntry{
			Name: i.Name, Description: i.Description, Source: i.Source, Present: here[i.Name], IsDefault: i.Name == standard, Catalog: i.Catalog,
		}
	}), warnings, nil
}

// needPath returns a fault when what a client gave is not the absolute path that the wire asks for.
func needPath(what, path string) error {
	if path == "" {
		return fault.New(fault.Invalid, "the %s is not named", what)
	}
	if path[0] != '/' {
		return fault.New(fault.Invalid, "the %s %q is not an absolute path", what, path)
	}
	return nil
}

// orElse returns s, or fallback when s is empty.
func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
