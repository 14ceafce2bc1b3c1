package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

func phases(all []*bangerv1.SupervisorStatus) string {
	var out []string
	for _, st := range all {
		if len(out) == 0 || out[len(out)-1] != st.GetPhase() {
			out = append(out, st.GetPhase())
		}
	}
	return strings.Join(out, " ")
}

func TestBootToReadyAndStop(t *testing.T) {
	hold := make(chan struct{})
	var got agentwire.Config
	r := newRig(t, &fakeDriver{
		features: hypervisor.Features{MuxedAgent: true},
		start: boots(func(_ int, m *fakeMachine) {
			io.WriteString(m.spec.Console, "booting\n")
			m.config = func(c agentwire.Config) error { got = c; <-hold; return nil }
		}),
	})
	r.dir.WriteExit(vmdir.Exit{Reason: "of an earlier run"})
	before := time.Now()
	r.start()

	// The daemon can watch from the first moment on.
	watched := r.watch()
	if st := r.status(); st.GetPhase() != phaseStarting || st.GetVmId() != "0123456789ab" || st.GetSupervisorPid() != int32(os.Getpid()) ||
		st.GetAddress() != "10.0.2.15" {
		t.Errorf("status at first: %v", st)
	}
	if _, ok, _ := r.dir.ReadExit(); ok {
		t.Error("the old exit.json is still there")
	}
	close(hold)
	r.ready()
	st := r.status()
	if st.GetReadyAtMs() < before.UnixMilli() || st.GetVmmPid() != int32(os.Getpid()) || st.GetBootAttempts() != 1 {
		t.Errorf("status when ready: %v", st)
	}
	waitFor(t, "the accelerator", func() bool { return r.status().GetAccelerator() == "none" })
	if d := time.Since(time.Unix(0, got.UnixNano)); d < 0 || d > time.Minute {
		t.Errorf("the guest's clock is off by %v", d)
	}
	if len(got.Entropy) != 64 || strings.Count(string(got.Entropy), "\x00") > 32 {
		t.Errorf("entropy: %d bytes: %x", len(got.Entropy), got.Entropy)
	}
	p, ok, err := r.dir.ReadProcess()
	if self, _ := proc.Self(); !ok || err != nil || p.Supervisor != self || p.VMM != self {
		t.Errorf("process.json: %v %v %v", p, ok, err)
	}

	final, err := r.stop(false, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Who hears the answer of Stop finds everything cleaned up.
	exit := r.clean()
	if exit.Reason != "stopped" || !exit.Expected || exit.Failed || final.GetExit().GetReason() != "stopped" || final.GetPhase() != phaseExited {
		t.Errorf("exit %+v, status %v", exit, final)
	}
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	all := <-watched
	if got := phases(all); got != "starting ready stopping exited" {
		t.Errorf("watched: %s", got)
	}
	last := all[len(all)-1]
	if !last.GetExit().GetExpected() || last.GetVmmPid() != 0 || last.GetFault() != nil {
		t.Errorf("last status: %v", last)
	}
	console, err := os.ReadFile(r.dir.Path(paths.VMConsole))
	if err != nil || !strings.HasPrefix(string(console), "--- banger: start at ") || !strings.HasSuffix(string(console), " ---\nbooting\n") {
		t.Errorf("console log %q, %v", console, err)
	}
}

func TestBootWithoutMux(t *testing.T) {
	// Here a connection carries one stream, which the fake serves as such.
	r := newRig(t, &fakeDriver{start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		return streamMachine{newFakeMachine(spec)}, nil
	}})
	r.start()
	r.ready()
	if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"sh", "-c", "echo hello; exit 3"}}); out != "hello\n" || code != 3 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	r.clean()
}

