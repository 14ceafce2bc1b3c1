package daemon

import (
	"context"
	"os"
	"time"

	"banger/internal/daemon/builder"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
)

// ownVMs makes the daemon's own VMs: those in which builds run and images are packed. They have a row and a directory as
// any other, so that whoever dies leaves nothing that the next daemon does not find; it ends and removes them all, because
// what they were for has died with this one (fleet.abandoned).
type ownVMs struct {
	cfg   Config
	fleet *fleet
}

// Boot implements builder.Machines.
func (o ownVMs) Boot(ctx context.Context, spec builder.Machine) (socket string, end func(), err error) {
	if _, err := o.cfg.Drivers[o.cfg.Settings.VMM.Driver].Probe(ctx); err != nil {
		return "", nil, err
	}
	f := o.fleet
	id := vm.NewID()
	unlock, err := f.lock(ctx, id, patient)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	f.setOwn(id, true)
	var u undo.Stack
	defer func() {
		if undoErr := u.Run(ctx); undoErr != nil {
			f.log.ErrorContext(ctx, "one of the daemon's own vms is left behind", "vm", id, "error", undoErr)
		}
	}()
	u.Add("remove the vm", func(ctx context.Context) error {
		defer f.setOwn(id, false) // should it be there still, the reconciliation takes it
		return f.destroy(ctx, id)
	})
	v := o.row(id, spec)
	if err := f.store.InsertVM(ctx, v); err != nil {
		return "", nil, err
	}
	if v, err = f.store.VM(ctx, id); err != nil { // with its address
		return "", nil, err
	}
	if err := o.makeDir(ctx, v, spec); err != nil {
		return "", nil, err
	}
	if err := f.start(ctx, v, startOptions{}); err != nil {
		return "", nil, withoutItsLog(err)
	}
	if err := o.cfg.step(ctx, StepOwnReady); err != nil {
		return "", nil, err
	}
	u.Disarm()
	return o.cfg.Paths.SupervisorSocket(string(id)), func() { o.end(ctx, id) }, nil
}

// row is the row of a new one.
func (o ownVMs) row(id vm.ID, spec builder.Machine) store.VM {
	d := o.cfg.Settings.Defaults
	v := store.VM{
		ID: id, MachineID: machineID(), Driver: o.cfg.Settings.VMM.Driver, ImageDigest: spec.Image.Digest,
		KernelDigest: spec.Kernel.Digest, KernelVersion: spec.Kernel.Version, State: vm.Created,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
		Spec: vm.Spec{
			Name: vm.Name(string(spec.Purpose) + "-" + string(id)), Image: spec.Image.Ref(), Kernel: spec.Kernel.Ref(),
			CPUs: spec.CPUs, Memory: spec.Memory, Disk: spec.Disk, Purpose: spec.Purpose,
		},
	}
	if v.Spec.CPUs == 0 {
		v.Spec.CPUs = d.CPUs
	}
	if v.Spec.Memory == 0 {
		v.Spec.Memory = d.Memory
	}
	if v.Spec.Disk == 0 {
		v.Spec.Disk = d.Disk
	}
	return v
}

// makeDir makes its directory, with its root file system in it unless that is an image's.
func (o ownVMs) makeDir(ctx context.Context, v store.VM, spec builder.Machine) error {
	if err := v.Spec.Validate(); err != nil {
		return err
	}
	dir := o.fleet.dir(v.ID)
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		return withClass(err)
	}
	if spec.Root != nil {
		if err := spec.Root(ctx, dir.Path(paths.VMRoot)); err != nil {
			return err
		}
	}
	if err := o.cfg.step(ctx, StepOwnRoot); err != nil {
		return err
	}
	if err := o.cfg.FormatDisk(ctx, o.cfg.Paths.Disks(), v.Spec.Disk, dir.Path(paths.VMDisk)); err != nil {
		return withClass(err)
	}
	if err := dir.WriteRecord(recordOf(v)); err != nil {
		return withClass(err)
	}
	return o.fleet.store.MarkMade(ctx, v.ID)
}

// end kills one of the daemon's own VMs and removes it.
func (o ownVMs) end(ctx context.Context, id vm.ID) {
	ctx = context.WithoutCancel(ctx)
	if err := o.fleet.remove(ctx, id, true); err != nil {
		o.fleet.log.ErrorContext(ctx, "one of the daemon's own vms is left behind", "vm", id, "error", err)
	}
	o.fleet.setOwn(id, false)
}

// setOwn notes that an operation of this daemon has made the VM and ends it, or does so no more.
func (f *fleet) setOwn(id vm.ID, own bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if own {
		f.own[id] = true
	} else {
		delete(f.own, id)
	}
}

// abandoned reports whether a VM is one of a daemon's own and its operation is gone.
func (f *fleet) abandoned(v store.VM) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return v.Hidden() && !f.own[v.ID]
}
