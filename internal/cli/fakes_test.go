package cli

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// fakeDaemon answers what a test wants. What it does not set is unimplemented.
type fakeDaemon struct {
	bangerv1connect.UnimplementedVMServiceHandler
	bangerv1connect.UnimplementedDaemonServiceHandler
	pid int32

	list      func(*bangerv1.ListVMsRequest) []*bangerv1.VM
	get       func(string) (*bangerv1.VM, error)
	set       func(*bangerv1.SetVMRequest) (*bangerv1.VM, error)
	wait      func(context.Context, *bangerv1.WaitVMRequest) (*bangerv1.VM, error)
	socket    string // of every VM's supervisor
	events    eventLog
	ops       []*bangerv1.Operation
	cancel    func(id string)
	opStates  func(id string, send func(*bangerv1.Operation) error) error
	fsck      func(repair bool) []*bangerv1.Finding
	logs      []*bangerv1.OperationLog // of every operation
	logsEnd   <-chan struct{}          // the log goes on until this is closed; nil: it has ended
	library   fakeLibrary
	template  []*bangerv1.Template
	snapshots []*bangerv1.Snapshot
}

func (f *fakeDaemon) Status(context.Context, *connect.Request[bangerv1.StatusRequest]) (*connect.Response[bangerv1.StatusResponse], error) {
	return connect.NewResponse(&bangerv1.StatusResponse{Pid: f.pid}), nil
}

func (f *fakeDaemon) List(_ context.Context, req *connect.Request[bangerv1.ListVMsRequest]) (*connect.Response[bangerv1.ListVMsResponse], error) {
	return connect.NewResponse(&bangerv1.ListVMsResponse{Vms: f.list(req.Msg)}), nil
}

