// Package qemu drives QEMU's microvm machine, a machine without PCI whose devices are all virtio-mmio.
//
// One QEMU process is one machine. Its command line is made by args, a pure function of the Spec and of what the host
// is; everything in it was measured (the comments say what). The process is started without a shell, with an
// environment of its own, no way to gain privileges, and the order to die with the thread that started it. The
// console is QEMU's standard output, the control channel (QMP) and the agent's virtio-serial port are Unix sockets in
// the machine's run directory.
//
// The accelerator is decided once, by what really works (package kvm): "kvm:tcg" would let QEMU decide, and it hangs
// on a host whose KVM answers but cannot run a stock guest.
package qemu

import (
	"context"
	"log/slog"
	"os/exec"
	"runtime"
	"sync"

	"banger/internal/fault"
	"banger/internal/hostpkg"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/kvm"
)

// maxCPUs is what -M microvm runs with either accelerator: QEMU allows 288, but beyond 255 an x2APIC is needed, which
// software emulation has only since QEMU 9.0.
const maxCPUs = 255

// The accelerators. Auto takes KVM where it works and software emulation (TCG) elsewhere.
const (
	Auto = "auto"
	KVM  = "kvm"
	TCG  = "tcg"
)

// Options of a Driver. The zero value is good for use.
type Options struct {
	Binary      string       // of QEMU; empty looks for qemu-system-x86_64 in PATH
	Accelerator string       // Auto, KVM or TCG; empty means Auto
	CacheDir    string       // keeps what was learned of QEMU and of the host between processes; empty: nothing is kept
	Log         *slog.Logger // nil discards

	// host and arch are replaced in tests.
	host kvm.Host
	arch string
}

// Driver starts QEMU processes. It is safe for concurrent use.
type Driver struct {
	opts Options

	mu     sync.Mutex // mu guards the field below
	binary binary     // what is known of the last binary that was looked at
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver. It looks at nothing yet: Probe and Start do.
func New(opts Options) *Driver {
	if opts.Accelerator == "" {
		opts.Accelerator = Auto
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.arch == "" {
		opts.arch = runtime.GOARCH
	}
	return &Driver{opts: opts}
}

// Name returns "qemu".
func (d *Driver) Name() string { return "qemu" }

// Features says that the agent channel, one virtio-serial port, has to be multiplexed.
func (d *Driver) Features() hypervisor.Features {
	return hypervisor.Features{MaxCPUs: maxCPUs, MuxedAgent: true, Pause: true, ResizeDisk: true, Save: true}
}

// Probe finds QEMU, its version and the accelerator. It spawns QEMU only for a binary that it does not know yet.
func (d *Driver) Probe(ctx context.Context) (hypervisor.Host, error) {
	if d.opts.arch != "amd64" {
		return hypervisor.Host{}, fault.New(fault.Unavailable,
			"the qemu driver runs on x86-64 hosts only so far, not on %s", d.opts.arch)
	}
	path, err := d.lookup()
	if err != nil {
		return hypervisor.Host{}, err
	}
	b, err := d.inspect(ctx, path)
	if err != nil {
		return hypervisor.Host{}, err
	}
	if err := b.usable(); err != nil {
		return hypervisor.Host{}, err
	}
	host := hypervisor.Host{Version: b.Version, Path: path}
	if err := choose(d.opts.Accelerator, d.opts.host.Look, &host); err != nil {
		return hypervisor.Host{}, err
	}
	return host, nil
}

// lookup finds the binary.
func (d *Driver) lookup() (string, error) {
	name := d.opts.Binary
	if name == "" {
		name = string(hostpkg.QEMU)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", installFault("%s is not installed", name)
	}
	return path, nil
}

// installFault is an Unavailable fault with the command that installs QEMU as its hint.
func installFault(format string, args ...any) *fault.Error {
	f := fault.New(fault.Unavailable, format, args...)
	f.Hint = hostpkg.InstallHint(hostpkg.QEMU)
	return f
}

// choose fills in the accelerator and why. look is asked only where KVM matters.
func choose(want string, look func() kvm.Status, host *hypervisor.Host) error {
	switch want {
	case TCG:
		host.Accelerator, host.Reason = TCG, "software emulation was asked for"
		return nil
	case KVM, Auto:
	default:
		return fault.New(fault.Invalid, "accelerator %q is not %s, %s or %s", want, Auto, KVM, TCG)
	}
	status := look()
	host.Reason, host.Hint = status.Reason, status.Hint
	switch {
	case status.Usable:
		host.Accelerator = KVM
	case want == KVM:
		return fault.New(fault.Unavailable, "kvm was asked for, but cannot be used: %s", status.Reason).
			WithHint("%s", status.Hint)
	default:
		host.Accelerator = TCG
		host.Reason += "; software emulation is used, which is several times slower"
	}
	return nil
}
