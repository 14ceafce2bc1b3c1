package supervisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// streamMachine is a fake whose connections are streams, as on vsock.
type streamMachine struct{ *fakeMachine }

func (m streamMachine) ConnectAgent(context.Context) (net.Conn, error) {
	host, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.conns = append(m.conns, host, guest)
	m.mu.Unlock()
	go m.server.ServeStream(guest.(*net.UnixConn)) // ends with guest
	return host, nil
}

// lateMachine cannot be connected to at first.
type lateMachine struct {
	streamMachine
	from <-chan struct{}
}

func (m lateMachine) ConnectAgent(ctx context.Context) (net.Conn, error) {
	select {
	case <-m.from:
		return m.streamMachine.ConnectAgent(ctx)
	default:
		return nil, errors.New("connection refused")
	}
}

type clientStream = connect.BidiStreamForClient[bangerv1.ExecRequest, bangerv1.ExecResponse]

// open begins an Exec.
func (r *rig) open(ctx context.Context, start *bangerv1.ExecStart) *clientStream {
	r.t.Helper()
	stream := r.client.Exec(ctx)
	// An error of Send is only io.EOF: Receive has the cause.
	_ = stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Start{Start: start}})
	return stream
}

// result is what came out of an Exec.
type result struct {
	pid            int32
	stdout, stderr string
	exited         *bangerv1.ExecExited
}

// collect receives until the end.
func collect(stream *clientStream) (res result, err error) {
	var stdout, stderr bytes.Buffer
	defer func() { res.stdout, res.stderr = stdout.String(), stderr.String(); stream.CloseResponse() }()
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return res, nil
		}
		if err != nil {
			return res, rpc.FromConnect(err)
		}
		if res.exited != nil {
			return res, errors.New("something came after exited")
		}
		switch kind := msg.GetKind().(type) {
		case *bangerv1.ExecResponse_Started:
			res.pid = kind.Started.GetPid()
		case *bangerv1.ExecResponse_Stdout:
			stdout.Write(kind.Stdout)
		case *bangerv1.ExecResponse_Stderr:
			stderr.Write(kind.Stderr)
		case *bangerv1.ExecResponse_Exited:
			res.exited = kind.Exited
		}
	}
}

func (r *rig) exec(start *bangerv1.ExecStart) (stdout string, code int32) {
	r.t.Helper()
	stream := r.open(r.t.Context(), start)
	res, err := collect(stream)
	stream.CloseRequest()
	if err != nil {
		r.t.Fatalf("exec: %v", err)
	}
	return res.stdout, res.exited.GetCode()
}

// tryExec runs true.
func (r *rig) tryExec() (result, error) {
	stream := r.open(r.t.Context(), &bangerv1.ExecStart{Argv: []string{"true"}})
	defer stream.CloseRequest()
	return collect(stream)
}

func stdin(b []byte) *bangerv1.ExecRequest {
	return &bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Stdin{Stdin: b}}
}

func sh(script string) *bangerv1.ExecStart {
	return &bangerv1.ExecStart{Argv: []string{"sh", "-c", script}}
}

// readyRig is a VM that is ready.
func readyRig(t *testing.T) *rig {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	r.ready()
	return r
}

func TestExecKeepsStreamsAndCodesApart(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), sh("echo out; echo err >&2; exit 7"))
	res, err := collect(stream)
	if err != nil || res.stdout != "out\n" || res.stderr != "err\n" || res.exited.GetCode() != 7 || res.pid == 0 {
		t.Errorf("%+v, %v", res, err)
	}
	stream = r.open(t.Context(), sh("kill -9 $$"))
	if res, err := collect(stream); err != nil || res.exited.GetCode() != 137 || !strings.HasSuffix(res.exited.GetSignal(), "KILL") {
		t.Errorf("%+v, %v", res, err)
	}
	waitFor(t, "the sessions to end", func() bool { return r.status().GetOpenSessions() == 0 })
}

