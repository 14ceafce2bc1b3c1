package supervisor

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"sync"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
	bangerv1 "banger/proto/banger/v1"
)

// maxChunk is the most output in one message.
const maxChunk = 64 << 10

// maxMessage bounds what a caller may send at once: arguments and environment mostly.
const maxMessage = 4 << 20

type execStream = connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]

// Exec implements the RPC: a bridge between the caller's stream and a command in the guest. Nothing is buffered but
// the message in hand and a window of stdin, so a side that does not read slows the other down. When the caller goes
// away the command is ended; when the guest goes away the caller gets a fault.
//
// While the VM starts, Exec waits. A signal overtakes stdin, unless the caller sends more of it than stdin_window.
func (s service) Exec(ctx context.Context, stream *execStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start, err := execStart(first.GetStart())
	if err != nil {
		return err
	}
	if first.GetStart().GetEndsVm() {
		defer s.endWithCaller(ctx)
	}
	client, err := s.awaitGuest(ctx)
	if err != nil {
		return err
	}
	s.board.session(+1)
	defer s.board.session(-1)
	process, err := client.Exec(ctx, start)
	if err != nil {
		return s.execFault(ctx, err)
	}
	return s.bridge(ctx, stream, process, start.Stdin, &bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Started{
		Started: &bangerv1.ExecStarted{Pid: int32(process.Started.PID), StdinWindow: stdinWindow},
	}})
}

// endWithCaller kills the VM if the caller was lost, whose request ctx is. One that is there says itself what is to be done.
func (s service) endWithCaller(ctx context.Context) {
	if ctx.Err() == nil {
		return
	}
	s.log.Info("the vm ends with the banger that it was started for")
	s.orders.killNow()
}

// execStart checks a caller's wish and puts it into the agent's words. User, directory and environment that are not
// named are the agent's to fill in.
func execStart(m *bangerv1.ExecStart) (agentwire.ExecStart, error) {
	rows, cols := m.GetSize().GetRows(), m.GetSize().GetCols()
	switch {
	case m == nil:
		return agentwire.ExecStart{}, fault.New(fault.Invalid, "exec: the first message must be start")
	case rows > math.MaxUint16 || cols > math.MaxUint16:
		return agentwire.ExecStart{}, fault.New(fault.Invalid, "exec: terminal size %dx%d is not possible", cols, rows)
	}
	return agentwire.ExecStart{
		Argv: m.GetArgv(), User: m.GetUser(), Workdir: m.GetWorkdir(), Env: m.GetEnv(),
		TTY: m.GetTty(), Rows: uint16(rows), Cols: uint16(cols), Stdin: m.GetStdin(),
		Tool: m.GetTool(),
	}, nil
}

// awaitGuest returns the client of a guest that is ready. It waits while the VM starts, for which the boot has bounds.
func (s service) awaitGuest(ctx context.Context) (*guest.Client, error) {
	for {
		status, changed := s.board.get()
		switch status.GetPhase() {
		case phaseStarting:
		case phasePaused:
			return nil, s.isPaused(status)
		case phaseReady:
			if conn, _ := s.link.get(); conn != nil {
				return conn.client, nil
			}
			return nil, fault.New(fault.Unavailable, "vm %s: the connection to the guest is lost, trying to get it back", s.name()).
				WithHint("banger vm logs %s", s.name())
		default:
			return nil, s.notRunning(status)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "vm %s: wait for the guest", s.name())
		}
	}
}

// notRunning says why nothing can be run any more.
func (s service) notRunning(status *bangerv1.SupervisorStatus) error {
	if f := status.GetFault(); f != nil { // the boot it waited for failed
		return &fault.Error{Class: fault.ParseClass(f.GetClass()), Message: f.GetMessage(), Hint: f.GetHint()}
	}
	what := "is stopping"
	if reason := status.GetExit().GetReason(); reason != "" {
		what = "has ended: " + reason
	}
	return fault.New(fault.Conflict, "vm %s %s", s.name(), what).WithHint("banger vm start %s", s.name())
}

