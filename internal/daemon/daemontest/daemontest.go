// Package daemontest has what a daemon needs in a test: images and kernels that are a few bytes and come from nowhere.
package daemontest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/daemon"
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
	// During runs in the middle of each pull, when the staged directory is there. May be nil.
	During func(ctx context.Context, name string) error
	// Pulls counts the pulls that were begun. Each gives another digest.
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
		Catalog: func() []daemon.Item {
			items := make([]daemon.Item, len(c.Names))
			for i, name := range c.Names {
				items[i] = daemon.Item{Name: name, Description: "a fake " + c.Kind, Source: "fake:" + name}
			}
			return items
		},
		Find:    c.find,
		Pull:    c.pull,
		Load:    load,
		Discard: func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
	}
}

func (c *Catalog) find(name string) (daemon.Item, error) {
	if !slices.Contains(c.Names, name) {
		return daemon.Item{}, fault.New(fault.NotFound, "no %s is called %q", c.Kind, name).WithHint("banger %s catalog", c.Kind)
	}
	return daemon.Item{Name: name, Source: "fake:" + name}, nil
}

func (c *Catalog) pull(ctx context.Context, name, staging string, report progress.Func) (_ string, a daemon.Artifact, err error) {
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
	digest := fmt.Sprintf("sha256:%s%056x", map[string]string{"image": "1", "kernel": "2"}[c.Kind]+"0000000", n)
	a = daemon.Artifact{
		Name: name, Digest: digest, Source: "fake:" + name, Created: time.Now().UTC(), Size: 4, Version: "6.1-fake",
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