func TestExecFaultsOfTheAgentPassUntouched(t *testing.T) {
	r := readyRig(t)
	for class, argv := range map[fault.Class][]string{
		fault.NotFound: {"no-such-command-here"}, fault.Denied: {"/etc/passwd"},
	} {
		stream := r.open(t.Context(), &bangerv1.ExecStart{Argv: argv})
		_, err := collect(stream)
		if !fault.Is(err, class) || strings.HasPrefix(err.Error(), "vm dev") {
			t.Errorf("%q: %v (%v)", argv, err, fault.ClassOf(err))
		}
	}
}

func TestExecRefusesNonsense(t *testing.T) {
	r := readyRig(t)
	stream := r.client.Exec(t.Context())
	stream.Send(stdin([]byte("x")))
	if _, err := collect(stream); !fault.Is(err, fault.Invalid) {
		t.Errorf("no start: %v", err)
	}
	stream = r.open(t.Context(), &bangerv1.ExecStart{Argv: []string{"true"}, Size: &bangerv1.TerminalSize{Rows: 1 << 20}})
	if _, err := collect(stream); !fault.Is(err, fault.Invalid) {
		t.Errorf("size: %v", err)
	}
	for name, msg := range map[string]*bangerv1.ExecRequest{
		"stdin":  stdin([]byte("x")),
		"signal": {Kind: &bangerv1.ExecRequest_Signal{Signal: "NONSENSE"}},
		"resize": {Kind: &bangerv1.ExecRequest_Resize{Resize: &bangerv1.TerminalSize{Cols: 1 << 20}}},
	} {
		stream = r.open(t.Context(), sh("sleep 60"))
		stream.Send(msg)
		if _, err := collect(stream); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	waitFor(t, "the sessions to end", func() bool { return r.status().GetOpenSessions() == 0 })
}

func TestExecCarries64MiBBothWays(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), &bangerv1.ExecStart{Argv: []string{"cat"}, Stdin: true})
	const total = 64 << 20
	sent := sha256.New()
	failed := make(chan error, 1)
	go func() {
		failed <- func() error {
			random := rand.NewChaCha8([32]byte{1})
			buf := make([]byte, 64<<10)
			for n := 0; n < total; n += len(buf) {
				random.Read(buf)
				sent.Write(buf)
				if err := stream.Send(stdin(buf)); err != nil {
					return err
				}
			}
			return stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_StdinEof{StdinEof: true}})
		}()
	}()
	began := time.Now()
	res, err := collect(stream)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if err != nil || res.exited.GetCode() != 0 || len(res.stdout) != total || sha256.Sum256([]byte(res.stdout)) != [32]byte(sent.Sum(nil)) {
		t.Errorf("%d bytes, %v, %v", len(res.stdout), res.exited, err)
	}
	t.Logf("%.0f MB/s", total/1e6/time.Since(began).Seconds())
	stream.CloseRequest()
}

