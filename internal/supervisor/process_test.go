package supervisor

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// superviseForTest is the main function of a supervisor process with the fake VMM.
func superviseForTest(dir vmdir.Dir) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s := New(Config{Dir: dir, Drivers: map[string]hypervisor.Driver{"fake": fakevmm.New(fakevmm.Options{})}, Log: log, Step: stepForTest})
	if os.Getenv(failAtEnv) != "" {
		s.times.settle, s.times.quit, s.times.term = 100*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	}
	if err := s.Run(context.Background()); err != nil {
		return 1
	}
	return 0
}

// spawned is a supervisor process.
type spawned struct {
	proc.Identity
	ended <-chan struct{}
}

// spawn starts a supervisor and waits until its guest is ready.
func (r *rig) spawn(env ...string) spawned {
	r.t.Helper()
	s := r.spawnOnly(env...)
	waitFor(r.t, "the guest", func() bool {
		st, err := r.client.Status(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorStatusRequest{}))
		return err == nil && st.Msg.GetPhase() == phaseReady
	})
	return s
}

// spawnOnly starts a supervisor as the daemon does.
func (r *rig) spawnOnly(env ...string) spawned {
	r.t.Helper()
	kernel := filepath.Join(string(r.dir), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.launch.Machine = hypervisor.Spec{
		ID: string(r.launch.VMID), Name: "dev", CPUs: 1, Memory: 256 << 20, Kernel: kernel,
		Disks:   r.launch.Machine.Disks,
		Cmdline: []string{"vm=" + string(r.dir)}, // how vmms finds its processes
	}
	if err := r.dir.WriteLaunch(r.launch); err != nil {
		r.t.Fatal(err)
	}
	log := r.dir.Path(paths.VMSupervisorLog)
	id, ended, err := proc.Spawn([]string{"/proc/self/exe"}, append(append(os.Environ(), "GORACE=atexit_sleep_ms=0", supervisorEnv+"="+string(r.dir)), env...), log)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := id.Kill(syscall.SIGKILL); err != nil {
			r.t.Error(err)
		}
		<-ended
		if r.t.Failed() {
			text, _ := os.ReadFile(log)
			r.t.Logf("supervisor.log:\n%s", text)
		}
	})
	return spawned{id, ended}
}

func (s spawned) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		t.Fatal("the supervisor does not end")
	}
}

// freezeVMM stops the VMM's process. The signal has been sent when kill returns, but on a busy host threads of the
// process run on until one of them gets to take it.
func (r *rig) freezeVMM() {
	r.t.Helper()
	p, ok, err := r.dir.ReadProcess()
	if !ok || err != nil || !p.VMM.Alive() {
		r.t.Fatalf("no vmm: %+v, %v", p, err)
	}
	if err := p.VMM.Kill(syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	waitFor(r.t, "the vmm to stand still", func() bool {
		threads, err := filepath.Glob("/proc/" + strconv.Itoa(p.VMM.PID) + "/task/*/stat")
		stopped := err == nil && len(threads) > 0
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			state := strings.TrimSpace(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			stopped = stopped && err == nil && strings.HasPrefix(state, "T")
		}
		return stopped
	})
}

func TestVMMThatIsKilled(t *testing.T) {
	r := newRig(t, &fakeDriver{})
	sup := r.spawn()
	watched := r.watch()
	p, _, _ := r.dir.ReadProcess()
	if err := p.VMM.Kill(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	all := <-watched
	const want = "the vmm was killed by signal 9 (killed)"
	if exit := r.clean(); exit.Reason != want || exit.Code != -1 || exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	if last := all[len(all)-1]; last.GetExit().GetReason() != want {
		t.Errorf("last status %v", last)
	}
	sup.wait(t)
}

func TestSupervisorThatIsKilled(t *testing.T) {
	r := newRig(t, &fakeDriver{})
	sup := r.spawn()
	p, _, _ := r.dir.ReadProcess()
	if p.Supervisor != sup.Identity || !p.VMM.Alive() {
		t.Fatalf("process.json %+v", p)
	}
	if err := sup.Kill(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	sup.wait(t)
	waitFor(t, "the VMM to die with it", func() bool { return !p.VMM.Alive() })
	if _, ok, _ := r.dir.ReadExit(); ok {
		t.Error("there is an exit.json")
	}
	// What it left is no obstacle to the next one, which a host that shuts down stops in order.
	next := r.spawn()
	if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"echo", "hello"}}); out != "hello\n" || code != 0 {
		t.Errorf("exec: %q %d", out, code)
	}
	if err := next.Kill(syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	if err := next.Kill(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	next.wait(t)
	if exit := r.clean(); exit.Reason != "stopped" || !exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	console, err := os.ReadFile(r.dir.Path(paths.VMConsole))
	if n := strings.Count(string(console), "--- banger: start at "); err != nil || n != 2 {
		t.Errorf("%d starts in the console log: %v", n, err)
	}
}

func TestVMMThatHangsIsKilledInTime(t *testing.T) {
	r := newRig(t, &fakeDriver{})
	sup := r.spawn()
	r.freezeVMM() // a stopped VMM is what a guest looks like that hangs completely
	began := time.Now()
	if st := r.status(); st.GetPhase() != phaseReady || time.Since(began) > 10*time.Second {
		t.Errorf("status %v after %v", st, time.Since(began))
	}
	if _, err := r.stop(false, time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("stop took %v", took)
	}
	if exit := r.clean(); !strings.HasPrefix(exit.Reason, "killed: the guest did not shut down within 1s") || !exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	sup.wait(t)
}
