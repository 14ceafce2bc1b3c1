package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Names of the sockets in Spec.RunDir.
const (
	qmpSocket   = "qmp.sock"
	agentSocket = "agent.sock"
)

const (
	maxCmdline = 2047 // bytes, COMMAND_LINE_SIZE of x86 without its NUL

	// maxDevices is how many virtio-mmio transports microvm has under KVM (24 under TCG). Three of them are taken by
	// the agent's port, the entropy device and the network.
	maxDevices = 8

	// translationBuffer bounds what TCG keeps of translated code, in MiB; it is memory of the QEMU process. Booting
	// and a first command fill about 20 MiB. QEMU's own choice grows to an eighth of the host's memory, 1 GiB at most.
	translationBuffer = 128
)

// machineHost is what args needs to know besides the Spec.
type machineHost struct {
	Accelerator string
	TSCKHz      uint64 // of the host's time-stamp counter; used under TCG
	Incoming    bool   // the machine waits for the state of another one, and stands still when it has it
}

// args returns QEMU's arguments. It looks at nothing but its parameters.
func args(spec hypervisor.Spec, host machineHost) []string {
	a := []string{
		"-name", "guest=" + escape(spec.Name) + ",process=" + escape(processName(spec.Name)),
		"-no-user-config", "-nodefaults", "-display", "none",
		// A guest that resets (a panic, with reboot=t panic=-1) ends its QEMU.
		"-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// The guest's memory neither gets into core dumps nor is it merged with other machines' (a side channel).
		"-machine", "microvm,usb=off,dump-guest-core=off,mem-merge=off,memory-backend=ram",
		"-object", memory(spec),
		"-m", fmt.Sprintf("size=%dM", mebibytes(spec.Memory)),
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", spec.CPUs, spec.CPUs),
	}
	a = append(a, accelerator(host)...)
	if host.Incoming { // the kernel is in the memory that comes
		a = append(a, "-S", "-incoming", "defer")
	} else {
		a = append(a, "-kernel", spec.Kernel)
		if spec.Initramfs != "" {
			a = append(a, "-initrd", spec.Initramfs)
		}
		a = append(a, "-append", cmdline(spec, host))
	}
	a = append(a, channels(spec)...)
	return append(a, devices(spec)...)
}

// memory returns what the guest's memory is. A private mapping of a file keeps what the guest writes to itself.
func memory(spec hypervisor.Spec) string {
	size := mebibytes(spec.Memory)
	switch {
	case spec.Restore != nil:
		return fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=off", size, escape(spec.Restore.Memory))
	case spec.MemoryFile != "":
		return fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", size, escape(spec.MemoryFile))
	}
	return fmt.Sprintf("memory-backend-ram,id=ram,size=%dM", size)
}

// accelerator returns how instructions are run and which processor the guest sees.
func accelerator(host machineHost) []string {
	if host.Accelerator == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{
		"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationBuffer),
		"-cpu", tcgCPU,
	}
}

// tcgCPU is the processor under TCG. It has to offer x86-64-v2, which distributions build for, and what the guest
// kernel needs to keep time (arat: without it timers fall back to 4 ms ticks). More is not better: "max" makes programs
// choose AVX and SHA code that TCG emulates instruction by instruction through slow helpers (AES-GCM takes twice as
// long, RSS is larger). It is version 1 of the model, since 2 adds a feature that TCG lacks and warns about.
const tcgCPU = "Nehalem-v1,+arat"

// cmdline returns the guest kernel's command line.
func cmdline(spec hypervisor.Spec, host machineHost) string {
	words := []string{
		"console=ttyS0", "quiet", // the serial console is slow
		"reboot=t", "panic=-1", // see -no-reboot
		// Of the security modules that distributions build in, those that programs ask for themselves. AppArmor and
		// TOMOYO have no policy here, and take part in each exec and open all the same.
		"lsm=landlock,yama",
	}
	if host.Accelerator == TCG {
		words = append(words,
			// See tsc.go. lpj is loops per jiffy at the 250 Hz of Debian's kernels. The counters of all virtual
			// processors are the host's, so they need no comparing, which under emulation looks like drift.
			"tsc_early_khz="+strconv.FormatUint(host.TSCKHz, 10),
			"lpj="+strconv.FormatUint(host.TSCKHz*4, 10),
			"tsc=reliable",
			// The flaws of real processors that these work around are none of an emulated one; page table isolation
			// alone makes every system call twenty times slower under TCG.
			"mitigations=off",
		)
	}
	return strings.Join(append(words, spec.Cmdline...), " ")
}

// channels returns the console, the control socket and the agent's port.
func channels(spec hypervisor.Spec) []string {
	return []string{
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=" + escape(filepath.Join(spec.RunDir, qmpSocket)),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + escape(filepath.Join(spec.RunDir, agentSocket)),
	}
}

