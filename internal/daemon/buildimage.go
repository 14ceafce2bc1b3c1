package daemon

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/daemon/builder"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image/build"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// Build implements the RPC.
func (s *imageService) Build(ctx context.Context, req *connect.Request[bangerv1.BuildImageRequest]) (*connect.Response[bangerv1.BuildImageResponse], error) {
	o, err := s.order(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	target := o.Name
	if target == "" {
		target = orElse(o.From, o.Context)
	}
	spec := operation.Spec{Kind: "image.build", Target: target}
	id, err := s.ops.BeginLogged(spec, func(ctx context.Context, report progress.Func, log operation.LogFunc) (string, error) {
		return s.builder.Build(ctx, o, report, log)
	})
	return connect.NewResponse(&bangerv1.BuildImageResponse{OperationId: id}), err
}

// order reads and checks a request, as far as that takes no time.
func (s *imageService) order(ctx context.Context, m *bangerv1.BuildImageRequest) (o builder.Order, err error) {
	o = builder.Order{
		Context: m.GetContextDir(), Dockerfile: m.GetDockerfile(), Target: m.GetTarget(), NoCache: m.GetNoCache(), Pull: m.GetPull(),
		Platform: m.GetPlatform(), From: m.GetFrom(), Script: m.GetScript(), Argv: m.GetArgv(),
	}
	if o.Size, err = s.buildSize(m); err != nil {
		return o, err
	}
	if o.Args, err = pairs("build argument", m.GetBuildArgs()); err != nil {
		return o, err
	}
	if o.Labels, err = pairs("label", m.GetLabels()); err != nil {
		return o, err
	}
	if _, err := library.ParsePlatform(o.Platform); err != nil {
		return o, err
	}
	if err := checkOrder(o); err != nil {
		return o, err
	}
	if m.GetName() == "" {
		return o, nil
	}
	if o.Name, err = s.lib.CheckName(m.GetName()); err != nil {
		return o, err
	}
	o.Claim, err = s.lib.Claim(ctx, o.Name)
	return o, err
}

// checkOrder tells the two kinds of builds apart.
func checkOrder(o builder.Order) error {
	if o.From == "" {
		if len(o.Script) > 0 || len(o.Argv) > 0 {
			return fault.New(fault.Invalid, "a script or a command needs an image to run in").WithHint("banger image build --from IMAGE")
		}
		if o.Dockerfile != "" {
			if err := needPath("Dockerfile", o.Dockerfile); err != nil {
				return err
			}
		}
		return needPath("build context", o.Context)
	}
	switch {
	case o.Context != "" || o.Dockerfile != "":
		return fault.New(fault.Invalid, "a build from an image has no context and no Dockerfile")
	case (len(o.Script) > 0) == (len(o.Argv) > 0):
		return fault.New(fault.Invalid, "a build from image %s needs a script or a command, one of them", o.From).
			WithHint("banger image build --from %s --script FILE", o.From)
	}
	return nil
}

// buildSize is the size of the VMs of a build, checked as that of any VM.
func (s *imageService) buildSize(m *bangerv1.BuildImageRequest) (build.Size, error) {
	size := build.Size{CPUs: int(min(m.GetCpus(), 1<<20)), Memory: m.GetMemoryBytes(), Disk: m.GetDiskBytes()}
	check := vm.Spec{CPUs: max(size.CPUs, 1), Memory: size.Memory, Disk: size.Disk}
	if check.Memory == 0 {
		check.Memory = vm.MinMemory
	}
	if check.Disk == 0 {
		check.Disk = vm.MinDisk
	}
	if err := check.Validate(); err != nil {
		return size, err
	}
	d := s.parts.daemon.cfg.Drivers[s.parts.daemon.cfg.Settings.VMM.Driver]
	if most := d.Features().MaxCPUs; most > 0 && size.CPUs > most {
		return size, fault.New(fault.Invalid, "%d cpus are more than the %d that %s allows", size.CPUs, most, d.Name()).
			WithHint("banger image build --cpus %d .", most)
	}
	return size, nil
}

// pairs reads a list of NAME=VALUE.
func pairs(what string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, fault.New(fault.Invalid, "%s %q is not NAME=VALUE", what, text)
		}
		out[name] = value
	}
	return out, nil
}

// Export implements the RPC.
func (s *imageService) Export(ctx context.Context, req *connect.Request[bangerv1.ExportImageRequest]) (*connect.Response[bangerv1.ExportImageResponse], error) {
	a, err := s.usable(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	e := builder.Export{Image: a, Path: req.Msg.GetPath(), Format: req.Msg.GetFormat(), Kernel: req.Msg.GetKernel()}
	if err := needPath("file or directory to write", e.Path); err != nil {
		return nil, err
	}
	if err := builder.CheckExport(e); err != nil {
		return nil, err
	}
	spec := operation.Spec{Kind: "image.export", Target: a.Ref()}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return e.Path, s.builder.Export(ctx, e, report)
	})
	return connect.NewResponse(&bangerv1.ExportImageResponse{OperationId: id}), err
}

// Push implements the RPC.
func (s *imageService) Push(ctx context.Context, req *connect.Request[bangerv1.PushImageRequest]) (*connect.Response[bangerv1.PushImageResponse], error) {
	a, err := s.usable(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	e, err := s.lib.Show(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	target := orElse(req.Msg.GetTarget(), a.Name)
	if target == "" {
		return nil, fault.New(fault.Invalid, "image %s has no name to be pushed under", a.Ref()).
			WithHint("banger image push %s REGISTRY/NAME:TAG", a.Ref())
	}
	spec := operation.Spec{Kind: "image.push", Target: target}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return s.builder.Push(ctx, a, e.Names, target, report)
	})
	return connect.NewResponse(&bangerv1.PushImageResponse{OperationId: id}), err
}

// usable returns an image that is here and can be used.
func (s *imageService) usable(ctx context.Context, ref string) (Artifact, error) {
	a, err := s.lib.Get(ctx, ref)
	if err != nil {
		return a, err
	}
	return a, s.lib.Usable(a)
}
