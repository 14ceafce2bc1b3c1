package supervisor

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var muxed = hypervisor.Features{MuxedAgent: true}

func TestStopLadder(t *testing.T) {
	ignore := func(agentwire.Shutdown) {}
	ignoreQuit := func() error { return nil }
	onlyKill := func(m *fakeMachine) func(int) error {
		return func(sig int) error {
			if sig == int(syscall.SIGKILL) {
				m.end(hypervisor.Exit{Code: -1, Signal: "killed"})
			}
			return nil
		}
	}
	const slow = "stopped: the guest did not shut down within 200ms, "
	tests := []struct {
		name   string
		change func(*fakeMachine)
		reason string
		calls  string
		grace  time.Duration // 200 ms if it is 0
	}{
		{name: "agent", change: func(*fakeMachine) {}, reason: "stopped", grace: time.Minute},
		{name: "quit", change: func(m *fakeMachine) { m.shutdown = ignore }, reason: slow + "the vmm was told to quit", calls: "quit"},
		{
			name: "terminate", reason: slow + "the vmm was terminated", calls: "quit, terminated",
			change: func(m *fakeMachine) { m.shutdown, m.onQuit = ignore, ignoreQuit },
		},
		{
			name: "quit fails", reason: slow + "the vmm was terminated", calls: "quit, terminated",
			change: func(m *fakeMachine) {
				m.shutdown, m.onQuit = ignore, func() error { return errors.New("no monitor") }
			},
		},
		{
			name:   "kill",
			reason: "killed: the guest did not shut down within 200ms and the vmm did not end", calls: "quit, terminated, killed",
			change: func(m *fakeMachine) { m.shutdown, m.onQuit, m.onSignal = ignore, ignoreQuit, onlyKill(m) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) { tt.change(m) })})
			r.start()
			r.ready()
			st, err := r.stop(false, cmp.Or(tt.grace, 200*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			if exit := r.clean(); exit.Reason != tt.reason || !exit.Expected || st.GetExit().GetReason() != tt.reason {
				t.Errorf("exit %+v\nwant %s", exit, tt.reason)
			}
			if got := r.driver.machine().history(); got != tt.calls {
				t.Errorf("calls %q, want %q", got, tt.calls)
			}
			if err := r.wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStopOfADeafGuestIsBounded(t *testing.T) {
	// The guest hangs: bytes go in, nothing comes out.
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	r.ready()
	r.sup.times.connect = 100 * time.Millisecond
	r.driver.machine().mu.Lock()
	r.driver.machine().deaf = true
	r.driver.machine().mu.Unlock()
	r.driver.machine().dropLinks()
	began := time.Now()
	st, err := r.stop(false, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.HasSuffix(st.GetExit().GetReason(), "told to quit") {
		t.Errorf("%v", st)
	}
}

func TestKill(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	r.ready()
	if _, err := r.stop(true, 0); err != nil {
		t.Fatal(err)
	}
	if exit := r.clean(); exit.Reason != "killed" || exit.Code != -1 || !exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	if got := r.driver.machine().history(); got != "killed" {
		t.Errorf("calls %q", got)
	}
}

func TestConcurrentStopsJoinAndKillCutsTheLadderShort(t *testing.T) {
	asked := make(chan struct{}, 10)
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.shutdown = func(agentwire.Shutdown) { asked <- struct{}{} }
	})})
	r.start()
	r.ready()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			st, err := r.stop(false, time.Minute)
			if err != nil || st.GetExit().GetReason() != "killed" {
				t.Errorf("stop: %v, %v", st, err)
			}
		})
	}
	<-asked
	if st := r.status(); st.GetPhase() != phaseStopping {
		t.Errorf("status %v", st)
	}
	if _, err := r.tryExec(); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger vm start dev" {
		t.Errorf("exec while stopping: %v", err)
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if len(asked) != 0 {
		t.Error("the guest was asked more than once")
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestStopDuringBoot(t *testing.T) {
	hung := make(chan struct{})
	for name, start := range map[string]func(context.Context, int, hypervisor.Spec) (hypervisor.Machine, error){
		"guest": boots(func(_ int, m *fakeMachine) { m.deaf = true; close(hung) }),
		"vmm": func(ctx context.Context, _ int, _ hypervisor.Spec) (hypervisor.Machine, error) {
			close(hung)
			<-ctx.Done()
			return nil, ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			hung = make(chan struct{})
			r := newRig(t, &fakeDriver{features: muxed, start: start})
			r.start()
			watched := r.watch()
			<-hung
			st, err := r.stop(false, 0)
			if err != nil {
				t.Fatal(err)
			}
			exit := r.clean()
			if exit.Reason != "stopped while it was starting" || !exit.Expected || exit.Failed || st.GetFault() != nil {
				t.Errorf("exit %+v, status %v", exit, st)
			}
			if err := r.wait(); err != nil {
				t.Errorf("Run: %v", err)
			}
			all := <-watched
			if last := all[len(all)-1]; last.GetPhase() != phaseExited {
				t.Errorf("watched %v", phases(all))
			}
		})
	}
}