// devices returns the virtio devices. No bus is named: QEMU fills the transports from the last one down, Linux counts
// them in the same order, so the guest finds the devices as they are listed here, and a machine restored from a template
// finds them where they were. Naming virtio-mmio-bus.0 would be a mistake: under TCG (QEMU 7.2) its interrupt is lost.
func devices(spec hypervisor.Spec) []string {
	a := []string{"-global", "virtio-mmio.force-legacy=false"}
	for i, disk := range spec.Disks {
		a = append(a, "-blockdev", blockdev(i, disk),
			"-device", fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s", nodeName(i), escape(disk.Serial)))
	}
	a = append(a,
		"-device", "virtio-serial-device,id=serial",
		"-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name="+agentwire.PortName,
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng",
	)
	if spec.Network.Kind == hypervisor.NetworkUser {
		a = append(a, "-netdev", userNetdev(), "-device", "virtio-net-device,netdev=net,mac="+escape(spec.Network.MAC))
	}
	return a
}

// userNetdev is QEMU's user-mode network (libslirp) with the addresses of hypervisor.NetworkUser. The gateway's address
// leads to the host's own loopback interface, and QEMU has no switch for that: nothing that trusts local callers is
// safe from the guest. It is IPv4 only: libslirp announces IPv6 to the guest even where the host has none.
func userNetdev() string {
	return fmt.Sprintf("user,id=net,ipv6=off,net=%s,host=%s,dns=%s", hypervisor.UserNetwork, hypervisor.UserGateway,
		hypervisor.UserDNS)
}

// blockdev returns the -blockdev value of a raw image, in JSON: unlike the key=value form it needs no escaping.
//
// The host's page cache is used, and a guest's flush is an fsync: an image that many machines share is read from disk
// once. A shared image is not locked, since nobody writes it; a machine's own disk is, so that no two QEMUs ever use
// it. What the guest discards or zeroes there becomes a hole of the file.
func blockdev(i int, disk hypervisor.Disk) string {
	file := map[string]any{
		"driver": "file", "filename": disk.Path, "aio": "threads", "locking": "auto",
		"cache": map[string]any{"direct": false, "no-flush": false},
	}
	node := map[string]any{"driver": "raw", "node-name": nodeName(i), "file": file}
	if disk.ReadOnly {
		node["read-only"], file["read-only"], file["locking"] = true, true, "off"
	} else {
		node["discard"], file["discard"], node["detect-zeroes"] = "unmap", "unmap", "unmap"
	}
	text, err := json.Marshal(node) // keys are sorted: the same disk gives the same text
	if err != nil {
		panic("qemu: a map of strings cannot be encoded: " + err.Error())
	}
	return string(text)
}

// nodeName is what QEMU calls the disk at place i of the Spec.
func nodeName(i int) string { return fmt.Sprintf("disk%d", i) }

// processName is what the host's process list shows: the kernel keeps 15 bytes.
func processName(name string) string { return "banger:" + name }

// escape protects a value in QEMU's key=value syntax, where a comma ends it.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func mebibytes(n uint64) uint64 { return n >> 20 }

// check refuses a Spec that QEMU would refuse later, with less to say about it.
func check(spec hypervisor.Spec) error {
	devices := len(spec.Disks) + 2
	switch spec.Network.Kind {
	case "":
	case hypervisor.NetworkUser:
		devices++
		if _, err := net.ParseMAC(spec.Network.MAC); err != nil {
			return fault.Wrap(fault.Invalid, err, "network")
		}
	default:
		return fault.New(fault.Invalid, "the qemu driver has no network of kind %q", spec.Network.Kind)
	}
	switch {
	case spec.CPUs < 1 || spec.CPUs > maxCPUs:
		return fault.New(fault.Invalid, "%d cpus are not possible: QEMU's microvm has 1 to %d", spec.CPUs, maxCPUs).
			WithHint("banger vm create --cpus %d", min(max(spec.CPUs, 1), maxCPUs))
	case mebibytes(spec.Memory) < 1:
		return fault.New(fault.Invalid, "%d bytes of memory are not possible", spec.Memory)
	case devices > maxDevices:
		return fault.New(fault.Invalid, "%d disks are too many: QEMU's microvm has room for %d devices", len(spec.Disks),
			maxDevices)
	}
	for _, word := range spec.Cmdline {
		if strings.ContainsAny(word, "\n\x00") {
			return fault.New(fault.Invalid, "kernel command line: %q has a control character", word)
		}
	}
	if n := len(cmdline(spec, machineHost{Accelerator: TCG, TSCKHz: 1e7})); n > maxCmdline {
		return fault.New(fault.Invalid, "the kernel command line is %d bytes long, more than %d", n, maxCmdline)
	}
	if socket := filepath.Join(spec.RunDir, agentSocket); len(socket) > paths.MaxSocketPath {
		return fault.New(fault.Invalid, "socket path %s is %d bytes long, more than the %d that Linux allows", socket,
			len(socket), paths.MaxSocketPath).WithHint("export BANGER_HOME=/var/tmp/banger")
	}
	return spec.CheckFiles()
}
