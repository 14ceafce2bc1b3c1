package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/diskcopy"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/progress"
	"banger/internal/snapshot"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Snapshots of a VM are directories in its own one (package snapshot). A VM that runs is saved as for a suspend, with a copy
// of its disk, and goes on; what a suspended one has is linked and copied; of one that is stopped there is the disk.

// growthEvery is how often it is told how much of a snapshot there is.
const growthEvery = 250 * time.Millisecond

// stageSnapshot is the progress stage of a snapshot that is being taken.
const stageSnapshot = "snapshot"

// snapshotOptions say what snapshot is to be taken.
type snapshotOptions struct {
	name        string // "": one is generated
	description string
	diskOnly    bool
	auto        bool // the oldest of these go when there are too many
}

func (f *fleet) snapshotsOf(v store.VM) snapshot.Set {
	return snapshot.Open(f.dir(v.ID).Path(paths.VMSnapshots), v.Name())
}

// snapshot takes a snapshot of a VM. The caller holds its lock.
func (f *fleet) snapshot(ctx context.Context, v store.VM, opt snapshotOptions, report progress.Func) (_ snapshot.Snapshot, err error) {
	var none snapshot.Snapshot
	set := f.snapshotsOf(v)
	m, err := f.manifestFor(v, set, opt)
	if err != nil {
		return none, err
	}
	if err := f.roomForSnapshot(v, &m); err != nil {
		return none, err
	}
	var u undo.Stack
	defer func() { f.undo(ctx, &u, v.ID) }()
	dir, err := set.Begin(m.Name)
	if err != nil {
		return none, withClass(err)
	}
	u.Add("remove what was saved", func(context.Context) error { return os.RemoveAll(dir) })
	if err := f.cfg.step(ctx, StepSnapshotDir); err != nil {
		return none, err
	}
	done := f.tellGrowth(report, v, dir)
	err = f.fillSnapshot(ctx, v, dir, &m)
	done()
	if err != nil {
		return none, fault.Context(withClass(err), "snapshot of vm %s", v.Name())
	}
	if err := f.cfg.step(ctx, StepSnapshotSaved); err != nil {
		return none, err
	}
	var skip []string
	if m.DiskShared { // reading a disk takes longer than sharing its blocks
		skip = append(skip, vmdir.SavedDisk)
	}
	if m.Files, err = snapshot.Measure(ctx, dir, skip...); err != nil {
		return none, fault.Context(withClass(err), "snapshot of vm %s", v.Name())
	}
	snap, err := set.Publish(dir, m)
	if err != nil {
		return none, fault.Context(withClass(err), "snapshot of vm %s", v.Name())
	}
	u.Add("remove the snapshot", func(context.Context) error { return set.Remove(m.Name) })
	if err := f.cfg.step(ctx, StepSnapshotNamed); err != nil {
		return none, err
	}
	u.Disarm()
	f.log.InfoContext(ctx, "snapshot taken", "vm", v.ID, "snapshot", m.Name, "kind", m.Kind, "still_us", m.StillUS, "bytes", snap.Used)
	if m.Auto {
		f.wg.Go(func() { f.trimCheckpoints(v) })
	} else {
		f.tell(v, store.EventSnapshotted, m.Name+", "+vm.FormatSize(snap.Used))
	}
	return snap, nil
}

// manifestFor says what the snapshot will be, or why there can be none.
func (f *fleet) manifestFor(v store.VM, set snapshot.Set, opt snapshotOptions) (m snapshot.Manifest, err error) {
	m = snapshot.Manifest{
		Name: opt.name, Description: opt.description, Auto: opt.auto, Created: time.Now().UTC().Truncate(time.Millisecond), VM: v.ID, Spec: v.Spec,
		ResetToken: v.ResetToken, Kind: snapshot.Memory,
	}
	switch v.State {
	case vm.Running, vm.Paused:
		if driver := f.cfg.Drivers[v.Driver]; driver == nil || !driver.Features().Save {
			return m, fault.New(fault.Unavailable, "vm %s runs, and its vmm (%s) cannot save a machine", v.Name(), v.Driver).
				WithHint("banger vm stop %s   # a snapshot of its disk can be taken then", v.Name())
		}
	case vm.Suspended:
	case vm.Created, vm.Stopped, vm.Failed:
		opt.diskOnly = true
	default:
		return m, fault.New(fault.Conflict, "vm %s is %s, no snapshot of it can be taken now", v.Name(), v.State).WithHint("banger vm wait %s", v.Name())
	}
	if opt.auto && v.State != vm.Running {
		return m, fault.New(fault.Conflict, "vm %s is %s, checkpoints are taken of vms that run", v.Name(), v.State).
			WithHint("banger vm snapshot %s", v.Name())
	}
	if opt.diskOnly {
		m.Kind = snapshot.Disk
	}
	if m.Name == "" {
		m.Name, err = set.FreeName(opt.auto)
	}
	return m, err
}

