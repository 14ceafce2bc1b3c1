// Command banger runs virtual machines that start in seconds. See package program for how it is built up and
// docs/cli.md for how it is used.
package main

import (
	"os"

	"banger/internal/agentbin"
	"banger/internal/daemon"
	"banger/internal/ext4"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
	"banger/internal/program"
)

func main() {
	os.Exit(program.Main(os.Args[1:], program.Parts{
		Drivers:    drivers,
		Images:     func(h program.Host) daemon.Source { return daemon.Images(h.Paths, h.Settings) },
		Kernels:    func(h program.Host) daemon.Source { return daemon.Kernels(h.Paths, h.Settings) },
		FormatDisk: ext4.CopyFormatted,
		Initramfs:  daemon.Initramfs(agentbin.Binary),
		Doctor:     doctor,
	}))
}

// drivers are all that this program has.
func drivers(h program.Host) map[string]hypervisor.Driver {
	return map[string]hypervisor.Driver{
		"qemu": qemu.New(qemu.Options{Accelerator: h.Settings.VMM.Accelerator, CacheDir: h.Paths.Cache, Log: h.Log}),
	}
}
