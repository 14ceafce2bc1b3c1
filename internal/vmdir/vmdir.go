// Package vmdir is the directory that every VM has on the host: one JSON file for each thing that must survive the
// process that knows it.
//
//	vm.json          Record: what the VM is; written by the daemon; a lost database is rebuilt from it
//	supervisor.json  Launch: what the supervisor is to start; written by the daemon before it spawns one
//	process.json     Process: who runs it; written by the supervisor, removed when it ends in order
//	exit.json        Exit: how the last run ended; written by the supervisor
//
// The other files (disk, console log) are named in package paths.
package vmdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/vm"
)

// Dir is the directory of one VM.
type Dir string

// Path of a file in it: one of the paths.VM... names.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// Record is what a VM is.
type Record struct {
	ID          vm.ID     `json:"id"`
	Spec        vm.Spec   `json:"spec"`
	MachineID   string    `json:"machine_id"`   // of the guest: 32 hexadecimal digits
	ImageDigest string    `json:"image_digest"` // sha256:...
	KernelID    string    `json:"kernel_id"`    // digest of the kernel
	CreatedAt   time.Time `json:"created_at"`

	Driver        string `json:"driver,omitempty"`         // empty in records of older bangers: the configured one
	KernelVersion string `json:"kernel_version,omitempty"` // likewise: what the kernel's own record says
	// ResetToken is the word of a reset that the next start carries out (agentwire.Config.ResetRoot); empty: none.
	ResetToken string `json:"reset_token,omitempty"`
	// Address is the number of its address; 0 in records of older bangers.
	Address int        `json:"address,omitempty"`
	Origin  *vm.Origin `json:"forked_from,omitempty"`
}

// Launch is everything a supervisor needs. It holds no secrets.
type Launch struct {
	VMID    vm.ID            `json:"vm_id"`
	Name    vm.Name          `json:"name"`
	Driver  string           `json:"driver"`  // key in the driver map: "qemu"
	Machine hypervisor.Spec  `json:"machine"` // Console and Log are the supervisor's own
	Guest   agentwire.Config `json:"guest"`   // UnixNano and Entropy are filled in by the supervisor
	Paths   paths.Paths      `json:"paths"`

	// BootDeadline is how long one boot may take until the agent has answered Configure; Attempts how many are made.
	BootDeadline time.Duration `json:"boot_deadline"`
	Attempts     int           `json:"attempts"`
	// Template, if it is not nil, is a saved machine to start from. When that fails the VM is booted.
	Template *hypervisor.Saved `json:"template,omitempty"`
	// Prepared says that the guest of Template is configured, with this VM's image and a disk that its own is a copy of: it
	// is not configured but woken, as this VM.
	Prepared bool `json:"prepared,omitempty"`
	// Pool says that the VM is one of the daemon's pool, until somebody takes it.
	Pool bool `json:"pool,omitempty"`
	// TemplateKey names it, for those who ask which VMs use it.
	TemplateKey string `json:"template_key,omitempty"`
	// TemplateFault says what was wrong with templates before the launch: there is none, or it had to be made anew.
	TemplateFault string `json:"template_fault,omitempty"`
	// RestoreDeadline is BootDeadline for a start from a template.
	RestoreDeadline time.Duration `json:"restore_deadline,omitempty"`
	// Resume, if it is not nil, is the saved machine that the VM goes on from: its own, or with Identity that of another VM.
	// It is not booted when that fails.
	Resume *hypervisor.Saved `json:"resume,omitempty"`
	// Identity is who the guest is after Resume; nil: who it was.
	Identity *agentwire.Identity `json:"identity,omitempty"`
	// ConsoleLimit bounds the console log in bytes (there is one rotated file beside it).
	ConsoleLimit int64 `json:"console_limit"`
}

// Process is who runs the VM.
type Process struct {
	Supervisor proc.Identity `json:"supervisor"`
	VMM        proc.Identity `json:"vmm"` // zero while no VMM runs
	StartedAt  time.Time     `json:"started_at"`
}

// Exit is how the last run ended.
type Exit struct {
	Reason   string `json:"reason"`   // for people: "stopped", "the vmm was killed by signal 9"
	Code     int    `json:"code"`     // the VMM's exit code, -1 when a signal ended it
	Expected bool   `json:"expected"` // somebody asked for it
	Failed   bool   `json:"failed"`   // the guest never became ready
	// Suspended says that the VM's memory is kept: see Saved.
	Suspended bool      `json:"suspended,omitempty"`
	At        time.Time `json:"at"`
}

