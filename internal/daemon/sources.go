package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"banger/internal/config"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image"
	"banger/internal/image/blob"
	"banger/internal/kernel"
	"banger/internal/kernel/initramfs"
	"banger/internal/paths"
	"banger/internal/progress"
)

// What images and kernels are made of; see package library.
type (
	Source   = library.Source
	Item     = library.Item
	Artifact = library.Artifact
)

// Images is where images come from: the catalogs, registries, files.
func Images(p paths.Paths, settings config.Config) Source {
	o := &imageSource{
		images: p.Images(),
		mirror: settings.Mirror.Debian,
		index:  image.Index{Catalogs: settings.Catalogs, Dir: p.Catalogs()},
		options: image.SourceOptions{
			Blobs: blob.Open(p.Blobs()), Keys: settings.Trust.Keys, Insecure: settings.Registry.Insecure,
			Limits: image.Limits{
				Size: settings.Limits.ImageSize, Entries: settings.Limits.ImageEntries, Download: settings.Limits.DownloadSize,
			},
		},
	}
	return Source{
		Catalog: o.catalog, Find: o.find, Pull: o.pull, Load: loadImage, Discard: image.RemoveStaged,
		Names: image.LocalNames, CheckName: image.ParseName, Register: o.register, Brought: broughtKernel,
	}
}

// imageSource is the Source of images. Its fields are fixed.
type imageSource struct {
	images  string // directory of those that are here
	mirror  string
	index   image.Index
	options image.SourceOptions
}

func imageItem(e image.Entry) Item {
	i := Item{Name: e.Name, Description: e.Description, Kernel: e.Kernel, Catalog: e.Catalog}
	if len(e.Sources) > 0 {
		i.Source = e.Sources[0].String()
	}
	return i
}

func (o *imageSource) catalog(ctx context.Context, refresh bool) ([]Item, []string) {
	entries, warnings := o.index.Catalog(ctx, refresh)
	return convert(entries, imageItem), warnings
}

func (o *imageSource) find(ctx context.Context, ref string) (Item, error) {
	e, _, err := o.index.Resolve(ctx, ref)
	return imageItem(e), err
}

func (o *imageSource) pull(ctx context.Context, req library.Request, staging string, report progress.Func) (string, Artifact, error) {
	e, _, err := o.index.Resolve(ctx, req.Reference)
	if err != nil {
		return "", Artifact{}, err
	}
	sources, err := image.Sources(o.options)
	if err != nil {
		return "", Artifact{}, err
	}
	if req.Name != "" {
		e.Name = req.Name
	}
	opt := image.PullOptions{
		Staging: staging, Arch: req.Arch, Mirror: o.mirror, Progress: report, Keys: req.Keys, SHA256: req.SHA256, Sources: sources,
	}
	if !req.Force { // who forces a pull may want to be rid of files that are damaged
		opt.Images = o.images
	}
	dir, m, err := image.Pull(ctx, e, opt)
	return dir, imageArtifact(m, dir), err
}

func (o *imageSource) register(ctx context.Context, r library.Registration, staging string, _ progress.Func) (string, Artifact, error) {
	dir, m, err := image.Register(ctx, image.Registration{
		Staging: staging, Name: r.Name, Rootfs: r.Rootfs, Kernel: r.Kernel, Config: r.Config, Limits: o.options.Limits,
	})
	return dir, imageArtifact(m, dir), err
}

func loadImage(dir string) (Artifact, error) {
	m, err := image.Load(dir)
	return imageArtifact(m, dir), err
}

func imageArtifact(m image.Manifest, dir string) Artifact {
	a := Artifact{
		Name: m.Name, Digest: m.Digest, Source: m.Source, Origin: m.Origin, Arch: m.Arch, Created: m.Created, Size: m.Size,
		Kernel: m.Kernel, Config: m.Config, Layers: m.Layers, Rootfs: m.Rootfs(dir), Unmanaged: m.External != nil,
	}
	if err := m.CheckExternal(); err != nil {
		a.Problem = strings.TrimPrefix(err.Error(), "image "+m.Name+": ")
	}
	return a
}

