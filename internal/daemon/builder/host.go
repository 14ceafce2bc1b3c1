package builder

import (
	"context"
	"runtime"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image/build"
	"banger/internal/image/source"
	"banger/internal/operation"
	"banger/internal/progress"
)

// host is the build.Host of one build.
type host struct {
	*Builder
	pull bool // look for newer base images
}

// Base implements build.Host.
func (h *host) Base(ctx context.Context, ref, platform string, report progress.Func) (build.Base, error) {
	a, layers, err := h.base(ctx, ref, platform, report)
	return build.Base{Config: a.Config, Layers: layers, Arch: a.Arch}, err
}

func (h *host) base(ctx context.Context, ref, platform string, report progress.Func) (library.Artifact, []source.Layer, error) {
	arch, err := library.ParsePlatform(platform)
	if err != nil {
		return library.Artifact{}, nil, err
	}
	force := h.pull
	if have, here, err := h.cfg.Images.Local(ctx, ref); err != nil || here && (have.Source == builtSource || have.Unmanaged) {
		if err != nil {
			return have, nil, err
		}
		force = false // made here: there is no newer one anywhere
	}
	a, err := h.cfg.Images.Ensure(ctx, library.Request{Reference: ref, Arch: arch, Force: force}, report)
	if err != nil {
		return a, nil, err
	}
	layers, err := h.layers(ctx, a, report)
	return a, layers, err
}

// Run implements build.Host.
func (h *host) Run(ctx context.Context, job build.RunJob) (source.Layer, error) {
	arch, err := library.ParsePlatform(job.Platform)
	if err != nil {
		return source.Layer{}, err
	}
	if arch != "" && arch != runtime.GOARCH {
		return source.Layer{}, fault.New(fault.Invalid, "a command for linux/%s cannot run on this host, which is linux/%s", arch, runtime.GOARCH).
			WithHint("banger image build --platform linux/%s .", runtime.GOARCH)
	}
	return h.run(ctx, command{
		Layers: job.Layers, Argv: job.Argv, Env: job.Env, User: job.User, Workdir: job.Workdir, Stdin: job.Stdin, Stdout: job.Stdout,
		Stderr: job.Stderr, CPUs: job.CPUs, Memory: job.Memory, Disk: job.Disk,
	}, func(code int) error { return &build.ExitError{Code: code} })
}

// eventLog passes the events of a build on to the log of its operation.
type eventLog operation.LogFunc

// Event implements build.Log.
func (l eventLog) Event(e build.Event) {
	l(operation.Line{Step: e.Step, Kind: e.Kind, Text: e.Text, Took: e.Duration})
}
