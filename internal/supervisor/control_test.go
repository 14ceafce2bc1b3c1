package supervisor

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	bangerv1 "banger/proto/banger/v1"
)

func TestPauseAndUnpause(t *testing.T) {
	var clock atomic.Int64
	r := with(t, func(m *fakeMachine) { m.clock = func(c agentwire.Clock) { clock.Store(c.UnixNano) } })
	watched := r.watch()
	for range 2 { // twice is as good as once
		if st, err := r.pause(); err != nil || st.GetPhase() != phasePaused {
			t.Fatalf("%v, %v", st, err)
		}
	}
	if _, err := r.tryExec(); !fault.Is(err, fault.Conflict) || err.Error() != "vm dev is paused" || fault.HintOf(err) != "banger vm unpause dev" {
		t.Errorf("exec: %v, hint %q", err, fault.HintOf(err))
	}
	if _, err := r.ports(); !fault.Is(err, fault.Conflict) {
		t.Errorf("ports: %v", err)
	}
	if _, err := r.grow(); !fault.Is(err, fault.Conflict) || err.Error() != "vm dev is paused" {
		t.Errorf("grow: %v", err)
	}
	if clock.Load() != 0 {
		t.Error("the clock of a paused guest was set")
	}
	for range 2 {
		if st, err := r.unpause(); err != nil || st.GetPhase() != phaseReady {
			t.Fatalf("%v, %v", st, err)
		}
	}
	if d := time.Since(time.Unix(0, clock.Load())); d < 0 || d > time.Minute {
		t.Errorf("the guest's clock is off by %v", d)
	}
	if _, err := r.tryExec(); err != nil {
		t.Errorf("exec: %v", err)
	}
	if got := r.driver.machine().history(); got != "pause, resume" {
		t.Errorf("calls %q", got)
	}
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	if got := phases(<-watched); got != "ready paused ready stopping exited" {
		t.Errorf("watched %s", got)
	}
	r.clean()
}

func TestPauseThatFailsLeavesARunningGuest(t *testing.T) {
	r := with(t, func(m *fakeMachine) { m.onPause = func() error { return errors.New("no monitor") } })
	if _, err := r.pause(); err == nil || err.Error() != "vm dev: no monitor" {
		t.Errorf("err = %v", err)
	}
	if got := r.driver.machine().history(); got != "pause, resume" {
		t.Errorf("calls %q", got)
	}
	if _, err := r.tryExec(); err != nil {
		t.Errorf("exec: %v", err)
	}
}

func TestUnpauseThatFailsCanBeRepeated(t *testing.T) {
	tries := 0
	r := with(t, func(m *fakeMachine) {
		m.onResume = func() error {
			if tries++; tries == 1 {
				return fault.New(fault.Exhausted, "no space left on the host").WithHint("df -h")
			}
			return nil
		}
	})
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.unpause(); !fault.Is(err, fault.Exhausted) || fault.HintOf(err) != "df -h" {
		t.Errorf("err = %v", err)
	}
	if st := r.status(); st.GetPhase() != phasePaused {
		t.Errorf("status %v", st)
	}
	if _, err := r.unpause(); err != nil {
		t.Error(err)
	}
}

func TestStopOfAPausedGuestResumesIt(t *testing.T) {
	r := with(t, func(*fakeMachine) {})
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	if exit := r.clean(); exit.Reason != "stopped" || !exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	if got := r.driver.machine().history(); got != "pause, resume" {
		t.Errorf("calls %q", got)
	}
}

func TestStopOfAPausedGuestThatCannotGoOn(t *testing.T) {
	r := with(t, func(m *fakeMachine) { m.onResume = func() error { return errors.New("disk full") } })
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	if exit := r.clean(); !strings.HasSuffix(exit.Reason, "the vmm was told to quit") {
		t.Errorf("exit %+v", exit)
	}
}

