package daemon

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/snapshot"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// snapshotService is the wire's SnapshotService.
type snapshotService struct {
	parts *parts
}

// vms is the service of VMs, for finding them.
func (s *snapshotService) vms() *vmService {
	return &vmService{store: s.parts.store, fleet: s.parts.fleet}
}

// Create implements the RPC. What is wrong with the request itself is said at once; the rest is the operation's.
func (s *snapshotService) Create(ctx context.Context, req *connect.Request[bangerv1.CreateSnapshotRequest]) (*connect.Response[bangerv1.CreateSnapshotResponse], error) {
	v, err := s.parts.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	opt := snapshotOptions{name: req.Msg.GetName(), description: req.Msg.GetDescription(), diskOnly: req.Msg.GetDiskOnly(), auto: req.Msg.GetAuto()}
	if opt.name != "" {
		if _, err := vm.ParseSnapshotName(opt.name, string(v.Name())); err != nil {
			return nil, err
		}
	}
	const longest = 1024
	if len(opt.description) > longest {
		return nil, fault.New(fault.Invalid, "the description of a snapshot is longer than %d bytes", longest)
	}
	id, err := s.parts.ops.Begin(operation.Spec{Kind: "vm.snapshot", Target: string(v.Name())}, func(ctx context.Context, report progress.Func) (string, error) {
		v, unlock, err := s.vms().find(ctx, string(v.ID), patient)
		if err != nil {
			return "", err
		}
		defer unlock()
		snap, err := s.parts.fleet.snapshot(ctx, v, opt, report)
		return snap.Name, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.CreateSnapshotResponse{OperationId: id}), nil
}

// List implements the RPC.
func (s *snapshotService) List(ctx context.Context, req *connect.Request[bangerv1.ListSnapshotsRequest]) (*connect.Response[bangerv1.ListSnapshotsResponse], error) {
	var of []store.VM
	var err error
	if ref := req.Msg.GetRef(); ref != "" {
		of = make([]store.VM, 1)
		of[0], err = s.parts.store.FindVM(ctx, ref)
	} else {
		of, err = s.parts.store.VMs(ctx)
	}
	if err != nil {
		return nil, err
	}
	out := &bangerv1.ListSnapshotsResponse{AutoLimit: int32(s.parts.daemon.cfg.Settings.Limits.Checkpoints)}
	for _, v := range of {
		all, err := s.parts.fleet.snapshotsOf(v).List()
		if err != nil {
			return nil, err
		}
		for _, snap := range all {
			out.Snapshots = append(out.Snapshots, s.proto(v, snap))
		}
	}
	return connect.NewResponse(out), nil
}

// Get implements the RPC. It also finds out whether the VMM on this host could take the memory.
func (s *snapshotService) Get(ctx context.Context, req *connect.Request[bangerv1.GetSnapshotRequest]) (*connect.Response[bangerv1.Snapshot], error) {
	v, snap, err := s.find(ctx, req.Msg.GetRef(), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	out := s.proto(v, snap)
	if snap.Problem == "" && snap.Kind == snapshot.Memory {
		if err := s.parts.fleet.memoryFits(ctx, v, &snap); err != nil {
			out.MemoryProblem = err.Error()
		}
	}
	return connect.NewResponse(out), nil
}

// find finds a snapshot of a VM.
func (s *snapshotService) find(ctx context.Context, ref, name string) (store.VM, snapshot.Snapshot, error) {
	v, err := s.parts.store.FindVM(ctx, ref)
	if err != nil {
		return v, snapshot.Snapshot{}, err
	}
	snap, err := s.parts.fleet.snapshotsOf(v).Get(name)
	return v, snap, err
}

// Remove implements the RPC.
func (s *snapshotService) Remove(ctx context.Context, req *connect.Request[bangerv1.RemoveSnapshotRequest]) (*connect.Response[bangerv1.RemoveSnapshotResponse], error) {
	v, unlock, err := s.vms().find(ctx, req.Msg.GetRef(), patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	set := s.parts.fleet.snapshotsOf(v)
	snap, err := set.Get(req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if err := set.Remove(snap.Name); err != nil {
		return nil, fault.Context(withClass(err), "remove snapshot %s of vm %s", snap.Name, v.Name())
	}
	if !snap.Auto {
		s.parts.fleet.tell(v, store.EventSnapshotOut, snap.Name)
	}
	return connect.NewResponse(&bangerv1.RemoveSnapshotResponse{Vm: string(v.Name()), Name: snap.Name, FreedBytes: snap.Used - snap.Shared}), nil
}

// Restore implements the RPC. What is wrong with the request itself is said at once; the rest is the operation's.
func (s *snapshotService) Restore(ctx context.Context, req *connect.Request[bangerv1.RestoreSnapshotRequest]) (*connect.Response[bangerv1.RestoreSnapshotResponse], error) {
	v, err := s.parts.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	set := s.parts.fleet.snapshotsOf(v)
	var snap snapshot.Snapshot
	if back := int(req.Msg.GetBack()); back != 0 {
		snap, err = set.Automatic(back)
	} else {
		snap, err = set.Get(req.Msg.GetName())
	}
	if err != nil {
		return nil, err
	}
	opt := restoreOptions{diskOnly: req.Msg.GetDiskOnly(), start: req.Msg.GetStart(), force: req.Msg.GetForce()}
	interrupt := patient
	if opt.force {
		interrupt = noBoot
	}
	id, err := s.parts.ops.Begin(operation.Spec{Kind: "vm.restore", Target: string(v.Name())}, func(ctx context.Context, report progress.Func) (string, error) {
		v, unlock, err := s.vms().find(ctx, string(v.ID), interrupt)
		if err != nil {
			return "", err
		}
		defer unlock()
		snap, err := s.parts.fleet.snapshotsOf(v).Get(snap.Name) // it may be gone, or have another parent
		if err != nil {
			return "", err
		}
		return string(v.ID), s.parts.fleet.restore(ctx, v, snap, opt, report)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.RestoreSnapshotResponse{OperationId: id, Name: snap.Name}), nil
}

// proto is a snapshot on the wire.
func (s *snapshotService) proto(v store.VM, snap snapshot.Snapshot) *bangerv1.Snapshot {
	size := func(names ...string) (n uint64) {
		for _, name := range names {
			n += used(snap.Dir + "/" + name)
		}
		return n
	}
	return &bangerv1.Snapshot{
		VmId: string(v.ID), Vm: string(v.Name()), Name: snap.Name, Description: snap.Description, Parent: snap.Parent, Kind: snap.Kind,
		Auto: snap.Auto, CreatedAtMs: millis(snap.Created), MemoryBytes: size(vmdir.SavedMemory, vmdir.SavedState), DiskBytes: size(vmdir.SavedDisk),
		UsedBytes: snap.Used, SharedBytes: snap.Shared, StillUs: snap.StillUS, Current: s.parts.fleet.snapshotsOf(v).Base() == snap.Name,
		Back: int32(snap.Back), Problem: snap.Problem, Dir: snap.Dir,
		Spec: &bangerv1.VMSpec{
			Name: string(snap.Spec.Name), Image: snap.Spec.Image, Kernel: snap.Spec.Kernel, Cpus: uint32(max(snap.Spec.CPUs, 0)),
			MemoryBytes: snap.Spec.Memory, DiskBytes: snap.Spec.Disk,
		},
	}
}

// snapshotRamdisks adds to used the initramfs files that the snapshots of a VM need: their machines were started with them.
func (f *fleet) snapshotRamdisks(v store.VM, used map[string]bool) {
	all, _ := f.snapshotsOf(v).List()
	for _, snap := range slices.DeleteFunc(all, func(s snapshot.Snapshot) bool { return s.Kind != snapshot.Memory }) {
		if m, err := vmdir.ReadSaved(snap.Dir); err == nil {
			used[m.Launch.Machine.Initramfs] = true
		}
	}
}
