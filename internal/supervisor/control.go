package supervisor

import (
	"context"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// task is something that the leading goroutine does with the machine for a caller, in between the boot and the stop.
// Its context ends when the VM is to stop or the VMM is gone.
type task struct {
	do    func(context.Context, hypervisor.Machine) error
	limit time.Duration
	guest bool       // it needs a guest that is not paused
	done  chan error // has room for the result
}

// lead hands a task over and waits for its end. A caller that goes away does not end it halfway.
func (s service) lead(ctx context.Context, t task) error {
	t.done = make(chan error, 1)
	for {
		status, changed := s.board.get()
		switch status.GetPhase() {
		case phaseReady, phasePaused:
		case phaseStarting:
			return fault.New(fault.Conflict, "vm %s is still starting", s.name()).
				WithHint("banger vm wait --state running %s", s.name())
		default:
			return s.notRunning(status)
		}
		select {
		case s.tasks <- t:
			return <-t.done
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "vm %s", s.name())
		}
	}
}

// perform does a task. Leading goroutine only.
func (s *Supervisor) perform(t task, m hypervisor.Machine) error {
	if status, _ := s.board.get(); t.guest && status.GetPhase() == phasePaused {
		return s.isPaused(status)
	}
	ctx, cancel := context.WithTimeout(s.orders.asked, t.limit)
	defer cancel()
	defer onDone(ctx, m, cancel)()
	err := t.do(ctx, m)
	switch {
	case err == nil:
		return nil
	case s.orders.asked.Err() != nil:
		return fault.New(fault.Conflict, "vm %s is stopping", s.name()).WithHint("banger vm start %s", s.name())
	case isDone(m):
		return fault.New(fault.Conflict, "vm %s has ended", s.name()).WithHint("banger vm start %s", s.name())
	}
	return fault.Context(err, "vm %s", s.name())
}

// setPhase moves between ready and paused for a caller, which is a use of the VM. Leading goroutine only.
func (s *Supervisor) setPhase(phase string) {
	s.board.touch()
	s.board.update(func(st *bangerv1.SupervisorStatus) { st.Phase, st.Fault = phase, nil })
}

// guestHalted notes that the VMM has paused the guest. Unpause tries again. Leading goroutine only.
func (s *Supervisor) guestHalted(reason string) {
	if s.halted { // it says so for every write
		return
	}
	s.halted = true
	s.log.Error("the vmm has paused the guest", "reason", reason)
	s.board.update(func(st *bangerv1.SupervisorStatus) {
		st.Phase = phasePaused
		st.Fault = rpc.Proto(fault.New(fault.Exhausted, "%s", reason).WithHint("banger vm unpause %s", s.name()))
	})
}

// Pause implements the RPC. Pausing what is paused changes nothing.
func (s service) Pause(ctx context.Context, _ *connect.Request[bangerv1.SupervisorPauseRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	return s.steered(s.lead(ctx, task{do: s.pause, limit: s.times.task}))
}

// Unpause implements the RPC. When it returns the guest's clock is right.
func (s service) Unpause(ctx context.Context, _ *connect.Request[bangerv1.SupervisorUnpauseRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	return s.steered(s.lead(ctx, task{do: s.unpause, limit: s.times.task + s.times.clock}))
}

// steered answers with the status that a task has left.
func (s service) steered(err error) (*connect.Response[bangerv1.SupervisorStatus], error) {
	if err != nil {
		return nil, err
	}
	status, _ := s.board.get()
	return connect.NewResponse(status), nil
}

// pause stops the guest's CPUs. After a failure they run.
func (s *Supervisor) pause(ctx context.Context, m hypervisor.Machine) error {
	if s.board.phase() == phasePaused {
		return nil
	}
	p, err := pauser(m)
	if err == nil {
		err = s.at(StepPauseVMM)
	}
	if err != nil {
		return err
	}
	s.halted = true
	if err = p.Pause(ctx); err == nil {
		err = s.at(StepPauseRecord)
	}
	if err == nil {
		s.setPhase(phasePaused)
		s.log.Info("guest is paused")
		return nil
	}
	// ctx may be over; a stop that has been asked for resumes the guest itself.
	back, cancel := context.WithTimeout(s.orders.asked, s.times.task)
	defer cancel()
	defer onDone(back, m, cancel)()
	if resumeErr := s.resume(back, m); resumeErr != nil {
		s.log.Error("the guest is not resumed after a pause that failed", "error", resumeErr)
	}
	return err
}

// unpause lets the guest's CPUs go on. After a failure it counts as paused.
func (s *Supervisor) unpause(ctx context.Context, m hypervisor.Machine) error {
	if s.board.phase() == phaseReady {
		return nil
	}
	select {
	case <-s.halts: // of the present pause
	default:
	}
	err := s.at(StepUnpauseVMM)
	if err == nil {
		err = s.resume(ctx, m)
	}
	if err != nil {
		return err
	}
	// A guest with the wrong time is worth more than one that stands still.
	if err := s.setClock(ctx); err != nil {
		s.log.Warn("the guest's clock is late by the time that it was paused", "error", err)
	}
	select {
	case reason := <-s.halts: // the same thing again
		s.guestHalted(reason)
		return fault.New(fault.Exhausted, "%s", reason).WithHint("df -h %s", s.dir)
	default:
	}
	s.setPhase(phaseReady)
	s.log.Info("guest goes on")
	return nil
}

// resume has the guest's CPUs go on. Leading goroutine only.
func (s *Supervisor) resume(ctx context.Context, m hypervisor.Machine) error {
	p, err := pauser(m)
	if err == nil {
		err = p.Resume(ctx)
	}
	if err == nil {
		s.halted = false
	}
	return err
}

func pauser(m hypervisor.Machine) (hypervisor.Pauser, error) {
	p, ok := m.(hypervisor.Pauser)
	if !ok {
		return nil, fault.New(fault.Invalid, "its vmm cannot pause")
	}
	return p, nil
}

// exact is how long the guest may take to set its clock so that it is right; clockTries how often that is tried.
const (
	exact      = 100 * time.Millisecond
	clockTries = 3
)

// setClock sets the guest's clock. One that takes its time is told the time again.
func (s *Supervisor) setClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.times.clock)
	defer cancel()
	if err := s.at(StepUnpauseClock); err != nil {
		return err
	}
	client, err := s.link.await(ctx)
	if err != nil {
		return err
	}
	for range clockTries {
		now := time.Now()
		if err := client.SetClock(ctx, now); err != nil {
			return err
		}
		if time.Since(now) < exact {
			break
		}
	}
	return nil
}

