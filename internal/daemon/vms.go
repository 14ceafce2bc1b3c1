package daemon

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/netstack"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// maxGrace bounds what a caller of Stop may ask for.
const maxGrace = 10 * time.Minute

// vmService is the wire's VMService. Create is in create.go.
type vmService struct {
	bangerv1connect.UnimplementedVMServiceHandler
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	ops     *operation.Registry[string]
	images  *library
	kernels *library
	fleet   *fleet

	createMu sync.Mutex // held while a name is checked and reserved
}

// Start implements the RPC. A VM that runs already is left as it is.
func (s *vmService) Start(ctx context.Context, req *connect.Request[bangerv1.StartVMRequest]) (*connect.Response[bangerv1.VM], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	unlock, err := s.fleet.lock(ctx, v.ID, patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v, err = s.store.VM(ctx, v.ID); err != nil {
		return nil, err
	}
	switch r := s.fleet.runOf(v.ID); {
	case v.State == vm.Running:
		return connect.NewResponse(s.proto(v)), nil
	case v.State == vm.Starting && r != nil: // begun before this daemon was there
		err = s.fleet.await(ctx, r, s.fleet.stopping)
	default:
		err = s.fleet.start(ctx, v, s.fleet.stopping)
	}
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, v.ID)
}

// Stop implements the RPC. A VM that does not run is left as it is.
func (s *vmService) Stop(ctx context.Context, req *connect.Request[bangerv1.StopVMRequest]) (*connect.Response[bangerv1.VM], error) {
	grace := time.Duration(req.Msg.GetGraceMs()) * time.Millisecond
	switch {
	case req.Msg.GetGraceMs() < 0 || req.Msg.GetGraceMs() > maxGrace.Milliseconds():
		return nil, fault.New(fault.Invalid, "a grace of %d ms is not between 0 and %d", req.Msg.GetGraceMs(), maxGrace.Milliseconds())
	case grace == 0:
		grace = defaultGrace
	}
	return s.end(ctx, req.Msg.GetRef(), false, grace)
}

// Kill implements the RPC. A VM that does not run is left as it is.
func (s *vmService) Kill(ctx context.Context, req *connect.Request[bangerv1.KillVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return s.end(ctx, req.Msg.GetRef(), true, 0)
}

func (s *vmService) end(ctx context.Context, ref string, kill bool, grace time.Duration) (*connect.Response[bangerv1.VM], error) {
	v, err := s.store.FindVM(ctx, ref)
	if err != nil {
		return nil, err
	}
	if v, err = s.fleet.stop(ctx, v.ID, kill, grace); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(v)), nil
}

// Remove implements the RPC.
func (s *vmService) Remove(ctx context.Context, req *connect.Request[bangerv1.RemoveVMRequest]) (*connect.Response[bangerv1.RemoveVMResponse], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	if err := refuseLive(v, req.Msg.GetForce()); err != nil {
		return nil, err
	}
	if err := s.fleet.remove(ctx, v.ID, req.Msg.GetForce()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.RemoveVMResponse{Id: string(v.ID), Name: string(v.Name())}), nil
}

// List implements the RPC.
func (s *vmService) List(ctx context.Context, req *connect.Request[bangerv1.ListVMsRequest]) (*connect.Response[bangerv1.ListVMsResponse], error) {
	var states []vm.State
	for _, text := range req.Msg.GetStates() {
		state, err := vm.ParseState(text)
		if err != nil {
			return nil, err
		}
		states = append(states, state)
	}
	all, err := s.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	if len(states) > 0 {
		all = slices.DeleteFunc(all, func(v store.VM) bool { return !slices.Contains(states, v.State) })
	}
	return connect.NewResponse(&bangerv1.ListVMsResponse{Vms: convert(all, s.proto)}), nil
}

// Get implements the RPC.
func (s *vmService) Get(ctx context.Context, req *connect.Request[bangerv1.GetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(v)), nil
}

// Endpoint implements the RPC.
func (s *vmService) Endpoint(ctx context.Context, req *connect.Request[bangerv1.EndpointRequest]) (*connect.Response[bangerv1.EndpointResponse], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	out := &bangerv1.EndpointResponse{Vm: s.proto(v), ConsoleLog: s.fleet.dir(v.ID).Path(paths.VMConsole)}
	if v.State.Live() {
		out.Socket = s.cfg.Paths.SupervisorSocket(string(v.ID))
	}
	return connect.NewResponse(out), nil
}

func (s *vmService) answer(ctx context.Context, id vm.ID) (*connect.Response[bangerv1.VM], error) {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(v)), nil
}

// proto is a VM on the wire.
func (s *vmService) proto(v store.VM) *bangerv1.VM {
	dir := s.fleet.dir(v.ID)
	out := &bangerv1.VM{
		Id: string(v.ID), State: string(v.State), Reason: v.Reason,
		Spec: &bangerv1.VMSpec{
			Name: string(v.Name()), Image: v.Spec.Image, Kernel: v.Spec.Kernel, Cpus: uint32(v.Spec.CPUs),
			MemoryBytes: v.Spec.Memory, DiskBytes: v.Spec.Disk, RemoveOnExit: v.Spec.Remove, Env: v.Spec.Env,
			User: v.Spec.User, Workdir: v.Spec.Workdir, Labels: v.Spec.Labels,
		},
		CreatedAtMs: millis(v.CreatedAt), StartedAtMs: millis(v.StartedAt), StoppedAtMs: millis(v.StoppedAt),
		VmmPid: int32(v.VMMPID), SupervisorPid: int32(v.SupervisorPID), Vmm: v.Driver, Accelerator: v.Accelerator,
		ImageDigest: v.ImageDigest, KernelVersion: v.KernelVersion, DiskUsedBytes: used(dir.Path(paths.VMDisk)),
		Dir: string(dir), ExitCode: int32(v.ExitCode),
	}
	if v.State.Live() {
		out.Address = netstack.Address()
	}
	return out
}
