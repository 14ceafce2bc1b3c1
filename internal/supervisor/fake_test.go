package supervisor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agent"
	"banger/internal/agentwire"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/paths"
	"banger/internal/rpc"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// supervisorEnv makes the test binary a supervisor of its own: see process_test.go.
const supervisorEnv = "BANGER_TEST_SUPERVISOR"

// TestMain fails the package when a test left goroutines behind.
func TestMain(m *testing.M) {
	fakevmm.Main() // does not return in a fake VMM
	if dir := os.Getenv(supervisorEnv); dir != "" {
		os.Exit(superviseForTest(vmdir.Dir(dir)))
	}
	code := m.Run()
	if code == 0 {
		if leaked := leakedGoroutines(); leaked != "" {
			os.Stderr.WriteString("goroutines left behind:\n" + leaked)
			code = 1
		}
	}
	os.Exit(code)
}

func leakedGoroutines() string {
	var leaked string
	for range 600 { // up to half a minute for what is on its way out
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		leaked = ""
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			// signal_recv is the runtime's own, once a program has asked for signals.
			if !strings.Contains(g, "TestMain") && !strings.Contains(g, "os/signal.signal_recv") {
				leaked += g + "\n\n"
			}
		}
		if leaked == "" {
			return ""
		}
		time.Sleep(50 * time.Millisecond)
	}
	return leaked
}

// fakeDriver is a VMM whose guest is the real agent in this process.
type fakeDriver struct {
	features hypervisor.Features
	probe    func(context.Context) (hypervisor.Host, error)
	start    func(ctx context.Context, attempt int, spec hypervisor.Spec) (hypervisor.Machine, error)

	mu       sync.Mutex
	attempts int
	last     *fakeMachine
}

func (*fakeDriver) Name() string                    { return "fake" }
func (d *fakeDriver) Features() hypervisor.Features { return d.features }
func (d *fakeDriver) Probe(ctx context.Context) (hypervisor.Host, error) {
	if d.probe != nil {
		return d.probe(ctx)
	}
	return hypervisor.Host{Accelerator: "none"}, nil
}

func (d *fakeDriver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	d.mu.Lock()
	d.attempts++
	n := d.attempts
	d.mu.Unlock()
	m, err := d.start(ctx, n, spec)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch fm := m.(type) {
	case *fakeMachine:
		d.last = fm
	case streamMachine:
		d.last = fm.fakeMachine
	case lateMachine:
		d.last = fm.fakeMachine
	case foreignMachine:
		d.last = fm.fakeMachine
	case plainMachine:
		d.last = fm.Machine.(*fakeMachine)
	}
	return m, err
}

func (d *fakeDriver) machine() *fakeMachine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// fakeMachine is a VMM without a process. Its func fields replace what it does by default.
type fakeMachine struct {
	spec     hypervisor.Spec
	server   *agent.Server
	ctx      context.Context
	cancel   context.CancelFunc
	done     chan struct{}
	once     sync.Once
	exit     hypervisor.Exit
	deaf     bool // connects, but nobody answers
	onQuit   func() error
	onSignal func(sig int) error
	shutdown func(agentwire.Shutdown)
	config   func(agentwire.Config) error
	onPause  func() error
	onResume func() error
	onResize func(serial string, bytes uint64) error
	stats    func() agentwire.Stats
	ports    []agentwire.Port
	grow     func(agentwire.Grow) (agentwire.Grown, error)
	clock    func(agentwire.Clock)
	sync     func() error
	wake     func(agentwire.Wake)

	mu    sync.Mutex
	conns []net.Conn // host ends
	calls []string   // "quit", "signal 15", ...
}