// roomForSnapshot refuses early where a snapshot might not fit. Nothing is known of how much of a guest's memory is in use.
func (f *fleet) roomForSnapshot(v store.VM, m *snapshot.Manifest) error {
	dir := f.dir(v.ID)
	free, err := ext4.Free(string(dir))
	if err != nil {
		return nil //nolint:nilerr // the copy will tell
	}
	var need uint64
	if v.State == vm.Running || v.State == vm.Paused {
		need += v.Spec.Memory
	}
	if disk := used(dir.Path(paths.VMDisk)); need+disk > free && !diskcopy.Shares(string(dir)) {
		need += disk
	}
	if need <= free {
		return nil
	}
	return f.noRoom(v, fmt.Sprintf("a snapshot of vm %s", v.Name()), need, free)
}

// noRoom is the fault for something that does not fit on the disk. The snapshots of the VM are what may go for it.
func (f *fleet) noRoom(v store.VM, what string, need, free uint64) error {
	err := fault.New(fault.Exhausted, "%s needs up to %s on the disk, %s are free", what, vm.FormatSize(need), vm.FormatSize(free)).
		WithHint("banger image prune")
	if all, listErr := f.snapshotsOf(v).List(); listErr == nil && len(all) > 0 {
		return err.WithHint("banger snapshot rm %s %s", v.Name(), all[0].Name)
	}
	return err
}

// fillSnapshot puts the files of a VM's present state into dir, durably.
func (f *fleet) fillSnapshot(ctx context.Context, v store.VM, dir string, m *snapshot.Manifest) error {
	if v.State == vm.Running || v.State == vm.Paused {
		return f.saveInto(ctx, v, dir, m)
	}
	if m.Kind == snapshot.Memory {
		saved, err := f.readSuspended(v.ID)
		if err != nil {
			return fault.Wrap(fault.Conflict, err, "vm %s cannot go on from its memory", v.Name()).
				WithHint("banger vm snapshot --disk-only %s", v.Name())
		}
		disk, err := pairUp(ctx, f.dir(v.ID).Path(paths.VMDisk), 0, saved, f.suspendedDir(v.ID), dir, dir)
		m.DiskShared, m.StillUS = disk.Shared, saved.StillUS
		return err
	}
	disk, err := copyDisk(ctx, f.dir(v.ID).Path(paths.VMDisk), filepath.Join(dir, vmdir.SavedDisk), 0)
	m.DiskShared = disk.Shared
	return err
}

