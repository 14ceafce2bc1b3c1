package kernel

import (
	"fmt"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// need is one thing that banger wants of a guest kernel. docs/kernels.md has the same list for people.
type need struct {
	option string // of the kernel's configuration, without CONFIG_
	what   string // it is for
	module string // that has it if it is not built in; empty: it cannot be a module
	vital  bool   // no VM reaches its shell without it
	arch   string // that needs it; empty: all
}

// needs are what the driver's machine has (package qemu) and what the agent uses, vital things first. The modules among
// them are loaded in this order, each after what it depends on; each costs 5 to 35 ms of boot time under emulation.
func needs() []need {
	return []need{
		{option: pvh, what: "entry point for virtual machines", vital: true, arch: "amd64"},
		{option: "ACPI", what: "how the devices are found", vital: true, arch: "amd64"},
		{option: "VIRTIO_MMIO", what: "virtio devices", module: "virtio_mmio", vital: true},
		{option: "VIRTIO_BLK", what: "disks", module: "virtio_blk", vital: true},
		{option: "VIRTIO_NET", what: "network", module: "virtio_net", vital: true},
		{option: "VIRTIO_CONSOLE", what: "channel to the agent", module: "virtio_console", vital: true},
		{option: "EXT4_FS", what: "disks", module: "ext4", vital: true},
		{option: "OVERLAY_FS", what: "root file system", module: "overlay", vital: true},
		{option: "BLK_DEV_INITRD", what: "initramfs with the agent", vital: true},
		{option: "BINFMT_ELF", what: "programs", vital: true},
		{option: "DEVTMPFS", what: "device files", vital: true},
		{option: "PROC_FS", what: "/proc", vital: true},
		{option: "SYSFS", what: "/sys", vital: true},
		{option: "TMPFS", what: "/run and /dev/shm", vital: true},
		{option: "UNIX98_PTYS", what: "terminals", vital: true},
		{option: "INET", what: "network", vital: true},
		{option: "FUTEX", what: "the agent", vital: true},
		{option: "EPOLL", what: "the agent", vital: true},
		{option: "EVENTFD", what: "the agent", vital: true},
		{option: "HW_RANDOM_VIRTIO", what: "entropy from the host", module: "virtio_rng"},
		{option: "SERIAL_8250_CONSOLE", what: "console, vm logs", arch: "amd64"},
		{option: "SERIAL_AMBA_PL011_CONSOLE", what: "console, vm logs", arch: "arm64"},
		{option: "BINFMT_SCRIPT", what: "scripts"},
		{option: "UNIX", what: "sockets of programs"},
		{option: "SHMEM", what: "shared memory of programs"},
		{option: "MULTIUSER", what: "users other than root"},
		{option: "POSIX_MQUEUE", what: "/dev/mqueue"},
		{option: "CGROUPS", what: "cgroups, containers in the guest"},
		{option: "NAMESPACES", what: "containers in the guest"},
		{option: "SMP", what: "more than one processor"},
	}
}

// pvh is the option that the kernel file itself tells.
const pvh = "PVH"

// minMajor and minMinor are of the oldest kernel with what the agent mounts by (open_tree).
const minMajor, minMinor = 5, 2

// evidence is all that tells what a kernel has.
type evidence struct {
	image   imageFacts
	trusted bool              // it is a distribution's: an option that is not set has another name by now
	config  map[string]string // options that are set, without CONFIG_; nil: not known
	modules index
}

// verdict is what is known of a kernel's fitness.
type verdict struct {
	missing []string // for people, vital things first
	unknown []string // likewise: nothing tells
	fatal   []string // the part of missing without which it certainly does not start
	load    []string // modules of the initramfs
}

// judge compares a kernel with what is needed.
func judge(e evidence) verdict {
	var v verdict
	for _, n := range needs() {
		if n.arch != "" && n.arch != e.image.arch {
			continue
		}
		text := fmt.Sprintf("CONFIG_%s (%s)", n.option, n.what)
		switch has, known := e.has(n); {
		case !known:
			v.unknown = append(v.unknown, text)
		case !has:
			if e.config[n.option] == "m" {
				text = fmt.Sprintf("CONFIG_%s (%s): it is a module, which is not there", n.option, n.what)
			}
			v.missing = append(v.missing, text)
			if n.vital && (!e.trusted || n.module != "" || n.option == pvh) {
				v.fatal = append(v.fatal, text)
			}
		case e.modules.files[n.module] != "":
			v.load = append(v.load, n.module)
		}
	}
	if tooOld(e.image.release) {
		text := fmt.Sprintf("Linux %d.%d or later (it is %s)", minMajor, minMinor, e.image.release)
		v.missing, v.fatal = append(v.missing, text), append(v.fatal, text)
	}
	return v
}

// has reports whether the kernel has what n wants, if that can be known. A module that is there counts, and so does one
// that is listed as built in; only then is the configuration asked, which may be another kernel's.
func (e evidence) has(n need) (has, known bool) {
	switch {
	case n.option == pvh:
		return e.image.pvh, true
	case n.module != "" && (e.modules.files[n.module] != "" || e.modules.builtin[n.module]):
		return true, true
	case e.config != nil:
		value := e.config[n.option]
		return value == "y" || value == "m" && n.module == "", true
	case n.module != "" && e.modules.builtin != nil:
		return false, true // what can be a module and is built in is listed there
	}
	return false, false
}

// refusal is the error for a kernel that certainly cannot start, or nil.
func (v verdict) refusal() error {
	if len(v.fatal) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "the kernel cannot start a VM: it lacks %s", strings.Join(v.fatal, ", "))
}

// tooOld reports whether a release is known to lack what the agent uses.
func tooOld(release string) bool {
	major, rest, _ := strings.Cut(release, ".")
	digits := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		rest = rest[:digits]
	}
	a, err := strconv.Atoi(major)
	if err != nil {
		return false
	}
	b, err := strconv.Atoi(rest)
	return err == nil && (a < minMajor || a == minMajor && b < minMinor)
}

// parseConfig parses a .config: lines of CONFIG_X=y, =m or another value. Only options that are set are returned. A
// text that sets none to y is refused: it is something else.
func parseConfig(text []byte) (map[string]string, error) {
	options := map[string]string{}
	some := false
	for line := range strings.Lines(string(text)) {
		option, value, isSet := strings.Cut(strings.TrimSpace(line), "=")
		if option, ok := strings.CutPrefix(option, "CONFIG_"); ok && isSet {
			options[option] = value
			some = some || value == "y"
		}
	}
	if !some {
		return nil, fault.New(fault.Invalid, "not a kernel's configuration: it sets no option to y")
	}
	return options, nil
}