func newFakeMachine(spec hypervisor.Spec) *fakeMachine {
	m := &fakeMachine{spec: spec, done: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.server = agent.NewServer(agent.Config{System: m, Build: "test"})
	return m
}

// Configure implements agent.System.
func (m *fakeMachine) Configure(_ context.Context, c agentwire.Config) (agentwire.Configured, error) {
	if m.config != nil {
		return agentwire.Configured{}, m.config(c)
	}
	return agentwire.Configured{}, nil
}

// Shutdown implements agent.System.
func (m *fakeMachine) Shutdown(s agentwire.Shutdown) {
	if m.shutdown != nil {
		m.shutdown(s)
		return
	}
	m.end(hypervisor.Exit{Reason: hypervisor.ReasonGuestShutdown})
}

func (m *fakeMachine) PID() int { return os.Getpid() }

func (m *fakeMachine) ConnectAgent(context.Context) (net.Conn, error) {
	host, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.conns = append(m.conns, host, guest)
	m.mu.Unlock()
	if m.deaf {
		return host, nil
	}
	go func() { _ = m.server.Serve(m.ctx, guest) }() // ends with guest
	return host, nil
}

func (m *fakeMachine) called(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, what)
}

func (m *fakeMachine) history() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.calls, ", ")
}

func (m *fakeMachine) Quit(context.Context) error {
	m.called("quit")
	if m.onQuit != nil {
		return m.onQuit()
	}
	m.end(hypervisor.Exit{Reason: hypervisor.ReasonQuit})
	return nil
}

func (m *fakeMachine) Signal(sig int) error {
	m.called(syscall.Signal(sig).String())
	if m.onSignal != nil {
		return m.onSignal(sig)
	}
	m.end(hypervisor.Exit{Code: -1, Signal: syscall.Signal(sig).String()})
	return nil
}

func (m *fakeMachine) Done() <-chan struct{} { return m.done }
func (m *fakeMachine) Exit() hypervisor.Exit { return m.exit }

// dropLinks breaks every connection to the agent.
func (m *fakeMachine) dropLinks() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		c.Close()
	}
	m.conns = nil
}

func (m *fakeMachine) end(exit hypervisor.Exit) {
	m.once.Do(func() {
		m.cancel()
		m.exit = exit
		m.dropLinks()
		close(m.done)
	})
}

func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "agent")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// boots returns a start function whose machines are made by change.
func boots(change func(attempt int, m *fakeMachine)) func(context.Context, int, hypervisor.Spec) (hypervisor.Machine, error) {
	return func(_ context.Context, n int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		m := newFakeMachine(spec)
		if change != nil {
			change(n, m)
		}
		return m, nil
	}
}

// rig is one supervisor under test with a client.
type rig struct {
	t      *testing.T
	sup    *Supervisor
	driver *fakeDriver
	dir    vmdir.Dir
	launch vmdir.Launch
	step   func(string) error // of the next newSupervisor
	http   *http.Client
	client bangerv1connect.SupervisorServiceClient
	cancel context.CancelFunc
	result chan error
}

func newRig(t *testing.T, driver *fakeDriver) *rig {
	t.Helper()
	root, err := os.MkdirTemp("", "sup") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m := driver.machine(); m != nil {
			m.server.Close() // commands have ended: a test may remove what they write to
		}
		os.RemoveAll(root)
	})
	p := paths.Under(root)
	if err := p.Ensure(); err != nil {
		t.Fatal(err)
	}
	const id = "0123456789ab"
	dir := vmdir.Dir(p.VM(id))
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, driver: driver, dir: dir, result: make(chan error, 10)}
	r.launch = vmdir.Launch{
		VMID: id, Name: "dev", Driver: "fake", Paths: p, BootDeadline: 20 * time.Second, Attempts: 2, ConsoleLimit: 1 << 20,
		Guest: agentwire.Config{Hostname: "dev", MachineID: strings.Repeat("a", 32), Network: &agentwire.Network{Address: "10.0.2.15/24"}},
	}
	r.newSupervisor()
	r.http = rpc.Client(p.SupervisorSocket(id))
	r.client = bangerv1connect.NewSupervisorServiceClient(r.http, rpc.BaseURL, connect.WithInterceptors(rpc.Faults(nil)))
	t.Cleanup(r.http.CloseIdleConnections)
	return r
}