// bridge sends the first message and then moves messages both ways until the command has ended or one side is gone.
func (s service) bridge(ctx context.Context, stream *execStream, process *guest.Process, stdin bool, first *bangerv1.ExecResponse) error {
	ctx, cancel := context.WithCancelCause(ctx)
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = process.Close()
	})
	defer func() {
		cancel(nil)
		if !stop() {
			<-closed
		}
		_ = process.Close()
	}()
	queue, out := newStdinQueue(), &execSender{stream: stream}
	var feeding sync.WaitGroup
	defer feeding.Wait() // it must not send after the handler has returned
	defer func() {
		queue.kill()
		_ = process.Close()
	}()
	if stdin {
		feeding.Go(func() {
			if err := s.feed(queue, process, out); err != nil {
				cancel(err)
			}
		})
	}
	// The input side sits in Receive until the handler has returned: net/http ends it by closing the request's body.
	// calls, which counts this handler already, waits for it.
	s.calls.Go(func() {
		if err := s.forwardInput(stream, process, queue, stdin); err != nil {
			cancel(err)
		}
	})
	err := out.send(first)
	if err == nil {
		err = s.forwardOutput(out, process)
	}
	if err == nil {
		return nil
	}
	if first.GetAttached() != nil && ctx.Err() == nil && s.board.suspended() {
		return out.send(over(overSuspended))
	}
	return s.execFault(ctx, err)
}

// execFault says what ended a command early, or why it did not start. The agent's own faults pass untouched: callers
// tell by their class that a command was not found or not executable.
func (s service) execFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		var f *fault.Error
		if errors.As(cause, &f) {
			return cause
		}
		return fault.Wrap(fault.Cancelled, cause, "vm %s: the command was given up", s.name())
	}
	if isFinal(err) {
		return err
	}
	if phase := s.board.phase(); phase != phaseReady && phase != phasePaused {
		return fault.New(fault.Unavailable, "vm %s was stopped while the command ran", s.name()).
			WithHint("banger vm start %s", s.name())
	}
	return fault.Wrap(fault.Unavailable, err, "vm %s", s.name())
}

// forwardOutput sends what the command does. It returns nil after its last word was sent.
func (s service) forwardOutput(out *execSender, process *guest.Process) error {
	for {
		event, err := process.Next()
		if err != nil {
			return err
		}
		s.board.touch()
		for chunk := range slices.Chunk(event.Stdout, maxChunk) {
			if err := out.send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Stdout{Stdout: chunk}}); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(event.Stderr, maxChunk) {
			if err := out.send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Stderr{Stderr: chunk}}); err != nil {
				return err
			}
		}
		switch {
		case event.Dropped > 0:
			err = out.send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Dropped{Dropped: event.Dropped}})
		case event.Over != "":
			return out.send(over(event.Over))
		case event.Exited != nil:
			return out.send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Exited{
				Exited: &bangerv1.ExecExited{Code: int32(event.Exited.Code), Signal: event.Exited.Signal},
			}})
		}
		if err != nil {
			return err
		}
	}
}

// forwardInput passes on what the caller sends, until it has no more to send or the command has ended. An error means
// that the caller is gone or sent nonsense, or that the guest is gone.
func (s service) forwardInput(stream *execStream, process *guest.Process, queue *stdinQueue, stdin bool) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			queue.end()
			return nil
		}
		if err != nil {
			return err
		}
		s.board.touch()
		if msg.GetStdinEof() {
			queue.end()
			stdin = false
		} else {
			err = s.input(msg, process, queue, stdin)
		}
		switch {
		case errors.Is(err, io.ErrClosedPipe): // the command has ended: what comes now is of no use to anybody
			queue.kill()
			return nil
		case fault.Is(err, fault.Invalid):
			return err
		case err != nil:
			return fault.Wrap(fault.Unavailable, err, "vm %s: the connection to the guest broke", s.name())
		}
	}
}

// input passes on one message that is not the end of stdin.
func (s service) input(msg *bangerv1.ExecRequest, process *guest.Process, queue *stdinQueue, stdin bool) error {
	switch kind := msg.GetKind().(type) {
	case *bangerv1.ExecRequest_Stdin:
		if !stdin {
			return fault.New(fault.Invalid, "exec: stdin was sent after its end, or without being asked for")
		}
		queue.put(kind.Stdin)
	case *bangerv1.ExecRequest_Resize:
		rows, cols := kind.Resize.GetRows(), kind.Resize.GetCols()
		if rows > math.MaxUint16 || cols > math.MaxUint16 {
			return fault.New(fault.Invalid, "exec: terminal size %dx%d is not possible", cols, rows)
		}
		return process.Resize(uint16(rows), uint16(cols))
	case *bangerv1.ExecRequest_Signal:
		return process.Signal(kind.Signal)
	}
	return nil // also for a kind from the future
}
