package daemon

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"

	"banger/internal/operation"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// operationService is the wire's OperationService.
type operationService struct {
	ops *operation.Registry[string]
}

// Get implements the RPC.
func (s *operationService) Get(_ context.Context, req *connect.Request[bangerv1.GetOperationRequest]) (*connect.Response[bangerv1.Operation], error) {
	now, err := s.ops.Get(req.Msg.GetId())
	return connect.NewResponse(operationProto(now)), err
}

// List implements the RPC.
func (s *operationService) List(context.Context, *connect.Request[bangerv1.ListOperationsRequest]) (*connect.Response[bangerv1.ListOperationsResponse], error) {
	return connect.NewResponse(&bangerv1.ListOperationsResponse{Operations: convert(s.ops.List(), operationProto)}), nil
}

// Watch implements the RPC.
func (s *operationService) Watch(ctx context.Context, req *connect.Request[bangerv1.WatchOperationRequest], stream *connect.ServerStream[bangerv1.Operation]) error {
	err := s.ops.Watch(ctx, req.Msg.GetId(), func(now operation.Snapshot[string]) error {
		return stream.Send(operationProto(now))
	})
	if err != nil && req.Msg.GetOwner() {
		_, _ = s.ops.Cancel(req.Msg.GetId()) // it is not there: nothing to cancel
	}
	return err
}

// Cancel implements the RPC.
func (s *operationService) Cancel(_ context.Context, req *connect.Request[bangerv1.CancelOperationRequest]) (*connect.Response[bangerv1.Operation], error) {
	now, err := s.ops.Cancel(req.Msg.GetId())
	return connect.NewResponse(operationProto(now)), err
}

// Logs implements the RPC.
func (s *operationService) Logs(ctx context.Context, req *connect.Request[bangerv1.OperationLogsRequest], stream *connect.ServerStream[bangerv1.OperationLog]) error {
	if err := stream.Send(nil); err != nil { // the headers: that it is there is known before it says anything
		return err
	}
	return s.ops.Logs(ctx, req.Msg.GetId(), func(l operation.Line) error {
		return stream.Send(&bangerv1.OperationLog{
			Step: int32(l.Step), Kind: l.Kind, Text: strings.ToValidUTF8(l.Text, "\uFFFD"), AtMs: millis(l.At), DurationMs: l.Took.Milliseconds(),
		})
	})
}

func operationProto(s operation.Snapshot[string]) *bangerv1.Operation {
	out := &bangerv1.Operation{
		Id: s.ID, Kind: s.Spec.Kind, Target: s.Spec.Target, State: string(s.State), ResultId: s.Result,
		StartedAtMs: millis(s.Started), EndedAtMs: millis(s.Ended),
		Progress: &bangerv1.Progress{
			Stage: s.Progress.Stage, Message: s.Progress.Message, Done: s.Progress.Done, Total: s.Progress.Total, Unit: s.Progress.Unit,
		},
	}
	if s.Err != nil {
		out.Fault = rpc.Proto(s.Err)
	}
	return out
}

// millis is t on the wire: Unix time in milliseconds, 0 for no time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