func TestStopRefusesAnImpossibleGrace(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	for _, grace := range []time.Duration{-time.Second, time.Hour} {
		if _, err := r.stop(false, grace); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", grace, err)
		}
	}
	r.ready()
}

func TestVMMThatSurvivesSIGKILL(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.onSignal = func(int) error { return nil } // as in an uninterruptible sleep of the host's kernel
	})})
	r.start()
	r.ready()
	for range 2 {
		if _, err := r.stop(true, 0); !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "stuck in the host's kernel") {
			t.Errorf("stop: %v", err)
		}
	}
	if _, ok, _ := r.dir.ReadExit(); ok {
		t.Error("exit.json says that it has ended")
	}
	if st := r.status(); st.GetPhase() != phaseStopping {
		t.Errorf("status %v", st)
	}
	r.driver.machine().end(hypervisor.Exit{Code: -1, Signal: "killed"})
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	r.clean()
}

func TestVMMEndsByItself(t *testing.T) {
	tests := []struct {
		console string
		exit    hypervisor.Exit
		reason  string
	}{
		{exit: hypervisor.Exit{Reason: hypervisor.ReasonGuestShutdown}, reason: "guest powered off"},
		{console: "[9.1] reboot: Power down\n", exit: hypervisor.Exit{Reason: hypervisor.ReasonGuestReset}, reason: "guest powered off"},
		{exit: hypervisor.Exit{Reason: hypervisor.ReasonGuestReset}, reason: "guest rebooted, which ends a vm"},
		{console: "[2.0] reboot: Restarting system\n", exit: hypervisor.Exit{}, reason: "guest rebooted, which ends a vm"},
		{
			console: "[5.0] Kernel panic - not syncing: Attempted to kill init!\x1b[0m exitcode=0x9\n[5.1] CPU: 0\n",
			exit:    hypervisor.Exit{Reason: hypervisor.ReasonGuestReset},
			reason:  "guest kernel panic: Attempted to kill init![0m exitcode=0x9",
		},
		{exit: hypervisor.Exit{Code: -1, Signal: "killed"}, reason: "the vmm was killed by signal 9 (killed)"},
		{exit: hypervisor.Exit{Code: -1, Signal: "segmentation fault"}, reason: "the vmm was killed by signal 11 (segmentation fault)"},
		{exit: hypervisor.Exit{Reason: hypervisor.ReasonSignal}, reason: "the vmm was told to end by somebody else"},
		{exit: hypervisor.Exit{Code: 1, Detail: "a\nb\n"}, reason: "the vmm exited with code 1: a / b"},
		{exit: hypervisor.Exit{Code: 3}, reason: "the vmm exited with code 3"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
			r.start()
			r.ready()
			watched := r.watch()
			m := r.driver.machine()
			io.WriteString(m.spec.Console, tt.console)
			m.end(tt.exit)
			if err := r.wait(); err != nil {
				t.Errorf("Run: %v", err)
			}
			exit := r.clean()
			if exit.Reason != tt.reason || exit.Expected || exit.Failed || exit.Code != tt.exit.Code {
				t.Errorf("exit %+v, want %q", exit, tt.reason)
			}
			all := <-watched
			if last := all[len(all)-1]; last.GetExit().GetReason() != tt.reason || last.GetExit().GetExpected() {
				t.Errorf("last status %v", last)
			}
		})
	}
}

func TestCloseKillsAndIsIdempotent(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	r.ready()
	for range 3 {
		if err := r.sup.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if exit := r.clean(); exit.Reason != "killed" {
		t.Errorf("exit %+v", exit)
	}
	if err := r.sup.Run(t.Context()); err == nil {
		t.Error("Run after Close works")
	}
}

func TestTheNextSupervisorCanStartWhenStopReturns(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	for i := range 5 {
		r.start()
		r.ready()
		idle := r.watch() // holds the process of the old one back, which must not matter
		if _, err := r.stop(false, 0); err != nil {
			t.Fatal(i, err)
		}
		old := r.sup
		r.newSupervisor()
		defer func() {
			if err := old.Close(); err != nil {
				t.Error(err)
			}
		}()
		r.http.CloseIdleConnections()
		<-idle
	}
	if n := r.driver.attempts; n != 5 {
		t.Errorf("%d boots", n)
	}
}

func TestEndIsTheSameForAllReasonsOfAStop(t *testing.T) {
	// The end of Run's context is a host that shuts down: the guest gets its chance.
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	r.start()
	r.ready()
	r.cancel()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if exit := r.clean(); exit.Reason != "stopped" || !exit.Expected {
		t.Errorf("exit %+v", exit)
	}
}

func TestSignalText(t *testing.T) {
	for in, want := range map[string]string{
		"killed": "signal 9 (killed)", "terminated": "signal 15 (terminated)", "odd": "odd",
	} {
		if got := signalText(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
