// Package paths is the map of every file that banger keeps on the host: one constant or method for each.
//
// With BANGER_HOME everything is under that one root. Without it the XDG base directories are used. Sockets are kept
// under the state directory and not under XDG_RUNTIME_DIR: that one is gone when the user logs out and is not set in
// cron or su, and then a second daemon would be started for the same data.
package paths

import (
	"errors"
	"os"
	"path/filepath"

	"banger/internal/fault"
)

// MaxSocketPath is the longest path of a Unix socket on Linux (unix(7): sun_path has 108 bytes with the final NUL).
const MaxSocketPath = 107

// Names of the files in a VM's directory.
const (
	VMRecord         = "vm.json"         // what the VM is; enough to rebuild its row
	VMDisk           = "disk.ext4"       // its writable disk
	VMRoot           = "root.ext4"       // the root of a VM of the daemon's own that runs no image; read-only
	VMConsole        = "console.log"     // what the guest kernel and agent wrote; rotated to console.log.1
	VMSupervisorLog  = "supervisor.log"  // the supervisor's own log
	VMSupervisorSpec = "supervisor.json" // what the supervisor is to start; written by the daemon before it spawns one
	VMProcess        = "process.json"    // which supervisor runs it: pid, start time; written by the supervisor
	VMExit           = "exit.json"       // how the last run ended; written by the supervisor
	VMSuspended      = "suspended"       // directory: memory and state of a suspended VM
	VMSnapshots      = "snapshots"       // directory: one directory per snapshot, by name
	VMRestoring      = "restoring"       // directory: what a restore is about to put in place, and what it has replaced
	VMLock           = "supervisor.lock" // held by the supervisor as long as it lives
)

// Paths holds the directories. All are absolute.
type Paths struct {
	Config string // config.toml
	Data   string // what must not be lost: database, VMs, images, kernels
	Cache  string // what can be made again: initramfs, formatted disks, downloads
	State  string // logs
	Run    string // sockets
}

// FromEnv returns the directories for this process's environment. It creates none of them.
func FromEnv() (Paths, error) {
	if root := os.Getenv("BANGER_HOME"); root != "" {
		root, err := filepath.Abs(root)
		if err != nil {
			return Paths{}, fault.Wrap(fault.Invalid, err, "BANGER_HOME")
		}
		return Under(root), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return Paths{}, fault.Wrap(fault.Invalid, err, "no home directory").WithHint("export BANGER_HOME=/path/to/a/directory")
	}
	base := func(env, fallback string) string {
		if dir := os.Getenv(env); filepath.IsAbs(dir) { // the XDG specification: relative ones are to be ignored
			return filepath.Join(dir, "banger")
		}
		return filepath.Join(home, fallback, "banger")
	}
	p := Paths{
		Config: base("XDG_CONFIG_HOME", ".config"),
		Data:   base("XDG_DATA_HOME", ".local/share"),
		Cache:  base("XDG_CACHE_HOME", ".cache"),
		State:  base("XDG_STATE_HOME", ".local/state"),
	}
	p.Run = filepath.Join(p.State, "run")
	return p, nil
}

// Under returns the directories below one root.
func Under(root string) Paths {
	return Paths{
		Config: filepath.Join(root, "config"),
		Data:   filepath.Join(root, "data"),
		Cache:  filepath.Join(root, "cache"),
		State:  filepath.Join(root, "state"),
		Run:    filepath.Join(root, "run"),
	}
}

// Ensure makes the directories (0700) and checks that the longest socket path fits.
func (p Paths) Ensure() error {
	if longest := p.QMPSocket("0123456789ab"); len(longest) > MaxSocketPath {
		return fault.New(fault.Invalid, "socket path %s is %d bytes long, more than the %d that Linux allows",
			longest, len(longest), MaxSocketPath).WithHint("export BANGER_HOME=%s", "/var/tmp/banger")
	}
	for _, dir := range []string{p.Config, p.Data, p.Cache, p.State, p.Run, p.VMs(), p.Images(), p.Kernels(), p.Staging()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			class := fault.Internal
			if errors.Is(err, os.ErrPermission) {
				class = fault.Denied
			}
			return fault.Wrap(class, err, "make directory")
		}
	}
	// The run directory holds sockets: whatever made it, nobody else may enter.
	return os.Chmod(p.Run, 0o700)
}

