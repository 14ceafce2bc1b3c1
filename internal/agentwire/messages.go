// Package agentwire is the wire between a VM's supervisor and the agent in its guest: the messages and their framing.
//
// It is not Connect, unlike banger's other wires, because the guest end has to be small: every page and every basic
// block of the agent is loaded and, under software emulation, translated anew at each start. An agent with net/http,
// protobuf and Connect is 8.1 MB, one with this package 2.5 MB (both stripped, before any feature).
//
// The channel carries streams (yamux on virtio-serial, a connection each on vsock). On each stream the host sends one
// Request frame and the agent answers with one Response frame; for Exec and SessionAttach, frames of data follow in both directions.
// Everything from the guest is hostile: frames have a size limit, and an unknown or malformed one ends the stream.
package agentwire

import "encoding/json"

// Generation of this wire. A guest's agent is frozen at boot, so the host must speak every generation that may still
// run; there is one so far.
const Generation = 1

// PortName is the name of the virtio-serial port of the agent channel.
const PortName = "banger.agent"

// Methods that a Request can name.
const (
	MethodHello     = "hello"     // no params; result Hello
	MethodConfigure = "configure" // params Config; result Configured
	MethodExec      = "exec"      // params ExecStart; result ExecStarted, then data frames
	MethodShutdown  = "shutdown"  // params Shutdown; no result: answered before the guest goes down
	MethodStats     = "stats"     // no params; result Stats
	MethodPorts     = "ports"     // no params; result Ports
	MethodGrow      = "grow"      // params Grow; result Grown
	MethodClock     = "clock"     // params Clock; no result
	MethodWake      = "wake"      // params Wake; no result
	MethodSync      = "sync"      // no params; no result: what was written is on the data disk
	MethodRehearse  = "rehearse"  // no params; no result: see Rehearser of package agent
)

// Request opens a stream.
type Request struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

