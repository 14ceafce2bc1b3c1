// Package hypervisortest is the conformance suite of hypervisor.Driver: what every driver has to do, on a real process
// of its VMM with the real agent in it.
//
// A driver's test calls Run. Its TestMain calls Main first, because one test needs a process that starts a machine and
// is then killed: that process is the test binary again.
package hypervisortest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/proc"
)

// Harness is a driver under test.
type Harness struct {
	Driver hypervisor.Driver
	// Spec is a machine that boots and in which the agent answers. Run gives it a RunDir, a Console and a Log.
	Spec hypervisor.Spec
	// BootTimeout bounds the time until the agent answers; a machine that misses it is started once more.
	BootTimeout time.Duration
	// Cycles is how many machines one after the other must leave nothing behind in this process.
	Cycles int
	// BadKernel says that the VMM itself looks into the kernel, so that one that is none makes Start fail.
	BadKernel bool
}

// endTimeout bounds everything that has to happen at once: a VMM that was killed is gone, a connection is refused.
const endTimeout = 15 * time.Second

// The process that is going to be killed gets the Spec in envParent and says the VMM's process id on fdAnswer.
const (
	envParent = "BANGER_HYPERVISORTEST_PARENT"
	fdAnswer  = 3
)

// Main runs that process, if this is one, and does not return then.
func Main(driver hypervisor.Driver) {
	text := os.Getenv(envParent)
	if text == "" {
		return
	}
	os.Unsetenv(envParent)
	var spec hypervisor.Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	m, err := driver.Start(context.Background(), spec)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.NewFile(fdAnswer, "answer"), m.PID())
	select {
	case <-m.Done():
		panic("the machine ended")
	case <-time.After(time.Minute):
		panic("the test is gone")
	}
}

// Run checks the contract.
func Run(t *testing.T, h Harness) {
	t.Run("probe", h.probe)
	t.Run("agent answers and quit ends it", h.agentAndQuit)
	t.Run("guest shuts down", h.guestShutdown)
	t.Run("kill", h.kill)
	t.Run("terminate", h.terminate)
	t.Run("quit and signals at the same time", h.concurrentEnd)
	t.Run("start failures leave nothing", h.startFailures)
	t.Run("cancelled start leaves nothing", h.cancelledStart)
	t.Run("context has no effect after start", h.contextAfterStart)
	t.Run("vmm dies with its parent", h.parentKilled)
	t.Run("machines at the same time", h.together)
	t.Run("pause and resume", h.pause)
	t.Run("a paused machine ends", h.endPaused)
	t.Run("resize disk", h.resizeDisk)
	t.Run("save a template", h.saveTemplate)
	t.Run("save a running machine", h.saveRunning)
	t.Run("failures of save and restore", h.saveFailures)
	t.Run("no leaks", h.leaks)
}

func (h Harness) probe(t *testing.T) {
	host, err := h.Driver.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if host.Version == "" || host.Accelerator == "" || host.Reason == "" || !filepath.IsAbs(host.Path) {
		t.Errorf("Probe() = %+v, want all of it filled in", host)
	}
	if h.Driver.Name() == "" || h.Driver.Features().MaxCPUs < 1 {
		t.Errorf("name %q, features %+v", h.Driver.Name(), h.Driver.Features())
	}
}

func (h Harness) agentAndQuit(t *testing.T) {
	m, client := h.boot(t)
	hello, err := client.Hello(bounded(t, endTimeout))
	if err != nil {
		t.Fatal(err)
	}
	if hello.Generation != agentwire.Generation || hello.Configured || hello.Kernel == "" {
		t.Errorf("hello = %+v", hello)
	}
	if h.Driver.Features().MuxedAgent {
		if _, err := m.ConnectAgent(bounded(t, endTimeout)); !fault.Is(err, fault.Conflict) {
			t.Errorf("second connection to the one channel: %v", err)
		}
	}
	if err := m.Quit(bounded(t, endTimeout)); err != nil {
		t.Error(err)
	}
	exit := m.ended(t)
	if exit.Reason != hypervisor.ReasonQuit || exit.Signal != "" {
		t.Errorf("exit = %+v", exit)
	}
	if m.console.Len() == 0 {
		t.Error("the console is empty")
	}
	if _, err := m.ConnectAgent(bounded(t, endTimeout)); err == nil {
		t.Error("the agent channel of a machine that is gone can be connected to")
	}
	if err := m.Quit(t.Context()); err != nil {
		t.Errorf("Quit after the end: %v", err)
	}
	if err := m.Signal(int(syscall.SIGTERM)); err != nil {
		t.Errorf("Signal after the end: %v", err)
	}
}

func (h Harness) guestShutdown(t *testing.T) {
	m, client := h.boot(t)
	if err := client.Shutdown(bounded(t, endTimeout), agentwire.Shutdown{}); err != nil {
		t.Fatal(err)
	}
	exit := m.ended(t)
	itself := exit.Reason == hypervisor.ReasonGuestShutdown || exit.Reason == hypervisor.ReasonGuestReset
	if !itself || exit.Code != 0 {
		t.Errorf("exit = %+v\nconsole:\n%s", exit, m.console)
	}
}

func (h Harness) kill(t *testing.T) {
	m := h.start(t)
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if exit := m.ended(t); exit.Signal != "killed" || exit.Code != -1 {
		t.Errorf("exit = %+v", exit)
	}
}

