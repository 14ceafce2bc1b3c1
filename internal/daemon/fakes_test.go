package daemon_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/rpc"
	"banger/internal/sock"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// The test binary also plays the supervisors, and daemons that can be killed.
func TestMain(m *testing.M) {
	fakevmm.Main() // does not return in a fake VMM
	switch {
	case len(os.Args) == 4 && os.Args[1] == "fake-supervisor":
		if err := superviseFake(vmdir.Dir(os.Args[3])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 3 && os.Args[1] == "fake-daemon":
		os.Exit(runDaemon(os.Args[2]))
	}
	os.Exit(m.Run())
}

// What a VM's environment can ask of its fake supervisor.
const (
	bootHangs   = "FAKE=hang"  // the guest never becomes ready
	bootFails   = "FAKE=fail"  // the supervisor gives up
	bootDies    = "FAKE=die"   // the supervisor kills itself while it boots
	stopHangs   = "FAKE=deaf"  // Stop never returns and does nothing
	endsItself  = "FAKE=ends"  // the guest powers off soon after it became ready
	mute        = "FAKE=mute"  // answers nothing at all
	neverListen = "FAKE=stone" // takes the lock and does not listen
	fallsOver   = "FAKE=falls" // the guest's kernel panics soon after it became ready
	busy        = "FAKE=busy"  // a session is open
	working     = "FAKE=works" // a session runs in it, and nobody is connected
	cannotGrow  = "FAKE=small" // GrowDisk fails
	deafToIt    = "deaf"       // a name that no guest takes
)

// fake is a supervisor without a VMM. It keeps the order at the end that the real one promises.
type fake struct {
	bangerv1connect.UnimplementedSupervisorServiceHandler
	launch vmdir.Launch

	mu      sync.Mutex
	status  *bangerv1.SupervisorStatus
	changed chan struct{}
	stop    chan string
	seen    chan struct{} // gets a value when somebody was told that the guest is ready
	ran     []string      // the command that was executed last
}

func superviseFake(dir vmdir.Dir) error {
	lock, err := os.OpenFile(dir.Path(paths.VMLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil
	}
	launch, err := dir.ReadLaunch()
	if err != nil {
		return err
	}
	id := string(launch.VMID)
	if err := os.MkdirAll(launch.Paths.VMRun(id), 0o700); err != nil {
		return err
	}
	self, err := proc.Self()
	if err != nil {
		return err
	}
	if err := dir.WriteProcess(vmdir.Process{Supervisor: self, StartedAt: time.Now()}); err != nil {
		return err
	}
	if asks(launch, neverListen) {
		time.Sleep(time.Minute)
		return nil
	}
	ln, err := sock.Listen(launch.Paths.SupervisorSocket(id))
	if err != nil {
		return err
	}
	f := &fake{launch: launch, changed: make(chan struct{}), stop: make(chan string, 10), seen: make(chan struct{}, 1), status: &bangerv1.SupervisorStatus{
		VmId: id, Phase: "starting", SupervisorPid: int32(self.PID), StartedAtMs: time.Now().UnixMilli(),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if asks(launch, mute) {
		return deaf(ln)
	}
	served := make(chan error, 1)
	_, handler := bangerv1connect.NewSupervisorServiceHandler(f, connect.WithInterceptors(rpc.Faults(nil)))
	go func() { served <- rpc.Serve(ctx, ln, handler, time.Second) }()
	exit := f.live()
	exit.At = time.Now()
	if err := dir.WriteExit(exit); err != nil {
		return err
	}
	_ = dir.RemoveProcess()
	_ = os.RemoveAll(launch.Paths.VMRun(id))
	_ = lock.Close()
	f.update(func(s *bangerv1.SupervisorStatus) {
		s.Phase = "exited"
		s.Exit = &bangerv1.Exit{Reason: exit.Reason, Code: int32(exit.Code), Expected: exit.Expected, AtMs: exit.At.UnixMilli()}
		if exit.Failed {
			s.Fault = &bangerv1.Fault{Class: "unavailable", Message: exit.Reason, Hint: "banger vm logs dev"}
		}
	})
	cancel()
	return <-served
}

// deaf accepts connections and never answers.
func deaf(ln net.Listener) error {
	for {
		if _, err := ln.Accept(); err != nil {
			return err
		}
	}
}

func asks(l vmdir.Launch, what string) bool { return slices.Contains(l.Guest.Env, what) }

func (f *fake) live() vmdir.Exit {
	switch {
	case asks(f.launch, bootDies):
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case asks(f.launch, bootFails):
		return vmdir.Exit{Reason: "the guest fell over; its console ends with: boom", Failed: true, Code: 1}
	case asks(f.launch, bootHangs):
		reason := <-f.stop
		return vmdir.Exit{Reason: reason + " while it was starting", Expected: true}
	}
	if exit, failed := f.comesFrom(); failed {
		return exit
	}
	f.update(func(s *bangerv1.SupervisorStatus) {
		s.Phase, s.VmmPid, s.Accelerator, s.ReadyAtMs = "ready", 4242, "tcg", time.Now().UnixMilli()
		if asks(f.launch, busy) {
			s.OpenSessions, s.LastActivityMs = 1, time.Now().UnixMilli()
		}
		if asks(f.launch, working) {
			s.RunningSessions = 1
		}
	})
	if asks(f.launch, endsItself) {
		f.awaitWatcher()
		return vmdir.Exit{Reason: "guest powered off"}
	}
	if asks(f.launch, fallsOver) {
		f.awaitWatcher()
		return vmdir.Exit{Reason: "guest kernel panic: boom"}
	}
	reason := <-f.stop
	f.update(func(s *bangerv1.SupervisorStatus) { s.Phase = "stopping" })
	return vmdir.Exit{Reason: reason, Expected: true, Suspended: reason == "suspended"}
}

// awaitWatcher waits until somebody was told that the guest is ready.
func (f *fake) awaitWatcher() {
	select {
	case <-f.seen:
	case <-time.After(time.Minute):
	}
}

func (f *fake) update(change func(*bangerv1.SupervisorStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.status)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) get() (*bangerv1.SupervisorStatus, chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	return &bangerv1.SupervisorStatus{
		VmId: s.VmId, Phase: s.Phase, SupervisorPid: s.SupervisorPid, VmmPid: s.VmmPid, StartedAtMs: s.StartedAtMs,
		FromTemplate: s.FromTemplate, TemplateFault: s.TemplateFault,
		Accelerator: s.Accelerator, Fault: s.Fault, Exit: s.Exit, ReadyAtMs: s.ReadyAtMs, OpenSessions: s.OpenSessions,
		LastActivityMs: s.LastActivityMs, RunningSessions: s.RunningSessions,
	}, f.changed
}

func (f *fake) Pause(context.Context, *connect.Request[bangerv1.SupervisorPauseRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	return f.phase("paused")
}

func (f *fake) Unpause(context.Context, *connect.Request[bangerv1.SupervisorUnpauseRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	return f.phase("ready")
}

func (f *fake) phase(name string) (*connect.Response[bangerv1.SupervisorStatus], error) {
	f.update(func(s *bangerv1.SupervisorStatus) { s.Phase = name })
	s, _ := f.get()
	return connect.NewResponse(s), nil
}

// Identify leaves a file beside the disk that says which name the guest was told, and fails for one that is on a list.
func (f *fake) Identify(_ context.Context, req *connect.Request[bangerv1.SupervisorIdentifyRequest]) (*connect.Response[bangerv1.SupervisorIdentifyResponse], error) {
	if !f.launch.Pool {
		return nil, fault.New(fault.Conflict, "it has a name already")
	}
	if req.Msg.GetName() == deafToIt {
		return nil, fault.New(fault.Unavailable, "the guest does not answer")
	}
	path := filepath.Join(f.launch.Paths.VM(string(f.launch.VMID)), "told-name")
	return connect.NewResponse(&bangerv1.SupervisorIdentifyResponse{}), os.WriteFile(path, []byte(req.Msg.GetName()), 0o600)
}

// GrowDisk leaves a file beside the disk that says how large the guest was told that it is.
func (f *fake) GrowDisk(context.Context, *connect.Request[bangerv1.SupervisorGrowDiskRequest]) (*connect.Response[bangerv1.SupervisorGrowDiskResponse], error) {
	if asks(f.launch, cannotGrow) {
		return nil, fault.New(fault.Unavailable, "the guest does not answer")
	}
	disk := f.launch.Machine.Disks[1].Path
	info, err := os.Stat(disk)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(disk+".told", fmt.Append(nil, info.Size()), 0o600); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.SupervisorGrowDiskResponse{DiskBytes: uint64(info.Size())}), nil
}

// Exec plays a guest that can do what builds need. The words of a command are what it prints and what it "changes" in the
// root file system; the first of them may be "fail", "hang" or "nothing".
func (f *fake) Exec(ctx context.Context, stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	if _, err := os.Stat(f.launch.Machine.Disks[0].Path); err != nil {
		return err
	}
	start := first.GetStart()
	if err := stream.Send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Started{Started: &bangerv1.ExecStarted{Pid: 1}}}); err != nil {
		return err
	}
	var out []byte
	code := int32(0)
	f.mu.Lock()
	ran := f.ran
	f.mu.Unlock()
	switch {
	case start.GetTool() == agentwire.ToolArchive:
		out = tarOf("etc/", "etc/os-release")
	case start.GetTool() == agentwire.ToolChanges && ran[0] == "nothing":
		out = tarOf()
	case start.GetTool() == agentwire.ToolChanges:
		out = tarOf(ran...)
	default:
		words := start.GetArgv()
		if start.GetStdin() {
			words = append(words, string(readStdin(stream)))
		}
		f.mu.Lock()
		f.ran = words
		f.mu.Unlock()
		out = []byte(strings.Join(words, "\n"))
		switch words[0] {
		case "fail":
			code = 3
		case "hang":
			<-ctx.Done()
			return ctx.Err()
		}
	}
	if err := stream.Send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Stdout{Stdout: out}}); err != nil {
		return err
	}
	return stream.Send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Exited{Exited: &bangerv1.ExecExited{Code: code}}})
}

