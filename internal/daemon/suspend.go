package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// A suspended VM has its memory in the directory "suspended" of its own. Whether that is of use depends on nothing but
// the disk: while nobody has written to the disk since, memory and disk are of one instant, whoever was killed when. So
// nothing has to be moved or marked in a certain order; the directory goes when the guest runs again.

// suspendLimit bounds a suspend: some GiB of memory go to the disk.
const suspendLimit = 6 * time.Minute

func (f *fleet) suspendedDir(id vm.ID) string { return f.dir(id).Path(paths.VMSuspended) }

// Suspend implements the RPC. A VM that is suspended already is left as it is.
func (s *vmService) Suspend(ctx context.Context, req *connect.Request[bangerv1.SuspendVMRequest]) (*connect.Response[bangerv1.VM], error) {
	v, unlock, err := s.find(ctx, req.Msg.GetRef(), patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v.State != vm.Suspended {
		if v, err = s.fleet.suspend(ctx, v); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(s.proto(v)), nil
}

// suspend writes a VM's memory to the disk and ends it. The caller holds its lock. Once it has begun, the caller's
// cancellation does not stop it.
func (f *fleet) suspend(ctx context.Context, v store.VM) (store.VM, error) {
	if v.State != vm.Running && v.State != vm.Paused {
		return v, v.Refuse(vm.Suspended)
	}
	if err := f.roomToSave(v); err != nil {
		return v, err
	}
	dir := f.suspendedDir(v.ID)
	err := atomicfile.RemoveDir(dir)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return v, withClass(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suspendLimit)
	defer cancel()
	// A daemon that ends leaves it to the supervisor; the next one records what has become of the VM.
	defer context.AfterFunc(f.ctx, cancel)()
	r := f.adopt(v)
	if err = f.cfg.step(ctx, StepSuspendDir); err == nil {
		_, err = r.supervisor.save(ctx, &bangerv1.SupervisorSaveRequest{Dir: dir, Suspend: true, SyncGuest: true})
	}
	if err != nil {
		if f.ctx.Err() == nil && !f.keepsMemory(v.ID) {
			err = errors.Join(err, atomicfile.RemoveDir(dir))
		}
		return v, fault.Context(err, "suspend vm %s", v.Name())
	}
	select {
	case <-r.gone:
	case <-ctx.Done():
		return v, fault.Context(context.Cause(ctx), "suspend vm %s", v.Name())
	}
	if err := f.cfg.step(ctx, StepSuspendEnded); err != nil {
		return v, err
	}
	if v, err = f.store.VM(ctx, v.ID); err == nil && v.State != vm.Suspended {
		err = fault.New(fault.Unavailable, "vm %s ended while it was being suspended: %s", v.Name(), v.Reason).
			WithHint("banger vm logs %s", v.Name())
	}
	return v, err
}

// roomToSave refuses early where the memory of a VM might not fit.
func (f *fleet) roomToSave(v store.VM) error {
	free, err := ext4.Free(string(f.dir(v.ID)))
	if err == nil && free < v.Spec.Memory {
		return fault.New(fault.Exhausted, "the memory of vm %s needs up to %s on the disk, %s are free", v.Name(),
			vm.FormatSize(v.Spec.Memory), vm.FormatSize(free)).WithHint("banger image prune")
	}
	return nil
}

// keepsMemory reports whether a VM that does not run can go on from its memory.
func (f *fleet) keepsMemory(id vm.ID) bool {
	_, err := f.readSuspended(id)
	return err == nil
}

// readSuspended returns the saved machine of a VM, if it is of the same instant as its disk.
func (f *fleet) readSuspended(id vm.ID) (vmdir.SavedMachine, error) {
	m, err := vmdir.ReadSaved(f.suspendedDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fault.New(fault.NotFound, "there is no memory of it")
	}
	if err != nil {
		return m, err
	}
	now, err := vmdir.StampOf(f.dir(id).Path(paths.VMDisk))
	if err != nil {
		return m, fault.Wrap(fault.Unavailable, err, "its disk is gone")
	}
	if now != m.Disk {
		return m, fault.New(fault.Conflict, "its disk was written to after its memory was saved")
	}
	return m, nil
}

// refuseSuspended refuses what would change the disk of a VM whose memory is kept: the two belong together.
func refuseSuspended(v store.VM, what string) error {
	if v.State != vm.Suspended {
		return nil
	}
	return fault.New(fault.Conflict, "vm %s is suspended, %s: its memory would not fit its disk any more", v.Name(), what).
		WithHint("banger vm resume %s   # or: banger vm start --cold %s, which drops its memory", v.Name(), v.Name())
}

// forgetMemory removes the memory of a VM that has gone on, or is to be booted.
func (f *fleet) forgetMemory(id vm.ID) error {
	return atomicfile.RemoveDir(f.suspendedDir(id))
}

// resumption has the launch of a suspended VM go on from its memory. What the guest was told at its boot still holds, so
// the machine is that of the saved launch; names may have changed.
func (f *fleet) resumption(ctx context.Context, v store.VM, launch *vmdir.Launch) error {
	refuse := func(err error) error {
		return fault.Wrap(fault.Conflict, err, "vm %s cannot go on from its memory", v.Name()).
			WithHint("banger vm start --cold %s   # drops the memory, keeps the disk", v.Name())
	}
	saved, err := f.readSuspended(v.ID)
	if err == nil {
		err = f.goOnFrom(ctx, saved, f.suspendedDir(v.ID), launch)
	}
	if err != nil {
		return refuse(err)
	}
	return nil
}

// goOnFrom has a launch go on from the machine of the same VM that was saved in dir, if that can be restored here and now.
func (f *fleet) goOnFrom(ctx context.Context, saved vmdir.SavedMachine, dir string, launch *vmdir.Launch) error {
	machine := saved.Launch.Machine
	machine.Name, machine.RunDir = launch.Machine.Name, launch.Machine.RunDir
	if err := f.sameShape(ctx, launch.Driver, machine, saved.Shape); err != nil {
		return err
	}
	guest := saved.Launch.Guest
	guest.Env, guest.User, guest.Workdir = launch.Guest.Env, launch.Guest.User, launch.Guest.Workdir
	launch.Machine, launch.Guest = machine, guest
	launch.Resume, launch.Identity = saved.Saved(dir), saved.Identity
	return nil
}

// sameShape checks that a machine that was saved can be restored by this VMM on this host, and says what differs.
func (f *fleet) sameShape(ctx context.Context, driver string, machine hypervisor.Spec, saved string) error {
	shaper, ok := f.cfg.Drivers[driver].(hypervisor.Shaper)
	if !ok {
		return fault.New(fault.Unavailable, "driver %s cannot restore machines", driver)
	}
	now, err := shaper.Shape(ctx, machine)
	if err != nil {
		return err
	}
	if now == saved {
		return nil
	}
	before, after := strings.Split(saved, "\n"), strings.Split(now, "\n")
	for i := range before {
		if i >= len(after) || before[i] != after[i] {
			return fault.New(fault.Conflict, "the VMM or the host is another one than when it was saved: %s", clip(before[i]))
		}
	}
	return fault.New(fault.Conflict, "the VMM is another one than when it was saved")
}

// clip cuts a line of a shape to a bearable length.
func clip(s string) string { return s[:min(len(s), 120)] }
