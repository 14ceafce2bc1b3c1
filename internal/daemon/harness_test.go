package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/daemon/daemontest"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/paths"
	"banger/internal/rpc"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// host is one user's directories and what a daemon there is made of.
type host struct {
	t       *testing.T
	paths   paths.Paths
	images  *daemontest.Catalog
	kernels *daemontest.Catalog
	cfg     daemon.Config
	clients
}

type clients struct {
	http    *http.Client
	vms     bangerv1connect.VMServiceClient
	ops     bangerv1connect.OperationServiceClient
	imgs    bangerv1connect.ImageServiceClient
	kernls  bangerv1connect.KernelServiceClient
	daemons bangerv1connect.DaemonServiceClient
	events  bangerv1connect.EventServiceClient
	fscks   bangerv1connect.FsckServiceClient
	temps   bangerv1connect.TemplateServiceClient
	snaps   bangerv1connect.SnapshotServiceClient
}

func dial(p paths.Paths) clients {
	h := rpc.Client(p.DaemonSocket())
	faults := connect.WithInterceptors(rpc.Faults(nil))
	return clients{
		http: h, vms: bangerv1connect.NewVMServiceClient(h, rpc.BaseURL, faults),
		ops:     bangerv1connect.NewOperationServiceClient(h, rpc.BaseURL, faults),
		imgs:    bangerv1connect.NewImageServiceClient(h, rpc.BaseURL, faults),
		kernls:  bangerv1connect.NewKernelServiceClient(h, rpc.BaseURL, faults),
		daemons: bangerv1connect.NewDaemonServiceClient(h, rpc.BaseURL, faults),
		events:  bangerv1connect.NewEventServiceClient(h, rpc.BaseURL, faults),
		fscks:   bangerv1connect.NewFsckServiceClient(h, rpc.BaseURL, faults),
		temps:   bangerv1connect.NewTemplateServiceClient(h, rpc.BaseURL, faults),
		snaps:   bangerv1connect.NewSnapshotServiceClient(h, rpc.BaseURL, faults),
	}
}

