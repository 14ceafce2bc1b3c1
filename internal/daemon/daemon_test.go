package daemon_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/daemon"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

func TestTwoDaemonsLeaveOne(t *testing.T) {
	h := newHost(t)
	h.run()
	second, err := daemon.New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger daemon status" {
		t.Errorf("err = %v", err)
	}
	if _, err := h.daemons.Hello(t.Context(), connect.NewRequest(&bangerv1.HelloRequest{})); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

func TestHelloAndStatus(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	hello, err := h.daemons.Hello(t.Context(), connect.NewRequest(&bangerv1.HelloRequest{Generation: 1}))
	if err != nil || hello.Msg.GetBuild() != "test" || hello.Msg.GetGeneration() != daemon.Generation || int(hello.Msg.GetPid()) != os.Getpid() {
		t.Errorf("%v, %v", hello, err)
	}
	status, err := h.daemons.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
	if err != nil || status.Msg.GetRunningVms() != 1 || status.Msg.GetRunningOperations() != 0 || status.Msg.GetSocket() != h.paths.DaemonSocket() {
		t.Errorf("%v, %v", status, err)
	}
}

func TestTheLogIsRotatedAtStart(t *testing.T) {
	h := newHost(t)
	if err := os.MkdirAll(h.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	log := h.paths.DaemonLog()
	if err := os.WriteFile(log, []byte(strings.Repeat("old line\n", 11<<20/9+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "fake-daemon", filepath.Dir(h.paths.Data))
	cmd.Env, cmd.Stderr = append(os.Environ(), "BANGER_TEST_LOG=1"), stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.awaitDaemon(nil)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if old, err := os.Stat(log + ".1"); err != nil || old.Size() <= 10<<20 {
		t.Errorf("%v, %v", old, err)
	}
	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "daemon is ready") || strings.Contains(string(text), "old line") {
		t.Errorf("%.200s, %v", text, err)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	h := newSerialHost(t)
	stop := h.run()
	h.create("dev")
	stop()
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before+1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // one may wait for the supervisor, which is this process's child
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestNewRefuses(t *testing.T) {
	h := newHost(t)
	cfg := h.cfg
	cfg.Settings.VMM.Driver = "xen"
	if _, err := daemon.New(cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `no vmm driver "xen"`) {
		t.Errorf("err = %v", err)
	}
	cfg = h.cfg
	cfg.SupervisorCommand = nil
	if _, err := daemon.New(cfg); err == nil {
		t.Error("no supervisor command, no error")
	}
}

func TestShutdown(t *testing.T) {
	h := newHost(t)
	reached := make(chan struct{}, 1)
	h.images.During = func(ctx context.Context, _ string) error {
		reached <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	d, err := daemon.New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(context.Background()) }()
	h.awaitDaemon(ended)
	id := h.begin(&bangerv1.VMSpec{Name: "dev"}, true)
	<-reached
	if _, err := h.daemons.Shutdown(t.Context(), connect.NewRequest(&bangerv1.ShutdownRequest{IfIdle: true})); !fault.Is(err, fault.Conflict) {
		t.Errorf("shutdown of a busy daemon: %v", err)
	}
	stream, err := h.ops.Watch(t.Context(), connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil || !stream.Receive() { // who watches already gets to hear the end
		t.Fatalf("%v, %v", err, stream.Err())
	}
	if _, err := h.daemons.Shutdown(t.Context(), connect.NewRequest(&bangerv1.ShutdownRequest{})); err != nil {
		t.Error(err)
	}
	op := stream.Msg()
	for stream.Receive() {
		op = stream.Msg()
	}
	stream.Close()
	if op.GetState() != "cancelled" || op.GetFault().GetMessage() != "the daemon is stopping" {
		t.Errorf("%v", op)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	h.http.CloseIdleConnections()
	if left := append(h.ls(h.paths.VMs()), h.ls(h.paths.Staging())...); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	if _, err := os.Stat(h.paths.DaemonSocket()); !os.IsNotExist(err) {
		t.Errorf("socket: %v", err)
	}
}

func TestAStopLeavesVMsAndStartsAlone(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	h.wait(h.begin(&bangerv1.VMSpec{Name: "slow", Env: []string{bootHangs}}, false))
	started := make(chan error, 1)
	go func() {
		_, err := h.start("slow")
		started <- err
	}()
	h.until("slow", "starting")
	began := time.Now()
	stop()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if err := <-started; !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "goes on starting") {
		t.Errorf("start: %v", err)
	}
	h.run()
	if again := h.get("dev"); again.GetState() != "running" || again.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", again)
	}
	if v := h.get("slow"); v.GetState() != "starting" {
		t.Errorf("%v", v)
	}
}

func TestSIGTERMIsAnOrderlyEnd(t *testing.T) {
	h := newHost(t)
	_, terminate := h.process()
	h.create("dev")
	terminate()
	if _, err := os.Stat(h.paths.DaemonSocket()); !os.IsNotExist(err) {
		t.Errorf("socket: %v", err)
	}
}

func TestReadySaysWhyNot(t *testing.T) {
	h := newHost(t)
	if err := os.MkdirAll(h.paths.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	h.edit("PRAGMA application_id = 7; CREATE TABLE x (y)")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "fake-daemon", filepath.Dir(h.paths.Data))
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "BANGER_READY_FD=3"), []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Class, Message, Hint string }
	if err := json.Unmarshal(line, &said); err != nil || said.Class != string(fault.Conflict) || !strings.Contains(said.Message, "of another program") || said.Hint == "" {
		t.Errorf("%s, %v", line, err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("exit code 0")
	}
}

func TestImagesAndKernels(t *testing.T) {
	h := newHost(t)
	h.run()
	pull := func(force bool) *bangerv1.Operation {
		resp, err := h.imgs.Pull(t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Force: force}))
		if err != nil {
			t.Fatal(err)
		}
		return h.wait(resp.Msg.GetOperationId())
	}
	for range 2 {
		if op := pull(false); op.GetState() != "done" || op.GetResultId() != "small" {
			t.Errorf("%v", op)
		}
	}
	if n := h.images.Pulls.Load(); n != 1 {
		t.Errorf("%d pulls of what is here", n)
	}
	v := h.create("dev")
	list := func(n int) *bangerv1.Image {
		resp, err := h.imgs.List(t.Context(), connect.NewRequest(&bangerv1.ListImagesRequest{}))
		if err != nil || len(resp.Msg.GetImages()) != n {
			t.Fatalf("%v, %v", resp, err)
		}
		return resp.Msg.GetImages()[0]
	}
	if img := list(1); img.GetName() != "small" || fmt.Sprint(img.GetUsedBy()) != "[dev]" || img.GetUsedBytes() == 0 || img.GetDigest() != v.GetImageDigest() {
		t.Errorf("%v", img)
	}
	// Anew: the vm stays on the old one, which goes with it.
	if op := pull(true); op.GetState() != "done" {
		t.Errorf("%v", op)
	}
	if img := list(2); img.GetName() != "small" || img.GetDigest() == v.GetImageDigest() || len(img.GetUsedBy()) != 0 {
		t.Errorf("%v", img)
	}
	if n := len(h.ls(h.paths.Images())); n != 2 {
		t.Errorf("%d image directories", n)
	}
	if err := h.remove("dev", true); err != nil {
		t.Error(err)
	}
	if op := pull(true); op.GetState() != "done" {
		t.Errorf("%v", op)
	}
	if n := len(h.ls(h.paths.Images())); n != 1 {
		t.Errorf("%d image directories", n)
	}
	catalog, err := h.kernls.Catalog(t.Context(), connect.NewRequest(&bangerv1.KernelCatalogRequest{}))
	if err != nil || len(catalog.Msg.GetEntries()) != 1 || !catalog.Msg.GetEntries()[0].GetPresent() || !catalog.Msg.GetEntries()[0].GetIsDefault() {
		t.Errorf("%v, %v", catalog, err)
	}
	kernels, err := h.kernls.List(t.Context(), connect.NewRequest(&bangerv1.ListKernelsRequest{}))
	if err != nil || len(kernels.Msg.GetKernels()) != 1 || kernels.Msg.GetKernels()[0].GetVersion() != "6.1-fake" {
		t.Errorf("%v, %v", kernels, err)
	}
	if _, err := h.imgs.Pull(t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Reference: "none"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("err = %v", err)
	}
}

func TestImagesOutliveTheDatabase(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	if err := h.remove("dev", true); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.RemoveAll(h.paths.Database() + suffix); err != nil {
			t.Fatal(err)
		}
	}
	h.run()
	if again := h.create("dev"); again.GetImageDigest() != v.GetImageDigest() || h.images.Pulls.Load() != 1 {
		t.Errorf("%v, %d pulls", again, h.images.Pulls.Load())
	}
}

func TestListOf50IsFast(t *testing.T) {
	h := newSerialHost(t)
	h.run()
	for i := range 50 {
		h.wait(h.begin(&bangerv1.VMSpec{Name: fmt.Sprintf("vm-%d", i)}, false))
	}
	best := time.Hour
	for range 20 {
		began := time.Now()
		resp, err := h.vms.List(t.Context(), connect.NewRequest(&bangerv1.ListVMsRequest{States: []string{"created"}}))
		if err != nil || len(resp.Msg.GetVms()) != 50 {
			t.Fatalf("%v, %v", resp, err)
		}
		best = min(best, time.Since(began))
	}
	t.Logf("list of 50: %v", best)
	if best > time.Second { // two hundred times the goal: the race detector and busy machines are slow
		t.Errorf("list of 50 takes %v", best)
	}
	if _, err := h.vms.List(t.Context(), connect.NewRequest(&bangerv1.ListVMsRequest{States: []string{"x"}})); !fault.Is(err, fault.Invalid) {
		t.Errorf("err = %v", err)
	}
}
