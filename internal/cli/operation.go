package cli

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/rpc"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

const (
	// undoTimeout bounds the wait for a cancelled operation to be undone; the daemon bounds the undoing itself.
	undoTimeout = 45 * time.Second
	// logTimeout bounds the wait for what an operation that has ended had written.
	logTimeout = 5 * time.Second
)

// job begins an operation and follows it. The beginning is not cut off by an interrupt: without its id the operation could
// not be cancelled.
func (d *Deps) job(ctx context.Context, c *client.Client, begin func(context.Context) (string, error)) (*bangerv1.Operation, error) {
	id, err := begun(ctx, begin)
	if err != nil {
		return nil, err
	}
	return d.follow(ctx, c, id)
}

func begun(ctx context.Context, begin func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	return begin(ctx)
}

// follow shows an operation until it has ended and returns it if it was done. When ctx ends, the operation is cancelled
// and waited for, so that nothing of it is left when the command ends; a second signal stops the waiting. When banger is
// killed, the daemon does the same.
func (d *Deps) follow(ctx context.Context, c *client.Client, id string) (*bangerv1.Operation, error) {
	show := d.Term.Progress()
	defer show.Close()
	return d.followOn(ctx, c, id, show, nil)
}

// followOn is follow with a display that the caller closes. What the operation writes goes to log, if there is one; it has
// had all of it when followOn returns.
func (d *Deps) followOn(ctx context.Context, c *client.Client, id string, show *term.Progress, log func(*bangerv1.OperationLog)) (*bangerv1.Operation, error) {
	patient, cancel := context.WithCancel(d.Signals.Patient(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		show.Update(progress.Update{Stage: "cancel", Message: "taking back what was done"})
		time.AfterFunc(undoTimeout, cancel)
		_, _ = c.Operations.Cancel(patient, connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})) // the end of the watch tells
	})
	defer stop()
	op, err := watchLogged(patient, c, &bangerv1.WatchOperationRequest{Id: id, Owner: true}, show, log)
	return ended(ctx, op, err)
}

// watchLogged is watchOn with the operation's log, if there is a log to take it.
func watchLogged(ctx context.Context, c *client.Client, what *bangerv1.WatchOperationRequest, show *term.Progress, log func(*bangerv1.OperationLog)) (*bangerv1.Operation, error) {
	logCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var logs sync.WaitGroup
	if log != nil {
		logs.Go(func() { readLog(logCtx, c, what.GetId(), log) })
	}
	op, err := watchOn(ctx, c, what, show)
	late := time.AfterFunc(logTimeout, cancel)
	logs.Wait()
	late.Stop()
	return op, err
}

// buildStage is the stage of a build in which its steps are carried out.
const buildStage = "build"

// watchOn shows an operation until it has ended or ctx has, and returns the last that was heard of it.
func watchOn(ctx context.Context, c *client.Client, what *bangerv1.WatchOperationRequest, show *term.Progress) (op *bangerv1.Operation, err error) {
	stream, err := c.Operations.Watch(ctx, connect.NewRequest(what))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		op = stream.Msg()
		p := op.GetProgress()
		if op.GetKind() == opBuild && p.GetStage() == buildStage { // its steps have lines of their own
			continue
		}
		show.Update(progress.Update{
			Stage: p.GetStage(), Message: p.GetMessage(), Done: p.GetDone(), Total: p.GetTotal(), Unit: p.GetUnit(),
		})
	}
	return op, stream.Err()
}

// readLog gives what an operation writes to fn until it has ended. A log that cannot be had is none: the operation itself
// says how it went.
func readLog(ctx context.Context, c *client.Client, id string, fn func(*bangerv1.OperationLog)) {
	stream, err := c.Operations.Logs(ctx, connect.NewRequest(&bangerv1.OperationLogsRequest{Id: id}))
	if err != nil {
		return
	}
	defer stream.Close()
	for stream.Receive() {
		fn(stream.Msg())
	}
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