func TestSecondAttemptAfterAHungBoot(t *testing.T) {
	r := newRig(t, &fakeDriver{
		features: hypervisor.Features{MuxedAgent: true},
		start:    boots(func(n int, m *fakeMachine) { m.deaf = n == 1 }),
	})
	r.launch.BootDeadline = 300 * time.Millisecond
	var first *fakeMachine
	start := r.driver.start
	r.driver.start = func(ctx context.Context, n int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		if n == 2 {
			first = r.driver.machine()
			if !isDone(first) {
				t.Error("the first VMM still runs")
			}
			r.sup.launch.BootDeadline = 20 * time.Second // the same goroutine reads it
		}
		return start(ctx, n, spec)
	}
	r.start()
	r.ready()
	if n := r.status().GetBootAttempts(); n != 2 {
		t.Errorf("%d attempts", n)
	}
	if first == nil || first.history() != "killed" {
		t.Errorf("first VMM: %v", first)
	}
	r.stop(true, 0)
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestBootFailures(t *testing.T) {
	muxed := hypervisor.Features{MuxedAgent: true}
	noQEMU := fault.New(fault.Unavailable, "qemu is not installed").WithHint("apt install qemu-system-x86")
	tests := []struct {
		name     string
		start    func(context.Context, int, hypervisor.Spec) (hypervisor.Machine, error)
		attempts int
		class    fault.Class
		message  string
		hint     string
	}{
		{
			name: "hangs", attempts: 2, class: fault.Timeout,
			start: boots(func(_ int, m *fakeMachine) {
				m.deaf = true
				io.WriteString(m.spec.Log, "fake: slow today\n")
				io.WriteString(m.spec.Console, "[0.1] one\n[0.2] two\n\x1b[31m[0.3] three\x1b[0m\n[0.4] TSC unstable\r\n")
			}),
			message: "vm dev: the guest was not ready within 150ms; the vmm says: fake: slow today; its console ends with: [0.2] two / [31m[0.3] three[0m / [0.4] TSC unstable (the last of 2 attempts)",
			hint:    "banger vm logs dev",
		},
		{
			name: "silent", attempts: 2, class: fault.Timeout,
			start:   boots(func(_ int, m *fakeMachine) { m.deaf = true }),
			message: "vm dev: the guest was not ready within 150ms; its console is empty (the last of 2 attempts)",
			hint:    "banger vm logs dev",
		},
		{
			name: "driver refuses", attempts: 1, class: fault.Unavailable,
			start: func(context.Context, int, hypervisor.Spec) (hypervisor.Machine, error) {
				return nil, noQEMU
			},
			message: "vm dev: qemu is not installed", hint: "apt install qemu-system-x86",
		},
		{
			name: "driver hangs", attempts: 2, class: fault.Timeout,
			start: func(ctx context.Context, _ int, _ hypervisor.Spec) (hypervisor.Machine, error) {
				<-ctx.Done()
				return nil, errors.New("no monitor")
			},
			message: "vm dev: the vmm did not start within 150ms: no monitor (the last of 2 attempts)", hint: "banger vm logs dev",
		},
		{
			name: "vmm exits", attempts: 1, class: fault.Unavailable,
			start: boots(func(_ int, m *fakeMachine) {
				m.deaf = true
				m.end(hypervisor.Exit{Code: 1, Detail: "fake: -foo: invalid option\n"})
			}),
			message: "vm dev: the vmm exited with code 1: fake: -foo: invalid option before the guest was ready; its console is empty",
			hint:    "banger vm logs dev",
		},
		{
			name: "guest panics", attempts: 2, class: fault.Unavailable,
			start: boots(func(_ int, m *fakeMachine) {
				m.deaf = true
				io.WriteString(m.spec.Console, "[1.0] Kernel panic - not syncing: VFS: no root\n")
				m.end(hypervisor.Exit{Reason: hypervisor.ReasonGuestReset})
			}),
			message: "vm dev: guest kernel panic: VFS: no root before the guest was ready; its console ends with: " +
				"[1.0] Kernel panic - not syncing: VFS: no root (the last of 2 attempts)",
			hint: "banger vm logs dev",
		},
		{
			name: "agent refuses", attempts: 1, class: fault.Internal,
			start: boots(func(_ int, m *fakeMachine) {
				m.config = func(agentwire.Config) error { return fault.New(fault.Internal, "disk data: bad superblock") }
			}),
			message: "vm dev: the guest cannot be configured: disk data: bad superblock", hint: "banger vm logs dev",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, &fakeDriver{features: muxed, start: tt.start})
			if tt.class == fault.Timeout {
				r.launch.BootDeadline = 150 * time.Millisecond
			}
			// The failure may be over before a watcher can connect: the board is asked directly.
			if err := r.dir.WriteLaunch(r.launch); err != nil {
				t.Fatal(err)
			}
			err := r.sup.Run(t.Context())
			if got := fault.ClassOf(err); got != tt.class {
				t.Errorf("class %v, want %v", got, tt.class)
			}
			if err == nil || err.Error() != tt.message || fault.HintOf(err) != tt.hint {
				t.Errorf("got  %q, hint %q\nwant %q, hint %q", err, fault.HintOf(err), tt.message, tt.hint)
			}
			if got := r.driver.attempts; got != tt.attempts {
				t.Errorf("%d attempts, want %d", got, tt.attempts)
			}
			exit := r.clean()
			if !exit.Failed || exit.Expected || "vm dev: "+exit.Reason != tt.message {
				t.Errorf("exit %+v", exit)
			}
			st, _ := r.sup.board.get()
			if st.GetPhase() != phaseExited || st.GetFault().GetMessage() != tt.message {
				t.Errorf("status %v", st)
			}
			if m := r.driver.machine(); m != nil && !isDone(m) {
				t.Error("a VMM is left")
			}
		})
	}
}

// An agent of another generation will not learn this one: no use in trying again until the deadline.
func TestAgentOfAnotherGenerationEndsTheBoot(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		return foreignMachine{newFakeMachine(spec)}, nil
	}})
	r.launch.BootDeadline = time.Minute
	if err := r.dir.WriteLaunch(r.launch); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err := r.sup.Run(t.Context())
	if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "speaks generation 99 of the wire, this banger up to 1") {
		t.Errorf("Run: %v (%s)", err, fault.ClassOf(err))
	}
	if took := time.Since(began); took > 40*time.Second || r.driver.attempts != 1 {
		t.Errorf("%d attempts in %v", r.driver.attempts, took)
	}
	r.clean()
}

