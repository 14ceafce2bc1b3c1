package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// recordOf is what a VM's directory says about it: enough to make its row anew.
func recordOf(v store.VM) vmdir.Record {
	return vmdir.Record{
		ID: v.ID, Spec: v.Spec, MachineID: v.MachineID, Driver: v.Driver, ImageDigest: v.ImageDigest, KernelID: v.KernelDigest,
		KernelVersion: v.KernelVersion, CreatedAt: v.CreatedAt, ResetToken: v.ResetToken,
		Address: v.Address, Origin: v.Origin,
	}
}

// stale reports whether a record says something else than the row.
func stale(r vmdir.Record, v store.VM) bool {
	want := recordOf(v)
	return !r.CreatedAt.Equal(want.CreatedAt) || !reflect.DeepEqual(normal(r), normal(want))
}

// normal is a record without the differences that JSON makes.
func normal(r vmdir.Record) vmdir.Record {
	r.CreatedAt = r.CreatedAt.UTC()
	if len(r.Spec.Env) == 0 {
		r.Spec.Env = nil
	}
	if len(r.Spec.Labels) == 0 {
		r.Spec.Labels = nil
	}
	return r
}

// syncRecord writes the VM's record if it says something else than the row. A failure is logged: the next daemon does it.
func (f *fleet) syncRecord(ctx context.Context, v store.VM) {
	dir := f.dir(v.ID)
	r, err := dir.ReadRecord()
	if err == nil && !stale(r, v) {
		return
	}
	if _, statErr := os.Stat(string(dir)); statErr != nil {
		return
	}
	if err := dir.WriteRecord(recordOf(v)); err != nil && ctx.Err() == nil {
		f.log.ErrorContext(ctx, "cannot write a vm's record", "vm", v.ID, "error", err)
	}
}

// mend brings the record and the disk's size in line with the row, after a daemon that was cut off between the two. It
// returns the row as it is then. The caller holds the VM's lock.
func (f *fleet) mend(ctx context.Context, v store.VM) store.VM {
	if !v.Made || v.State == vm.Deleting {
		return v
	}
	if v.State == vm.Running || v.State == vm.Paused {
		f.finishRestore(ctx, v.ID)
	}
	if matched, err := f.matchMemory(ctx, v); err == nil { // a restore was cut off
		v = matched
	} else {
		f.log.ErrorContext(ctx, "cannot record what a restore has left", "vm", v.ID, "error", err)
	}
	// A disk grows before its row, never the other way.
	if info, err := os.Stat(f.dir(v.ID).Path(paths.VMDisk)); err == nil && uint64(info.Size()) > v.Spec.Disk {
		spec := v.Spec
		spec.Disk = uint64(info.Size())
		changed, err := f.store.UpdateVM(ctx, v.ID, store.Change{
			Spec: spec, Pending: v.Pending, Kind: store.EventChanged, Message: "disk " + change(vm.FormatSize(v.Spec.Disk), vm.FormatSize(spec.Disk)),
		})
		if err != nil {
			f.log.ErrorContext(ctx, "cannot record the size of a disk", "vm", v.ID, "error", err)
			return v
		}
		v = changed
	}
	f.syncRecord(ctx, v)
	return v
}

// rebuild makes rows for VM directories that have none: the database was lost, or is an older one. What a directory
// without a record is cannot be said: it is left alone.
func (f *fleet) rebuild(ctx context.Context) error {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return err
	}
	known := map[vm.ID]bool{}
	for _, v := range all {
		known[v.ID] = true
	}
	for _, dir := range list(f.cfg.Paths.VMs()) {
		id := vm.ID(name(dir))
		if known[id] || strings.HasPrefix(string(id), ".") {
			continue
		}
		if err := f.adoptDir(ctx, id); err != nil {
			f.log.WarnContext(ctx, "cannot make the row of a vm anew", "vm", id, "error", err)
		}
	}
	return ctx.Err()
}

