package vmclient

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// fakeSessions is a supervisor that knows sessions and has none.
type fakeSessions struct{ fakeExec }

func (*fakeSessions) ListSessions(context.Context, *connect.Request[bangerv1.ListSessionsRequest]) (*connect.Response[bangerv1.ListSessionsResponse], error) {
	return nil, fault.New(fault.Conflict, "vm dev is paused").WithHint("banger vm unpause dev")
}

// fullSession takes one piece of input.
type fullSession struct {
	fakeExec
	pieces int
}

func (f *fullSession) WriteSession(context.Context, *connect.Request[bangerv1.WriteSessionRequest]) (*connect.Response[bangerv1.WriteSessionResponse], error) {
	if f.pieces++; f.pieces > 1 {
		return nil, fault.New(fault.Timeout, "it does not read its input").WithHint("banger session list")
	}
	return connect.NewResponse(&bangerv1.WriteSessionResponse{}), nil
}

// Who sends more than what arrives is told how much that was.
func TestSomeInputIsSent(t *testing.T) {
	full := new(fullSession)
	c := New(serve(t, "/", func() http.Handler {
		mux := http.NewServeMux()
		mux.Handle(bangerv1connect.NewSupervisorServiceHandler(full, connect.WithInterceptors(rpc.Faults(nil))))
		return mux
	}()))
	defer c.Close()
	err := c.WriteSession(t.Context(), "x", make([]byte, 2*chunk), false, false)
	if !fault.Is(err, fault.Timeout) || err.Error() != "only the first 64K were sent: it does not read its input" || fault.HintOf(err) != "banger session list" {
		t.Errorf("%v (%s)", err, fault.HintOf(err))
	}
	if err := c.WriteSession(t.Context(), "x", make([]byte, chunk), false, false); err == nil || err.Error() != "it does not read its input" {
		t.Errorf("%v", err)
	}
}

// A supervisor that was started by an older banger knows nothing of sessions, and serves the rest.
func TestOldSupervisor(t *testing.T) {
	known, handler := bangerv1connect.NewSupervisorServiceHandler(&fakeSessions{}, connect.WithInterceptors(rpc.Faults(nil)))
	old := map[string]bool{"Exec": true, "Status": true}
	socket := serve(t, known, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !old[r.URL.Path[len(known):]] { // what the generated handler of before does
			http.NotFound(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	for what, call := range map[string]func(*Client) error{
		"list":  func(c *Client) error { _, err := c.Sessions(t.Context()); return err },
		"start": func(c *Client) error { _, err := c.StartSession(t.Context(), "", &bangerv1.ExecStart{}); return err },
		"send":  func(c *Client) error { return c.WriteSession(t.Context(), "x", nil, true, false) },
		"attach": func(c *Client) error {
			_, err := c.Exec(t.Context(), Exec{Attach: &bangerv1.SessionAttach{Session: "x"}})
			return err
		},
	} {
		c := New(socket)
		err := call(c)
		c.Close()
		told := OldVM("dev", err)
		if !errors.Is(err, ErrOldSupervisor) || !fault.Is(told, fault.Conflict) || fault.HintOf(told) != "banger vm restart dev" {
			t.Errorf("%s: %v, told %v", what, err, told)
		}
	}
	// Faults of one that is not old arrive as they are.
	c := New(serve(t, known, handler))
	defer c.Close()
	if _, err := c.Sessions(t.Context()); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger vm unpause dev" || err.Error() != "vm dev is paused" {
		t.Errorf("%v", err)
	}
}
