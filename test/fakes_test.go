package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/daemon"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/preflight"
	"banger/internal/program"
	"banger/internal/progress"
)

// fakeParts are the parts of a banger that runs no guests and fetches nothing: its machines are processes on the host,
// its images and kernels are empty files.
func fakeParts() program.Parts {
	return program.Parts{
		Drivers: func(program.Host) map[string]hypervisor.Driver {
			return map[string]hypervisor.Driver{"fake": fakevmm.New(fakevmm.Options{})}
		},
		Images:     func(program.Host) daemon.Source { return source("image", images) },
		Kernels:    func(program.Host) daemon.Source { return source("kernel", kernels) },
		FormatDisk: formatDisk,
		Initramfs:  initramfs,
		Doctor: func(context.Context, program.Host) []preflight.Result {
			if os.Getenv("BANGER_TEST_DOCTOR") == "fail" {
				return []preflight.Result{{ID: "vmm", Status: "fail", Detail: "it is not there", Hint: "apt install vmm"}}
			}
			return []preflight.Result{{ID: "kvm", Status: "warn", Detail: "a fake needs none"}}
		},
	}
}

// The catalogs. What a pull does follows from the name.
var (
	images = []daemon.Item{
		{Name: "debian-bookworm", Description: "a fake", Source: "fake", Kernel: "fake-kernel"},
		{Name: "slow-image", Description: "takes two seconds", Source: "fake", Kernel: "fake-kernel"},
		{Name: "slower-image", Description: "takes minutes: for tests that give it up", Source: "fake", Kernel: "fake-kernel"},
		{Name: "broken-image", Description: "cannot be pulled", Source: "fake", Kernel: "fake-kernel"},
	}
	kernels = []daemon.Item{{Name: "fake-kernel", Description: "a fake", Source: "fake"}}
)

const manifest = "manifest.json"

func source(kind string, items []daemon.Item) daemon.Source {
	return daemon.Source{
		Catalog: func(context.Context, bool) ([]daemon.Item, []string) { return items, nil },
		Find: func(_ context.Context, name string) (daemon.Item, error) {
			for _, item := range items {
				if item.Name == name {
					return item, nil
				}
			}
			return daemon.Item{}, fault.New(fault.NotFound, "there is no %s %q", kind, name).WithHint("banger %s catalog", kind)
		},
		Pull: func(ctx context.Context, req library.Request, staging string, report progress.Func) (string, daemon.Artifact, error) {
			return pull(ctx, kind, req.Reference, staging, report)
		},
		Load: func(dir string) (a daemon.Artifact, err error) {
			return a, atomicfile.ReadJSON(filepath.Join(dir, manifest), &a)
		},
		Discard: func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
	}
}

// pull makes an artifact of empty files, and a line in the file "pulls" so that tests can count.
func pull(ctx context.Context, kind, name, staging string, report progress.Func) (_ string, _ daemon.Artifact, err error) {
	dir, err := os.MkdirTemp(staging, kind+"-")
	if err != nil {
		return "", daemon.Artifact{}, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if err := countPull(kind + " " + name); err != nil {
		return "", daemon.Artifact{}, err
	}
	report.Report(progress.Update{Stage: kind, Message: "fetching " + name})
	switch name {
	case "broken-image":
		return "", daemon.Artifact{}, fault.New(fault.Unavailable, "image %s: the mirror does not answer", name).WithHint("banger image pull %s", name)
	case "slow-image", "slower-image":
		steps := map[string]uint64{"slow-image": 20, "slower-image": 6000}[name]
		if err := takeTime(ctx, kind, steps, report); err != nil {
			return "", daemon.Artifact{}, err
		}
	}
	for _, file := range []string{image.RootfsFile, kernel.ImageFile, kernel.ModulesFile} {
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
			return "", daemon.Artifact{}, err
		}
	}
	sum := sha256.Sum256([]byte(kind + name))
	a := daemon.Artifact{
		Name: name, Digest: "sha256:" + hex.EncodeToString(sum[:]), Source: "fake", Created: time.Now().UTC(),
		Size: 1 << 30, Version: "6.1.0-fake", Kernel: "fake-kernel",
	}
	return dir, a, atomicfile.WriteJSON(filepath.Join(dir, manifest), a)
}

// takeTime takes ten steps a second.
func takeTime(ctx context.Context, kind string, steps uint64, report progress.Func) error {
	for i := range steps {
		report.Report(progress.Update{Stage: kind, Message: "fetching slowly", Done: i << 20, Total: steps << 20, Unit: "bytes"})
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func countPull(what string) error {
	f, err := os.OpenFile(filepath.Join(os.Getenv("BANGER_HOME"), "pulls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, what)
	return err
}

// formatDisk makes a sparse file.
func formatDisk(_ context.Context, _ string, size uint64, dst string) error {
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(int64(size))
}

// initramfs makes an empty file.
func initramfs(cacheDir, _ string) (string, error) {
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(cacheDir, "initramfs")
	return path, os.WriteFile(path, nil, 0o600)
}