// ConfigFile is the user's configuration.
func (p Paths) ConfigFile() string { return filepath.Join(p.Config, "config.toml") }

// Database is the SQLite file.
func (p Paths) Database() string { return filepath.Join(p.Data, "banger.db") }

// DaemonLock is held by the daemon as long as it lives.
func (p Paths) DaemonLock() string { return filepath.Join(p.Data, "daemon.lock") }

// StartLock is held by a CLI while it starts a daemon.
func (p Paths) StartLock() string { return filepath.Join(p.Run, "start.lock") }

// DaemonSocket is where the daemon listens.
func (p Paths) DaemonSocket() string { return filepath.Join(p.Run, "daemon.sock") }

// DaemonLog is the daemon's log.
func (p Paths) DaemonLog() string { return filepath.Join(p.State, "daemon.log") }

// VMs holds one directory per VM, named by id.
func (p Paths) VMs() string { return filepath.Join(p.Data, "vms") }

// VM is the directory of the VM with that id.
func (p Paths) VM(id string) string { return filepath.Join(p.VMs(), id) }

// VMRun is the directory of that VM's sockets while it runs.
func (p Paths) VMRun(id string) string { return filepath.Join(p.Run, id) }

// SupervisorSocket is where the supervisor of that VM listens.
func (p Paths) SupervisorSocket(id string) string { return filepath.Join(p.VMRun(id), "sup.sock") }

// AgentSocket is the host end of that VM's agent channel.
func (p Paths) AgentSocket(id string) string { return filepath.Join(p.VMRun(id), "agent.sock") }

// QMPSocket is the control socket of that VM's QEMU.
func (p Paths) QMPSocket(id string) string { return filepath.Join(p.VMRun(id), "qmp.sock") }

// Images holds one directory per image, named by digest.
func (p Paths) Images() string { return filepath.Join(p.Data, "images") }

// Image is the directory of the image with that digest ("sha256:...").
func (p Paths) Image(digest string) string { return filepath.Join(p.Images(), digestDir(digest)) }

// Kernels holds one directory per kernel, named by digest.
func (p Paths) Kernels() string { return filepath.Join(p.Data, "kernels") }

// Kernel is the directory of the kernel with that digest.
func (p Paths) Kernel(digest string) string { return filepath.Join(p.Kernels(), digestDir(digest)) }

// Staging holds what is being made; whatever is there when the daemon starts is a leftover. It is on the same file
// system as Images, Kernels and VMs, so that publishing is a rename.
func (p Paths) Staging() string { return filepath.Join(p.Data, "staging") }

// Initramfs holds the initramfs files, named by the digests of what is in them.
func (p Paths) Initramfs() string { return filepath.Join(p.Cache, "initramfs") }

// Disks holds the formatted empty disks that VM disks are copied from.
func (p Paths) Disks() string { return filepath.Join(p.Cache, "disks") }

// Blobs is the content-addressed store of layers and of what is being downloaded for it.
func (p Paths) Blobs() string { return filepath.Join(p.Cache, "blobs") }

// BuildCache holds what the steps of builds have made, by the keys of the steps.
func (p Paths) BuildCache() string { return filepath.Join(p.Cache, "build") }

// Catalogs holds the image catalogs of other people, as they were fetched last.
func (p Paths) Catalogs() string { return filepath.Join(p.Cache, "catalogs") }

// Templates holds the machines that VMs are started from.
func (p Paths) Templates() string { return filepath.Join(p.Cache, "templates") }

// digestDir turns "sha256:abc" into "sha256-abc", which is safe in a mount option, a PATH and an -o argument.
func digestDir(digest string) string {
	b := []byte(digest)
	for i, c := range b {
		if c == ':' || c == '/' {
			b[i] = '-'
		}
	}
	return string(b)
}