// GrowDisk implements the RPC. The file has its new size already; whatever fails, it is used at the next start.
func (s service) GrowDisk(ctx context.Context, _ *connect.Request[bangerv1.SupervisorGrowDiskRequest]) (*connect.Response[bangerv1.SupervisorGrowDiskResponse], error) {
	var grown agentwire.Grown
	grow := func(ctx context.Context, m hypervisor.Machine) (err error) {
		grown, err = s.grow(ctx, m)
		return err
	}
	err := s.lead(ctx, task{do: grow, limit: s.times.grow, guest: true})
	if err != nil {
		return nil, err
	}
	s.log.Info("disk has grown", "bytes", grown.Device, "filesystem", grown.FileSystem)
	return connect.NewResponse(&bangerv1.SupervisorGrowDiskResponse{DiskBytes: grown.Device, FilesystemBytes: grown.FileSystem}), nil
}

// grow tells VMM and guest of the disk's size. It can be repeated.
func (s *Supervisor) grow(ctx context.Context, m hypervisor.Machine) (agentwire.Grown, error) {
	resizer, ok := m.(hypervisor.DiskResizer)
	if !ok {
		return agentwire.Grown{}, fault.New(fault.Invalid, "its vmm cannot grow a disk while it runs").
			WithHint("banger vm restart %s", s.name())
	}
	info, err := os.Stat(s.diskPath())
	if err != nil {
		return agentwire.Grown{}, fault.Wrap(fault.Internal, err, "disk")
	}
	client, err := s.link.await(ctx)
	if err == nil {
		err = s.at(StepGrowVMM)
	}
	if err == nil {
		err = resizer.ResizeDisk(ctx, s.launch.Guest.Disks.Data, uint64(info.Size()))
	}
	if err == nil {
		err = s.at(StepGrowGuest)
	}
	if err != nil {
		return agentwire.Grown{}, err
	}
	return client.Grow(ctx, agentwire.Grow{Bytes: uint64(info.Size())})
}

// diskPath is the file of the VM's own disk, or "".
func (s *Supervisor) diskPath() string {
	disks := s.launch.Machine.Disks
	i := slices.IndexFunc(disks, func(d hypervisor.Disk) bool { return d.Serial == s.launch.Guest.Disks.Data })
	if i < 0 {
		return ""
	}
	return disks[i].Path
}

// isPaused is the answer to who wants something of a guest that stands still.
func (s *Supervisor) isPaused(status *bangerv1.SupervisorStatus) error {
	why := ""
	if f := status.GetFault(); f != nil {
		why = ": " + f.GetMessage()
	}
	return fault.New(fault.Conflict, "vm %s is paused%s", s.name(), why).WithHint("banger vm unpause %s", s.name())
}

// Ports implements the RPC. While the VM starts, it waits.
func (s service) Ports(ctx context.Context, _ *connect.Request[bangerv1.SupervisorPortsRequest]) (*connect.Response[bangerv1.SupervisorPortsResponse], error) {
	client, err := s.awaitGuest(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.ask)
	defer cancel()
	ports, err := client.Ports(ctx)
	if err != nil {
		return nil, fault.Context(err, "vm %s", s.name())
	}
	out := &bangerv1.SupervisorPortsResponse{}
	for _, p := range ports {
		out.Ports = append(out.Ports, &bangerv1.Port{
			Protocol: p.Protocol, Address: p.Address, Port: uint32(p.Port), Pid: int32(p.PID), Process: p.Process,
		})
	}
	return connect.NewResponse(out), nil
}
