package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/diskcopy"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/snapshot"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// A restore makes of a VM one that was suspended when the snapshot was taken, and lets it go on. All that can be found out
// before is found out before the VM is touched; what it had before is kept until it runs again.

// restoreLimit bounds a restore once the VM was ended for it.
const restoreLimit = 3 * time.Minute

// Stages of a restore.
const (
	stageCheck = "check"
	stageDisk  = "disk"
	stageStart = "start"
)

// restoreOptions say how a VM is restored.
type restoreOptions struct {
	diskOnly bool // although there is memory
	start    bool // although there is no memory
	force    bool // although it runs or is suspended
}

// restore puts a VM back to a snapshot. The caller holds its lock.
func (f *fleet) restore(ctx context.Context, v store.VM, snap snapshot.Snapshot, opt restoreOptions, report progress.Func) (err error) {
	if (v.State.Live() || v.State == vm.Suspended) && !opt.force {
		return fault.New(fault.Conflict, "vm %s is %s, what it has in memory would be lost", v.Name(), v.State).
			WithHint("banger vm restore --yes %s %s", v.Name(), snap.Name)
	}
	memory := snap.Kind == snapshot.Memory && !opt.diskOnly
	if err := f.restorable(ctx, v, &snap, memory, report); err != nil {
		return err
	}
	before := v
	var u undo.Stack
	defer func() { f.undo(ctx, &u, v.ID) }()
	u.Add("put the row right", func(ctx context.Context) error { return f.rowBefore(ctx, before) })
	u.Add("put the old disk back", func(ctx context.Context) error { return f.restoreFailed(ctx, v.ID) })
	if err := f.prepareRestore(ctx, v, &snap, memory, report); err != nil {
		return fault.Context(withClass(err), "restore vm %s", v.Name())
	}
	if err := f.cfg.step(ctx, StepRestorePrepared); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// From here on the VM is not what it was: it is brought to the end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreLimit)
	defer cancel()
	if v, err = f.placeRestored(ctx, v, &snap, memory); err != nil {
		return err
	}
	if memory || opt.start {
		report.Report(progress.Update{Stage: stageStart, Message: "starting " + string(v.Name())})
		if err := f.start(ctx, v, startOptions{report: report}); err != nil {
			return fault.Context(err, "vm %s is left as it was on the disk", before.Name())
		}
	}
	if err := f.cfg.step(ctx, StepRestoreStarted); err != nil {
		return f.endAgain(ctx, v.ID, err)
	}
	u.Disarm()
	f.restored(ctx, v, &snap, memory)
	return nil
}

// restorable finds out whether a snapshot can be restored: whether its files are what they were, whether this host and its
// VMM can take its memory, and whether there is room.
func (f *fleet) restorable(ctx context.Context, v store.VM, snap *snapshot.Snapshot, memory bool, report progress.Func) error {
	report.Report(progress.Update{Stage: stageCheck, Message: "checking " + snap.Name})
	err := snap.Check(ctx, !memory, func(done, total uint64) {
		report.Report(progress.Update{Stage: stageCheck, Message: "checking " + snap.Name, Done: done, Total: total, Unit: "bytes"})
	})
	if err == nil && memory {
		err = f.memoryFits(ctx, v, snap)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		refused := fault.Wrap(fault.Conflict, err, "snapshot %s of vm %s cannot be restored", snap.Name, v.Name())
		if memory && snap.Check(ctx, true, nil) == nil {
			return refused.WithHint("banger vm restore --disk-only %s %s   # its disk can", v.Name(), snap.Name)
		}
		return refused.WithHint("banger snapshot list %s", v.Name())
	}
	dir := string(f.dir(v.ID))
	need := used(filepath.Join(snap.Dir, vmdir.SavedDisk))
	if free, err := ext4.Free(dir); err == nil && need > free && !diskcopy.Shares(dir) {
		return f.noRoom(v, fmt.Sprintf("a restore of vm %s", v.Name()), need, free)
	}
	return nil
}

// memoryFits says what keeps this host from restoring the memory of a snapshot.
func (f *fleet) memoryFits(ctx context.Context, v store.VM, snap *snapshot.Snapshot) error {
	saved, err := vmdir.ReadSaved(snap.Dir)
	if err != nil {
		return err
	}
	launch, err := f.launch(v)
	if err != nil {
		return err
	}
	return f.goOnFrom(ctx, saved, snap.Dir, &launch)
}

