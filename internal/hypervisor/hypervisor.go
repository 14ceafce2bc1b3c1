// Package hypervisor is the seam between banger and a virtual machine monitor (VMM).
//
// A Driver starts machines; a Machine is one running VMM process with a guest in it. Both are used by the VM's
// supervisor only. The contract, kept by every driver and checked by hypervisortest:
//
//   - Start either returns a running Machine or leaves nothing behind: no process, no socket, no file but the ones of
//     the Spec. It returns when the VMM has taken the Spec and runs the guest, so that a bad kernel or disk is an error
//     of Start. It does not wait for the guest: whoever started the machine connects to the agent.
//   - The VMM dies with the process that started it (PR_SET_PDEATHSIG), so that a killed supervisor leaks nothing.
//   - Signal and Quit may be called at any time, by any goroutine, more than once. After Done is closed they do
//     nothing and return nil.
//   - Done is closed after the process was reaped, its last console bytes were written and its sockets removed; Exit is
//     valid from then on. What else is in RunDir is left alone.
//   - The agent channel is reachable by ConnectAgent as soon as the VMM runs; the agent answers when the guest is up.
package hypervisor

import (
	"context"
	"io"
	"net"
	"time"
)

// Driver starts machines on one kind of VMM. It is safe for concurrent use.
type Driver interface {
	// Name is the short name in configuration and output: "qemu".
	Name() string
	// Features says what this driver can do, independent of the host.
	Features() Features
	// Probe looks at the host: is the VMM there, new enough, and which accelerator really works. It returns a fault
	// of class Unavailable, with the package to install as hint, when machines cannot be started here.
	Probe(ctx context.Context) (Host, error)
	// Start starts a machine. Cancelling ctx while Start runs undoes it; afterwards ctx has no effect.
	Start(ctx context.Context, spec Spec) (Machine, error)
}

// Features of a driver.
type Features struct {
	MaxCPUs int // the most CPUs a machine can have
	// MuxedAgent says that the agent channel is one byte stream that has to be multiplexed. Otherwise every
	// ConnectAgent is a stream of its own.
	MuxedAgent bool
	Pause      bool // its machines are Pausers
	ResizeDisk bool // its machines are DiskResizers
	Save       bool // it is a Shaper, its machines are Savers, and Spec.Restore and Spec.MemoryFile work
}

// Host is what Probe found.
type Host struct {
	Version     string // of the VMM
	Path        string // of its binary
	Accelerator string // "kvm" or "tcg"
	Reason      string // why that accelerator, for doctor
	Hint        string // a command that would give a faster accelerator; empty when there is none
}

// Spec is one machine. Paths are absolute.
type Spec struct {
	ID        string
	Name      string // shown in the host's process list
	CPUs      int
	Memory    uint64 // bytes
	Kernel    string // vmlinux
	Initramfs string
	Cmdline   []string // added to what the driver needs by itself
	Disks     []Disk   // in the order the guest sees them
	Network   Network
	// MemoryFile, if it is not empty, is made and holds the guest's memory, so that Save to it has nothing to copy. It is
	// for a machine that runs only to be saved.
	MemoryFile string `json:",omitempty"`
	// Restore, if it is not nil, starts the machine from there and not from the kernel. All else must be as it was in the
	// machine that was saved (see Shaper); only the files of the disks may be others, and larger where
	// they can be written to.
	Restore *Saved    `json:",omitempty"`
	RunDir  string    // exists, private to this machine; the driver's sockets go here
	Console io.Writer `json:"-"` // receives the guest's console; written by one goroutine of the driver
	Log     io.Writer `json:"-"` // receives what the VMM itself says
	// Halted is called when the VMM pauses the machine on its own account, with the reason in words for people: the host
	// has no space for what the guest writes. Nothing is lost; Resume tries again. It must not block. It may be nil.
	Halted func(reason string) `json:"-"`
}

// Disk is one block device of the guest.
type Disk struct {
	Path     string // a raw image file
	ReadOnly bool   // shared with other machines
	Serial   string // how the agent finds it: at most 20 bytes (virtio-blk)
}

// NetworkUser is the Kind of a network that the VMM makes by itself, in user mode. The guest is alone on it and has to
// be configured with these values; there is no other way to learn them than this table.
const (
	NetworkUser = "user"
	UserNetwork = "10.90.0.0/16" // the guest takes an address of it that is none of the two below
	UserGateway = "10.90.0.1"
	UserDNS     = "10.90.0.3"
)

