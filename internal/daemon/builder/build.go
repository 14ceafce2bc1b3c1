package builder

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image/build"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
	"banger/internal/operation"
	"banger/internal/progress"
)

// builtSource is the source of images that were built here.
const builtSource = "build"

// Order is an image to be built: by a Dockerfile, or, with From, by one command or script.
type Order struct {
	Name  string // of the result; empty: none
	Claim *library.Claim

	Context    string
	Dockerfile string // empty: Dockerfile in Context
	Args       map[string]string
	Target     string
	NoCache    bool
	Pull       bool
	Platform   string

	From   string
	Script []byte
	Argv   []string

	Labels map[string]string
	Size   build.Size // of VMs
}

// Build builds an image and returns how it is called.
func (b *Builder) Build(ctx context.Context, o Order, report progress.Func, log operation.LogFunc) (ref string, err error) {
	defer b.cfg.Shelf.UseBlobs()()
	r := result{Name: o.Name, Source: builtSource}
	if o.From != "" {
		err = b.buildFrom(ctx, o, &r, report, log)
	} else {
		err = b.buildDockerfile(ctx, o, &r, report, log)
	}
	if err != nil {
		return "", err
	}
	if r.Arch == "" {
		r.Arch = runtime.GOARCH
	}
	return b.publish(ctx, r, o.Claim, report)
}

// buildDockerfile carries out a Dockerfile.
func (b *Builder) buildDockerfile(ctx context.Context, o Order, r *result, report progress.Func, log operation.LogFunc) (err error) {
	file := o.Dockerfile
	if file == "" {
		file = filepath.Join(o.Context, "Dockerfile")
	}
	plan, ignore, err := build.Load(o.Context, file, dockerfile.Options{BuildArgs: o.Args, Target: o.Target, Platform: o.Platform})
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(b.cfg.Paths.Staging(), "build-*")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(scratch); err == nil {
			err = removeErr
		}
	}()
	made, err := build.Build(ctx, build.Options{
		Plan: plan, Context: o.Context, Ignore: ignore, Labels: o.Labels, NoCache: o.NoCache, Size: o.Size,
		Host: &host{Builder: b, pull: o.Pull}, Blobs: b.cfg.Blobs, Cache: build.OpenCache(b.cfg.Paths.BuildCache()),
		Scratch: scratch, Limits: b.cfg.Limits, Log: eventLog(log), Progress: report,
	})
	if err != nil {
		return err
	}
	r.Origin, r.Config, r.Layers, r.Arch = file, made.Config, made.Layers, made.Arch
	return nil
}

// scriptFile is where a script lies in the VM while it runs: in memory, so that it is in no image.
const scriptFile = "/dev/shm/banger-build-script"

// buildFrom runs one command or script in an image.
func (b *Builder) buildFrom(ctx context.Context, o Order, r *result, report progress.Func, log operation.LogFunc) error {
	h := &host{Builder: b, pull: o.Pull}
	base, layers, err := h.base(ctx, o.From, o.Platform, report)
	if err != nil {
		return err
	}
	job := build.RunJob{
		Platform: base.Arch, Layers: layers, Argv: o.Argv, Env: base.Config.Env, User: "root", Size: o.Size,
	}
	title := strings.Join(o.Argv, " ")
	if len(o.Argv) == 0 {
		title = "script"
		job.Argv, job.Stdin = []string{"/bin/sh", "-c", scriptRunner(o.Script)}, bytes.NewReader(o.Script)
	}
	log(operation.Line{Step: 1, Kind: operation.LineBegin, Text: fmt.Sprintf("[1/1] %s in %s", title, base.Ref())})
	out := &lineWriter{step: 1, log: log}
	job.Stdout, job.Stderr = out, out
	began := time.Now()
	made, err := h.Run(ctx, job)
	out.flush()
	if err != nil {
		log(operation.Line{Step: 1, Kind: operation.LineError, Text: err.Error(), Took: time.Since(began)})
		return fault.Context(err, "%s", title)
	}
	log(operation.Line{Step: 1, Kind: operation.LineDone, Took: time.Since(began)})
	if made.Digest != "" {
		layers = append(layers[:len(layers):len(layers)], made)
	}
	r.Origin, r.Config, r.Layers, r.Arch, r.Kernel = "from "+base.Ref(), labelled(base.Config, o.Labels), layers, base.Arch, base.Kernel
	return nil
}

// scriptRunner puts stdin into a file and executes it: by its #! line, or by sh.
func scriptRunner(script []byte) string {
	run := "exec /bin/sh " + scriptFile
	if bytes.HasPrefix(script, []byte("#!")) {
		run = "chmod 700 " + scriptFile + " && exec " + scriptFile
	}
	return "umask 077 && cat >" + scriptFile + " && " + run + " </dev/null"
}

// labelled is a configuration with labels added.
func labelled(c source.Config, labels map[string]string) source.Config {
	if len(labels) == 0 {
		return c
	}
	all := map[string]string{}
	for name, value := range c.Labels {
		all[name] = value
	}
	for name, value := range labels {
		all[name] = value
	}
	c.Labels = all
	return c
}
