package builder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image"
	"banger/internal/image/source"
	"banger/internal/progress"
	"banger/internal/store"
)

// result is an image whose layers are in the blob store.
type result struct {
	Name   string // empty: it gets none
	Source string // "build:Dockerfile", for people
	Origin string
	Arch   string
	Kernel string
	Config source.Config
	Layers []source.Layer
}

// publish makes an image of layers and publishes it. It returns how it is called.
func (b *Builder) publish(ctx context.Context, r result, claim *library.Claim, report progress.Func) (ref string, err error) {
	report.Report(progress.Update{Stage: stage, Message: "making the image"})
	staged, m, err := b.stage(ctx, r)
	if err != nil {
		return "", err
	}
	err = b.cfg.Images.Take(ctx, library.Publication{
		Name: r.Name, Staged: staged, Artifact: library.Artifact{Name: r.Name, Digest: m.Digest}, Before: claim,
		Happened: store.Happened{Verb: "built", Message: r.Source},
	})
	if err != nil {
		return "", err
	}
	report.Report(progress.Update{Stage: stage, Message: "the image is ready", Done: 1, Total: 1})
	return library.Found{Name: r.Name, Digest: m.Digest}.Ref(), nil
}

// stage makes the directory of an image. When only its configuration is new, its root file system is that of the other
// image, by a hard link.
func (b *Builder) stage(ctx context.Context, r result) (dir string, _ image.Manifest, err error) {
	begin := image.Manifest{Name: r.Name, Source: r.Source, Arch: r.Arch, Kernel: r.Kernel}
	twin, ok, err := b.madeOf(ctx, r.Layers)
	if err != nil {
		return "", begin, err
	}
	if ok && !twin.Unmanaged {
		dir, m, err := b.link(twin, begin, r)
		if err == nil || !errors.Is(err, errGone) {
			return dir, m, err
		}
	}
	scratch, err := os.MkdirTemp(b.cfg.Paths.Staging(), "layers-*")
	if err != nil {
		return "", begin, err
	}
	defer func() {
		if removeErr := os.RemoveAll(scratch); err == nil {
			err = removeErr
		}
	}()
	return image.FromLayers(ctx, b.cfg.Paths.Staging(), begin, source.Tree{
		Tar: b.flatten(ctx, r.Layers, scratch), Origin: r.Origin, Config: r.Config, Arch: r.Arch, Layers: r.Layers,
	})
}

// errGone says that the image whose root file system was to be shared was removed meanwhile.
var errGone = errors.New("the image to share with is gone")

// link makes the directory of an image that has another one's root file system.
func (b *Builder) link(twin library.Artifact, m image.Manifest, r result) (dir string, _ image.Manifest, err error) {
	old, err := image.Load(twin.Dir)
	if err != nil {
		return "", m, errGone
	}
	dir, err = os.MkdirTemp(b.cfg.Paths.Staging(), "image-*")
	if err != nil {
		return "", m, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Link(image.Rootfs(twin.Dir), image.Rootfs(dir)); err != nil {
		return "", m, errors.Join(errGone, err)
	}
	m.Layout, m.Created = image.Layout, time.Now().UTC().Truncate(time.Second)
	m.Size, m.Used, m.Tar, m.Entries = old.Size, old.Used, old.Tar, old.Entries
	m.Origin, m.Config, m.Layers = r.Origin, r.Config, r.Layers
	m.Digest = image.Identity(r.Config, r.Arch, r.Layers)
	if err := atomicfile.WriteJSON(filepath.Join(dir, image.ManifestFile), m); err != nil {
		return "", m, fault.Wrap(fault.Internal, err, "write the manifest")
	}
	return dir, m, nil
}
