package vmclient

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// Stats returns at most n samples of what the VM used, the newest last; at least one is fresh.
func (s *Client) Stats(ctx context.Context, n int) ([]*bangerv1.Sample, error) {
	resp, err := s.service.Stats(ctx, connect.NewRequest(&bangerv1.SupervisorStatsRequest{Samples: int32(n)})) //nolint:gosec // a few hundred
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetSamples(), nil
}

// WatchStats calls fn with a fresh sample at every interval until ctx ends, the VM does, or fn fails.
func (s *Client) WatchStats(ctx context.Context, interval time.Duration, fn func(*bangerv1.Sample) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.service.WatchStats(ctx, connect.NewRequest(&bangerv1.SupervisorWatchStatsRequest{IntervalMs: interval.Milliseconds()}))
	if err != nil {
		return rpc.FromConnect(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if err := fn(stream.Msg()); err != nil {
			return err
		}
	}
	switch err := stream.Err(); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return rpc.FromConnect(err)
	}
	return fault.New(fault.Unavailable, "the vm has ended")
}

// Ports returns what listens in the guest.
func (s *Client) Ports(ctx context.Context) ([]*bangerv1.Port, error) {
	resp, err := s.service.Ports(ctx, connect.NewRequest(&bangerv1.SupervisorPortsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetPorts(), nil
}
