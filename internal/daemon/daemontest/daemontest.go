// Package daemontest has what a daemon needs in a test: images and kernels that are a few bytes and come from nowhere.
package daemontest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/daemon"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/progress"
)

// Catalog is a fake daemon.Source.
type Catalog struct {
	Kind  string   // "image" or "kernel", for messages and digests
	Names []string // what can be pulled, the default first
	Files []string // that a pull makes, beside its record
	// Missing is what each of them lacks.
	Missing []string
	// During runs in the middle of each pull, when the staged directory is there. May be nil.
	During func(ctx context.Context, name string) error
	// Pulls counts what was begun to be made. Each gets another digest.
	Pulls atomic.Int32
}

// Images returns a catalog of images that have what package image promises.
func Images(names ...string) *Catalog {
	return &Catalog{Kind: "image", Names: names, Files: []string{image.RootfsFile}}
}

// Kernels returns a catalog of kernels that have what package kernel promises.
func Kernels(names ...string) *Catalog {
	return &Catalog{Kind: "kernel", Names: names, Files: []string{kernel.ImageFile, kernel.ModulesFile}}
}

const record = "fake.json"

// Source returns the catalog as a daemon takes it.
func (c *Catalog) Source() daemon.Source {
	return daemon.Source{
		Catalog: func(context.Context, bool) ([]daemon.Item, []string) {
			items := make([]daemon.Item, len(c.Names))
			for i, name := range c.Names {
				items[i] = daemon.Item{Name: name, Description: "a fake " + c.Kind, Source: "fake:" + name}
			}
			return items, nil
		},
		Find: func(_ context.Context, ref string) (daemon.Item, error) { return c.find(ref) },
		Pull: c.pull,
		Load: load,
		Import: func(ctx context.Context, i library.Import, staging string, report progress.Func) (string, daemon.Artifact, error) {
			return c.make(ctx, i.Name, "import", staging, report)
		},
		Register: func(ctx context.Context, r library.Registration, staging string, report progress.Func) (string, daemon.Artifact, error) {
			return c.make(ctx, r.Name, "register", staging, report)
		},
		Discard: func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
	}
}

func (c *Catalog) find(name string) (daemon.Item, error) {
	if !slices.Contains(c.Names, name) {
		return daemon.Item{}, fault.New(fault.NotFound, "no %s is called %q", c.Kind, name).WithHint("banger %s catalog", c.Kind)
	}
	return daemon.Item{Name: name, Source: "fake:" + name}, nil
}

func (c *Catalog) pull(ctx context.Context, req library.Request, staging string, report progress.Func) (string, daemon.Artifact, error) {
	name := req.Reference
	if req.Name != "" {
		name = req.Name
	}
	return c.make(ctx, name, "fake:"+req.Reference, staging, report)
}

// make makes an artifact that differs from every other.
func (c *Catalog) make(ctx context.Context, name, source, staging string, report progress.Func) (_ string, a daemon.Artifact, err error) {
	n := c.Pulls.Add(1)
	dir, err := os.MkdirTemp(staging, c.Kind+"-*")
	if err != nil {
		return "", a, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	report.Report(progress.Update{Stage: c.Kind, Message: "making " + name, Done: 1, Total: 2, Unit: "bytes"})
	for _, file := range c.Files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("fake"), 0o600); err != nil {
			return "", a, err
		}
	}
	if c.During != nil {
		if err := c.During(ctx, name); err != nil {
			return "", a, err
		}
	}
	digest := fmt.Sprintf("sha256:%016x%016x%032x", rand.Uint64(), n, time.Now().UnixNano())
	a = daemon.Artifact{
		Name: name, Digest: digest, Source: source, Created: time.Now().UTC(), Size: 4, Version: "6.1-fake", Missing: c.Missing,
	}
	return dir, a, atomicfile.WriteJSON(filepath.Join(dir, record), a)
}

func load(dir string) (a daemon.Artifact, err error) {
	err = atomicfile.ReadJSON(filepath.Join(dir, record), &a)
	return a, err
}

// FormatDisk is a fake daemon.Config.FormatDisk: a sparse file without anything in it.
func FormatDisk(_ context.Context, _ string, size uint64, dst string) error {
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(int64(size))
}

// Initramfs is a fake daemon.Config.Initramfs.
func Initramfs(cacheDir, _ string) (string, error) {
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(cacheDir, "fake.cpio")
	return path, os.WriteFile(path, []byte("fake"), 0o600)
}
