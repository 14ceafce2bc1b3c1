package vmclient

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/rpc"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// ErrOldSupervisor says that the VM was started by a banger that does not know the call.
var ErrOldSupervisor = errors.New("the vm was started by an older banger, which does not know this call")

// known is the fault that a call failed with, ErrOldSupervisor for one that the supervisor does not know.
func known(err error) error {
	// A connection that is cut off can have the same code, but not the status.
	ce, ok := errors.AsType[*connect.Error](err)
	if ok && ce.Code() == connect.CodeUnimplemented && strings.Contains(ce.Message(), strconv.Itoa(http.StatusNotFound)) {
		return ErrOldSupervisor
	}
	return rpc.FromConnect(err)
}

// ask makes one call.
func ask[Q, A any](ctx context.Context, call func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), req *Q) (*A, error) {
	resp, err := call(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, known(err)
	}
	return resp.Msg, nil
}

// StartSession starts a command that lives on by itself.
func (s *Client) StartSession(ctx context.Context, name string, start *bangerv1.ExecStart) (*bangerv1.Session, error) {
	session, err := ask(ctx, s.plain.StartSession, &bangerv1.StartSessionRequest{Name: name, Start: start})
	if err != nil && !errors.Is(err, ErrOldSupervisor) {
		err = &NotStartedError{err}
	}
	return session, err
}

// Sessions lists the sessions of the VM, the oldest first.
func (s *Client) Sessions(ctx context.Context) ([]*bangerv1.Session, error) {
	resp, err := ask(ctx, s.plain.ListSessions, &bangerv1.ListSessionsRequest{})
	return resp.GetSessions(), err
}

// WriteSession sends input to a session, in pieces that each arrive whole or not at all. Enter and the end of the input
// come after the last of them, if they are asked for. A failure after the first piece says how much has arrived.
func (s *Client) WriteSession(ctx context.Context, session string, data []byte, enter, eof bool) error {
	for sent := 0; ; {
		n := min(len(data), chunk)
		last := n == len(data)
		_, err := ask(ctx, s.plain.WriteSession, &bangerv1.WriteSessionRequest{
			Session: session, Data: data[:n], Enter: enter && last, Eof: eof && last,
		})
		if err != nil && sent > 0 {
			return fault.Context(err, "only the first %s were sent", vm.FormatSize(uint64(sent)))
		}
		if err != nil || last {
			return err
		}
		data, sent = data[n:], sent+n
	}
}

// StopSession ends a session; grace 0 is the supervisor's own, a negative one none.
func (s *Client) StopSession(ctx context.Context, session, signal string, grace time.Duration) (*bangerv1.Session, error) {
	return ask(ctx, s.plain.StopSession, &bangerv1.StopSessionRequest{Session: session, Signal: signal, GraceMs: grace.Milliseconds()})
}

// RemoveSession forgets a session, with force also one that runs.
func (s *Client) RemoveSession(ctx context.Context, session string, force bool) (*bangerv1.Session, error) {
	return ask(ctx, s.plain.RemoveSession, &bangerv1.RemoveSessionRequest{Session: session, Force: force})
}

// OldVM is what becomes of err for a VM of that name: ErrOldSupervisor says what to do.
func OldVM(name string, err error) error {
	if !errors.Is(err, ErrOldSupervisor) {
		return err
	}
	return fault.New(fault.Conflict, "vm %s was started by an older banger, which has no sessions: restart it to use them", name).
		WithHint("banger vm restart %s", name)
}