// Network is the machine's only network interface. The zero value means none.
type Network struct {
	Kind string // "" or NetworkUser
	MAC  string
}

// Machine is a running VMM.
type Machine interface {
	// PID of the VMM process.
	PID() int
	// ConnectAgent opens the agent channel, or a new stream on it (see Features.MuxedAgent).
	ConnectAgent(ctx context.Context) (net.Conn, error)
	// Quit asks the VMM to end by its own means, without asking the guest, and waits for neither.
	Quit(ctx context.Context) error
	// Signal sends a signal to the VMM process.
	Signal(sig int) error
	// Done is closed when the VMM is gone and cleaned up after.
	Done() <-chan struct{}
	// Exit says how it ended. Valid after Done is closed.
	Exit() Exit
}

// Pauser is a Machine that can be made to stand still.
type Pauser interface {
	// Pause stops the virtual CPUs. What the guest was sent waits; Quit, Signal and a second Pause work as before. When
	// it fails the guest may run or not: Resume brings it back to running.
	Pause(ctx context.Context) error
	// Resume lets them go on, and does nothing if they run. The guest's own clock has stood still meanwhile.
	Resume(ctx context.Context) error
}

// DiskResizer is a Machine whose disks can grow while it runs.
type DiskResizer interface {
	// ResizeDisk makes the disk with that serial bytes large, the file too if it is smaller, and tells the guest, which
	// may take a moment to see it. A disk that is read-only cannot be resized, and none can shrink: both are faults of
	// class Invalid.
	ResizeDisk(ctx context.Context, serial string, bytes uint64) error
}

// Saved is a machine at one instant, but for its disks: two files. Machines that are restored from it have Memory mapped
// privately as long as they live: it is never written to again, and may be removed but not cut short.
type Saved struct {
	Memory string // sparse, as large as the guest's memory
	State  string // of CPUs and devices
	// Disks are the sizes that the guest knew, by serial, of those that it could write to (DiskSizes). A disk that has
	// another size when the machine is restored is told to the guest; one that has not is left alone.
	Disks map[string]uint64
}

// SaveOptions of a Saver.
type SaveOptions struct {
	// Copies names files to be made, by serial of a disk: what it holds at the instant that is saved. They must not exist.
	// Holes of the disk are holes of the copy.
	Copies map[string]string
	Stay   bool // the guest is not let go on afterwards: it will be killed
}

// SaveReport says how a Save went.
type SaveReport struct {
	Still  time.Duration // how long the guest stood still
	Shared bool          // the copies share their blocks with the disks
}

// Shaper is a Driver that can say what a saved machine depends on.
type Shaper interface {
	// Shape describes everything of a Spec, the VMM and the host on which the state of a machine depends: two machines of
	// one Shape can be restored from each other's Saved. The files of disks are not in it, nor are Name, ID and RunDir; the
	// size of a read-only disk is. It is text for people, some kilobytes long.
	Shape(ctx context.Context, spec Spec) (string, error)
}

// Saver is a Machine whose memory and devices can be saved while it runs or is paused.
type Saver interface {
	// Save writes both files, which must not exist, and the copies. It copies what it can while the guest goes on. When it
	// fails all of them are removed and the guest is as it was before, unless the VMM is gone.
	Save(ctx context.Context, to Saved, opt SaveOptions) (SaveReport, error)
}

// Reasons that a VMM gives for its end, in the words of QEMU's ShutdownCause. Others are possible.
const (
	ReasonGuestShutdown = "guest-shutdown" // the guest powered off
	ReasonGuestReset    = "guest-reset"    // the guest reset: a panic, or its way to end on a VMM without power-off
	ReasonQuit          = "host-qmp-quit"  // Quit
	ReasonSignal        = "host-signal"    // a signal that the VMM handled, such as SIGTERM
)

// Exit is how a VMM process ended.
type Exit struct {
	Reason string // one of the reasons above, or "" when the VMM could not say (it crashed or was killed)
	Code   int    // exit code, -1 when a signal ended it
	Signal string // "killed", "terminated", ... or ""
	Detail string // last lines of what the VMM said, for people; may be empty
}
