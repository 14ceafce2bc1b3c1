package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// undoTimeout bounds the wait for a cancelled operation to be undone; the daemon bounds the undoing itself.
const undoTimeout = 45 * time.Second

// follow shows an operation until it has ended and returns it if it was done. When ctx ends, the operation is cancelled
// and waited for, so that nothing of it is left when the command ends; a second signal stops the waiting.
func (d *Deps) follow(ctx context.Context, c *client.Client, id string) (*bangerv1.Operation, error) {
	patient, cancel := context.WithCancel(d.Signals.Patient(ctx))
	defer cancel()
	show := d.Term.Progress()
	defer show.Close()
	stop := context.AfterFunc(ctx, func() {
		show.Update(progress.Update{Stage: "cancel", Message: "taking back what was done"})
		time.AfterFunc(undoTimeout, cancel)
		_, _ = c.Operations.Cancel(patient, connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})) // the end of the watch tells
	})
	defer stop()
	stream, err := c.Operations.Watch(patient, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		return nil, rpc.FromConnect(err)
	}
	defer stream.Close()
	var op *bangerv1.Operation
	for stream.Receive() {
		op = stream.Msg()
		p := op.GetProgress()
		show.Update(progress.Update{
			Stage: p.GetStage(), Message: p.GetMessage(), Done: p.GetDone(), Total: p.GetTotal(), Unit: p.GetUnit(),
		})
	}
	return ended(ctx, op, stream.Err())
}

// ended judges the last state of an operation.
func ended(ctx context.Context, op *bangerv1.Operation, streamErr error) (*bangerv1.Operation, error) {
	switch state := op.GetState(); {
	case state == "done":
		return op, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case state == "failed", state == "cancelled":
		if err := rpc.FromProto(op.GetFault()); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.Internal, "%s of %s: %s without a reason", op.GetKind(), op.GetTarget(), state)
	case streamErr != nil && !fault.Is(rpc.FromConnect(streamErr), fault.Unavailable):
		return nil, rpc.FromConnect(streamErr)
	}
	return nil, fault.New(fault.Unavailable, "the daemon went away while it worked").WithHint("banger daemon logs")
}