// foreignMachine has an agent that speaks another generation of the wire.
type foreignMachine struct{ *fakeMachine }

func (m foreignMachine) ConnectAgent(context.Context) (net.Conn, error) {
	host, guest := net.Pipe()
	go func() { // ends with host
		defer guest.Close()
		lines := bufio.NewScanner(guest)
		for lines.Scan() {
			if f := strings.Fields(lines.Text()); len(f) == 3 {
				go fmt.Fprintf(guest, "BANGER-AGENT 99 %s\n", f[2])
			}
		}
	}()
	return host, nil
}

func TestWatcherHearsOfAFailedBoot(t *testing.T) {
	r := newRig(t, &fakeDriver{
		features: hypervisor.Features{MuxedAgent: true},
		start:    boots(func(_ int, m *fakeMachine) { m.deaf = true }),
	})
	r.launch.BootDeadline = 300 * time.Millisecond
	r.launch.Attempts = 1
	r.start()
	all := <-r.watch()
	last := all[len(all)-1]
	if last.GetPhase() != phaseExited || last.GetFault().GetClass() != string(fault.Timeout) {
		t.Errorf("last status: %v", last)
	}
	if err := r.wait(); !fault.Is(err, fault.Timeout) {
		t.Errorf("Run: %v", err)
	}
}

func TestAgentOfAnotherMomentIsWaitedFor(t *testing.T) {
	// The channel refuses at first, as a socket does before the guest is up.
	refuse := make(chan struct{})
	time.AfterFunc(200*time.Millisecond, func() { close(refuse) })
	r := newRig(t, &fakeDriver{start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		return lateMachine{streamMachine{newFakeMachine(spec)}, refuse}, nil
	}})
	r.start()
	r.ready()
	r.stop(true, 0)
}

func TestLockHeld(t *testing.T) {
	r := newRig(t, &fakeDriver{start: func(context.Context, int, hypervisor.Spec) (hypervisor.Machine, error) {
		t.Error("started")
		return nil, errors.New("started")
	}})
	r.dir.WriteLaunch(r.launch)
	r.dir.WriteExit(vmdir.Exit{Reason: "untouched"})
	lock, err := takeLock(r.dir.Path(paths.VMLock))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := r.sup.Run(t.Context()); err != nil {
		t.Errorf("Run: %v", err)
	}
	if exit, _, _ := r.dir.ReadExit(); exit.Reason != "untouched" {
		t.Errorf("exit.json was touched: %+v", exit)
	}
	if err := r.sup.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadLaunchIsRecorded(t *testing.T) {
	for name, change := range map[string]func(*vmdir.Launch){
		"unknown driver":        func(l *vmdir.Launch) { l.Driver = "bochs" },
		"id of a parent":        func(l *vmdir.Launch) { l.VMID = ".." },
		"no id":                 func(l *vmdir.Launch) { l.VMID = "" },
		"no run directory":      func(l *vmdir.Launch) { l.Paths.Run = "" },
		"id with a directory":   func(l *vmdir.Launch) { l.VMID = "a/b" },
		"boot without deadline": func(l *vmdir.Launch) { l.BootDeadline = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &fakeDriver{})
			change(&r.launch)
			r.dir.WriteLaunch(r.launch)
			if err := r.sup.Run(t.Context()); !fault.Is(err, fault.Invalid) {
				t.Errorf("Run: %v", err)
			}
			if exit, ok, _ := r.dir.ReadExit(); !ok || !exit.Failed || !strings.HasPrefix(exit.Reason, "supervisor.json: ") {
				t.Errorf("exit.json: %v %+v", ok, exit)
			}
			if lock, err := takeLock(r.dir.Path(paths.VMLock)); err != nil {
				t.Error(err)
			} else {
				lock.Close()
			}
		})
	}
}

func TestVMMOfAKilledSupervisorIsGoneBeforeTheNextStarts(t *testing.T) {
	old := exec.Command("sleep", "60")
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.WaitGroup
	once.Go(func() { old.Wait() })
	id, err := proc.Of(old.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, &fakeDriver{
		features: hypervisor.Features{MuxedAgent: true},
		start: boots(func(int, *fakeMachine) {
			if id.Alive() {
				t.Error("two VMMs at once")
			}
		}),
	})
	r.sup.times.kill = 20 * time.Second
	r.dir.WriteProcess(vmdir.Process{VMM: id})
	r.start()
	r.ready()
	once.Wait()
	r.stop(true, 0)
}

func TestSignalsStopInOrder(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		r := newRig(t, &fakeDriver{features: hypervisor.Features{MuxedAgent: true}, start: boots(nil)})
		r.start()
		r.ready()
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
		time.Sleep(20 * time.Millisecond)
		if st := r.status(); st.GetPhase() != phaseReady {
			t.Errorf("after SIGHUP: %v", st)
		}
		syscall.Kill(os.Getpid(), sig)
		if err := r.wait(); err != nil {
			t.Error(err)
		}
		if exit := r.clean(); exit.Reason != "stopped" || !exit.Expected {
			t.Errorf("%v: %+v", sig, exit)
		}
	}
}
