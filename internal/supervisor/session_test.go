package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// begin starts a session of a shell.
func (r *rig) begin(name, script string) (*bangerv1.Session, error) {
	r.t.Helper()
	resp, err := r.client.StartSession(r.t.Context(), connect.NewRequest(&bangerv1.StartSessionRequest{
		Name: name, Start: &bangerv1.ExecStart{Argv: []string{"sh", "-c", script}, Stdin: true},
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// attach begins an AttachSession that follows a session from its beginning.
func (r *rig) attach(ctx context.Context, ref string) *clientStream {
	r.t.Helper()
	stream := r.client.AttachSession(ctx)
	_ = stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Attach{Attach: &bangerv1.SessionAttach{
		Session: ref, Bytes: -1, Lines: -1, Follow: true, Stdin: true,
	}}})
	return stream
}

func typed(stream *clientStream, text string) error {
	return stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Stdin{Stdin: []byte(text)}})
}

// sees receives until the output has want in it.
func sees(t *testing.T, stream *clientStream, want string) {
	t.Helper()
	got := ""
	for !strings.Contains(got, want) {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatalf("no %q in %q: %v", want, got, rpc.FromConnect(err))
		}
		got += string(msg.GetStdout()) + string(msg.GetStderr())
	}
}

func (r *rig) sessions() []*bangerv1.Session {
	r.t.Helper()
	resp, err := r.client.ListSessions(r.t.Context(), connect.NewRequest(&bangerv1.ListSessionsRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetSessions()
}

func TestSessionsThroughSupervisor(t *testing.T) {
	r := newRig(t, &fakeDriver{features: hypervisor.Features{MuxedAgent: true}, start: boots(nil)})
	r.start()
	started, err := r.begin("counter", `while read x; do echo "got $x"; done; exit 3`) // waits for the boot
	if err != nil {
		t.Fatal(err)
	}
	if st := r.status(); st.GetRunningSessions() != 1 || st.GetOpenSessions() != 0 || st.GetLastActivityMs() == 0 {
		t.Errorf("%v", st)
	}
	if _, err := r.begin("counter", "true"); !fault.Is(err, fault.Exists) || fault.HintOf(err) != "banger session attach dev counter" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	if _, err := r.begin("Counter", "true"); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}

	cut, cancel := context.WithCancel(t.Context())
	gone, stays := r.attach(cut, "counter"), r.attach(t.Context(), started.GetId())
	for _, stream := range []*clientStream{gone, stays} {
		msg, err := stream.Receive()
		if a := msg.GetAttached(); err != nil || a.GetSession().GetName() != "counter" || a.GetStdinWindow() == 0 {
			t.Fatalf("%v, %v", msg, err)
		}
	}
	if err := typed(gone, "one\n"); err != nil {
		t.Fatal(err)
	}
	sees(t, gone, "got one")
	sees(t, stays, "got one")
	if st := r.status(); st.GetOpenSessions() != 2 {
		t.Errorf("%v", st)
	}
	cancel()
	gone.CloseResponse()
	waitFor(t, "the end of the stream", func() bool { return r.status().GetOpenSessions() == 1 })
	if err := typed(stays, "two\n"); err != nil {
		t.Fatal(err)
	}
	sees(t, stays, "got two")

	// A connection to the guest that breaks ends the streams, not the session.
	r.driver.machine().dropLinks()
	if _, err := stays.Receive(); err == nil || errors.Is(err, io.EOF) || !fault.Is(rpc.FromConnect(err), fault.Unavailable) {
		t.Errorf("%v", err)
	}
	waitFor(t, "the link", func() bool { conn, _ := r.sup.link.get(); return conn != nil })
	again := r.attach(t.Context(), "count") // a prefix will do
	sees(t, again, "got one\ngot two\n")
	if _, err := r.client.WriteSession(t.Context(), connect.NewRequest(&bangerv1.WriteSessionRequest{Session: "counter", Data: []byte("three\n"), Eof: true})); err != nil {
		t.Fatal(err)
	}
	res, err := collect(again)
	if err != nil || res.exited.GetCode() != 3 || res.stdout != "got three\n" {
		t.Errorf("%+v, %v", res, err)
	}
	if all := r.sessions(); len(all) != 1 || all[0].GetExited().GetCode() != 3 || all[0].GetEndedAtMs() == 0 {
		t.Errorf("%v", all)
	}
	if st := r.status(); st.GetRunningSessions() != 0 {
		t.Errorf("%v", st)
	}
	for _, stream := range []*clientStream{gone, stays, again} {
		stream.CloseRequest()
		stream.CloseResponse()
	}
}

func TestSessionReferences(t *testing.T) {
	r := newRig(t, &fakeDriver{features: hypervisor.Features{MuxedAgent: true}, start: boots(nil)})
	r.start()
	for _, name := range []string{"server", "service", "build", ""} {
		if _, err := r.begin(name, "read x"); err != nil {
			t.Fatal(err)
		}
	}
	stop := func(ref string) (*bangerv1.Session, error) {
		resp, err := r.client.StopSession(t.Context(), connect.NewRequest(&bangerv1.StopSessionRequest{Session: ref, GraceMs: 2000}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	for _, tc := range []struct {
		ref   string
		class fault.Class
		text  string
	}{
		{"biuld", fault.NotFound, `vm dev has no session "biuld", did you mean build?`},
		{"serv", fault.Invalid, `session "serv" of vm dev is ambiguous: server, service`},
		{"", fault.NotFound, `vm dev has no session ""`},
		{"9", fault.NotFound, `vm dev has no session "9"`},
	} {
		if _, err := stop(tc.ref); !fault.Is(err, tc.class) || err.Error() != tc.text || fault.HintOf(err) != "banger session list dev" {
			t.Errorf("%q: %v, hint %q", tc.ref, err, fault.HintOf(err))
		}
	}
	if _, err := r.client.RemoveSession(t.Context(), connect.NewRequest(&bangerv1.RemoveSessionRequest{Session: "build"})); !fault.Is(err, fault.Conflict) ||
		fault.HintOf(err) != "banger session stop dev build" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	s, err := stop("bu")
	if err != nil || s.GetName() != "build" || s.GetExited().GetSignal() != "SIGTERM" {
		t.Errorf("%v, %v", s, err)
	}
	// The name is free again, and means the one that runs.
	second, err := r.begin("build", "read x")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := stop("build"); err != nil || again.GetId() != second.GetId() {
		t.Errorf("%v, %v", again, err)
	}
	third, err := r.client.RemoveSession(t.Context(), connect.NewRequest(&bangerv1.RemoveSessionRequest{Session: "build"}))
	if err != nil || third.Msg.GetId() != second.GetId() {
		t.Errorf("of two that have ended the newest is meant: %v, %v", third, err)
	}
	if _, err := r.client.WriteSession(t.Context(), connect.NewRequest(&bangerv1.WriteSessionRequest{Session: s.GetId(), Data: []byte("x")})); !fault.Is(err, fault.Conflict) ||
		fault.HintOf(err) != "banger session logs dev build" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
}

// Who is attached when the VM is suspended is told so; a stop is another matter.
func TestSuspendTellsWhoIsAttached(t *testing.T) {
	t.Parallel()
	for _, suspend := range []bool{true, false} {
		r, _ := stepRig(t)
		sup := r.spawn()
		if _, err := r.begin("counter", "echo ready; read x"); err != nil {
			t.Fatal(err)
		}
		stream := r.attach(t.Context(), "counter")
		sees(t, stream, "ready")
		if suspend {
			if err := r.suspend(); err != nil {
				t.Fatal(err)
			}
		} else if _, err := r.stop(false, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		var last *bangerv1.ExecResponse
		var err error
		for {
			msg, receiveErr := stream.Receive()
			if receiveErr != nil {
				err = receiveErr
				break
			}
			last = msg
		}
		switch {
		case suspend && (last.GetOver() != "suspended" || !errors.Is(err, io.EOF)):
			t.Errorf("suspended: %v, %v", last, err)
		case !suspend && last.GetExited() == nil && !fault.Is(rpc.FromConnect(err), fault.Unavailable):
			t.Errorf("stopped: %v, %v", last, err)
		}
		stream.CloseRequest()
		stream.CloseResponse()
		sup.wait(t)
	}
}

// oldMachine is a fake whose agent was built before there were sessions.
type oldMachine struct{ streamMachine }

func (m oldMachine) ConnectAgent(context.Context) (net.Conn, error) {
	host, inside, err := socketPair()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.conns = append(m.conns, host, inside)
	m.mu.Unlock()
	go func() { // ends with inside
		frame := make([]byte, 0, 4096)
		buf := make([]byte, 4096)
		n, err := inside.Read(buf) // a request comes in one piece
		if frame = append(frame, buf[:n]...); err != nil || n < agentwire.HeaderLen {
			return
		}
		var req agentwire.Request
		if json.Unmarshal(frame[agentwire.HeaderLen:], &req) == nil && strings.HasPrefix(req.Method, "session.") {
			_ = agentwire.WriteFault(inside, fault.New(fault.Invalid, "unknown method %q", req.Method))
			_ = inside.Close()
			return
		}
		m.server.ServeStream(&replayed{Conn: inside, first: frame})
	}()
	return host, nil
}

// replayed is a connection of which something was read already.
type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

func TestOldAgentServesExecAndNoSessions(t *testing.T) {
	var old *fakeMachine
	r := newRig(t, &fakeDriver{start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		old = newFakeMachine(spec)
		return oldMachine{streamMachine{old}}, nil
	}})
	r.start()
	r.ready()
	t.Cleanup(func() { old.server.Close() })
	if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"echo", "works"}}); out != "works\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	const want = "vm dev runs an older agent, which has no sessions: restart it to use them"
	_, err := r.begin("counter", "true")
	_, listErr := r.client.ListSessions(t.Context(), connect.NewRequest(&bangerv1.ListSessionsRequest{}))
	stream := r.attach(t.Context(), "counter")
	_, attachErr := stream.Receive()
	stream.CloseRequest()
	stream.CloseResponse()
	for what, err := range map[string]error{"start": err, "list": listErr, "attach": rpc.FromConnect(attachErr)} {
		if !fault.Is(err, fault.Conflict) || err.Error() != want || fault.HintOf(err) != "banger vm restart dev" {
			t.Errorf("%s: %v, hint %q", what, err, fault.HintOf(err))
		}
	}
}