func (r *rig) newSupervisor() {
	log := slog.New(slog.NewTextHandler(testWriter{r.t}, nil))
	r.sup = New(Config{Dir: r.dir, Drivers: map[string]hypervisor.Driver{"fake": r.driver}, Log: log, Step: r.step})
	// What goes well has all the time of a busy machine; short is only what tests wait out.
	r.sup.times = times{
		connect: time.Second, retry: 50 * time.Millisecond, grace: 20 * time.Second, answer: 20 * time.Second,
		settle: 100 * time.Millisecond, doubt: 20 * time.Millisecond, quit: 100 * time.Millisecond, term: 100 * time.Millisecond,
		kill: 200 * time.Millisecond, task: 20 * time.Second, grow: 20 * time.Second, clock: 20 * time.Second, ask: 20 * time.Second,
		sample: 20 * time.Millisecond, fresh: 10 * time.Millisecond, measure: 20 * time.Second, probe: time.Second, farewell: time.Second, closeLimit: 30 * time.Second,
	}
}

// testWriter logs to the test, for as long as it runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// start runs the supervisor and waits until its socket answers.
func (r *rig) start() {
	r.t.Helper()
	if err := r.dir.WriteLaunch(r.launch); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.result <- r.sup.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := r.sup.Close(); err != nil {
			r.t.Errorf("Close: %v", err)
		}
	})
	waitFor(r.t, "the socket", func() bool { // it is there a moment before it is listened on
		_, err := r.client.Status(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorStatusRequest{}))
		return err == nil
	})
}

func (r *rig) status() *bangerv1.SupervisorStatus {
	r.t.Helper()
	resp, err := r.client.Status(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorStatusRequest{}))
	if err != nil {
		r.t.Fatalf("Status: %v", err)
	}
	return resp.Msg
}

func (r *rig) ready() {
	r.t.Helper()
	waitFor(r.t, "phase ready", func() bool { return r.status().GetPhase() == phaseReady })
}

// stop is the RPC.
func (r *rig) stop(kill bool, grace time.Duration) (*bangerv1.SupervisorStatus, error) {
	resp, err := r.client.Stop(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorStopRequest{
		Kill: kill, GraceMs: grace.Milliseconds(),
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// wait returns what Run returned.
func (r *rig) wait() error {
	r.t.Helper()
	select {
	case err := <-r.result:
		return err
	case <-time.After(time.Minute):
		r.t.Fatal("Run does not return")
		return nil
	}
}

// watch collects the phases that a watcher sees, and the last status.
func (r *rig) watch() <-chan []*bangerv1.SupervisorStatus {
	r.t.Helper()
	stream, err := r.client.Watch(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorWatchRequest{}))
	if err != nil {
		r.t.Fatalf("Watch: %v", err)
	}
	out := make(chan []*bangerv1.SupervisorStatus, 1)
	go func() {
		defer stream.Close()
		var all []*bangerv1.SupervisorStatus
		for stream.Receive() {
			all = append(all, stream.Msg())
		}
		if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
			r.t.Errorf("Watch: %v", err)
		}
		out <- all
	}()
	return out
}

// clean checks that nothing of the run is left but its record.
func (r *rig) clean() vmdir.Exit {
	r.t.Helper()
	if _, ok, err := r.dir.ReadProcess(); ok || err != nil {
		r.t.Errorf("process.json: still there (%v, %v)", ok, err)
	}
	if _, err := os.Stat(r.launch.Paths.VMRun(string(r.launch.VMID))); !os.IsNotExist(err) {
		r.t.Errorf("run directory is still there: %v", err)
	}
	lock, err := takeLock(r.dir.Path(paths.VMLock))
	if err != nil {
		r.t.Errorf("lock: %v", err)
	} else {
		lock.Close()
	}
	exit, ok, err := r.dir.ReadExit()
	if !ok || err != nil {
		r.t.Fatalf("exit.json: %v, %v", ok, err)
	}
	if time.Since(exit.At) > time.Minute {
		r.t.Errorf("exit at %v", exit.At)
	}
	leftovers, _ := filepath.Glob(r.dir.Path(".*"))
	if len(leftovers) > 0 {
		r.t.Errorf("left in the VM's directory: %q", leftovers)
	}
	return exit
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
