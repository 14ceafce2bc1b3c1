package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/store"
	"banger/internal/template"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// Kinds of findings. The strings are part of the wire.
const (
	findDiskWithoutRow   = "disk-without-row"
	findRowWithoutDisk   = "row-without-disk"
	findHalfMade         = "half-made-vm"
	findStaleRecord      = "stale-record"
	findStrayProcess     = "process-without-row"
	findRunDir           = "leftover-run-dir"
	findHalfRemoved      = "half-removed-dir"
	findStaging          = "leftover-staging"
	findRowWithoutFiles  = "artifact-without-files"
	findFilesWithoutRow  = "artifact-without-row"
	findUnusableArtifact = "unusable-artifact"
	findOldInitramfs     = "old-initramfs"
	findCorruptDatabase  = "corrupt-database"
	findLeftover         = "leftover-in-vm"
	findCutOffRestore    = "cut-off-restore"
	findDamagedSnapshot  = "damaged-snapshot"
)

// fsckService is the wire's FsckService.
type fsckService struct {
	parts *parts
}

// Check implements the RPC.
func (s *fsckService) Check(ctx context.Context, req *connect.Request[bangerv1.FsckRequest]) (*connect.Response[bangerv1.FsckResponse], error) {
	c := &checker{parts: s.parts, repair: req.Msg.GetRepair(), paths: s.parts.daemon.cfg.Paths}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.FsckResponse{Findings: c.findings}), nil
}

// checker compares the database, the directories and the processes, and mends what it is safe to mend: what holds
// nobody's data, or what loses nothing by it. A VM's disk is never removed by it.
type checker struct {
	*parts
	repair   bool
	paths    paths.Paths
	findings []*bangerv1.Finding
	rows     map[vm.ID]store.VM
	pids     map[vm.ID]int // a process of each VM that has one
}

func (c *checker) run(ctx context.Context) error {
	all, err := c.store.VMs(ctx)
	if err != nil {
		return err
	}
	c.rows = map[vm.ID]store.VM{}
	for _, v := range all {
		c.rows[v.ID] = v
	}
	c.pids = c.processesByVM()
	c.strays(ctx)
	for _, v := range all {
		c.row(ctx, v)
	}
	c.runDirs(ctx)
	c.processes(ctx)
	c.halfRemoved(ctx)
	c.staging(ctx)
	c.artifacts(ctx, c.images)
	c.artifacts(ctx, c.kernels)
	c.initramfs(ctx)
	c.corrupt()
	return ctx.Err()
}

// find adds a finding. mend is what repair does about it, in words and in deed; both are empty when it is left to the
// user.
func (c *checker) find(kind, object, message, repair string, mend func() error) {
	f := &bangerv1.Finding{Kind: kind, Object: object, Message: message, Repair: repair}
	if c.repair && mend != nil {
		if err := mend(); err != nil {
			f.Message += "; it cannot be mended: " + err.Error()
		} else {
			f.Repaired = true
		}
	}
	c.findings = append(c.findings, f)
}

// strays looks for directories that a row has disappeared for while this daemon runs; those of the time before it were
// adopted when it started.
func (c *checker) strays(ctx context.Context) {
	for _, dir := range list(c.paths.VMs()) {
		id := vm.ID(name(dir))
		if _, known := c.rows[id]; known || strings.HasPrefix(string(id), ".") {
			continue
		}
		if _, err := c.store.VM(ctx, id); err == nil { // made meanwhile
			continue
		}
		r, err := c.fleet.dir(id).ReadRecord()
		switch {
		case err == nil && r.ID == id:
			c.find(findDiskWithoutRow, dir, fmt.Sprintf("the directory of vm %s has no row", r.Spec.Name),
				"a row is made from its "+paths.VMRecord, func() error { return c.adopt(ctx, id) })
		case err == nil:
			c.find(findDiskWithoutRow, dir, fmt.Sprintf("a copy of the directory of vm %s (%s)", r.Spec.Name, r.ID), "", nil)
		case errors.Is(err, fs.ErrNotExist):
			c.find(findDiskWithoutRow, dir, "it has no "+paths.VMRecord+": a create was cut off there, or it is something else", "", nil)
		default:
			c.find(findDiskWithoutRow, dir, "its "+paths.VMRecord+" cannot be read: "+err.Error(), "", nil)
		}
	}
}

// adopt makes the row of a directory and finds out what runs of it.
func (c *checker) adopt(ctx context.Context, id vm.ID) error {
	unlock, err := c.fleet.tryLock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.fleet.adoptDir(ctx, id); err != nil {
		return err
	}
	v, err := c.store.VM(ctx, id)
	if err != nil {
		return err
	}
	c.rows[id] = v
	return c.fleet.settle(ctx, v)
}

