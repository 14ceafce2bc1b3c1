package supervisor

import (
	"context"
	"crypto/rand"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	bangerv1 "banger/proto/banger/v1"
)

// name is what the VM is called: what its launch says, unless it was taken from the pool since.
func (s *Supervisor) name() string {
	if name := s.called.Load(); name != nil {
		return *name
	}
	return string(s.launch.Name)
}

// Identify implements the RPC.
func (s service) Identify(ctx context.Context, req *connect.Request[bangerv1.SupervisorIdentifyRequest]) (*connect.Response[bangerv1.SupervisorIdentifyResponse], error) {
	err := s.lead(ctx, task{guest: true, limit: s.times.clock, do: func(ctx context.Context, _ hypervisor.Machine) error {
		return s.identifyAs(ctx, req.Msg)
	}})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.SupervisorIdentifyResponse{}), nil
}

// identifyAs gives the guest of a VM of the pool its name. What else is the VM's own it has had from the beginning: its
// machine-id, its hardware address, its random numbers. Leading goroutine only.
func (s *Supervisor) identifyAs(ctx context.Context, req *bangerv1.SupervisorIdentifyRequest) error {
	if !s.launch.Pool || s.called.Load() != nil {
		return fault.New(fault.Conflict, "it has a name already")
	}
	client, err := s.link.await(ctx)
	if err != nil {
		return err
	}
	wake := agentwire.Wake{
		Entropy: make([]byte, 64), UnixNano: time.Now().UnixNano(),
		Identity: &agentwire.Identity{Hostname: req.GetName(), MachineID: s.launch.Guest.MachineID},
		Settings: &agentwire.Settings{Env: req.GetEnv(), User: req.GetUser(), Workdir: req.GetWorkdir()},
	}
	rand.Read(wake.Entropy) // never fails
	if err := client.Wake(ctx, wake); err != nil {
		return err
	}
	if req.GetFinal() {
		name := req.GetName()
		s.called.Store(&name)
		s.board.touch()
		s.log.Info("the vm is somebody's now", "name", name)
	}
	return nil
}