func TestExecHalfClose(t *testing.T) {
	r := readyRig(t)
	// Ending stdin leaves the output open, whether it is said or the request just ends.
	for name, end := range map[string]func(*clientStream){
		"message": func(s *clientStream) {
			s.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_StdinEof{StdinEof: true}})
		},
		"request": func(s *clientStream) { s.CloseRequest() },
		"both": func(s *clientStream) {
			s.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_StdinEof{StdinEof: true}})
			s.CloseRequest()
		},
	} {
		start := sh("cat; echo after; sleep 0.1; echo end")
		start.Stdin = true
		stream := r.open(t.Context(), start)
		stream.Send(stdin([]byte("in\n")))
		end(stream)
		if res, err := collect(stream); err != nil || res.stdout != "in\nafter\nend\n" || res.exited.GetCode() != 0 {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
	// A command that does not read does not hold up its own end.
	stream := r.open(t.Context(), &bangerv1.ExecStart{Argv: []string{"true"}, Stdin: true})
	go func() {
		for stream.Send(stdin(make([]byte, 64<<10))) == nil {
		}
	}()
	if res, err := collect(stream); err != nil || res.exited.GetCode() != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestExecSignalAndTerminal(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), sh("trap 'echo caught; exit 5' TERM; echo on; while :; do :; done"))
	for {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if len(msg.GetStdout()) > 0 {
			break
		}
	}
	stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Signal{Signal: "TERM"}})
	if res, err := collect(stream); err != nil || res.exited.GetCode() != 5 || res.stdout != "caught\n" {
		t.Errorf("%+v, %v", res, err)
	}

	start := sh("stty size; read x; stty size")
	start.Tty, start.Stdin, start.Size = true, true, &bangerv1.TerminalSize{Rows: 24, Cols: 80}
	stream = r.open(t.Context(), start)
	stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Resize{Resize: &bangerv1.TerminalSize{Rows: 50, Cols: 132}}})
	time.Sleep(100 * time.Millisecond)
	stream.Send(stdin([]byte("\n")))
	if res, err := collect(stream); err != nil || !strings.HasSuffix(res.stdout, "50 132\r\n") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestClientThatGoesAwayEndsItsCommand(t *testing.T) {
	for name, leave := range map[string]func(*clientStream, context.CancelFunc, net.Conn){
		"gives up":  func(s *clientStream, cancel context.CancelFunc, _ net.Conn) { cancel(); s.CloseResponse() },
		"is killed": func(_ *clientStream, _ context.CancelFunc, conn net.Conn) { conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			r := readyRig(t)
			own := rpc.Client(r.launch.Paths.SupervisorSocket(string(r.launch.VMID)))
			defer own.CloseIdleConnections()
			var conn net.Conn
			transport := own.Transport.(*http.Transport)
			dial := transport.DialContext
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var err error
				conn, err = dial(ctx, network, addr)
				return conn, err
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream := bangerv1connect.NewSupervisorServiceClient(own, rpc.BaseURL).Exec(ctx)
			start := sh("echo $$; exec sleep 60")
			start.Stdin = true
			stream.Send(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Start{Start: start}})
			var pid string
			for pid == "" {
				msg, err := stream.Receive()
				if err != nil {
					t.Fatal(err)
				}
				pid = strings.TrimSpace(string(msg.GetStdout()))
			}
			if n := r.status().GetOpenSessions(); n != 1 {
				t.Errorf("%d sessions", n)
			}
			leave(stream, cancel, conn)
			waitFor(t, "the session to end", func() bool { return r.status().GetOpenSessions() == 0 })
			waitFor(t, "the command to end", func() bool {
				_, code := r.exec(sh("kill -0 " + pid + " 2>/dev/null"))
				return code != 0
			})
			if st := r.status(); time.Since(time.UnixMilli(st.GetLastActivityMs())) > time.Minute {
				t.Errorf("last activity %d", st.GetLastActivityMs())
			}
		})
	}
}

// A VM that is there for one command does not outlive the caller, who was killed and could remove nothing.
func TestVMThatEndsWithItsCaller(t *testing.T) {
	for _, lost := range []bool{true, false} {
		r := readyRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		start := sh("echo on; read x")
		start.Stdin, start.EndsVm = true, true
		stream := r.open(ctx, start)
		for {
			msg, err := stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if len(msg.GetStdout()) > 0 {
				break
			}
		}
		if lost {
			cancel()
			stream.CloseResponse() // net/http notices the end of a context only here
			if err := r.wait(); err != nil {
				t.Error(err)
			}
			if exit := r.clean(); exit.Reason != "killed" || !exit.Expected {
				t.Errorf("exit %+v", exit)
			}
		} else { // who hears of the end of the command decides
			stream.Send(stdin([]byte("\n")))
			if res, err := collect(stream); err != nil || res.exited.GetCode() != 0 {
				t.Errorf("%+v, %v", res, err)
			}
			if _, err := r.tryExec(); err != nil {
				t.Error(err)
			}
		}
		stream.CloseRequest()
		stream.CloseResponse()
		cancel()
	}
}

