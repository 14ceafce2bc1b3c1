package builder

import (
	"context"
	"io"
	"os"
	"slices"

	"banger/internal/agentwire"
	"banger/internal/daemon/library"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// command is one command that runs in a VM of its own.
type command struct {
	Layers         []source.Layer // the root file system, lowest first
	Argv           []string
	Env            []string
	User, Workdir  string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	CPUs           int
	Memory, Disk   uint64
}

// run boots a VM whose root is the command's layers, runs the command in it and returns what it has changed as a layer in
// the blob store. A command that exits with something else than 0 is a fault by which code says so.
func (b *Builder) run(ctx context.Context, c command, exit func(code int) error) (source.Layer, error) {
	m := Machine{Purpose: vm.PurposeBuild, CPUs: c.CPUs, Memory: c.Memory, Disk: c.Disk}
	var err error
	if m.Kernel, err = b.kernel(ctx, "", nil); err != nil {
		return source.Layer{}, err
	}
	var same bool
	if m.Image, same, err = b.madeOf(ctx, c.Layers); err != nil {
		return source.Layer{}, err
	}
	if !same {
		m.Root = func(ctx context.Context, path string) error { return b.rootfs(ctx, c.Layers, path) }
	}
	socket, end, err := b.cfg.Machines.Boot(ctx, m)
	if err != nil {
		return source.Layer{}, err
	}
	defer end()
	code, err := exec(ctx, socket, vmclient.Exec{
		Start: &bangerv1.ExecStart{
			Argv: c.Argv, Env: c.Env, User: c.User, Workdir: c.Workdir, Stdin: c.Stdin != nil,
		},
		Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
	})
	if err != nil {
		return source.Layer{}, err
	}
	if code != 0 {
		return source.Layer{}, exit(code)
	}
	return b.tool(ctx, socket, agentwire.ToolChanges, nil)
}

// rootfs makes the root file system of layers at path. It lives as long as its VM.
func (b *Builder) rootfs(ctx context.Context, layers []source.Layer, path string) (err error) {
	scratch, err := os.MkdirTemp(b.cfg.Paths.Staging(), "layers-*")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(scratch); err == nil {
			err = removeErr
		}
	}()
	stream := b.flatten(ctx, layers, scratch)
	_, err = ext4.FromTar(ctx, stream, path, ext4.Options{Label: "banger-build", Identity: identity(layers), Temporary: true})
	if closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	return fault.Context(err, "root file system of the step")
}

// identity of a root file system: it has no configuration.
func identity(layers []source.Layer) string { return source.Identity("", digests(layers)) }

func digests(layers []source.Layer) []string {
	out := make([]string, len(layers))
	for i, l := range layers {
		out[i] = l.Digest
	}
	return out
}

// madeOf finds an image that is made of exactly these layers: its root file system need not be made again.
func (b *Builder) madeOf(ctx context.Context, layers []source.Layer) (_ library.Artifact, ok bool, err error) {
	all, err := b.cfg.Images.List(ctx)
	if err != nil {
		return library.Artifact{}, false, err
	}
	want := digests(layers)
	for _, e := range all {
		if e.Problem == "" && len(e.Layers) > 0 && slices.Equal(digests(e.Layers), want) {
			return e.Artifact, true, nil
		}
	}
	return library.Artifact{}, false, nil
}