// prepareRestore makes ready what will be put in place.
func (f *fleet) prepareRestore(ctx context.Context, v store.VM, snap *snapshot.Snapshot, memory bool, report progress.Func) error {
	report.Report(progress.Update{Stage: stageDisk, Message: "copying the disk"})
	if v.State == vm.Running || v.State == vm.Paused {
		f.finishRestore(ctx, v.ID)
	}
	if err := f.tidy(v.ID); err != nil { // what an undoing could not take back
		return err
	}
	r := f.restoring(v.ID)
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	disk := filepath.Join(snap.Dir, vmdir.SavedDisk)
	if !memory {
		_, err := copyDisk(ctx, disk, r.path(newDisk), v.Spec.Disk)
		return err
	}
	saved, err := vmdir.ReadSaved(snap.Dir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(r.path(newMemory), 0o700); err != nil {
		return err
	}
	_, err = pairUp(ctx, disk, v.Spec.Disk, saved, snap.Dir, r.dir, r.path(newMemory))
	return err
}

// placeRestored ends the VM and puts disk, memory and row of the snapshot in place.
func (f *fleet) placeRestored(ctx context.Context, v store.VM, snap *snapshot.Snapshot, memory bool) (_ store.VM, err error) {
	if v, err = f.stopLocked(ctx, v, true, 0); err != nil {
		return v, err
	}
	if err := f.cfg.step(ctx, StepRestoreEnded); err != nil {
		return v, err
	}
	if err := f.restoring(v.ID).place(func() error { return f.cfg.step(ctx, StepRestoreMemory) }); err != nil {
		return v, fault.Context(withClass(err), "restore vm %s", v.Name())
	}
	if err := f.cfg.step(ctx, StepRestoreDisk); err != nil {
		return v, err
	}
	state, token := vm.Stopped, snap.ResetToken
	if memory {
		state, token = vm.Suspended, ""
	}
	if v.State != vm.Created || memory {
		if v, err = f.store.MoveToRestored(ctx, v.ID, state, token); err != nil {
			return v, err
		}
	}
	return v, f.cfg.step(ctx, StepRestoreRow)
}

// restored finishes a restore that has worked. Nothing of it is a reason to take it back.
func (f *fleet) restored(ctx context.Context, v store.VM, snap *snapshot.Snapshot, memory bool) {
	if err := f.snapshotsOf(v).SetBase(snap.Name); err != nil {
		f.log.WarnContext(ctx, "cannot note what a vm was restored to", "vm", v.ID, "error", err)
	}
	f.finishRestore(ctx, v.ID)
	f.syncRecord(ctx, v)
	message := "to " + snap.Name
	if !memory {
		message += ", its disk"
	}
	f.tell(v, store.EventRestored, message)
	if !memory || snap.Spec.Disk >= v.Spec.Disk { // a guest that boots looks by itself
		return
	}
	now, err := f.store.VM(ctx, v.ID)
	if err == nil {
		if err = f.growGuest(ctx, now); err != nil && !slices.Contains(now.Pending, "disk") {
			err = errors.Join(err, f.store.SetPending(ctx, v.ID, append(now.Pending, "disk")))
		}
	}
	if err != nil {
		f.log.WarnContext(ctx, "the file system of a restored vm has not grown to its present disk", "vm", v.ID, "error", err)
	}
}

// endAgain ends a VM that was restored and is not wanted after all.
func (f *fleet) endAgain(ctx context.Context, id vm.ID, cause error) error {
	if r := f.runOf(id); r != nil {
		f.takeBack(ctx, r)
	}
	return cause
}

// restoreFailed puts the disk and the memory back that a VM had before a restore that failed, unless the VM runs still.
// Then the next daemon does it.
func (f *fleet) restoreFailed(ctx context.Context, id vm.ID) error {
	r := f.restoring(id)
	if r.isPlaced() {
		release, alive, err := claim(f.dir(id))
		if err != nil {
			return err
		}
		defer release()
		if alive {
			return fault.New(fault.Conflict, "it does not end")
		}
	}
	return f.takeBackRestore(id)
}

// rowBefore brings the row of a VM whose restore has failed to what it was, as far as it does not run.
func (f *fleet) rowBefore(ctx context.Context, before store.VM) error {
	v, err := f.store.VM(ctx, before.ID)
	if err == nil && v.ResetToken != before.ResetToken {
		v, err = f.store.SetReset(ctx, v.ID, before.ResetToken)
	}
	if err == nil {
		v, err = f.matchMemory(ctx, v)
	}
	if err == nil {
		f.syncRecord(ctx, v)
	}
	return err
}
