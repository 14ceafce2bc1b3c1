package guest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// OldAgentError says that the guest's agent does not know a method: it was booted by an older banger.
type OldAgentError struct{ Err error }

// Error is what the agent said.
func (e *OldAgentError) Error() string { return e.Err.Error() }

// Unwrap returns what the agent said.
func (e *OldAgentError) Unwrap() error { return e.Err }

// known makes an OldAgentError of the answer that agents give to a method that they do not know.
func known(method string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) && f.Class == fault.Invalid && f.Message == `unknown method "`+method+`"` {
		return &OldAgentError{err}
	}
	return err
}

// StartSession starts a command that lives on by itself.
func (c *Client) StartSession(ctx context.Context, start agentwire.SessionStart) (agentwire.Session, error) {
	return c.session(ctx, agentwire.MethodSessionStart, start)
}

// StopSession ends a session and returns when it has ended: after the grace it is killed.
func (c *Client) StopSession(ctx context.Context, stop agentwire.SessionStop) (agentwire.Session, error) {
	return c.session(ctx, agentwire.MethodSessionStop, stop)
}

// session makes a request that is answered with a session.
func (c *Client) session(ctx context.Context, method string, params any) (agentwire.Session, error) {
	var answer agentwire.Session
	if err := c.call(ctx, method, params, &answer); err != nil {
		return agentwire.Session{}, known(method, err)
	}
	return checkAnswer(method, answer)
}

func checkAnswer(method string, s agentwire.Session) (agentwire.Session, error) {
	s, ok := checkSession(s)
	if !ok {
		return s, fault.New(fault.Unavailable, "guest %s: the answer makes no sense", method)
	}
	return s, nil
}

// Sessions lists what runs and what has ended a while ago, the oldest first. What makes no sense is left out.
func (c *Client) Sessions(ctx context.Context) ([]agentwire.Session, error) {
	var list agentwire.Sessions
	if err := c.call(ctx, agentwire.MethodSessionList, nil, &list); err != nil {
		return nil, known(agentwire.MethodSessionList, err)
	}
	const most = agentwire.MaxSessions + agentwire.MaxFinished
	var out []agentwire.Session
	for _, s := range list.Sessions[:min(len(list.Sessions), most)] {
		twice := slices.ContainsFunc(out, func(o agentwire.Session) bool { return o.ID == s.ID })
		if s, ok := checkSession(s); ok && !twice {
			out = append(out, s)
		}
	}
	return out, nil
}

// WriteSession sends input to a session: all of it or, after an error, nothing.
func (c *Client) WriteSession(ctx context.Context, w agentwire.SessionWrite) error {
	return known(agentwire.MethodSessionWrite, c.call(ctx, agentwire.MethodSessionWrite, w, nil))
}

// RemoveSession forgets a session.
func (c *Client) RemoveSession(ctx context.Context, r agentwire.SessionRemove) error {
	return known(agentwire.MethodSessionRemove, c.call(ctx, agentwire.MethodSessionRemove, r, nil))
}

// Attach connects to a session. The context bounds that only; closing the Process does nothing to the session.
func (c *Client) Attach(ctx context.Context, attach agentwire.SessionAttach) (*Process, agentwire.Session, error) {
	var answer agentwire.Session
	conn, frames, err := c.open(ctx, agentwire.MethodSessionAttach, attach, &answer)
	if err != nil {
		return nil, answer, known(agentwire.MethodSessionAttach, err)
	}
	if answer, err = checkAnswer(agentwire.MethodSessionAttach, answer); err != nil {
		hangUp(conn)
		return nil, answer, err
	}
	p := newProcess(conn, frames, agentwire.ExecStarted{PID: answer.PID})
	p.attached = true
	return p, answer, nil
}

// checkSession brings what a guest says of a session into the range of the possible; ok is false if that makes no
// session.
func checkSession(s agentwire.Session) (_ agentwire.Session, ok bool) {
	if len(s.ID) == 0 || len(s.ID) > 20 || strings.Trim(s.ID, "0123456789") != "" || !sessionName(s.Name) {
		return s, false
	}
	left := 2 * agentwire.MaxSessionText
	text := func(t string) string {
		t = printableText(t[:min(len(t), left)])
		left -= min(left, len(t))
		return t
	}
	var argv []string
	for _, arg := range s.Argv {
		if left == 0 {
			break
		}
		argv = append(argv, text(arg))
	}
	s.Argv = argv
	left = agentwire.MaxSessionText
	s.User, s.Workdir = text(s.User), text(s.Workdir)
	s.PID, s.Attached = min(max(s.PID, 0), maxProcesses), min(max(s.Attached, 0), maxProcesses)
	s.StartedUnix, s.EndedUnix = min(max(s.StartedUnix, 0), maxCounter), min(max(s.EndedUnix, 0), maxCounter)
	s.Output = min(s.Output, maxCounter)
	if s.Exited != nil {
		payload, _ := json.Marshal(s.Exited) // cannot fail
		exited, err := parseExited(payload)
		if err != nil {
			return s, false
		}
		s.Exited = exited
	}
	if s.EndedUnix == 0 {
		s.Exited = nil
	} else if s.Exited == nil {
		return s, false
	}
	return s, true
}

// sessionName reports whether name can be a session's: nothing, or what vm.ParseSessionName lets through.
func sessionName(name string) bool {
	return len(name) <= agentwire.MaxSessionName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// printableText replaces what a terminal would act on.
func printableText(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// attachedEvent is what a frame means that only an attached stream has.
func attachedEvent(t agentwire.FrameType, payload []byte) (Event, error) {
	if t == agentwire.FrameDropped {
		n, err := agentwire.ParseDropped(payload)
		if err == nil && n == 0 {
			err = agentwire.ErrFrame
		}
		return Event{Dropped: min(n, maxCounter)}, err
	}
	switch why := string(payload); why {
	case agentwire.OverRead, agentwire.OverRemoved:
		return Event{Over: why}, nil
	}
	return Event{}, agentwire.ErrFrame
}