func fakeConfig(p paths.Paths, images, kernels *daemontest.Catalog) daemon.Config {
	settings := config.Default()
	settings.VMM.Driver, settings.Defaults.Image, settings.Defaults.CPUs = "fake", "small", 1
	settings.Defaults.Disk, settings.VMM.Templates = 256<<20, false
	level := slog.LevelWarn
	if os.Getenv("BANGER_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	drivers := map[string]hypervisor.Driver{"fake": driver{}}
	var times daemon.Times
	if os.Getenv(poolEnv) != "" {
		settings.VMM.WarmPool, times.Lull = 1, 10*time.Millisecond
	}
	if faults := os.Getenv(templatesEnv); faults != "" {
		settings.VMM.Templates, drivers["fake"] = true, fakevmm.New(fakevmm.Options{Faults: faults})
	}
	return daemon.Config{
		Paths: p, Build: "test", Settings: settings, Times: times,
		Log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		Drivers: drivers,
		Images:  withFiles(images.Source(), daemon.Images(p, settings)), Kernels: withNames(kernels.Source(), daemon.Kernels(p, settings)),
		FormatDisk: daemontest.FormatDisk, Initramfs: daemontest.Initramfs,
		SupervisorCommand: []string{os.Args[0], "fake-supervisor"},
	}
}

// withFiles is a fake source of images in which files of the host can be registered and built on for real.
func withFiles(fake, real daemon.Source) daemon.Source {
	both := fake
	both.Register, both.CheckName, both.Names = real.Register, real.CheckName, real.Names
	both.Load = func(dir string) (daemon.Artifact, error) {
		if a, err := fake.Load(dir); err == nil {
			return a, nil
		}
		return real.Load(dir)
	}
	return both
}

// newHost returns a host on which no daemon runs. At the end of the test every supervisor is killed. The test becomes
// a parallel one: most of its time goes into waiting for connections to be given up.
func newHost(t *testing.T) *host {
	t.Helper()
	t.Parallel()
	return newSerialHost(t)
}

func newSerialHost(t *testing.T) *host {
	t.Helper()
	root, err := os.MkdirTemp("", "bgr") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	h := &host{
		t: t, paths: paths.Under(root), images: daemontest.Images("small", "large"), kernels: daemontest.Kernels("linux"),
	}
	h.cfg = fakeConfig(h.paths, h.images, h.kernels)
	h.clients = dial(h.paths)
	t.Cleanup(func() {
		h.http.CloseIdleConnections()
		for _, pids := range daemontest.Supervisors(h.paths) { // not by their records: those may be gone
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return h
}

// run runs a daemon until the function that it returns is called.
func (h *host) run() (stop func()) {
	h.t.Helper()
	d, err := daemon.New(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(context.Background()) }()
	h.awaitDaemon(ended)
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		h.http.CloseIdleConnections() // a server gives its clients a second to go
		if err := d.Close(); err != nil {
			h.t.Error(err)
		}
		if err := <-ended; err != nil {
			h.t.Errorf("daemon: %v", err)
		}
		h.http.CloseIdleConnections()
	}
	h.t.Cleanup(stop)
	return stop
}

func (h *host) awaitDaemon(ended <-chan error) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if _, err := h.daemons.Hello(h.t.Context(), connect.NewRequest(&bangerv1.HelloRequest{})); err == nil {
			return
		}
		select {
		case err := <-ended:
			h.t.Fatalf("the daemon ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			h.t.Fatal("the daemon does not answer")
		}
	}
}

// runDaemon is a daemon in a process of its own, for tests that kill it. Its images take a while to pull.
func runDaemon(root string) int {
	images := daemontest.Images("small", "large")
	images.During = func(ctx context.Context, name string) error {
		if name != "large" {
			return nil
		}
		select {
		case <-time.After(5 * time.Minute):
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	d, err := daemon.New(func() daemon.Config {
		cfg := fakeConfig(paths.Under(root), images, daemontest.Kernels("linux"))
		cfg.Ready, cfg.Step = daemon.ReadyFromEnv(), daemontest.StepFromEnv()
		return cfg
	}())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := d.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// begin begins to create a VM and returns the operation.
func (h *host) begin(spec *bangerv1.VMSpec, start bool) string {
	h.t.Helper()
	resp, err := h.vms.Create(h.t.Context(), connect.NewRequest(&bangerv1.CreateVMRequest{Spec: spec, Start: start}))
	if err != nil {
		h.t.Fatalf("create %s: %v", spec.GetName(), err)
	}
	return resp.Msg.GetOperationId()
}

// wait waits for the end of an operation.
func (h *host) wait(id string) *bangerv1.Operation {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := h.ops.Watch(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil || last.GetState() == "running" {
		h.t.Fatalf("operation %s: %v, %v", id, last, err)
	}
	return last
}

// create creates and starts a VM.
func (h *host) create(name string, env ...string) *bangerv1.VM {
	h.t.Helper()
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: name, Env: env}, true))
	if op.GetState() != "done" {
		h.t.Fatalf("create %s: %v", name, op.GetFault())
	}
	return h.get(op.GetResultId())
}

func (h *host) get(ref string) *bangerv1.VM {
	h.t.Helper()
	resp, err := h.vms.Get(h.t.Context(), connect.NewRequest(&bangerv1.GetVMRequest{Ref: ref}))
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.Msg
}

func (h *host) start(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Start(h.t.Context(), connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) remove(ref string, force bool) error {
	_, err := h.vms.Remove(h.t.Context(), connect.NewRequest(&bangerv1.RemoveVMRequest{Ref: ref, Force: force}))
	return err
}

// until waits until the VM is in the state, "" for gone.
func (h *host) until(ref, state string) *bangerv1.VM {
	h.t.Helper()
	var last *bangerv1.VM
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		resp, err := h.vms.Get(h.t.Context(), connect.NewRequest(&bangerv1.GetVMRequest{Ref: ref}))
		if state == "" && fault.Is(err, fault.NotFound) {
			return nil
		}
		if err == nil {
			if last = resp.Msg; last.GetState() == state {
				return last
			}
		}
	}
	h.t.Fatalf("vm %s does not become %q: %v", ref, state, last)
	return nil
}

// ls lists a directory, without lock files and the daemon's own socket.
func (h *host) ls(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "daemon.") {
			names = append(names, e.Name())
		}
	}
	return names
}

// nothingLeft checks that no VM, and nothing of one, is on the host.
func (h *host) nothingLeft() {
	h.t.Helper()
	resp, err := h.vms.List(h.t.Context(), connect.NewRequest(&bangerv1.ListVMsRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	if n := len(resp.Msg.GetVms()); n > 0 {
		h.t.Errorf("%d vms are left: %v", n, resp.Msg.GetVms())
	}
	for _, dir := range []string{h.paths.VMs(), h.paths.Run, h.paths.Staging()} {
		if left := h.ls(dir); len(left) > 0 {
			h.t.Errorf("%s: %v is left", filepath.Base(dir), left)
		}
	}
	if n := h.supervisors(); n > 0 {
		h.t.Errorf("%d supervisors are left", n)
	}
}

// supervisors counts the processes that are supervisors of this host's VMs.
func (h *host) supervisors() int {
	n := 0
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n = 0
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			line, err := os.ReadFile(file)
			if err == nil && strings.Contains(string(line), "fake-supervisor\x00--dir\x00"+h.paths.VMs()) {
				n++
			}
		}
		if n == 0 || time.Now().After(deadline) { // one on its way out is no leak
			return n
		}
	}
}

func (h *host) killSupervisor(id string) {
	if p, ok, err := vmdir.Dir(h.paths.VM(id)).ReadProcess(); err == nil && ok {
		if err := p.Supervisor.Kill(syscall.SIGKILL); err != nil {
			h.t.Error(err)
		}
	}
}

// list lists every VM.
func (h *host) list() ([]*bangerv1.VM, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := h.vms.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetVms(), nil
}

// inOrder checks that rows, directories, processes and sockets belong together.
func (h *host) inOrder() {
	h.t.Helper()
	for _, wrong := range daemontest.Settle(h.paths, time.Minute, h.list) {
		h.t.Error(wrong)
	}
	resp, err := h.imgs.List(h.t.Context(), connect.NewRequest(&bangerv1.ListImagesRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, wrong := range daemontest.CheckImages(h.paths, resp.Msg.GetImages()) {
		h.t.Error(wrong)
	}
}

// stop stops a VM.
func (h *host) stop(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Stop(h.t.Context(), connect.NewRequest(&bangerv1.StopVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// set changes settings of a VM.
func (h *host) set(req *bangerv1.SetVMRequest) (*bangerv1.VM, error) {
	resp, err := h.vms.Set(h.t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) rename(ref, name string) (*bangerv1.VM, error) {
	resp, err := h.vms.Rename(h.t.Context(), connect.NewRequest(&bangerv1.RenameVMRequest{Ref: ref, Name: name}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) reset(ref string, force bool) (*bangerv1.VM, error) {
	resp, err := h.vms.Reset(h.t.Context(), connect.NewRequest(&bangerv1.ResetVMRequest{Ref: ref, Force: force}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// fsck returns the findings as "kind object", with " mended" behind those that were repaired.
func (h *host) fsck(repair bool) []string {
	h.t.Helper()
	resp, err := h.fscks.Check(h.t.Context(), connect.NewRequest(&bangerv1.FsckRequest{Repair: repair}))
	if err != nil {
		h.t.Fatal(err)
	}
	var found []string
	for _, f := range resp.Msg.GetFindings() {
		text := f.GetKind() + " " + filepath.Base(f.GetObject())
		if f.GetRepaired() {
			text += " mended"
		}
		found = append(found, text)
	}
	return found
}

// kinds returns the events of a VM as "kind: message".
func (h *host) kinds(ref string) []string {
	h.t.Helper()
	resp, err := h.events.List(h.t.Context(), connect.NewRequest(&bangerv1.ListEventsRequest{Ref: ref}))
	if err != nil {
		h.t.Fatal(err)
	}
	var all []string
	for _, e := range resp.Msg.GetEvents() {
		text := e.GetKind()
		if e.GetMessage() != "" {
			text += ": " + e.GetMessage()
		}
		all = append(all, text)
	}
	return all
}

// withNames is a fake source of kernels that is as strict about names as the real one.
func withNames(fake, real daemon.Source) daemon.Source {
	fake.CheckName = real.CheckName
	return fake
}
