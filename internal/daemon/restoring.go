package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/atomicfile"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
)

// restoring is the directory in which a restore makes ready what it then puts in place of a VM's disk and memory, and in
// which it keeps what was there before:
//
//	disk.ext4    the new disk; gone once it is in place
//	suspended    the new memory; likewise
//	old.ext4     the old disk, as long as the VM does not run with the new one
//	old-memory   the old memory of a VM that was suspended
//
// The disk changes with one rename, so there always is one. Memory counts only with the disk that it was saved with
// (readSuspended), so it does not matter that it is moved a moment before. Whoever dies when: from what is there it can be
// told whether the disk was changed, and the way back or forth can be gone as often as need be.
type restoring struct {
	dir, disk, memory string // the directory, and the places in the VM's own
}

// Names in it.
const (
	newDisk   = "disk.ext4"
	newMemory = "suspended"
	oldDisk   = "old.ext4"
	oldMemory = "old-memory"
)

func (f *fleet) restoring(id vm.ID) restoring {
	dir := f.dir(id)
	return restoring{dir.Path(paths.VMRestoring), dir.Path(paths.VMDisk), dir.Path(paths.VMSuspended)}
}

func (r restoring) path(name string) string { return filepath.Join(r.dir, name) }

// isThere reports whether a restore is under way, or was cut off.
func (r restoring) isThere() bool { return exists(r.dir) }

// isPlaced reports whether the new disk is in place.
func (r restoring) isPlaced() bool { return !exists(r.path(newDisk)) && exists(r.path(oldDisk)) }

// place puts the new disk and memory in the places of the old. The VM does not run.
func (r restoring) place(atMemory func() error) error {
	if exists(r.memory) {
		if err := os.Rename(r.memory, r.path(oldMemory)); err != nil {
			return err
		}
	}
	if exists(r.path(newMemory)) {
		if err := os.Rename(r.path(newMemory), r.memory); err != nil {
			return err
		}
	}
	if err := atMemory(); err != nil {
		return err
	}
	if err := os.Link(r.disk, r.path(oldDisk)); err != nil {
		return err
	}
	if err := os.Rename(r.path(newDisk), r.disk); err != nil {
		return err
	}
	return errors.Join(atomicfile.SyncDir(r.dir), atomicfile.SyncDir(filepath.Dir(r.disk)))
}

// back puts the old disk and memory in place again, if they are not, and removes the directory. fits says whether the
// memory that is in place is of the same instant as the disk.
func (r restoring) back(fits func() bool) error {
	if exists(r.path(oldDisk)) {
		if err := os.Rename(r.path(oldDisk), r.disk); err != nil {
			return err
		}
	}
	switch {
	case exists(r.path(oldMemory)):
		if err := atomicfile.RemoveDir(r.memory); err != nil {
			return err
		}
		if err := os.Rename(r.path(oldMemory), r.memory); err != nil {
			return err
		}
	case exists(r.memory) && !fits():
		if err := atomicfile.RemoveDir(r.memory); err != nil {
			return err
		}
	}
	return r.forth()
}

// forth drops what was there before.
func (r restoring) forth() error { return atomicfile.RemoveDir(r.dir) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// takeBackRestore takes a restore back whose VM does not run.
func (f *fleet) takeBackRestore(id vm.ID) error {
	return f.restoring(id).back(func() bool { return f.keepsMemory(id) })
}

// finishRestore drops what a VM had before a restore, if it runs with what it was restored to.
func (f *fleet) finishRestore(ctx context.Context, id vm.ID) {
	r := f.restoring(id)
	if !r.isPlaced() {
		return
	}
	if err := r.forth(); err != nil {
		f.log.WarnContext(ctx, "cannot remove the disk that a vm had before it was restored", "vm", id, "error", err)
	}
}

// tidyAll removes what a daemon that was killed has left in the directories of VMs, and ends its restores one way or the
// other. It is done before anybody looks what state the VMs are in.
func (f *fleet) tidyAll(ctx context.Context) {
	for _, dir := range list(f.cfg.Paths.VMs()) {
		if strings.HasPrefix(name(dir), ".") {
			continue
		}
		if err := f.tidy(vm.ID(name(dir))); err != nil {
			f.log.ErrorContext(ctx, "cannot tidy the directory of a vm", "vm", name(dir), "error", err)
		}
	}
}

// tidy is tidyAll for one VM. Nobody does anything with it.
func (f *fleet) tidy(id vm.ID) error {
	var errs []error
	for _, left := range f.leftovers(id) {
		errs = append(errs, os.RemoveAll(left))
	}
	if f.restoring(id).isThere() {
		errs = append(errs, f.endRestore(id))
	}
	return errors.Join(errs...)
}

// leftovers lists what was half made or half removed in a VM's directory.
func (f *fleet) leftovers(id vm.ID) []string {
	left := f.snapshotsOf(store.VM{ID: id}).Leftovers()
	for _, path := range list(string(f.dir(id))) {
		if strings.HasPrefix(name(path), removedPrefix) {
			left = append(left, path)
		}
	}
	return left
}

// endRestore ends a restore that was cut off. A new disk that is in place stays, and the VM is suspended with its new
// memory; unless it is known that it could not be started with them. One that is being started, by a supervisor that has
// outlived the daemon, keeps what it had before until it is ready (firstRun, mend).
func (f *fleet) endRestore(id vm.ID) error {
	r := f.restoring(id)
	if !r.isPlaced() {
		return f.takeBackRestore(id)
	}
	release, alive, err := claim(f.dir(id))
	if err != nil || alive {
		return err
	}
	defer release()
	if exit, ended, err := f.dir(id).ReadExit(); err == nil && ended && exit.Failed {
		return f.takeBackRestore(id)
	}
	return r.forth()
}

// matchMemory brings the row of a VM that does not run in line with its memory: a restore, or its undoing, has put one in
// place or taken it away. The caller holds the VM's lock.
func (f *fleet) matchMemory(ctx context.Context, v store.VM) (store.VM, error) {
	switch keeps := f.keepsMemory(v.ID); {
	case v.State.Live() || v.State == vm.Deleting:
		return v, nil
	case keeps && v.State != vm.Suspended:
		return f.store.MoveToRestored(ctx, v.ID, vm.Suspended, v.ResetToken)
	case !keeps && v.State == vm.Suspended && !exists(f.suspendedDir(v.ID)):
		return f.store.MoveToRestored(ctx, v.ID, vm.Stopped, v.ResetToken)
	}
	return v, nil
}
