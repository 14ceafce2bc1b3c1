package daemon

import (
	"context"
	"os"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// Generation of the wire between clients and the daemon.
const Generation = 1

// daemonService is the wire's DaemonService.
type daemonService struct {
	cfg      Config
	store    *store.Store
	ops      *operation.Registry[string]
	started  time.Time
	pool     *pool
	shutdown func()
}

// Hello implements the RPC. Whether the two fit is for the client to decide: it can replace the daemon.
func (s *daemonService) Hello(context.Context, *connect.Request[bangerv1.HelloRequest]) (*connect.Response[bangerv1.HelloResponse], error) {
	return connect.NewResponse(&bangerv1.HelloResponse{Generation: Generation, Build: s.cfg.Build, Pid: int32(os.Getpid())}), nil
}

// Status implements the RPC.
func (s *daemonService) Status(ctx context.Context, _ *connect.Request[bangerv1.StatusRequest]) (*connect.Response[bangerv1.StatusResponse], error) {
	vms, err := s.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	running := 0
	for _, v := range vms {
		if v.State == vm.Running && !v.Hidden() {
			running++
		}
	}
	ready, size := s.pool.counts()
	return connect.NewResponse(&bangerv1.StatusResponse{
		PoolReady: int32(ready), PoolSize: int32(size),
		Build: s.cfg.Build, Pid: int32(os.Getpid()), StartedAtMs: millis(s.started), RunningVms: int32(running),
		RunningOperations: int32(s.ops.Running()), Socket: s.cfg.Paths.DaemonSocket(), DataDir: s.cfg.Paths.Data,
		Log: s.cfg.Paths.DaemonLog(),
	}), nil
}

// Shutdown implements the RPC. The answer comes first: the calls that are under way are let finish.
func (s *daemonService) Shutdown(_ context.Context, req *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	if req.Msg.GetIfIdle() && !s.ops.CloseIfIdle() {
		return nil, fault.New(fault.Conflict, "the daemon has %d operations under way", s.ops.Running()).
			WithHint("banger daemon status")
	}
	s.shutdown()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}