// Names of the files in the directory of a saved machine.
const (
	SavedMemory   = "memory"
	SavedState    = "state"
	SavedDisk     = "disk.ext4"  // only if a copy was asked for
	SavedManifest = "saved.json" // SavedMachine; written last
)

// savedLayout is the generation of such a directory.
const savedLayout = 1

// SavedMachine says what a saved machine needs to go on.
type SavedMachine struct {
	Layout  int               `json:"layout"`
	Shape   string            `json:"shape"` // hypervisor.Shaper, when it was saved
	Launch  Launch            `json:"launch"`
	Disks   map[string]uint64 `json:"disks"` // sizes: hypervisor.Saved
	Created time.Time         `json:"created"`
	StillUS int64             `json:"still_us"` // how long the guest stood still, in microseconds
	// Disk is the VM's own disk at that instant. The memory is of no use with a disk that was written to since.
	Disk DiskStamp `json:"disk"`
	// Identity, if it is not nil, is who the guest is when it goes on: it was saved as another one.
	Identity *agentwire.Identity `json:"identity,omitempty"`
}

// DiskStamp tells whether a file was written to.
type DiskStamp struct {
	Size  int64 `json:"size"`
	MTime int64 `json:"mtime_ns"`
}

// StampOf returns the stamp of a file as it is now.
func StampOf(path string) (DiskStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return DiskStamp{}, err
	}
	return DiskStamp{Size: info.Size(), MTime: info.ModTime().UnixNano()}, nil
}

// WriteSaved writes the manifest of the saved machine in dir.
func WriteSaved(dir string, m SavedMachine) error {
	m.Layout = savedLayout
	return atomicfile.WriteJSON(filepath.Join(dir, SavedManifest), m)
}

// ReadSaved reads the manifest of the saved machine in dir. One that is not there is fs.ErrNotExist.
func ReadSaved(dir string) (m SavedMachine, err error) {
	err = atomicfile.ReadJSON(filepath.Join(dir, SavedManifest), &m)
	if err == nil && m.Layout != savedLayout {
		err = fault.New(fault.Conflict, "it was saved by another banger (layout %d, this one has %d)", m.Layout, savedLayout)
	}
	return m, err
}

// Saved is what a driver needs of the saved machine in dir.
func (m *SavedMachine) Saved(dir string) *hypervisor.Saved {
	return &hypervisor.Saved{
		Memory: filepath.Join(dir, SavedMemory), State: filepath.Join(dir, SavedState), Disks: m.Disks,
	}
}

// ReadRecord reads vm.json. A missing one is fs.ErrNotExist.
func (d Dir) ReadRecord() (r Record, err error) {
	err = atomicfile.ReadJSON(d.Path(paths.VMRecord), &r)
	return r, err
}

// WriteRecord writes vm.json.
func (d Dir) WriteRecord(r Record) error { return atomicfile.WriteJSON(d.Path(paths.VMRecord), r) }

// ReadLaunch reads supervisor.json.
func (d Dir) ReadLaunch() (l Launch, err error) {
	err = atomicfile.ReadJSON(d.Path(paths.VMSupervisorSpec), &l)
	return l, err
}

// WriteLaunch writes supervisor.json.
func (d Dir) WriteLaunch(l Launch) error {
	return atomicfile.WriteJSON(d.Path(paths.VMSupervisorSpec), l)
}

// ReadProcess reads process.json. ok is false when there is none.
func (d Dir) ReadProcess() (p Process, ok bool, err error) {
	return read[Process](d.Path(paths.VMProcess))
}

// WriteProcess writes process.json. It tells of processes, of which none is left when the host has gone down.
func (d Dir) WriteProcess(p Process) error {
	return atomicfile.WriteVolatileJSON(d.Path(paths.VMProcess), p)
}

// RemoveProcess removes process.json.
func (d Dir) RemoveProcess() error { return remove(d.Path(paths.VMProcess)) }

// ReadExit reads exit.json. ok is false when there is none.
func (d Dir) ReadExit() (e Exit, ok bool, err error) { return read[Exit](d.Path(paths.VMExit)) }

// WriteExit writes exit.json.
func (d Dir) WriteExit(e Exit) error { return atomicfile.WriteJSON(d.Path(paths.VMExit), e) }

// RemoveExit removes exit.json, before a new run begins.
func (d Dir) RemoveExit() error { return remove(d.Path(paths.VMExit)) }

func read[T any](path string) (v T, ok bool, err error) {
	err = atomicfile.ReadJSON(path, &v)
	if errors.Is(err, fs.ErrNotExist) {
		return v, false, nil
	}
	return v, err == nil, err
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
