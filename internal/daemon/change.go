package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Rename implements the RPC. A VM that runs may be renamed too: every command knows it by the new name at once, and the
// guest gets it as its hostname at the next start.
func (s *vmService) Rename(ctx context.Context, req *connect.Request[bangerv1.RenameVMRequest]) (*connect.Response[bangerv1.VM], error) {
	name, err := vm.ParseName(req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	v, unlock, err := s.find(ctx, req.Msg.GetRef(), patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v.Name() == name {
		return connect.NewResponse(s.proto(v)), nil
	}
	spec := v.Spec
	spec.Name = name
	// The row's uniqueness is the reservation: a create or another rename that wants the same name gets Exists.
	if v, err = s.fleet.change(ctx, v, spec, store.EventRenamed, change(string(v.Name()), string(name))); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(v)), nil
}

// Set implements the RPC.
func (s *vmService) Set(ctx context.Context, req *connect.Request[bangerv1.SetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	v, unlock, err := s.find(ctx, req.Msg.GetRef(), patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	spec, changes, err := s.changed(v, req.Msg)
	if err != nil {
		return nil, err
	}
	if spec.Disk != v.Spec.Disk {
		if v, err = s.fleet.grow(ctx, v, spec.Disk); err != nil {
			return nil, err
		}
	}
	if len(changes) > 0 {
		if v, err = s.fleet.change(ctx, v, spec, store.EventChanged, strings.Join(changes, ", ")); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(s.proto(v)), nil
}

// changed is the VM's spec with what the request sets, checked, and what of it is new, for people. The disk is not among
// the latter.
func (s *vmService) changed(v store.VM, req *bangerv1.SetVMRequest) (vm.Spec, []string, error) {
	spec := v.Spec
	spec.Labels = maps.Clone(spec.Labels)
	if req.Cpus != nil {
		spec.CPUs = int(min(req.GetCpus(), 1<<30))
	}
	if req.MemoryBytes != nil {
		spec.Memory = req.GetMemoryBytes()
	}
	if req.DiskBytes != nil {
		spec.Disk = req.GetDiskBytes()
	}
	if req.AutoStopMs != nil {
		spec.AutoStop = milliseconds(max(req.GetAutoStopMs(), -1))
	}
	if req.Restart != nil {
		spec.Restart = vm.RestartPolicy(req.GetRestart())
	}
	if req.Description != nil {
		spec.Description = req.GetDescription()
	}
	if req.NoFork != nil {
		spec.NoFork = req.GetNoFork()
	}
	for _, key := range req.GetRemoveLabels() {
		delete(spec.Labels, key)
	}
	if spec.Labels == nil && len(req.GetSetLabels()) > 0 {
		spec.Labels = map[string]string{}
	}
	maps.Copy(spec.Labels, req.GetSetLabels())
	if spec.Disk < v.Spec.Disk {
		return spec, nil, fault.New(fault.Invalid, "the disk of vm %s has %s, a disk of %s would be smaller: it can only grow", v.Name(),
			vm.FormatSize(v.Spec.Disk), vm.FormatSize(spec.Disk)).
			WithHint("banger vm set --disk %s %s", vm.FormatSize(2*v.Spec.Disk), v.Name())
	}
	if err := spec.Validate(); err != nil {
		return spec, nil, err
	}
	err := s.checkCPUs(v.Driver, spec.CPUs, "banger vm set --cpus %d "+string(v.Name()))
	return spec, differences(v.Spec, spec), err
}

// differences lists for people what is new in a spec, but for the disk.
func differences(old, now vm.Spec) []string {
	var all []string
	add := func(what, from, to string) {
		if from != to {
			all = append(all, what+" "+change(from, to))
		}
	}
	add("cpus", fmt.Sprint(old.CPUs), fmt.Sprint(now.CPUs))
	add("memory", vm.FormatSize(old.Memory), vm.FormatSize(now.Memory))
	add("auto-stop", old.AutoStop.String(), now.AutoStop.String())
	add("restart", orElse(string(old.Restart), string(vm.RestartNo)), orElse(string(now.Restart), string(vm.RestartNo)))
	if old.Description != now.Description {
		all = append(all, "description")
	}
	if old.NoFork != now.NoFork {
		all = append(all, "no-fork")
	}
	if !maps.Equal(old.Labels, now.Labels) {
		all = append(all, "labels")
	}
	return all
}

func change(from, to string) string { return from + " to " + to }

// change writes new settings of a VM into its row and its directory, both or neither. The caller holds the VM's lock.
func (f *fleet) change(ctx context.Context, v store.VM, spec vm.Spec, kind, message string) (_ store.VM, err error) {
	var u undo.Stack
	defer func() { f.undo(ctx, &u, v.ID) }()
	before := v
	spec.Disk = v.Spec.Disk // grows by itself
	c := store.Change{Spec: spec, Kind: kind, Message: message}
	switch {
	case v.State == vm.Suspended:
		if saved, err := vmdir.ReadSaved(f.suspendedDir(v.ID)); err == nil {
			c.Pending = pendingFor(saved.Launch, spec)
		}
	case v.State.Live():
		c.Pending = f.pendingOf(v.ID, spec)
		if slices.Contains(v.Pending, "disk") {
			c.Pending = append(c.Pending, "disk")
		}
	}
	if v, err = f.store.UpdateVM(ctx, v.ID, c); err != nil {
		return v, err
	}
	u.Add("put the settings back", func(ctx context.Context) error {
		_, err := f.store.UpdateVM(ctx, v.ID, store.Change{Spec: before.Spec, Pending: before.Pending, Kind: kind, Message: "taken back"})
		return err
	})
	if err := f.cfg.step(ctx, StepChangeRow); err != nil {
		return v, err
	}
	u.Add("put the record back", func(context.Context) error { return f.dir(v.ID).WriteRecord(recordOf(before)) })
	if err := f.dir(v.ID).WriteRecord(recordOf(v)); err != nil {
		return v, withClass(err)
	}
	if err := f.cfg.step(ctx, StepChangeRecord); err != nil {
		return v, err
	}
	u.Disarm()
	return v, nil
}

// grow makes the disk of a VM larger: its file, then, if it runs, its device and file system. The caller holds the VM's
// lock. Until the VMM has been told of it the file can shrink again. After that it cannot: then the row says what the
// file has, whatever the guest made of it, and a file system that did not grow does so at the next start.
func (f *fleet) grow(ctx context.Context, v store.VM, size uint64) (_ store.VM, err error) {
	if err := refuseSuspended(v, "its disk cannot grow"); err != nil {
		return v, err
	}
	if v.State.Live() && v.State != vm.Running {
		return v, fault.New(fault.Conflict, "vm %s is %s, its disk cannot grow now", v.Name(), v.State).
			WithHint("%s", fault.HintOf(v.Refuse(vm.Running)))
	}
	var u undo.Stack
	defer func() { f.undo(ctx, &u, v.ID) }()
	disk := f.dir(v.ID).Path(paths.VMDisk)
	info, err := os.Stat(disk)
	if err != nil {
		return v, fault.Wrap(fault.Unavailable, err, "its disk is gone").WithHint("banger vm rm %s", v.Name())
	}
	if uint64(info.Size()) < size {
		u.Add("shrink the file again", func(context.Context) error { return os.Truncate(disk, info.Size()) })
		if err := os.Truncate(disk, int64(size)); err != nil {
			return v, withClass(err)
		}
	}
	if err := f.cfg.step(ctx, StepGrowFile); err != nil {
		return v, err
	}
	u.Disarm()
	var guestErr error
	pending := slices.DeleteFunc(slices.Clone(v.Pending), func(p string) bool { return p == "disk" })
	if v.State == vm.Running {
		if guestErr = f.growGuest(ctx, v); guestErr != nil {
			pending = append(pending, "disk")
		}
	}
	spec := v.Spec
	spec.Disk = size
	message := "disk " + change(vm.FormatSize(v.Spec.Disk), vm.FormatSize(size))
	now, err := f.store.UpdateVM(context.WithoutCancel(ctx), v.ID, store.Change{Spec: spec, Pending: pending, Kind: store.EventChanged, Message: message})
	if err != nil {
		return v, errors.Join(guestErr, err)
	}
	f.syncRecord(context.WithoutCancel(ctx), now)
	return now, guestErr
}

// growGuest lets a guest that runs see its larger disk.
func (f *fleet) growGuest(ctx context.Context, v store.VM) error {
	bounded, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	err := f.adopt(v).supervisor.growDisk(bounded)
	if err == nil {
		err = f.cfg.step(ctx, StepGrowGuest)
	}
	if err != nil {
		return fault.Wrap(fault.ClassOf(err), err, "the disk of vm %s has grown, but its guest sees that at its next start only", v.Name()).
			WithHint("banger vm restart %s", v.Name())
	}
	return nil
}