// Response is the first frame of the agent.
type Response struct {
	Fault  *Fault          `json:"fault,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Fault is internal/fault.Error on this wire.
type Fault struct {
	Class   string `json:"class"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Hello is what the agent says of itself.
type Hello struct {
	Generation int    `json:"generation"`
	Build      string `json:"build"`
	Kernel     string `json:"kernel"` // uname -r
	Configured bool   `json:"configured"`
}

// Config gives a guest its identity and its disks. Before it the agent has touched no disk and has no name.
type Config struct {
	Hostname  string `json:"hostname"`
	MachineID string `json:"machine_id"` // 32 hexadecimal digits
	UnixNano  int64  `json:"unix_nano"`  // the host's clock
	Entropy   []byte `json:"entropy"`    // 64 bytes

	Disks   Disks    `json:"disks"`
	Network *Network `json:"network,omitempty"`
	Env     []string `json:"env,omitempty"` // KEY=VALUE, for every command
	User    string   `json:"user,omitempty"`
	Workdir string   `json:"workdir,omitempty"` // made if the image has none

	// Build makes a guest whose changes are to become an image. The whole root is one overlay (no directories that live
	// on the data disk itself); what depends on the VM (hostname, hosts, resolv.conf) is mounted over the image's files
	// instead of being written to them; nothing of the agent's is ever part of a change. Where nothing else is said, a
	// command finds what a container's would: no tmpfs on /run and /tmp, no machine-id that the image does not have, /
	// as working directory. Nothing in it is written to last: its data disk is of no use to another guest.
	Build bool `json:"build,omitempty"`

	// ResetRoot, if it is not empty, makes the agent drop what was changed in the image's part of the root file system
	// before it mounts that. It is a word of the host's choice that the agent keeps on the data disk: the same word
	// resets once only, however often it is sent, because the host may not hear that the guest has come up.
	ResetRoot string `json:"reset_root,omitempty"`
}

// Disks names the block devices by their virtio-blk serial.
type Disks struct {
	Image   string `json:"image"`             // read-only ext4, the lower layer of the root
	Data    string `json:"data"`              // the VM's own ext4
	Modules string `json:"modules,omitempty"` // read-only ext4 with the kernel's modules at its root
}

// Network is the guest's only interface.
type Network struct {
	Address string   `json:"address"` // CIDR, e.g. 10.0.2.15/24
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns"`
	Search  []string `json:"search,omitempty"`
	MTU     int      `json:"mtu,omitempty"`
	MAC     string   `json:"mac,omitempty"` // hardware address; empty: the one it has
}

// Configured answers Config.
type Configured struct {
	// Millis says how long each step took, for benchmarks.
	Millis map[string]int64 `json:"millis,omitempty"`
}

// ExecStart is a command to run.
type ExecStart struct {
	Argv    []string `json:"argv"` // empty: the user's login shell
	User    string   `json:"user,omitempty"`
	Workdir string   `json:"workdir,omitempty"` // has to be there, but in a guest of Config.Build, where it is made
	Env     []string `json:"env,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"` // false: /dev/null

	// Tool, if it is not empty, runs one of the agent's own programs with Argv as its arguments, as root: ToolArchive or
	// ToolChanges, which have no arguments, no terminal and no stdin. The rest of the fields is not heeded.
	Tool string `json:"tool,omitempty"`
}

// The agent's own programs. Each writes a tar stream (PAX, with extended attributes and hard links, without sockets, in
// the order of the names) to stdout, messages to stderr, and exits 0 only if the stream is complete. Holes of sparse
// files are zeroes: the specification of OCI layers advises against anything else.
const (
	// ToolArchive is the image's root file system as it is on the disk, without anything of this VM, the root ("./")
	// first.
	ToolArchive = "archive"
	// ToolChanges is what a guest of Config.Build has changed in it since it was configured, as an OCI layer: whiteouts
	// (.wh.NAME) and opaque directories (.wh..wh..opq), before their siblings, say what was removed. The root is in it
	// only if its mode, owner or attributes were changed. Every other process of the guest is killed first. In any other
	// guest it is a Fault of class conflict.
	ToolChanges = "changes"
)

// ExecStarted answers ExecStart. A command that cannot be started is a Fault: not_found (exit code 127) or
// permission_denied (126).
type ExecStarted struct {
	PID int `json:"pid"`
}

// ExecExited is the last frame of an Exec stream.
type ExecExited struct {
	Code   int    `json:"code"` // exit code, or 128+signal
	Signal string `json:"signal,omitempty"`
}

// Shutdown ends the guest: processes get SIGTERM, after the grace SIGKILL, then file systems are synced and unmounted.
type Shutdown struct {
	GraceMillis int64 `json:"grace_millis"`
}

// Stats is what a guest uses and did, at one moment. Counters count from its boot.
type Stats struct {
	CPUMillis       uint64  `json:"cpu_millis"` // busy, over all processors
	MemoryTotal     uint64  `json:"memory_total"`
	MemoryAvailable uint64  `json:"memory_available"`
	Load1           float64 `json:"load1"`
	Processes       int     `json:"processes"` // without the kernel's own
	DiskRead        uint64  `json:"disk_read"` // bytes, all disks
	DiskWritten     uint64  `json:"disk_written"`
	NetReceived     uint64  `json:"net_received"` // bytes, the guest's only interface
	NetSent         uint64  `json:"net_sent"`
	DataTotal       uint64  `json:"data_total"` // bytes of the data disk's file system
	DataUsed        uint64  `json:"data_used"`
	Sessions        int     `json:"sessions,omitempty"` // that run; of an older agent always 0
}

// Limits of Ports.
const (
	MaxPorts       = 256
	MaxProcessName = 64 // bytes
)

// Ports is what listens in a guest, MaxPorts at most.
type Ports struct {
	Ports []Port `json:"ports"`
}

// Port is one listening TCP socket, or one UDP socket that takes datagrams from anybody.
type Port struct {
	Protocol string `json:"protocol"` // "tcp", "udp"
	Address  string `json:"address"`  // "0.0.0.0", "127.0.0.1", "::"
	Port     uint16 `json:"port"`
	PID      int    `json:"pid,omitempty"`     // 0 when not known
	Process  string `json:"process,omitempty"` // its name
}

// Grow says that the data disk has grown. The agent waits for the device to have the new size and then grows the file
// system on it, while it is in use.
type Grow struct {
	Bytes uint64 `json:"bytes"` // the disk's new size
}

// Grown answers Grow.
type Grown struct {
	Device     uint64 `json:"device"`     // bytes
	FileSystem uint64 `json:"filesystem"` // bytes
}

// Clock sets the guest's clock: it stood still while the guest was paused.
type Clock struct {
	UnixNano int64 `json:"unix_nano"`
}

// Wake tells a guest that was configured that it was saved and now runs again, perhaps not alone: another may have been
// restored from the same state. It comes before anything else after a restore.
type Wake struct {
	UnixNano int64  `json:"unix_nano"` // the host's clock
	Entropy  []byte `json:"entropy"`   // 64 bytes
	// Identity is who it is from now on; nil: who it was.
	Identity *Identity `json:"identity,omitempty"`
	// Settings take the place of those of Config; nil: they stay.
	Settings *Settings `json:"settings,omitempty"`
}

// Settings are what of Config is about commands only.
type Settings struct {
	Env     []string `json:"env,omitempty"`
	User    string   `json:"user,omitempty"`
	Workdir string   `json:"workdir,omitempty"`
}

// Identity is what no two guests share.
type Identity struct {
	Hostname  string   `json:"hostname"`
	MachineID string   `json:"machine_id"` // 32 hexadecimal digits
	BootID    string   `json:"boot_id"`    // a UUID: what /proc/sys/kernel/random/boot_id says
	Network   *Network `json:"network,omitempty"`
}