// row compares a row with its directory. A VM with which somebody does something now is passed over.
func (c *checker) row(ctx context.Context, v store.VM) {
	unlock, err := c.fleet.tryLock(ctx, v.ID)
	if err != nil {
		return
	}
	defer unlock()
	if v, err = c.store.VM(ctx, v.ID); err != nil {
		return
	}
	dir := c.fleet.dir(v.ID)
	if !v.Made || v.State == vm.Deleting {
		c.find(findHalfMade, string(v.Name()), "a create or a removal was cut off", "the removal is finished",
			func() error { return c.fleet.destroy(ctx, v.ID) })
		return
	}
	if _, err := os.Stat(dir.Path(paths.VMDisk)); err != nil {
		c.find(findRowWithoutDisk, string(v.Name()), fmt.Sprintf("vm %s has no disk any more (%v): banger vm rm %s forgets it", v.Name(), err, v.Name()), "", nil)
		return
	}
	c.snapshots(ctx, v)
	if r, err := dir.ReadRecord(); err != nil || stale(r, v) {
		c.find(findStaleRecord, dir.Path(paths.VMRecord), fmt.Sprintf("it says something else than the database about vm %s", v.Name()),
			"it is written anew from the database", func() error { return dir.WriteRecord(recordOf(v)) })
	}
}

// runDirs looks for socket directories of VMs that do not run. Those of templates are in use as long as they are there: what
// a killed daemon has left of them goes when the next one starts.
func (c *checker) runDirs(ctx context.Context) {
	for _, dir := range list(c.paths.Run) {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || template.IsScratch(name(dir)) {
			continue
		}
		id := vm.ID(name(dir))
		unlock, err := c.fleet.tryLock(ctx, id)
		if err != nil {
			continue
		}
		release, alive, err := claim(c.fleet.dir(id))
		v, rowErr := c.store.VM(ctx, id)
		if err == nil && !alive && (rowErr != nil || !v.State.Live()) && c.pids[id] == 0 {
			c.find(findRunDir, dir, "no vm that runs has it", "it is removed", func() error { return os.RemoveAll(dir) })
		}
		release()
		unlock()
	}
}

// processes looks for supervisors and VMMs of VMs that have no row. They are left alone: such a VM still runs, perhaps on
// a disk that has no name any more, and only the user knows whether it matters. The supervisor of a VM that was just removed
// is none of them: it ends by itself.
func (c *checker) processes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, strayPatience)
	defer cancel()
	for id, pid := range c.pids {
		if _, known := c.rows[id]; known || endsSoon(ctx, pid) {
			continue
		}
		c.find(findStrayProcess, fmt.Sprint(pid), fmt.Sprintf("process %d belongs to vm %s, which has no row: kill %d ends it", pid, id, pid), "", nil)
	}
}

// strayPatience is how long a process may take to end whose VM is gone.
const strayPatience = 3 * time.Second

// endsSoon waits for the end of a process as long as ctx lasts, and reports whether it came.
func endsSoon(ctx context.Context, pid int) bool {
	id, err := proc.Of(pid)
	if err != nil {
		return true // no such process any more
	}
	for id.Alive() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// processesByVM finds, by their command lines, the processes that work in the directories of VMs.
func (c *checker) processesByVM() map[vm.ID]int {
	found := map[vm.ID]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, root := range []string{c.paths.VMs() + "/", c.paths.Run + "/"} {
			_, rest, ok := strings.Cut(string(text), root)
			if id := firstName(rest); ok && len(id) == len(vm.NewID()) && found[vm.ID(id)] == 0 {
				var pid int
				if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); err == nil && pid != os.Getpid() {
					found[vm.ID(id)] = pid
				}
			}
		}
	}
	return found
}

// firstName is the first part of what follows a directory in a command line.
func firstName(rest string) string {
	if i := strings.IndexFunc(rest, func(r rune) bool { return (r < 'a' || r > 'f') && (r < '0' || r > '9') }); i >= 0 {
		return rest[:i]
	}
	return rest
}

// corrupt tells of databases that were moved aside.
func (c *checker) corrupt() {
	found, _ := filepath.Glob(c.paths.Database() + ".corrupt-*")
	for _, file := range found {
		if strings.HasSuffix(file, "-wal") || strings.HasSuffix(file, "-shm") {
			continue
		}
		c.find(findCorruptDatabase, file, "a damaged database that was moved aside; nothing needs it", "", nil)
	}
}
