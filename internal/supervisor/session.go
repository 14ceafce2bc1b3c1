package supervisor

import (
	"cmp"
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/nearest"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

const (
	// sessionGrace is that of a StopSession that names none.
	sessionGrace = 10 * time.Second
	// sessionDelay is how much longer than the grace a guest may take to stop a session, which it kills in the end.
	sessionDelay = 15 * time.Second
	// overSuspended is why a stream is over when the VM was suspended: the session goes on with it.
	overSuspended = "suspended"
)

func over(why string) *bangerv1.ExecResponse {
	return &bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Over{Over: why}}
}

// StartSession implements the RPC.
func (s service) StartSession(ctx context.Context, req *connect.Request[bangerv1.StartSessionRequest]) (*connect.Response[bangerv1.Session], error) {
	start, err := execStart(req.Msg.GetStart())
	if err == nil && req.Msg.GetName() != "" {
		_, err = vm.ParseSessionName(req.Msg.GetName())
	}
	if err != nil {
		return nil, err
	}
	var session agentwire.Session
	err = s.aboutSessions(ctx, s.times.ask, func(ctx context.Context, c *guest.Client) (err error) {
		session, err = c.StartSession(ctx, agentwire.SessionStart{ExecStart: start, Name: req.Msg.GetName()})
		if fault.Is(err, fault.Exists) {
			err = fault.Wrap(fault.Exists, err, "vm %s", s.launch.Name).WithHint("banger session attach %s %s", s.launch.Name, req.Msg.GetName())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.board.touch()
	s.board.update(func(st *bangerv1.SupervisorStatus) { st.RunningSessions++ }) // until the guest is asked again
	return connect.NewResponse(sessionProto(session)), nil
}

// ListSessions implements the RPC.
func (s service) ListSessions(ctx context.Context, _ *connect.Request[bangerv1.ListSessionsRequest]) (*connect.Response[bangerv1.ListSessionsResponse], error) {
	out := new(bangerv1.ListSessionsResponse)
	err := s.aboutSessions(ctx, s.times.ask, func(ctx context.Context, c *guest.Client) error {
		all, err := s.sessions(ctx, c)
		for _, session := range all {
			out.Sessions = append(out.Sessions, sessionProto(session))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// AttachSession implements the RPC. While the VM starts it waits.
func (s service) AttachSession(ctx context.Context, stream *execStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	attach, err := sessionAttach(first.GetAttach())
	if err != nil {
		return err
	}
	var process *guest.Process
	var session agentwire.Session
	err = s.aboutSessions(ctx, s.times.ask, func(ctx context.Context, c *guest.Client) error {
		found, err := s.findSession(ctx, c, first.GetAttach().GetSession())
		if err != nil {
			return err
		}
		attach.ID, attach.Stdin = found.ID, attach.Stdin && found.Stdin
		process, session, err = c.Attach(ctx, attach)
		return err
	})
	if err != nil {
		return err
	}
	s.board.session(+1)
	defer s.board.session(-1)
	return s.bridge(ctx, stream, process, attach.Stdin, &bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Attached{
		Attached: &bangerv1.SessionAttached{Session: sessionProto(session), StdinWindow: stdinWindow},
	}})
}

// sessionAttach checks a caller's wish and puts it into the agent's words.
func sessionAttach(m *bangerv1.SessionAttach) (agentwire.SessionAttach, error) {
	rows, cols := m.GetSize().GetRows(), m.GetSize().GetCols()
	switch {
	case m == nil:
		return agentwire.SessionAttach{}, fault.New(fault.Invalid, "attach: the first message must be attach")
	case rows > math.MaxUint16 || cols > math.MaxUint16:
		return agentwire.SessionAttach{}, fault.New(fault.Invalid, "attach: terminal size %dx%d is not possible", cols, rows)
	}
	return agentwire.SessionAttach{
		Bytes: int(m.GetBytes()), Lines: int(m.GetLines()), Follow: m.GetFollow() || m.GetQuiet(), Quiet: m.GetQuiet(), Stdin: m.GetStdin(),
		Rows: uint16(rows), Cols: uint16(cols),
	}, nil
}

// WriteSession implements the RPC.
func (s service) WriteSession(ctx context.Context, req *connect.Request[bangerv1.WriteSessionRequest]) (*connect.Response[bangerv1.WriteSessionResponse], error) {
	if n := len(req.Msg.GetData()); n > agentwire.MaxSessionWrite {
		return nil, fault.New(fault.Invalid, "%d bytes of input at once are more than the %d that are possible", n, agentwire.MaxSessionWrite)
	}
	err := s.aboutSessions(ctx, s.times.ask, func(ctx context.Context, c *guest.Client) error {
		session, err := s.findSession(ctx, c, req.Msg.GetSession())
		if err != nil {
			return err
		}
		switch {
		case session.Exited != nil:
			return s.hasEnded(session)
		case !session.Stdin:
			return fault.New(fault.Conflict, "session %s of vm %s takes no input: it was started without --stdin or --tty",
				cmp.Or(session.Name, session.ID), s.launch.Name).WithHint("banger vm exec --detach --stdin %s -- COMMAND", s.launch.Name)
		}
		return c.WriteSession(ctx, agentwire.SessionWrite{ID: session.ID, Data: req.Msg.GetData(), Enter: req.Msg.GetEnter(), EOF: req.Msg.GetEof()})
	})
	if err != nil {
		return nil, err
	}
	s.board.touch()
	return connect.NewResponse(&bangerv1.WriteSessionResponse{}), nil
}

func (s service) hasEnded(session agentwire.Session) error {
	label := cmp.Or(session.Name, session.ID)
	return fault.New(fault.Conflict, "session %s of vm %s has ended", label, s.launch.Name).WithHint("banger session logs %s %s", s.launch.Name, label)
}

// StopSession implements the RPC. Stopping a session that has ended changes nothing.
func (s service) StopSession(ctx context.Context, req *connect.Request[bangerv1.StopSessionRequest]) (*connect.Response[bangerv1.Session], error) {
	if name := req.Msg.GetSignal(); name != "" {
		if _, err := agentwire.ParseSignal(name); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "vm %s", s.launch.Name).
				WithHint("banger session stop --signal INT %s %s", s.launch.Name, req.Msg.GetSession())
		}
	}
	grace := time.Duration(req.Msg.GetGraceMs()) * time.Millisecond
	switch {
	case grace == 0:
		grace = sessionGrace
	case grace < 0:
		grace = 0
	}
	var session agentwire.Session
	err := s.aboutSessions(ctx, grace+sessionDelay, func(ctx context.Context, c *guest.Client) (err error) {
		if session, err = s.findSession(ctx, c, req.Msg.GetSession()); err != nil || session.Exited != nil {
			return err
		}
		s.board.touch()
		session, err = c.StopSession(ctx, agentwire.SessionStop{ID: session.ID, Signal: req.Msg.GetSignal(), GraceMillis: grace.Milliseconds()})
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(sessionProto(session)), nil
}

// RemoveSession implements the RPC. The answer is the session as it was.
func (s service) RemoveSession(ctx context.Context, req *connect.Request[bangerv1.RemoveSessionRequest]) (*connect.Response[bangerv1.Session], error) {
	var session agentwire.Session
	err := s.aboutSessions(ctx, sessionDelay, func(ctx context.Context, c *guest.Client) (err error) {
		if session, err = s.findSession(ctx, c, req.Msg.GetSession()); err != nil {
			return err
		}
		label := cmp.Or(session.Name, session.ID)
		err = c.RemoveSession(ctx, agentwire.SessionRemove{ID: session.ID, Force: req.Msg.GetForce()})
		if fault.Is(err, fault.Conflict) {
			err = fault.Wrap(fault.Conflict, err, "vm %s", s.launch.Name).WithHint("banger session stop %s %s", s.launch.Name, label)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(sessionProto(session)), nil
}

// aboutSessions asks the guest something about sessions. While the VM starts it waits, which limit does not bound.
func (s service) aboutSessions(ctx context.Context, limit time.Duration, ask func(context.Context, *guest.Client) error) error {
	client, err := s.awaitGuest(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fault.New(fault.Timeout, "vm %s: the guest does not answer", s.launch.Name))
	defer cancel()
	err = ask(ctx, client)
	if _, old := errors.AsType[*guest.OldAgentError](err); old {
		return fault.New(fault.Conflict, "vm %s runs an older agent, which has no sessions: restart it to use them", s.launch.Name).
			WithHint("banger vm restart %s", s.launch.Name)
	}
	switch {
	case err == nil:
		return nil
	case fault.Is(err, fault.Timeout) && ctx.Err() == nil: // the agent's own
		return fault.Context(err, "vm %s", s.launch.Name)
	}
	return s.execFault(ctx, err)
}

// sessions lists the guest's sessions and takes note of how many run.
func (s service) sessions(ctx context.Context, c *guest.Client) ([]agentwire.Session, error) {
	all, err := c.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	running := 0
	for _, session := range all {
		if session.Exited == nil {
			running++
		}
	}
	s.board.running(running)
	return all, nil
}

// findSession finds a session by its id, its name, or a prefix of a name that fits one only. Of several with a name the one
// that runs is meant, or else the newest.
func (s service) findSession(ctx context.Context, c *guest.Client, ref string) (agentwire.Session, error) {
	all, err := s.sessions(ctx, c)
	if err != nil {
		return agentwire.Session{}, err
	}
	found := map[string]agentwire.Session{} // by name
	var names []string
	for _, session := range all {
		if session.ID == ref {
			return session, nil
		}
		if session.Name == "" {
			continue
		}
		before, twice := found[session.Name]
		if !twice {
			names = append(names, session.Name)
		}
		if !twice || before.Exited != nil {
			found[session.Name] = session
		}
	}
	if session, ok := found[ref]; ok && ref != "" {
		return session, nil
	}
	var fits []string
	for _, name := range names {
		if ref != "" && strings.HasPrefix(name, ref) {
			fits = append(fits, name)
		}
	}
	if len(fits) == 1 {
		return found[fits[0]], nil
	}
	return agentwire.Session{}, s.noSession(ref, names, fits)
}

// noSession says that nothing or too much is called ref.
func (s service) noSession(ref string, names, fits []string) error {
	if len(fits) > 1 {
		return fault.New(fault.Invalid, "session %q of vm %s is ambiguous: %s", ref, s.launch.Name, strings.Join(fits, ", ")).
			WithHint("banger session list %s", s.launch.Name)
	}
	f := fault.New(fault.NotFound, "vm %s has no session %q", s.launch.Name, ref)
	if near := nearest.Of(ref, names); near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return f.WithHint("banger session list %s", s.launch.Name)
}

func sessionProto(a agentwire.Session) *bangerv1.Session {
	out := &bangerv1.Session{
		Id: a.ID, Name: a.Name, Argv: a.Argv, User: a.User, Workdir: a.Workdir, Tty: a.TTY, Stdin: a.Stdin, Pid: int32(a.PID),
		StartedAtMs: a.StartedUnix, EndedAtMs: a.EndedUnix, Attached: int32(a.Attached), OutputBytes: a.Output,
	}
	if a.Exited != nil {
		out.Exited = &bangerv1.ExecExited{Code: int32(a.Exited.Code), Signal: a.Exited.Signal}
	}
	return out
}
