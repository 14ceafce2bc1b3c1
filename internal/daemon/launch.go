package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/agentwire"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/image/source"
	"banger/internal/kernel"
	"banger/internal/netstack"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// What every supervisor is told.
const (
	bootDeadline = 60 * time.Second // a guest under software emulation on a busy host needs 20
	bootAttempts = 2
	consoleLimit = 4 << 20
)

// Serials by which the agent finds its disks.
const (
	serialImage   = "image"
	serialData    = "data"
	serialModules = "modules"
)

// launch says what the supervisor of a VM is to start. Everything that it needs is on this host.
func (f *fleet) launch(v store.VM) (vmdir.Launch, error) {
	disk := f.dir(v.ID).Path(paths.VMDisk)
	if _, err := os.Stat(disk); err != nil {
		return vmdir.Launch{}, fault.Wrap(fault.Unavailable, err, "its disk is gone").WithHint("banger vm rm %s", v.Name())
	}
	return f.describe(v)
}

// describe is launch for a VM that has no disk yet.
func (f *fleet) describe(v store.VM) (vmdir.Launch, error) {
	disk := f.dir(v.ID).Path(paths.VMDisk)
	p := f.cfg.Paths
	kernelDir := p.Kernel(v.KernelDigest)
	img, err := f.rootOf(v)
	if err != nil {
		return vmdir.Launch{}, err
	}
	ramdisk, err := f.cfg.Initramfs(p.Initramfs(), kernelDir)
	if err != nil {
		return vmdir.Launch{}, fault.Context(err, "initramfs for kernel %s", v.Spec.Kernel)
	}
	net := netstack.For(v.ID, v.Address)
	return vmdir.Launch{
		VMID: v.ID, Name: v.Name(), Driver: v.Driver, Paths: p, Pool: v.Spec.Purpose == vm.PurposePool,
		BootDeadline: bootDeadline, Attempts: bootAttempts, ConsoleLimit: consoleLimit,
		Machine: machineOf(v, kernelDir, ramdisk, img.Rootfs, disk, p.VMRun(string(v.ID))),
		Guest: agentwire.Config{
			Hostname: string(v.Name()), MachineID: v.MachineID,
			Disks:   agentwire.Disks{Image: serialImage, Data: serialData, Modules: serialModules},
			Network: net.Guest,
			Env:     slices.Concat(img.Config.Env, v.Spec.Env), // the last of two settings counts
			User:    orElse(v.Spec.User, img.Config.User), Workdir: orElse(v.Spec.Workdir, img.Config.Workdir),
			ResetRoot: v.ResetToken, Build: v.Spec.Purpose == vm.PurposeBuild,
		},
	}, nil
}

// rootOf is the image that a VM runs. One of the daemon's own has no use for the image's configuration, and may have a
// root file system of its own instead.
func (f *fleet) rootOf(v store.VM) (Artifact, error) {
	if v.Hidden() && v.ImageDigest == "" {
		return Artifact{Rootfs: f.dir(v.ID).Path(paths.VMRoot)}, nil
	}
	dir := f.cfg.Paths.Image(v.ImageDigest)
	img, err := f.cfg.Images.Load(dir)
	if err != nil {
		return Artifact{}, fault.Context(err, "image %s", v.Spec.Image)
	}
	img.Name, img.Dir = v.Spec.Image, dir
	if img.Problem != "" {
		return Artifact{}, library.Unusable(store.Image, img)
	}
	img.Rootfs = rootfsOf(img)
	if v.Hidden() && v.Spec.Purpose != vm.PurposePool {
		img.Config = source.Config{}
	}
	return img, nil
}

// machineOf is the machine of a VM. Templates are made for the same one: what is new here is new in their shape.
func machineOf(v store.VM, kernelDir, ramdisk, rootfs, disk, runDir string) hypervisor.Spec {
	return hypervisor.Spec{
		ID: string(v.ID), Name: string(v.Name()), CPUs: v.Spec.CPUs, Memory: v.Spec.Memory,
		Kernel: filepath.Join(kernelDir, kernel.ImageFile), Initramfs: ramdisk,
		Disks: []hypervisor.Disk{
			{Path: rootfs, ReadOnly: true, Serial: serialImage},
			{Path: disk, Serial: serialData},
			{Path: filepath.Join(kernelDir, kernel.ModulesFile), ReadOnly: true, Serial: serialModules},
		},
		Network: netstack.For(v.ID, v.Address).Host, RunDir: runDir,
	}
}