func TestKillOfAPausedGuestDoesNotResumeIt(t *testing.T) {
	r := with(t, func(*fakeMachine) {})
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Fatal(err)
	}
	if got := r.driver.machine().history(); got != "pause, killed" {
		t.Errorf("calls %q", got)
	}
	if exit := r.clean(); exit.Reason != "killed" {
		t.Errorf("exit %+v", exit)
	}
}

func TestPausedGuestThatEndsByItself(t *testing.T) {
	r := with(t, func(*fakeMachine) {})
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	r.driver.machine().end(hypervisor.Exit{Code: -1, Signal: "killed"})
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if exit := r.clean(); exit.Reason != "the vmm was killed by signal 9 (killed)" || exit.Expected {
		t.Errorf("exit %+v", exit)
	}
}

func TestGuestThatTheVMMPauses(t *testing.T) {
	full := true
	r := with(t, func(m *fakeMachine) {
		m.onResume = func() error {
			if full {
				m.spec.Halted("no space")
			}
			return nil
		}
	})
	const reason = "the host cannot write to the vm's disk: no space left on device"
	for range 3 {
		r.driver.machine().spec.Halted(reason)
	}
	waitFor(t, "phase paused", func() bool { return r.status().GetPhase() == phasePaused })
	if f := r.status().GetFault(); f.GetMessage() != reason || f.GetHint() != "banger vm unpause dev" {
		t.Errorf("fault %v", f)
	}
	if _, err := r.tryExec(); !fault.Is(err, fault.Conflict) || err.Error() != "vm dev is paused: "+reason {
		t.Errorf("exec: %v", err)
	}
	if _, err := r.unpause(); !fault.Is(err, fault.Exhausted) || err.Error() != "vm dev: no space" {
		t.Errorf("unpause without space: %v", err)
	}
	if st := r.status(); st.GetPhase() != phasePaused || st.GetFault().GetMessage() != "no space" {
		t.Errorf("status %v", st)
	}
	full = false
	if st, err := r.unpause(); err != nil || st.GetPhase() != phaseReady || st.GetFault() != nil {
		t.Errorf("unpause: %v, %v", st, err)
	}
	if _, err := r.tryExec(); err != nil {
		t.Errorf("exec: %v", err)
	}
	r.driver.machine().spec.Halted(reason)
	waitFor(t, "phase paused", func() bool { return r.status().GetPhase() == phasePaused })
	if _, err := r.stop(false, 0); err != nil { // it gets the chance to go on and shut down
		t.Fatal(err)
	}
	if exit := r.clean(); exit.Reason != "stopped" {
		t.Errorf("exit %+v", exit)
	}
	if st, _ := r.sup.board.get(); st.GetFault() != nil {
		t.Errorf("status %v", st)
	}
}

func TestStopCutsATaskShort(t *testing.T) {
	growing := make(chan struct{})
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.grow = func(agentwire.Grow) (agentwire.Grown, error) {
			close(growing)
			<-m.done
			return agentwire.Grown{}, errors.New("the end")
		}
	})})
	r.withDisk()
	r.sup.times.grow = time.Minute
	r.start()
	r.ready()
	failed := make(chan error, 1)
	go func() { _, err := r.grow(); failed <- err }()
	<-growing
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !fault.Is(err, fault.Conflict) || err.Error() != "vm dev is stopping" {
		t.Errorf("grow: %v", err)
	}
	if _, err := r.pause(); err == nil {
		t.Error("a vm that is gone can be paused")
	}
	r.clean()
}

