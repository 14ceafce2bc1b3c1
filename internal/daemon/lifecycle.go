package daemon

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// find finds a VM, takes its lock and reads it once more. unlock is not nil when err is.
func (s *vmService) find(ctx context.Context, ref string, interrupt func(*run) bool) (v store.VM, unlock func(), err error) {
	if v, err = s.store.FindVM(ctx, ref); err != nil {
		return v, nil, err
	}
	if unlock, err = s.fleet.lock(ctx, v.ID, interrupt); err != nil {
		return v, nil, err
	}
	if v, err = s.store.VM(ctx, v.ID); err != nil {
		unlock()
		return v, nil, err
	}
	return v, unlock, nil
}

// Restart implements the RPC. A VM that does not run is only started.
func (s *vmService) Restart(ctx context.Context, req *connect.Request[bangerv1.RestartVMRequest]) (*connect.Response[bangerv1.VM], error) {
	grace, err := graceOf(req.Msg.GetGraceMs())
	if err != nil {
		return nil, err
	}
	v, unlock, err := s.find(ctx, req.Msg.GetRef(), noBoot)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v.State.Live() {
		if v, err = s.fleet.stopLocked(ctx, v, false, grace); err != nil {
			return nil, err
		}
	}
	if err := s.startLocked(ctx, v, req.Msg.GetCold()); err != nil {
		return nil, err
	}
	return s.answer(ctx, v.ID)
}

// Pause implements the RPC. A VM that is paused already is left as it is.
func (s *vmService) Pause(ctx context.Context, req *connect.Request[bangerv1.PauseVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return s.pause(ctx, req.Msg.GetRef(), vm.Running, vm.Paused)
}

// Unpause implements the RPC. A VM that runs already is left as it is.
func (s *vmService) Unpause(ctx context.Context, req *connect.Request[bangerv1.UnpauseVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return s.pause(ctx, req.Msg.GetRef(), vm.Paused, vm.Running)
}

// pause brings a VM from one of the states running and paused to the other.
func (s *vmService) pause(ctx context.Context, ref string, from, to vm.State) (*connect.Response[bangerv1.VM], error) {
	v, unlock, err := s.find(ctx, ref, patient)
	if err != nil {
		return nil, err
	}
	defer unlock()
	switch v.State {
	case to:
		return connect.NewResponse(s.proto(v)), nil
	case from:
	default:
		return nil, v.Refuse(to)
	}
	bounded, cancel := context.WithTimeout(ctx, pauseLimit)
	defer cancel()
	r := s.fleet.adopt(v)
	if err := r.supervisor.pause(bounded, to == vm.Paused); err != nil {
		return nil, fault.Context(err, "vm %s", v.Name())
	}
	// The watcher hears of it too; whoever is first records it.
	if to == vm.Paused {
		v, err = s.store.MoveToPaused(ctx, v.ID)
	} else {
		r.resume()
		v, err = s.store.MoveToRunning(ctx, v.ID, store.Running{
			SupervisorPID: v.SupervisorPID, VMMPID: v.VMMPID, Accelerator: v.Accelerator, At: v.StartedAt,
		})
	}
	if err != nil && !fault.Is(err, fault.Conflict) {
		return nil, err
	}
	if err != nil {
		return s.answer(ctx, r.id)
	}
	return connect.NewResponse(s.proto(v)), nil
}

// Reset implements the RPC. The guest's agent carries it out at the next start, before it mounts anything that was
// changed: the host does not mount a disk that a guest has written.
func (s *vmService) Reset(ctx context.Context, req *connect.Request[bangerv1.ResetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	interrupt := patient
	if req.Msg.GetForce() {
		interrupt = atOnce
	}
	v, unlock, err := s.find(ctx, req.Msg.GetRef(), interrupt)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := refuseSuspended(v, "it cannot be reset"); err != nil {
		return nil, err
	}
	if v.State.Live() {
		if !req.Msg.GetForce() {
			return nil, fault.New(fault.Conflict, "vm %s is %s, it cannot be reset", v.Name(), v.State).
				WithHint("banger vm reset --force %s", v.Name())
		}
		if v, err = s.fleet.stopLocked(ctx, v, false, defaultGrace); err != nil {
			return nil, err
		}
	}
	if v, err = s.fleet.reset(ctx, v); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.proto(v)), nil
}

// reset notes in the row and in the directory that the next start resets the VM's root.
func (f *fleet) reset(ctx context.Context, v store.VM) (_ store.VM, err error) {
	var u undo.Stack
	defer func() { f.undo(ctx, &u, v.ID) }()
	before := v
	u.Add("take back the reset", func(ctx context.Context) error {
		_, err := f.store.SetReset(ctx, v.ID, before.ResetToken)
		return err
	})
	if v, err = f.store.SetReset(ctx, v.ID, string(vm.NewID())); err != nil {
		return v, err
	}
	if err := f.cfg.step(ctx, StepResetRow); err != nil {
		return v, err
	}
	u.Add("take back the record", func(context.Context) error { return f.dir(v.ID).WriteRecord(recordOf(before)) })
	if err := f.dir(v.ID).WriteRecord(recordOf(v)); err != nil {
		return v, withClass(err)
	}
	if err := f.cfg.step(ctx, StepResetRecord); err != nil {
		return v, err
	}
	u.Disarm()
	return v, nil
}

// undo runs what is left on a stack. What it cannot take back is mended by the next daemon (fleet.mend).
func (f *fleet) undo(ctx context.Context, u *undo.Stack, id vm.ID) {
	if err := u.Run(ctx); err != nil {
		f.log.ErrorContext(ctx, "a change that failed left something behind", "vm", id, "error", err)
	}
}

// Wait implements the RPC.
func (s *vmService) Wait(ctx context.Context, req *connect.Request[bangerv1.WaitVMRequest]) (*connect.Response[bangerv1.VM], error) {
	states, err := parseStates(req.Msg.GetStates())
	if err != nil {
		return nil, err
	}
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	for id := v.ID; ; {
		changed := s.store.Changed() // before the look, so that nothing is missed
		if v, err = s.store.VM(ctx, id); err != nil {
			return nil, err
		}
		if slices.Contains(states, v.State) || len(states) == 0 && !v.State.Live() {
			return connect.NewResponse(s.proto(v)), nil
		}
		select {
		case <-changed:
		case <-s.fleet.stopping:
			return nil, fault.New(fault.Unavailable, "the daemon is stopping").WithHint("banger vm wait %s", v.Name())
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