// saveInto has the supervisor save a VM that runs and goes on. Of a snapshot without memory only the disk is kept: it is as
// after a power cut at that instant.
func (f *fleet) saveInto(ctx context.Context, v store.VM, dir string, m *snapshot.Manifest) error {
	resp, err := f.saveRunning(ctx, v, &bangerv1.SupervisorSaveRequest{Dir: dir, Disk: true, Unsynced: m.Auto, SyncGuest: true})
	if err != nil {
		return err
	}
	m.StillUS, m.DiskShared = resp.GetStillUs(), resp.GetDiskShared()
	if m.Kind == snapshot.Memory {
		return nil
	}
	var errs []error
	for _, name := range []string{vmdir.SavedMemory, vmdir.SavedState, vmdir.SavedManifest} {
		errs = append(errs, removeFile(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// endNoticed is how long it may take until the end of a VM is recorded whose supervisor does not answer any more.
const endNoticed = 5 * time.Second

// saveRunning has the supervisor of a VM save it while it goes on. When the VM has ended meanwhile the error says so.
func (f *fleet) saveRunning(ctx context.Context, v store.VM, req *bangerv1.SupervisorSaveRequest) (*bangerv1.SupervisorSaveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	r := f.adopt(v)
	resp, err := r.supervisor.save(ctx, req)
	if !fault.Is(err, fault.Unavailable) {
		return resp, err
	}
	timer := time.NewTimer(endNoticed)
	defer timer.Stop()
	select {
	case <-r.gone:
	case <-timer.C:
	case <-ctx.Done():
	}
	if now, readErr := f.store.VM(ctx, v.ID); readErr == nil && !now.State.Live() {
		return nil, fault.New(fault.Conflict, "it has ended: %s", orElse(now.Reason, string(now.State))).WithHint("banger vm start %s", v.Name())
	}
	return nil, err
}

// pairUp makes a copy of a disk in diskDir, at least size bytes large, and in memoryDir links to the memory in from, as a
// saved machine that goes with that copy.
func pairUp(ctx context.Context, disk string, size uint64, saved vmdir.SavedMachine, from, diskDir, memoryDir string) (res diskcopy.Result, err error) {
	dst := filepath.Join(diskDir, vmdir.SavedDisk)
	if res, err = copyDisk(ctx, disk, dst, size); err != nil {
		return res, err
	}
	for _, name := range []string{vmdir.SavedMemory, vmdir.SavedState} {
		if err := os.Link(filepath.Join(from, name), filepath.Join(memoryDir, name)); err != nil {
			return res, err
		}
	}
	// The file system's own times have ticks of some milliseconds, and a disk that was written to in the same one must not
	// pass for this copy.
	if err := os.Chtimes(dst, time.Time{}, time.Now()); err != nil {
		return res, err
	}
	if saved.Disk, err = vmdir.StampOf(dst); err != nil {
		return res, err
	}
	return res, vmdir.WriteSaved(memoryDir, saved)
}

// copyDisk copies a disk that nobody writes to, makes the copy at least size bytes large, and durable.
func copyDisk(ctx context.Context, src, dst string, size uint64) (diskcopy.Result, error) {
	res, err := diskcopy.Copy(ctx, src, dst)
	if err != nil {
		return res, err
	}
	file, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err != nil {
		return res, err
	}
	info, err := file.Stat()
	if err == nil && uint64(info.Size()) < size {
		err = file.Truncate(int64(size))
	}
	if err == nil {
		err = file.Sync()
	}
	return res, errors.Join(err, file.Close(), atomicfile.SyncDir(filepath.Dir(dst)))
}

// tellGrowth reports how much there is in dir until done is called.
func (f *fleet) tellGrowth(report progress.Func, v store.VM, dir string) (done func()) {
	message := "saving " + string(v.Name())
	report.Report(progress.Update{Stage: stageSnapshot, Message: message})
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with done
		defer close(ended)
		ticker := time.NewTicker(growthEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				report.Report(progress.Update{Stage: stageSnapshot, Message: message, Done: used(dir), Unit: "bytes"})
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
	}
}

// trimCheckpoints removes the oldest automatic snapshots of which there are too many. Nobody waits for it.
func (f *fleet) trimCheckpoints(v store.VM) {
	unlock, err := f.locks.Lock(f.ctx, v.ID)
	if err != nil { // the daemon ends
		return
	}
	defer unlock()
	if _, err := f.store.VM(f.ctx, v.ID); err != nil { // it was removed
		return
	}
	set := f.snapshotsOf(v)
	all, err := set.List()
	for _, snap := range all {
		if snap.Auto && snap.Back > f.cfg.Settings.Limits.Checkpoints {
			err = errors.Join(err, set.Remove(snap.Name))
		}
	}
	if err != nil {
		f.log.Error("cannot remove checkpoints", "vm", v.ID, "error", err)
	}
}

// countSnapshots says how many snapshots a VM has that somebody took by hand, and what they take; "" for none.
func (f *fleet) countSnapshots(v store.VM) (string, error) {
	all, err := f.snapshotsOf(v).List()
	if err != nil {
		return "", err
	}
	count, bytes := 0, uint64(0)
	for _, snap := range all {
		if !snap.Auto {
			count, bytes = count+1, bytes+snap.Used
		}
	}
	switch count {
	case 0:
		return "", nil
	case 1:
		return "a snapshot (" + vm.FormatSize(bytes) + ")", nil
	}
	return fmt.Sprintf("%d snapshots (%s)", count, vm.FormatSize(bytes)), nil
}