func TestControlWhileTheVMStarts(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) { m.deaf = true })})
	r.start()
	for name, call := range map[string]func() error{
		"pause":   func() error { _, err := r.pause(); return err },
		"unpause": func() error { _, err := r.unpause(); return err },
		"grow":    func() error { _, err := r.grow(); return err },
		"stats":   func() error { _, err := r.stats(1); return err },
	} {
		if err := call(); !fault.Is(err, fault.Conflict) || err.Error() != "vm dev is still starting" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// plainMachine can do nothing but what every machine can.
type plainMachine struct{ hypervisor.Machine }

func TestVMMThatCannot(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: func(_ context.Context, _ int, spec hypervisor.Spec) (hypervisor.Machine, error) {
		return plainMachine{newFakeMachine(spec)}, nil
	}})
	r.start()
	r.ready()
	if _, err := r.pause(); !fault.Is(err, fault.Invalid) || err.Error() != "vm dev: its vmm cannot pause" {
		t.Errorf("pause: %v", err)
	}
	if _, err := r.grow(); !fault.Is(err, fault.Invalid) || fault.HintOf(err) != "banger vm restart dev" {
		t.Errorf("grow: %v", err)
	}
}

func TestGrowDisk(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(nil)})
	disk := r.withDisk()
	r.start()
	r.ready()
	if err := os.Truncate(disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it can be repeated
		grown, err := r.grow()
		want := &bangerv1.SupervisorGrowDiskResponse{DiskBytes: 1 << 20, FilesystemBytes: 1 << 20}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, grown, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	m := r.driver.machine()
	if got := m.history(); got != "resize data 1048576, resize data 1048576" {
		t.Errorf("calls %q", got)
	}
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	if _, err := r.grow(); err == nil {
		t.Error("a disk that is gone has grown")
	}
	if st := r.status(); st.GetPhase() != phaseReady {
		t.Errorf("status %v", st)
	}
}

func TestGrowDiskFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*fakeMachine)
		class  fault.Class
		text   string
	}{
		"vmm refuses": {
			func(m *fakeMachine) {
				m.onResize = func(string, uint64) error { return fault.New(fault.Invalid, "disk data is read-only") }
			}, fault.Invalid, "vm dev: disk data is read-only",
		},
		"guest fails": {
			func(m *fakeMachine) {
				m.grow = func(agentwire.Grow) (agentwire.Grown, error) {
					return agentwire.Grown{}, fault.New(fault.Internal, "resize: no\x1b space")
				}
			}, fault.Internal, "vm dev: resize: no\ufffd space",
		},
		"guest lies": {
			func(m *fakeMachine) {
				m.grow = func(g agentwire.Grow) (agentwire.Grown, error) { return agentwire.Grown{Device: g.Bytes + 1}, nil }
			}, fault.Unavailable, "vm dev: guest grow: the answer makes no sense",
		},
		"guest hangs": {
			func(m *fakeMachine) {
				m.grow = func(agentwire.Grow) (agentwire.Grown, error) { <-m.done; return agentwire.Grown{}, nil }
			}, fault.Timeout, "guest grow",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) { tt.change(m) })})
			r.withDisk()
			r.sup.times.grow = 300 * time.Millisecond
			r.start()
			r.ready()
			if _, err := r.grow(); !fault.Is(err, tt.class) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("err = %v (%s), want %s with %q", err, fault.ClassOf(err), tt.class, tt.text)
			}
			if _, err := r.tryExec(); err != nil {
				t.Errorf("exec afterwards: %v", err)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	r := with(t, func(m *fakeMachine) {
		m.ports = []agentwire.Port{
			{Protocol: "tcp", Address: "::", Port: 22, PID: 7, Process: "ss\x1bhd"}, {Protocol: "sctp", Address: "::", Port: 1},
		}
	})
	ports, err := r.ports()
	want := []*bangerv1.Port{{Protocol: "tcp", Address: "::", Port: 22, Pid: 7, Process: "sshd"}}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, ports, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A VMM process that hangs must not hang the leading goroutine.
func TestPauseOfAVMMThatHangs(t *testing.T) {
	r := newRig(t, &fakeDriver{})
	sup := r.spawn()
	r.freezeVMM()
	failed := make(chan error, 1)
	go func() { _, err := r.pause(); failed <- err }()
	time.Sleep(50 * time.Millisecond)
	if _, err := r.stop(true, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("it was paused")
	}
	r.clean()
	sup.wait(t)
}
