package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/netstack"
	"banger/internal/paths"
	"banger/internal/store"
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
	p := f.cfg.Paths
	kernelDir, imageDir := p.Kernel(v.KernelDigest), p.Image(v.ImageDigest)
	img, err := f.cfg.Images.Load(imageDir)
	if err != nil {
		return vmdir.Launch{}, fault.Context(err, "image %s", v.Spec.Image)
	}
	ramdisk, err := f.cfg.Initramfs(p.Initramfs(), kernelDir)
	if err != nil {
		return vmdir.Launch{}, fault.Context(err, "initramfs for kernel %s", v.Spec.Kernel)
	}
	net := netstack.For(v.ID)
	return vmdir.Launch{
		VMID: v.ID, Name: v.Name(), Driver: v.Driver, Paths: p,
		BootDeadline: bootDeadline, Attempts: bootAttempts, ConsoleLimit: consoleLimit,
		Machine: machineOf(v, kernelDir, ramdisk, image.Rootfs(imageDir), disk, p.VMRun(string(v.ID))),
		Guest: agentwire.Config{
			Hostname: string(v.Name()), MachineID: v.MachineID,
			Disks:   agentwire.Disks{Image: serialImage, Data: serialData, Modules: serialModules},
			Network: net.Guest,
			Env:     slices.Concat(img.Env, v.Spec.Env), // the last of two settings counts
			User:    orElse(v.Spec.User, img.User), Workdir: orElse(v.Spec.Workdir, img.Workdir),
			ResetRoot: v.ResetToken,
		},
	}, nil
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
		Network: netstack.For(v.ID).Host, RunDir: runDir,
	}
}
