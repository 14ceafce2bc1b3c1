package library

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/store"
)

// Ensure returns what the reference stands for and pulls it if it is missing. It shares a pull that is under way.
func (l *Library) Ensure(ctx context.Context, req Request, report progress.Func) (Artifact, error) {
	a, here, err := l.local(ctx, req.Reference)
	if err != nil || here && !req.Force && a.suits(req.Arch) {
		return a, l.usable(a, err)
	}
	spec, job, err := l.job(ctx, req)
	if err != nil {
		return Artifact{}, err
	}
	name, pullErr := l.ops.Share(ctx, spec, report, job)
	if pullErr != nil && !fault.Is(pullErr, fault.Exists) {
		return Artifact{}, pullErr
	}
	if pullErr != nil { // somebody else has given the name meanwhile: to what was wanted, one hopes
		name = spec.Target
	}
	a, here, err = l.local(ctx, name)
	if err == nil && !here {
		err = pullErr
		if err == nil {
			err = fault.New(fault.Unavailable, "%s %s is not usable although it was pulled just now", l.kind, name)
		}
	}
	return a, l.usable(a, err)
}

// Usable returns a fault when something that is here cannot be used as it is.
func (l *Library) Usable(a Artifact) error { return l.usable(a, nil) }

// usable makes a fault of the problem of something that is here.
func (l *Library) usable(a Artifact, err error) error {
	if err != nil || a.Problem == "" {
		return err
	}
	return Unusable(l.kind, a)
}

// Unusable is the fault of an image or a kernel that cannot be used as it is.
func Unusable(kind store.Kind, a Artifact) error {
	f := fault.New(fault.Conflict, "%s %s: %s", kind, a.Ref(), a.Problem)
	if a.Unmanaged {
		return f.WithHint("banger image register --force %s --rootfs %s", a.Ref(), a.Rootfs)
	}
	return f.WithHint("banger %s pull --force %s", kind, a.Ref())
}

// suits reports whether it is for that machine; anything is for none in particular.
func (a Artifact) suits(arch string) bool { return arch == "" || a.Arch == "" || a.Arch == arch }

// exactly returns what has exactly that name, if it can be used.
func (l *Library) exactly(ctx context.Context, name string) (a Artifact, here bool, err error) {
	row, err := l.row(ctx, name)
	if err != nil || row.Digest == "" {
		return a, false, err
	}
	a = l.load(Found{row.Name, row.Digest})
	return a, !a.Lost, nil
}

// Pull begins the operation of a pull, whose result is the name.
func (l *Library) Pull(ctx context.Context, req Request) (id string, err error) {
	spec, job, err := l.job(ctx, req)
	if err != nil {
		return "", err
	}
	return l.ops.Begin(spec, job)
}

// job is a pull. The same request by two parties is one job.
func (l *Library) job(ctx context.Context, req Request) (operation.Spec, operation.Job[string], error) {
	if req.Name != "" {
		name, err := l.CheckName(req.Name)
		if err != nil {
			return operation.Spec{}, nil, err
		}
		req.Name = name
	}
	item, err := l.source.Find(ctx, req.Reference)
	if err != nil {
		return operation.Spec{}, nil, err
	}
	if req.Name == "" {
		req.Name = item.Name
	}
	spec := operation.Spec{
		Kind: string(l.kind) + ".pull", Target: req.Name,
		Key: fmt.Sprintf("%s/%s/%s/%s/%s/%v", l.kind, req.Name, req.Reference, req.Arch, req.SHA256, req.Force),
	}
	if len(req.Keys) > 0 { // whether two trust the same is not worth a thought
		spec.Key = ""
	}
	return spec, func(ctx context.Context, report progress.Func) (string, error) {
		return req.Name, l.pull(ctx, req, report)
	}, nil
}

// CheckName returns a name that somebody chose as it is kept.
func (l *Library) CheckName(name string) (string, error) {
	if _, digest := digestPrefix(name); digest && strings.HasPrefix(name, "sha256:") {
		return "", fault.New(fault.Invalid, "%q is a digest, not a name", name)
	}
	if l.source.CheckName == nil {
		return name, nil
	}
	return l.source.CheckName(name)
}

// pull makes the artifact and publishes it. Without force nothing is fetched when it is here.
func (l *Library) pull(ctx context.Context, req Request, report progress.Func) error {
	if a, here, err := l.exactly(ctx, req.Name); err != nil || here && !req.Force && a.suits(req.Arch) {
		return err
	}
	var claim *Claim
	if !req.Force {
		var err error
		if claim, err = l.Claim(ctx, req.Name); err != nil {
			return err
		}
	}
	defer l.shelf.UseBlobs()()
	staged, a, err := l.source.Pull(ctx, req, l.shelf.paths.Staging(), report)
	if err != nil {
		return err
	}
	err = l.Take(ctx, Publication{
		Name: req.Name, Staged: staged, Artifact: a, Before: claim, Happened: store.Happened{Verb: "added", Message: a.Source},
	})
	if err == nil { // that the stage is over is what nothing else says
		report.Report(progress.Update{Stage: string(l.kind), Message: req.Name + " is ready", Done: 1, Total: 1})
	}
	return err
}

// ParsePlatform reads what somebody asks for ("linux/arm64", "arm64/v8") and returns the architecture; empty for nothing.
func ParsePlatform(text string) (arch string, err error) {
	if text == "" {
		return "", nil
	}
	rest, hasOS := strings.CutPrefix(text, "linux/")
	arch, variant, _ := strings.Cut(rest, "/")
	known := arch == "amd64" || arch == "arm64" && (variant == "" || variant == "v8")
	if !known || arch == "amd64" && variant != "" || !hasOS && strings.Contains(rest, "/") && variant == "" {
		return "", fault.New(fault.Invalid, "platform %q is not one of linux/amd64 and linux/arm64", text).
			WithHint("banger image pull --platform linux/%s IMAGE", runtime.GOARCH)
	}
	return arch, nil
}