// broughtKernel finds the kernel that a bundle brought.
func broughtKernel(staged string) (dir string, a Artifact, ok bool, err error) {
	dir, ok = image.StagedKernel(staged)
	if !ok {
		return "", a, false, nil
	}
	m, err := kernel.Load(dir)
	return dir, kernelArtifact(m), err == nil, err
}

// Kernels is the kernel catalog, and the files of the user's.
func Kernels(_ paths.Paths, settings config.Config) Source {
	mirror := settings.Mirror.Debian
	item := func(e kernel.Entry) Item {
		return Item{Name: e.Name, Description: e.Description, Source: e.Origin()}
	}
	return Source{
		Catalog: func(context.Context, bool) ([]Item, []string) { return convert(kernel.Catalog(), item), nil },
		Find: func(_ context.Context, ref string) (Item, error) {
			e, err := kernel.Find(ref)
			return item(e), err
		},
		Pull: func(ctx context.Context, req library.Request, staging string, report progress.Func) (string, Artifact, error) {
			e, err := kernel.Find(req.Reference)
			if err != nil {
				return "", Artifact{}, err
			}
			dir, m, err := kernel.Pull(ctx, e, kernel.PullOptions{Staging: staging, Mirror: mirror, Progress: report})
			return dir, kernelArtifact(m), err
		},
		Load: func(dir string) (Artifact, error) {
			m, err := kernel.Load(dir)
			return kernelArtifact(m), err
		},
		Discard:   func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
		CheckName: checkKernelName,
		Import: func(ctx context.Context, i library.Import, staging string, report progress.Func) (string, Artifact, error) {
			dir, m, err := kernel.Import(ctx, kernel.ImportOptions{
				Name: i.Name, Image: i.Image, Modules: i.Modules, Config: i.Config, Initrd: i.Initrd, Staging: staging, Force: i.Force,
				Progress: report,
			})
			return dir, kernelArtifact(m), err
		},
	}
}

// checkKernelName accepts what can be the name of a kernel in a bundle, on a command line and in a file name.
func checkKernelName(name string) (string, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`).MatchString(name) {
		return "", fault.New(fault.Invalid, "%q cannot be the name of a kernel: letters, digits and . _ + - can", name).
			WithHint("banger kernel list")
	}
	return name, nil
}

func kernelArtifact(m kernel.Manifest) Artifact {
	a := Artifact{
		Name: m.Name, Digest: m.Digest, Source: m.Source, Origin: m.Origin, Arch: m.Arch, Created: m.Created,
		Version: m.Version, Package: m.Package, Missing: m.Lacks(), Initrd: m.Initrd,
	}
	if m.PackageVersion != "" {
		a.Package = fmt.Sprintf("%s %s", m.Package, m.PackageVersion)
	}
	return a
}

// Initramfs returns the Config.Initramfs for the agent that the given function returns.
func Initramfs(agent func() ([]byte, error)) func(cacheDir, kernelDir string) (string, error) {
	return func(cacheDir, kernelDir string) (string, error) {
		binary, err := agent()
		if err != nil {
			return "", err
		}
		m, err := kernel.Load(kernelDir)
		if err != nil {
			return "", err
		}
		return initramfs.Ensure(cacheDir, kernelDir, m, binary)
	}
}

// rootfsOf is the root file system of an image. That of a test's image is where it always is.
func rootfsOf(a Artifact) string { return orElse(a.Rootfs, filepath.Join(a.Dir, image.RootfsFile)) }

func convert[A, B any](all []A, f func(A) B) []B {
	out := make([]B, len(all))
	for i, a := range all {
		out[i] = f(a)
	}
	return out
}