// adoptDir makes the row of a VM from its directory. In which state it is, is found out afterwards by settle; the row
// says what settle needs to see.
func (f *fleet) adoptDir(ctx context.Context, id vm.ID) error {
	dir := f.dir(id)
	r, err := dir.ReadRecord()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "%s has no %s: a create was cut off there", dir, paths.VMRecord)
	case err != nil:
		return err
	case r.ID != id:
		return fault.New(fault.Conflict, "%s is the directory of another vm, %s", dir, r.ID)
	}
	v, err := f.rowOf(r)
	if err != nil {
		return err
	}
	err = f.store.AdoptVM(ctx, v)
	if fault.Is(err, fault.Exists) { // both are kept
		v.Spec.Name = vm.Name(vm.Suggest(string(v.Spec.Name[:min(len(v.Spec.Name), 50)]) + "-" + string(id)))
		err = f.store.AdoptVM(ctx, v)
	}
	if err != nil {
		return err
	}
	if now, err := f.store.VM(ctx, id); err == nil && now.Address != r.Address { // another VM has it, or there was none
		f.syncRecord(ctx, now)
	}
	if v.State.Live() {
		if err := f.store.SetPending(ctx, id, f.pendingOf(id, v.Spec)); err != nil {
			return err
		}
	}
	f.log.WarnContext(ctx, "the row of a vm was made anew from its directory", "vm", id, "name", v.Name(), "state", v.State)
	return f.cfg.step(ctx, StepRebuildRow)
}

// rowOf is the row of a VM as its directory has it.
func (f *fleet) rowOf(r vmdir.Record) (store.VM, error) {
	dir := f.dir(r.ID)
	v := store.VM{
		ID: r.ID, Spec: r.Spec, MachineID: r.MachineID, Driver: orElse(r.Driver, f.cfg.Settings.VMM.Driver), ImageDigest: r.ImageDigest,
		KernelDigest: r.KernelID, KernelVersion: r.KernelVersion, Made: true, CreatedAt: r.CreatedAt, ResetToken: r.ResetToken,
		Address: r.Address, Origin: r.Origin,
	}
	if v.KernelVersion == "" { // a record of an older banger
		if k, err := f.cfg.Kernels.Load(f.cfg.Paths.Kernel(r.KernelID)); err == nil {
			v.KernelVersion = k.Version
		}
	}
	release, alive, err := claim(dir)
	if err != nil {
		return v, err
	}
	release()
	exit, ended, _ := dir.ReadExit()
	_, running, _ := dir.ReadProcess()
	_, consoleErr := os.Stat(dir.Path(paths.VMConsole))
	switch {
	case alive:
		v.State = vm.Starting // until its supervisor has said more
	case f.keepsMemory(r.ID):
		v.State, v.Reason, v.StoppedAt = vm.Suspended, exit.Reason, exit.At
	case running && !ended:
		v.State = vm.Running // it was killed together with its supervisor
	case ended && exit.Failed:
		v.State, v.Reason, v.ExitCode, v.StoppedAt = vm.Failed, exit.Reason, exit.Code, exit.At
	case ended:
		v.State, v.Reason, v.ExitCode, v.StoppedAt = vm.Stopped, exit.Reason, exit.Code, exit.At
	case consoleErr == nil:
		v.State = vm.Stopped
	default:
		v.State = vm.Created
	}
	return v, nil
}

// pendingOf lists the settings of a VM that runs which its run does not have.
func (f *fleet) pendingOf(id vm.ID, spec vm.Spec) []string {
	l, err := f.dir(id).ReadLaunch()
	if err != nil {
		return nil
	}
	return pendingFor(l, spec)
}

// pendingFor lists the settings that a run which was launched so does not have.
func pendingFor(l vmdir.Launch, spec vm.Spec) []string {
	var pending []string
	if l.Machine.CPUs != spec.CPUs {
		pending = append(pending, "cpus")
	}
	if l.Machine.Memory != spec.Memory {
		pending = append(pending, "memory")
	}
	if l.Guest.Hostname != string(spec.Name) {
		pending = append(pending, "name")
	}
	return slices.Clip(pending)
}