func TestSlowClientStopsTheCommandAndNobodyElse(t *testing.T) {
	dir := t.TempDir()
	r := readyRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// It writes without end and notes in a file how far it has come.
	stream := r.open(ctx, sh("i=0; while :; do head -c 65536 /dev/zero; i=$((i+1)); echo $i >"+dir+"/n; done"))
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	written := func() string {
		out, _ := r.exec(sh("cat " + dir + "/n"))
		return strings.TrimSpace(out)
	}
	var last string
	waitFor(t, "the command to be held up", func() bool {
		before := written()
		time.Sleep(300 * time.Millisecond)
		last = written()
		return before == last && last != ""
	})
	if len(last) > 3 { // a thousand chunks are 64 MiB
		t.Errorf("%s chunks of 64 KiB went somewhere", last)
	}
	if out, code := r.exec(sh("echo others go on")); out != "others go on\n" || code != 0 {
		t.Errorf("%q %d", out, code)
	}
	// And it goes on when it is read.
	for range 500 {
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStopCutsOffCommandsThatNobodyReads(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), sh("cat /dev/zero"))
	defer stream.CloseResponse()
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestExecWhileTheVMStops(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), sh("sleep 60"))
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	go r.stop(true, 0)
	_, err := collect(stream)
	if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "vm dev") {
		t.Errorf("%v", err)
	}
	r.wait()
}

func TestExecWaitsForTheBoot(t *testing.T) {
	hold := make(chan struct{})
	r := newRig(t, &fakeDriver{start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		return lateMachine{streamMachine{newFakeMachine(spec)}, hold}, nil
	}})
	r.start()
	got := make(chan error, 1)
	go func() {
		_, err := r.tryExec()
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(hold)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestExecHearsOfAFailedBoot(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) { m.deaf = true })})
	r.launch.BootDeadline, r.launch.Attempts = 300*time.Millisecond, 1
	r.start()
	if _, err := r.tryExec(); !fault.Is(err, fault.Timeout) || fault.HintOf(err) != "banger vm logs dev" {
		t.Errorf("%v", err)
	}
	r.wait()
}

func TestLostLinkComesBack(t *testing.T) {
	r := readyRig(t)
	stream := r.open(t.Context(), sh("sleep 60"))
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	r.driver.machine().dropLinks()
	if _, err := collect(stream); !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "vm dev: ") {
		t.Errorf("command on the lost link: %v", err)
	}
	waitFor(t, "a command to work again", func() bool {
		_, err := r.tryExec()
		if err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("meanwhile: %v", err)
		}
		return err == nil
	})
	if st := r.status(); st.GetPhase() != phaseReady {
		t.Errorf("status %v", st)
	}
}

func TestExecOnALostLinkFailsAtOnce(t *testing.T) {
	r := readyRig(t)
	m := r.driver.machine()
	m.mu.Lock()
	m.deaf = true
	m.mu.Unlock()
	m.dropLinks()
	waitFor(t, "the loss to be seen", func() bool { conn, _ := r.sup.link.get(); return conn == nil })
	began := time.Now()
	_, err := r.tryExec()
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "connection to the guest is lost") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestExecStartPassesEverythingOn(t *testing.T) {
	got, err := execStart(&bangerv1.ExecStart{
		Argv: []string{"a"}, User: "u", Workdir: "/w", Env: []string{"K=V"}, Tty: true, Stdin: true, Tool: agentwire.ToolArchive,
		Size: &bangerv1.TerminalSize{Rows: 3, Cols: 4},
	})
	want := agentwire.ExecStart{
		Argv: []string{"a"}, User: "u", Workdir: "/w", Env: []string{"K=V"}, TTY: true, Stdin: true, Tool: agentwire.ToolArchive,
		Rows: 3, Cols: 4,
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
