package daemon

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/config"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/netstack"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// maxGrace bounds what a caller of Stop may ask for.
const maxGrace = 10 * time.Minute

// showLimit is how long Get waits for a supervisor to say when its VM was used last.
const showLimit = 300 * time.Millisecond

// vmService is the wire's VMService. Create is in create.go.
type vmService struct {
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	ops     *operation.Registry[string]
	images  *library.Library
	kernels *library.Library
	fleet   *fleet
	pool    *pool

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
	if err := s.startLocked(ctx, v, req.Msg.GetCold()); err != nil {
		return nil, err
	}
	return s.answer(ctx, v.ID)
}

// startLocked starts a VM whose lock the caller holds, unless it runs.
func (s *vmService) startLocked(ctx context.Context, v store.VM, cold bool) error {
	switch r := s.fleet.runOf(v.ID); {
	case v.State == vm.Running:
		return nil
	case v.State == vm.Starting && r != nil: // begun before this daemon was there
		return s.fleet.await(ctx, r, s.fleet.stopping)
	}
	return s.fleet.start(ctx, v, startOptions{cold: cold, leave: s.fleet.stopping})
}

// Stop implements the RPC. A VM that does not run is left as it is.
func (s *vmService) Stop(ctx context.Context, req *connect.Request[bangerv1.StopVMRequest]) (*connect.Response[bangerv1.VM], error) {
	grace, err := graceOf(req.Msg.GetGraceMs())
	if err != nil {
		return nil, err
	}
	return s.end(ctx, req.Msg.GetRef(), false, grace)
}

func graceOf(ms int64) (time.Duration, error) {
	switch {
	case ms < 0 || ms > maxGrace.Milliseconds():
		return 0, fault.New(fault.Invalid, "a grace of %d ms is not between 0 and %d", ms, maxGrace.Milliseconds())
	case ms == 0:
		return defaultGrace, nil
	}
	return milliseconds(ms), nil
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
	if err := s.fleet.refuseRemoval(v, req.Msg.GetForce()); err != nil {
		return nil, err
	}
	if err := s.fleet.remove(ctx, v.ID, req.Msg.GetForce()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.RemoveVMResponse{Id: string(v.ID), Name: string(v.Name())}), nil
}

// List implements the RPC.
func (s *vmService) List(ctx context.Context, req *connect.Request[bangerv1.ListVMsRequest]) (*connect.Response[bangerv1.ListVMsResponse], error) {
	states, err := parseStates(req.Msg.GetStates())
	if err != nil {
		return nil, err
	}
	all, err := s.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	images := slices.Clone(req.Msg.GetImages())
	for _, ref := range req.Msg.GetImages() {
		if found, err := s.images.Lookup(ctx, ref); err == nil {
			images = append(images, found.Digest)
		}
	}
	all = slices.DeleteFunc(all, func(v store.VM) bool {
		return v.Hidden() || len(states) > 0 && !slices.Contains(states, v.State) ||
			!hasLabels(v.Spec.Labels, req.Msg.GetLabels()) || !usesImage(v, images)
	})
	return connect.NewResponse(&bangerv1.ListVMsResponse{Vms: convert(all, s.proto)}), nil
}

func parseStates(texts []string) ([]vm.State, error) {
	var states []vm.State
	for _, text := range texts {
		state, err := vm.ParseState(text)
		if err != nil {
			return nil, err
		}
		states = append(states, state)
	}
	return states, nil
}

// hasLabels reports whether all of wanted, each KEY or KEY=VALUE, fit.
func hasLabels(labels map[string]string, wanted []string) bool {
	for _, w := range wanted {
		key, value, valued := strings.Cut(w, "=")
		if have, ok := labels[key]; !ok || valued && have != value {
			return false
		}
	}
	return true
}

// usesImage reports whether the VM was made of one of the images, each a name or (the beginning of) a digest. None fits
// every VM.
func usesImage(v store.VM, images []string) bool {
	return len(images) == 0 || slices.ContainsFunc(images, func(image string) bool {
		return image == v.Spec.Image || strings.HasPrefix(image, "sha256:") && strings.HasPrefix(v.ImageDigest, image)
	})
}

// Get implements the RPC.
func (s *vmService) Get(ctx context.Context, req *connect.Request[bangerv1.GetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	if r := s.fleet.runOf(v.ID); r != nil && r.isReady() { // the list has what was heard last
		if status, err := ask(ctx, r.supervisor, showLimit); err == nil {
			r.note(status)
		}
	}
	return connect.NewResponse(s.proto(v)), nil
}

// Endpoint implements the RPC.
func (s *vmService) Endpoint(ctx context.Context, req *connect.Request[bangerv1.EndpointRequest]) (*connect.Response[bangerv1.EndpointResponse], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	if v.State == vm.Suspended && req.Msg.GetResume() {
		resp, err := s.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: string(v.ID)}))
		if err != nil {
			return nil, err
		}
		if v, err = s.store.VM(ctx, vm.ID(resp.Msg.GetId())); err != nil {
			return nil, err
		}
	}
	out := &bangerv1.EndpointResponse{Vm: s.proto(v), ConsoleLog: s.fleet.dir(v.ID).Path(paths.VMConsole)}
	if img, err := s.cfg.Images.Load(s.cfg.Paths.Image(v.ImageDigest)); err == nil {
		out.Config = configProto(img.Config)
	}
	out.Checkpoint = s.cfg.Settings.Defaults.Checkpoint == config.CheckpointEachExec
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
			User: v.Spec.User, Workdir: v.Spec.Workdir, Labels: v.Spec.Labels, Description: v.Spec.Description,
			Restart: string(v.Spec.Restart), AutoStopMs: v.Spec.AutoStop.Milliseconds(), Purpose: string(v.Spec.Purpose),
			NoFork: v.Spec.NoFork,
		},
		CreatedAtMs: millis(v.CreatedAt), StartedAtMs: millis(v.StartedAt), StoppedAtMs: millis(v.StoppedAt),
		VmmPid: int32(v.VMMPID), SupervisorPid: int32(v.SupervisorPID), Vmm: v.Driver, Accelerator: v.Accelerator,
		ImageDigest: v.ImageDigest, KernelVersion: v.KernelVersion, DiskUsedBytes: used(dir.Path(paths.VMDisk)),
		Dir: string(dir), ExitCode: int32(v.ExitCode),
		LastActiveMs: millis(v.ActiveAt), Restarts: int32(v.Restarts), Pending: v.Pending,
	}
	if r := s.fleet.runOf(v.ID); r != nil {
		u, from := r.used(), r.from()
		out.FromTemplate, out.TemplateFault = from.template, from.fault
		out.OpenSessions = u.sessions
		if u.last.After(v.ActiveAt) {
			out.LastActiveMs = millis(u.last)
		}
	}
	if o := v.Origin; o != nil {
		out.ForkedFrom = &bangerv1.VMOrigin{Id: string(o.ID), Name: string(o.Name), AtMs: millis(o.At), StillUs: o.StillUS}
	}
	if v.State.Live() {
		out.Address = netstack.Address(v.Address)
	}
	return out
}
