package daemon

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// supervisor is this daemon's connection to the supervisor of one run, which may not listen yet or any more.
type supervisor struct {
	http   *http.Client
	client bangerv1connect.SupervisorServiceClient
}

func dialSupervisor(socket string) *supervisor {
	h := rpc.Client(socket)
	return &supervisor{http: h, client: bangerv1connect.NewSupervisorServiceClient(h, rpc.BaseURL,
		connect.WithInterceptors(rpc.Faults(nil)), connect.WithReadMaxBytes(1<<20))}
}

// close gives the connection back. Calls that are under way go on.
func (s *supervisor) close() { s.http.CloseIdleConnections() }

// status asks for the present status.
func (s *supervisor) status(ctx context.Context) (*bangerv1.SupervisorStatus, error) {
	resp, err := s.client.Status(ctx, connect.NewRequest(&bangerv1.SupervisorStatusRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// watch calls each with the present status and with every change, until the VM has ended, the connection is lost or
// each returns an error.
func (s *supervisor) watch(ctx context.Context, each func(*bangerv1.SupervisorStatus) error) error {
	stream, err := s.client.Watch(ctx, connect.NewRequest(&bangerv1.SupervisorWatchRequest{}))
	if err != nil {
		return rpc.FromConnect(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if err := each(stream.Msg()); err != nil {
			return err
		}
		if stream.Msg().GetPhase() == phaseExited {
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		return rpc.FromConnect(err)
	}
	return errNoStream
}

// stop orders the end of the VM and waits for it.
func (s *supervisor) stop(ctx context.Context, kill bool, grace time.Duration) error {
	_, err := s.client.Stop(ctx, connect.NewRequest(&bangerv1.SupervisorStopRequest{Kill: kill, GraceMs: grace.Milliseconds()}))
	return err
}

// pause stops the guest's CPUs, or lets them go on.
func (s *supervisor) pause(ctx context.Context, on bool) error {
	if on {
		_, err := s.client.Pause(ctx, connect.NewRequest(&bangerv1.SupervisorPauseRequest{}))
		return err
	}
	_, err := s.client.Unpause(ctx, connect.NewRequest(&bangerv1.SupervisorUnpauseRequest{}))
	return err
}

// save saves the VM's machine. A suspend returns when the VM has ended.
func (s *supervisor) save(ctx context.Context, req *bangerv1.SupervisorSaveRequest) (*bangerv1.SupervisorSaveResponse, error) {
	resp, err := s.client.Save(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// identify tells the guest of a VM of the pool who it is.
func (s *supervisor) identify(ctx context.Context, req *bangerv1.SupervisorIdentifyRequest) error {
	_, err := s.client.Identify(ctx, connect.NewRequest(req))
	return err
}

// growDisk tells VMM and guest that the disk's file has grown.
func (s *supervisor) growDisk(ctx context.Context) error {
	_, err := s.client.GrowDisk(ctx, connect.NewRequest(&bangerv1.SupervisorGrowDiskRequest{}))
	return err
}