func (h Harness) terminate(t *testing.T) {
	m := h.start(t)
	if err := m.Signal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if exit := m.ended(t); exit.Reason != hypervisor.ReasonSignal {
		t.Errorf("exit = %+v", exit)
	}
}

func (h Harness) concurrentEnd(t *testing.T) {
	m := h.start(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if i%2 == 0 {
				_ = m.Quit(bounded(t, endTimeout)) // the machine may be killed while it answers
			} else if err := m.Signal(int(syscall.SIGKILL)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m.ended(t)
}

func (h Harness) startFailures(t *testing.T) {
	rubbish := filepath.Join(t.TempDir(), "rubbish")
	if err := os.WriteFile(rubbish, bytes.Repeat([]byte("no kernel "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(*hypervisor.Spec)
		class fault.Class
	}{
		{"no kernel", func(s *hypervisor.Spec) { s.Kernel = "/nonexistent/vmlinux" }, fault.NotFound},
		{"no initramfs", func(s *hypervisor.Spec) { s.Initramfs = "/nonexistent/initramfs" }, fault.NotFound},
		{
			"no disk",
			func(s *hypervisor.Spec) { s.Disks = []hypervisor.Disk{{Path: "/nonexistent/disk", Serial: "data"}} },
			fault.NotFound,
		},
		{"disk is a directory", func(s *hypervisor.Spec) { s.Disks = []hypervisor.Disk{{Path: "/tmp", Serial: "data"}} }, fault.Invalid},
		{"too many cpus", func(s *hypervisor.Spec) { s.CPUs = h.Driver.Features().MaxCPUs + 1 }, fault.Invalid},
		{"kernel is none", func(s *hypervisor.Spec) { s.Kernel = rubbish }, fault.Internal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.class == fault.Internal && !h.BadKernel {
				return // this VMM does not look into it
			}
			spec, _ := h.spec(t)
			tc.spoil(&spec)
			m, err := h.Driver.Start(t.Context(), spec)
			if m != nil || !fault.Is(err, tc.class) {
				t.Errorf("Start() = %v, %v, want a fault of class %s", m, err, tc.class)
			}
			nothingLeft(t, spec.RunDir)
		})
	}
}

func (h Harness) cancelledStart(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if after == 0 {
				cancel()
			} else {
				time.AfterFunc(after, cancel)
			}
			spec, _ := h.spec(t)
			m, err := h.Driver.Start(ctx, spec)
			switch {
			case err == nil && after == 0:
				t.Error("started although it was cancelled")
			case err != nil && !fault.Is(err, fault.Cancelled):
				t.Errorf("error = %v, want class cancelled", err)
			}
			if err == nil { // it was faster
				_ = m.Signal(int(syscall.SIGKILL))
				<-m.Done()
			}
			nothingLeft(t, spec.RunDir)
		})
	}
}

func (h Harness) contextAfterStart(t *testing.T) {
	spec, _ := h.spec(t)
	ctx, cancel := context.WithCancel(t.Context())
	m, err := h.Driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-m.Done():
		t.Errorf("ended with the context of its start: %+v", m.Exit())
	case <-time.After(100 * time.Millisecond):
	}
	_ = m.Signal(int(syscall.SIGKILL))
	<-m.Done()
}

func (h Harness) parentKilled(t *testing.T) {
	spec, _ := h.spec(t)
	spec.Console, spec.Log = nil, nil
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.CommandContext(bounded(t, time.Minute), self)
	parent.Env = append(os.Environ(), envParent+"="+string(text))
	parent.Stderr = os.Stderr
	out, answer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	parent.ExtraFiles = []*os.File{answer}
	err = parent.Start()
	answer.Close()
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, _ := out.Read(line)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		_ = parent.Process.Kill()
		t.Fatalf("the parent's answer: %v", err)
	}
	vmm, err := proc.Of(pid)
	if err != nil {
		t.Error(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = parent.Wait()
	for deadline := time.Now().Add(endTimeout); vmm.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the VMM outlived the process that started it")
		}
	}
}

func (h Harness) together(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		spec, _ := h.spec(t)
		wg.Go(func() {
			m, err := h.Driver.Start(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.Quit(bounded(t, endTimeout)); err != nil {
				t.Error(err)
			}
			<-m.Done()
			nothingLeft(t, spec.RunDir)
		})
	}
	wg.Wait()
}

func (h Harness) leaks(t *testing.T) {
	cycle := func() {
		m := h.start(t)
		conn, err := m.ConnectAgent(bounded(t, endTimeout))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := m.Quit(bounded(t, endTimeout)); err != nil {
			t.Error(err)
		}
		m.ended(t)
	}
	cycle() // what is opened once and kept is open now
	files, threads := count(t, "fd"), count(t, "task")
	for range h.Cycles {
		cycle()
	}
	// A descriptor may be opened by the runtime meanwhile; one per cycle is a leak. So is a thread.
	if n := count(t, "fd"); n > files+h.Cycles/4 {
		t.Errorf("%d open files after %d machines, %d before", n, h.Cycles, files)
	}
	if n := count(t, "task"); n > threads+h.Cycles/2 {
		t.Errorf("%d threads after %d machines, %d before", n, h.Cycles, threads)
	}
}