func (f *fakeDaemon) Get(_ context.Context, req *connect.Request[bangerv1.GetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return answer(f.get(req.Msg.GetRef()))
}

func (f *fakeDaemon) Set(_ context.Context, req *connect.Request[bangerv1.SetVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return answer(f.set(req.Msg))
}

func (f *fakeDaemon) Wait(ctx context.Context, req *connect.Request[bangerv1.WaitVMRequest]) (*connect.Response[bangerv1.VM], error) {
	return answer(f.wait(ctx, req.Msg))
}

func (f *fakeDaemon) Endpoint(_ context.Context, req *connect.Request[bangerv1.EndpointRequest]) (*connect.Response[bangerv1.EndpointResponse], error) {
	m, err := f.get(req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	out := &bangerv1.EndpointResponse{Vm: m}
	if m.GetState() == "running" {
		out.Socket = f.socket
	}
	return connect.NewResponse(out), nil
}

func answer[T any](m *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

// The other services of the fake daemon, each a type because their methods have the same names.
type (
	fakeOps struct {
		bangerv1connect.UnimplementedOperationServiceHandler
		f *fakeDaemon
	}
	fakeEvents struct {
		bangerv1connect.UnimplementedEventServiceHandler
		f *fakeDaemon
	}
	fakeImages struct {
		bangerv1connect.UnimplementedImageServiceHandler
		f *fakeDaemon
	}
	fakeKernels struct {
		bangerv1connect.UnimplementedKernelServiceHandler
		f *fakeDaemon
	}
	fakeFsck struct {
		bangerv1connect.UnimplementedFsckServiceHandler
		f *fakeDaemon
	}
)

func (s fakeOps) find(id string) (*bangerv1.Operation, error) {
	for _, op := range s.f.ops {
		if op.GetId() == id {
			return op, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no operation has the id %q", id)
}

func (s fakeOps) Get(_ context.Context, req *connect.Request[bangerv1.GetOperationRequest]) (*connect.Response[bangerv1.Operation], error) {
	return answer(s.find(req.Msg.GetId()))
}

func (s fakeOps) List(context.Context, *connect.Request[bangerv1.ListOperationsRequest]) (*connect.Response[bangerv1.ListOperationsResponse], error) {
	return connect.NewResponse(&bangerv1.ListOperationsResponse{Operations: s.f.ops}), nil
}

func (s fakeOps) Cancel(_ context.Context, req *connect.Request[bangerv1.CancelOperationRequest]) (*connect.Response[bangerv1.Operation], error) {
	s.f.cancel(req.Msg.GetId())
	return answer(s.find(req.Msg.GetId()))
}

func (s fakeOps) Watch(_ context.Context, req *connect.Request[bangerv1.WatchOperationRequest], stream *connect.ServerStream[bangerv1.Operation]) error {
	if _, err := s.find(req.Msg.GetId()); err != nil {
		return err
	}
	return s.f.opStates(req.Msg.GetId(), stream.Send)
}

func (s fakeOps) Logs(ctx context.Context, _ *connect.Request[bangerv1.OperationLogsRequest], stream *connect.ServerStream[bangerv1.OperationLog]) error {
	for _, e := range s.f.logs {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	if s.f.logsEnd != nil {
		select {
		case <-s.f.logsEnd:
		case <-ctx.Done():
		}
	}
	return nil
}

// eventLog is a history and who waits for it to grow.
type eventLog struct {
	mu     sync.Mutex // guards the fields below
	events []*bangerv1.Event
	grown  chan struct{}
}

func (l *eventLog) add(events ...*bangerv1.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, events...)
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

func (l *eventLog) after(seq int64) (out []*bangerv1.Event, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.GetSeq() > seq {
			out = append(out, e)
		}
	}
	if l.grown == nil {
		l.grown = make(chan struct{})
	}
	return out, l.grown
}

func (s fakeEvents) List(_ context.Context, req *connect.Request[bangerv1.ListEventsRequest]) (*connect.Response[bangerv1.ListEventsResponse], error) {
	events, _ := s.f.events.after(0)
	if n := int(req.Msg.GetLimit()); n > 0 {
		events = events[max(len(events)-n, 0):]
	}
	return connect.NewResponse(&bangerv1.ListEventsResponse{Events: events}), nil
}

func (s fakeEvents) Watch(ctx context.Context, req *connect.Request[bangerv1.WatchEventsRequest], stream *connect.ServerStream[bangerv1.Event]) error {
	for last := req.Msg.GetAfter(); ; {
		events, grown := s.f.events.after(last)
		for _, e := range events {
			if err := stream.Send(e); err != nil {
				return err
			}
			last = e.GetSeq()
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s fakeFsck) Check(_ context.Context, req *connect.Request[bangerv1.FsckRequest]) (*connect.Response[bangerv1.FsckResponse], error) {
	return connect.NewResponse(&bangerv1.FsckResponse{Findings: s.f.fsck(req.Msg.GetRepair())}), nil
}

// shortDir is a directory with a path that sockets fit into.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve serves h at path until the test ends or stop is called.
func serve(t *testing.T, path string, h http.Handler) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_ = rpc.Serve(ctx, ln, h, time.Millisecond)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

// start serves the fake daemon in home.
func (f *fakeDaemon) start(t *testing.T, home string) (stop func()) {
	t.Helper()
	mux, faults := http.NewServeMux(), connect.WithInterceptors(rpc.Faults(nil))
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(f, faults))
	mux.Handle(bangerv1connect.NewVMServiceHandler(f, faults))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(fakeOps{f: f}, faults))
	mux.Handle(bangerv1connect.NewEventServiceHandler(fakeEvents{f: f}, faults))
	mux.Handle(bangerv1connect.NewImageServiceHandler(fakeImages{f: f}, faults))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(fakeKernels{f: f}, faults))
	mux.Handle(bangerv1connect.NewFsckServiceHandler(fakeFsck{f: f}, faults))
	mux.Handle(bangerv1connect.NewTemplateServiceHandler(fakeTemplates{f: f}, faults))
	mux.Handle(bangerv1connect.NewSnapshotServiceHandler(fakeSnapshots{f: f}, faults))
	return serve(t, paths.Under(home).DaemonSocket(), mux)
}

// online returns what commands depend on with a fake daemon in home. None is started for them.
func online(t *testing.T, home string) (d *Deps, out, errOut *safeBuffer) {
	t.Helper()
	d, out, errOut = newOnline(t, 0)
	d.Paths = paths.Under(home)
	d.Attach = func(ctx context.Context) (*client.Client, error) {
		return client.Attach(ctx, client.Config{Paths: d.Paths})
	}
	d.Connect = d.Attach
	return d, out, errOut
}

// safeBuffer may be read while a command writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
