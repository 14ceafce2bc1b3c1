package vmclient

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

const (
	// chunk is how much input is sent in one message; the supervisor takes no more.
	chunk = 64 << 10
	// signalTimeout is how long a signal may wait behind input that the guest's command does not read.
	signalTimeout = 2 * time.Second
)

// Exec is one command or session in a guest and what it is connected to.
type Exec struct {
	Start *bangerv1.ExecStart
	// Attach says, instead of Start, that it is a session that runs already. Attached is called first, and Dropped where
	// output is missing; either may be nil.
	Attach         *bangerv1.SessionAttach
	Attached       func(*bangerv1.Session)
	Dropped        func(bytes uint64)
	Stdin          io.Reader // nil: none. Its Read must end once StopStdin was called
	StopStdin      func()
	Stdout, Stderr io.Writer
	Resizes        <-chan *bangerv1.TerminalSize // nil: none
	Signals        <-chan string                 // "INT", "TERM", ...; nil: none
}

// NotStartedError is a failure from before the command ran.
type NotStartedError struct{ Err error }

// Error is the failure itself.
func (e *NotStartedError) Error() string { return e.Err.Error() }

// Unwrap returns the failure.
func (e *NotStartedError) Unwrap() error { return e.Err }

// OutputError is a failure to write what the command printed.
type OutputError struct{ Err error }

// Error says what was being written.
func (e *OutputError) Error() string { return "write the command's output: " + e.Err.Error() }

// Unwrap returns the failure.
func (e *OutputError) Unwrap() error { return e.Err }

// OverError says that a session was not seen to its end: "read", "removed" or "suspended".
type OverError struct{ Why string }

// Error says so.
func (e *OverError) Error() string { return "the session's output is over: " + e.Why }

// stream is a running Exec. Its sending half is shared by input, sizes and signals.
type stream struct {
	conn   *connect.BidiStreamForClient[bangerv1.ExecRequest, bangerv1.ExecResponse]
	mu     sync.Mutex // makes sends one at a time
	credit credit     // for input
}

func (s *stream) send(req *bangerv1.ExecRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Send(req)
}

// Exec runs e and returns the command's exit code. Ending ctx cuts the connection, and the guest hangs up on the
// command then; a session goes on. It returns after everything it started has ended, and after that s is of no more use.
func (s *Client) Exec(ctx context.Context, e Exec) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	st, first := new(stream), &bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Start{Start: e.Start}}
	if e.Attach == nil {
		st.conn = s.service.Exec(ctx)
	} else {
		st.conn = s.service.AttachSession(ctx)
		first.Kind = &bangerv1.ExecRequest_Attach{Attach: e.Attach}
	}
	// net/http notices the end of ctx neither while it waits for input nor while it waits for room to send it, so the
	// connection itself is cut.
	cut := make(chan struct{})
	stopWatching := context.AfterFunc(ctx, func() {
		defer close(cut)
		s.Close()
		_ = st.conn.CloseResponse() // also ends a Receive that waits
	})
	var wg sync.WaitGroup
	defer func() {
		if !stopWatching() {
			<-cut
		}
		cancel(nil)
		if e.StopStdin != nil {
			e.StopStdin()
		}
		s.Close() // also ends a send that waits
		st.credit.end()
		wg.Wait()
		_ = st.conn.CloseRequest()
		_ = st.conn.CloseResponse()
	}()
	// io.EOF means that the server has answered already: Receive says what.
	if err := st.send(first); err != nil && !errors.Is(err, io.EOF) {
		return 0, &NotStartedError{known(err)}
	}
	wg.Go(func() { st.control(ctx, cancel, e) })
	code, err = st.receive(ctx, e, func(window int64) {
		if e.Stdin != nil {
			st.credit.begin(window)
			wg.Go(func() { st.input(e.Stdin) })
		}
	})
	return code, err
}

// receive copies output until the command has ended.
func (s *stream) receive(ctx context.Context, e Exec, onStart func(window int64)) (int, error) {
	started := false
	start := func(window int64) {
		if !started {
			started = true
			onStart(window)
		}
	}
	for {
		resp, err := s.conn.Receive()
		if err != nil {
			return 0, receiveError(ctx, err, started)
		}
		switch kind := resp.GetKind().(type) {
		case *bangerv1.ExecResponse_Started:
			start(kind.Started.GetStdinWindow())
		case *bangerv1.ExecResponse_Attached:
			if e.Attached != nil {
				e.Attached(kind.Attached.GetSession())
			}
			start(kind.Attached.GetStdinWindow())
		case *bangerv1.ExecResponse_Dropped:
			if e.Dropped != nil {
				e.Dropped(kind.Dropped)
			}
		case *bangerv1.ExecResponse_Over:
			return 0, &OverError{kind.Over}
		case *bangerv1.ExecResponse_StdinConsumed:
			s.credit.give(kind.StdinConsumed)
		case *bangerv1.ExecResponse_Stdout:
			_, err = e.Stdout.Write(kind.Stdout)
		case *bangerv1.ExecResponse_Stderr:
			_, err = e.Stderr.Write(kind.Stderr)
		case *bangerv1.ExecResponse_Exited:
			return int(kind.Exited.GetCode()), nil
		}
		if err != nil {
			return 0, &OutputError{err}
		}
	}
}

func receiveError(ctx context.Context, err error, started bool) error {
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF):
		err = fault.New(fault.Unavailable, "the supervisor ended the command without an exit code")
	default:
		err = known(err)
	}
	if !started {
		return &NotStartedError{err}
	}
	return err
}

// input sends what r gives, no more at a time than there is credit for. Once the command has ended, nobody wants it and
// sending fails; that is no error.
func (s *stream) input(r io.Reader) {
	buf := make([]byte, chunk)
	for {
		room, ok := s.credit.wait(chunk)
		if !ok {
			return
		}
		n, err := r.Read(buf[:room])
		s.credit.spend(n)
		if n > 0 && s.send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Stdin{Stdin: buf[:n]}}) != nil {
			return
		}
		if err != nil {
			_ = s.send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_StdinEof{StdinEof: true}})
			return
		}
	}
}

// control sends sizes and signals. A supervisor that gives no credit for input holds a signal up while the command does
// not read; one that cannot be sent ends the connection instead.
func (s *stream) control(ctx context.Context, cancel context.CancelCauseFunc, e Exec) {
	for {
		select {
		case <-ctx.Done():
			return
		case size := <-e.Resizes:
			_ = s.send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Resize{Resize: size}})
		case name := <-e.Signals:
			stuck := time.AfterFunc(signalTimeout, func() {
				cancel(fault.New(fault.Cancelled, "the command in the guest did not take signal %s", name))
			})
			_ = s.send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Signal{Signal: name}})
			stuck.Stop()
		}
	}
}
