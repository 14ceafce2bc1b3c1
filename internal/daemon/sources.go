package daemon

import (
	"context"
	"os"
	"time"

	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/kernel/initramfs"
	"banger/internal/progress"
)

// Source is where images or kernels come from. The composition root passes Images and Kernels; tests pass their own.
type Source struct {
	// Catalog lists what can be pulled, the default first.
	Catalog func() []Item
	// Find returns the item of that name or a fault of class NotFound.
	Find func(name string) (Item, error)
	// Pull makes a directory below staging and says what is in it. On failure nothing is left there.
	Pull func(ctx context.Context, name, staging string, report progress.Func) (dir string, a Artifact, err error)
	// Load says what is in a directory that Pull has made.
	Load func(dir string) (Artifact, error)
	// Discard removes what Pull has made or left in staging.
	Discard func(ctx context.Context, dir string) error
}

// Item is something that can be pulled.
type Item struct {
	Name        string
	Description string
	Source      string
	Kernel      string // of an image: the kernel of VMs that name none
}

// Artifact is an image or a kernel on this host.
type Artifact struct {
	Name    string // of the item it was pulled as
	Digest  string // sha256:...
	Source  string // where it came from, for people
	Created time.Time
	Size    uint64 // virtual, of an image

	Version string // of a kernel: the release, as uname -r prints it

	Kernel  string   // of an image: the kernel of VMs that name none
	User    string   // of an image: the user of commands that name none
	Workdir string   // of an image
	Env     []string // of an image
}

// Images is the image catalog. mirror is the archive to use instead of the host's own choice; it may be empty.
func Images(mirror string) Source {
	item := func(e image.Entry) Item {
		i := Item{Name: e.Name, Description: e.Description, Kernel: e.Kernel}
		if len(e.Sources) > 0 {
			i.Source = e.Sources[0].String()
		}
		return i
	}
	return Source{
		Catalog: func() []Item { return convert(image.Catalog(), item) },
		Find: func(name string) (Item, error) {
			e, err := image.Find(name)
			return item(e), err
		},
		Pull: func(ctx context.Context, name, staging string, report progress.Func) (string, Artifact, error) {
			e, err := image.Find(name)
			if err != nil {
				return "", Artifact{}, err
			}
			dir, m, err := image.Pull(ctx, e, image.PullOptions{Staging: staging, Mirror: mirror, Progress: report})
			return dir, imageArtifact(m), err
		},
		Load: func(dir string) (Artifact, error) {
			m, err := image.Load(dir)
			return imageArtifact(m), err
		},
		Discard: image.RemoveStaged,
	}
}

func imageArtifact(m image.Manifest) Artifact {
	return Artifact{
		Name: m.Name, Digest: m.Digest, Source: m.Source, Created: m.Created, Size: m.Size, Kernel: m.Kernel,
		User: m.Config.User, Workdir: m.Config.Workdir, Env: m.Config.Env,
	}
}

// Kernels is the kernel catalog. mirror is as for Images.
func Kernels(mirror string) Source {
	item := func(e kernel.Entry) Item {
		return Item{Name: e.Name, Description: e.Description, Source: "debian:" + e.Codename}
	}
	return Source{
		Catalog: func() []Item { return convert(kernel.Catalog(), item) },
		Find: func(name string) (Item, error) {
			e, err := kernel.Find(name)
			return item(e), err
		},
		Pull: func(ctx context.Context, name, staging string, report progress.Func) (string, Artifact, error) {
			e, err := kernel.Find(name)
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
		Discard: func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
	}
}

func kernelArtifact(m kernel.Manifest) Artifact {
	return Artifact{Name: m.Name, Digest: m.Digest, Source: m.Source, Created: m.Created, Version: m.Version}
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

func convert[A, B any](all []A, f func(A) B) []B {
	out := make([]B, len(all))
	for i, a := range all {
		out[i] = f(a)
	}
	return out
}
