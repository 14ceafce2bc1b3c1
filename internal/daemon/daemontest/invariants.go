package daemontest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/daemon"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// EnvDieAt names the step at which a daemon made with StepFromEnv is to die; EnvFailAt the one that is to fail.
const (
	EnvDieAt  = "BANGER_TEST_DIE_AT"
	EnvFailAt = "BANGER_TEST_FAIL_AT"
)

// StepFromEnv returns the daemon.Config.Step that the environment asks for, or nil.
func StepFromEnv() func(context.Context, daemon.Step) error {
	dieAt, failAt := daemon.Step(os.Getenv(EnvDieAt)), daemon.Step(os.Getenv(EnvFailAt))
	if dieAt == "" && failAt == "" {
		return nil
	}
	return func(_ context.Context, s daemon.Step) error {
		switch s {
		case dieAt:
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it takes a moment
		case failAt:
			return FailedStep(s)
		}
		return nil
	}
}

// FailedStep is the fault of a step that a test makes fail.
func FailedStep(s daemon.Step) error {
	return fault.New(fault.Unavailable, "step %s fails in this test", s).WithHint("banger doctor")
}

// Check compares what a daemon says about its VMs with what is on the host: rows, directories, processes and sockets
// belong together, one to one, and nothing else is there. It returns each difference as a sentence. It is right when
// nobody does anything with the VMs; see Settle.
func Check(p paths.Paths, vms []*bangerv1.VM) []string {
	c := checker{paths: p, supervisors: Supervisors(p)}
	rows := map[string]bool{}
	for _, v := range vms {
		rows[v.GetId()] = true
		c.vm(v)
	}
	for _, name := range entries(p.VMs()) {
		if !rows[name] {
			c.add("%s is the directory of no vm", filepath.Join(p.VMs(), name))
		}
	}
	for _, name := range entries(p.Run) {
		if strings.HasPrefix(name, "daemon.") || name == filepath.Base(p.StartLock()) {
			continue
		}
		if !rows[name] {
			c.add("%s belongs to no vm", filepath.Join(p.Run, name))
		}
	}
	for id, pids := range c.supervisors {
		if !rows[id] {
			c.add("supervisors %v belong to vm %s, which has no row", pids, id)
		}
	}
	for _, name := range entries(p.Staging()) {
		c.add("%s is left", filepath.Join(p.Staging(), name))
	}
	slices.Sort(c.found)
	return c.found
}

// CheckImages compares what a daemon says about its images with what is on the host: each has its directory, whose names
// file says what the daemon says, and nothing else is there. It returns each difference as a sentence.
func CheckImages(p paths.Paths, images []*bangerv1.Image) []string {
	c := checker{paths: p}
	listed := map[string]bool{}
	for _, m := range images {
		dir := p.Image(m.GetDigest())
		listed[filepath.Base(dir)] = true
		var file struct {
			Names map[string]time.Time `json:"names"`
		}
		if err := atomicfile.ReadJSON(filepath.Join(dir, "names.json"), &file); err != nil {
			c.add("image %s (%s): %v", m.GetName(), m.GetDigest(), err)
			continue
		}
		delete(file.Names, m.GetDigest()) // it is kept without a name
		if names := slices.Sorted(maps.Keys(file.Names)); !slices.Equal(names, m.GetNames()) {
			c.add("image %s has the names %v, its file says %v", m.GetDigest(), m.GetNames(), names)
		}
	}
	for _, name := range entries(p.Images()) {
		if !listed[name] {
			c.add("%s is the directory of no image", filepath.Join(p.Images(), name))
		}
	}
	return c.found
}

// Settle checks again and again until nothing differs or the time is over, and returns what differs then. list asks the
// daemon for all VMs.
func Settle(p paths.Paths, limit time.Duration, list func() ([]*bangerv1.VM, error)) []string {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		vms, err := list()
		found := []string{fmt.Sprintf("the daemon does not list its vms: %v", err)}
		if err == nil {
			found = Check(p, vms)
		}
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
	}
}

type checker struct {
	paths       paths.Paths
	supervisors map[string][]int
	found       []string
}

func (c *checker) add(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// vm checks one VM: its directory, and its processes and sockets if it runs.
func (c *checker) vm(v *bangerv1.VM) {
	id, name := v.GetId(), v.GetSpec().GetName()
	dir := vmdir.Dir(c.paths.VM(id))
	r, err := dir.ReadRecord()
	switch {
	case err != nil:
		c.add("vm %s (%s): %v", name, id, err)
	case string(r.Spec.Name) != name || r.Spec.Disk != v.GetSpec().GetDiskBytes() || r.Spec.CPUs != int(v.GetSpec().GetCpus()) ||
		r.Spec.Memory != v.GetSpec().GetMemoryBytes():
		c.add("vm %s (%s): its record says %+v", name, id, r.Spec)
	}
	if info, err := os.Stat(dir.Path(paths.VMDisk)); err != nil {
		c.add("vm %s (%s) has lost its disk: %v", name, id, err)
	} else if uint64(info.Size()) != v.GetSpec().GetDiskBytes() {
		c.add("vm %s (%s): its disk has %d bytes, its row says %d", name, id, info.Size(), v.GetSpec().GetDiskBytes())
	}
	_, socketErr := os.Stat(c.paths.SupervisorSocket(id))
	_, runErr := os.Stat(c.paths.VMRun(id))
	process, recorded, _ := dir.ReadProcess()
	switch state := vm.State(v.GetState()); {
	case state == vm.Running || state == vm.Paused:
		if socketErr != nil || !recorded || !process.Supervisor.Alive() || len(c.supervisors[id]) != 1 ||
			process.Supervisor.PID != int(v.GetSupervisorPid()) {
			c.add("vm %s (%s) is %s: socket %v, process record %+v, supervisors %v, row says %d", name, id, state, socketErr, process,
				c.supervisors[id], v.GetSupervisorPid())
		}
	case state.Live() || state == vm.Deleting:
		c.add("vm %s (%s) is still %s", name, id, state)
	case runErr == nil || recorded || len(c.supervisors[id]) > 0:
		c.add("vm %s (%s) is %s: run directory %v, process record %v, supervisors %v", name, id, state, runErr == nil, recorded,
			c.supervisors[id])
	}
}

// Supervisors returns the processes that were started as supervisors of VMs below p, by VM id.
func Supervisors(p paths.Paths) map[string][]int {
	found := map[string][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(text), "\x00--dir\x00"+p.VMs()+"/")
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); !ok || err != nil {
			continue
		}
		id, _, _ := strings.Cut(rest, "\x00")
		found[id] = append(found[id], pid)
	}
	return found
}

func entries(dir string) []string {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}