func readStdin(stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) (all []byte) {
	for {
		msg, err := stream.Receive()
		if err != nil || msg.GetStdinEof() {
			return all
		}
		all = append(all, msg.GetStdin()...)
	}
}

// tarOf is a tar with directories, whose names end in a slash, and files that hold their own names.
func tarOf(names ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Size > 0 {
			_, _ = w.Write([]byte(name))
		}
	}
	_ = w.Close()
	return b.Bytes()
}

func (f *fake) Status(context.Context, *connect.Request[bangerv1.SupervisorStatusRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	s, _ := f.get()
	return connect.NewResponse(s), nil
}

func (f *fake) Watch(ctx context.Context, _ *connect.Request[bangerv1.SupervisorWatchRequest], stream *connect.ServerStream[bangerv1.SupervisorStatus]) error {
	for {
		s, changed := f.get()
		if err := stream.Send(s); err != nil || s.Phase == "exited" {
			return err
		}
		if s.Phase == "ready" {
			select {
			case f.seen <- struct{}{}:
			default:
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fake) Stop(ctx context.Context, req *connect.Request[bangerv1.SupervisorStopRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	if asks(f.launch, stopHangs) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	reason := "stopped"
	if req.Msg.GetKill() {
		reason = "killed"
	}
	f.stop <- reason
	for {
		s, changed := f.get()
		if s.Phase == "exited" {
			return connect.NewResponse(s), nil
		}
		<-changed
	}
}

// driver is a hypervisor.Driver of which the daemon may only ask.
type driver struct{ probe func() error }

func (driver) Name() string                  { return "fake" }
func (driver) Features() hypervisor.Features { return hypervisor.Features{MaxCPUs: 4, Save: true} }
func (d driver) Probe(context.Context) (hypervisor.Host, error) {
	if d.probe != nil {
		return hypervisor.Host{}, d.probe()
	}
	return hypervisor.Host{}, nil
}
func (driver) Start(context.Context, hypervisor.Spec) (hypervisor.Machine, error) {
	panic("a daemon starts no machine")
}
