package daemon_test

import (
	"database/sql"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/rpc"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// process runs a daemon in a process of its own and returns the functions that end it: by SIGKILL and by SIGTERM.
func (h *host) process() (kill, terminate func()) {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(h.t.Context(), os.Args[0], "fake-daemon", filepath.Dir(h.paths.Data))
	cmd.Env = append(os.Environ(), "BANGER_READY_FD=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	w.Close()
	if line, err := io.ReadAll(r); err != nil || string(line) != "ok\n" {
		h.t.Fatalf("the daemon says %q, %v", line, err)
	}
	end := func(sig syscall.Signal) func() {
		return func() {
			h.http.CloseIdleConnections()
			if err := cmd.Process.Signal(sig); err != nil {
				h.t.Error(err)
			}
			if err := cmd.Wait(); sig == syscall.SIGTERM && err != nil {
				h.t.Error(err)
			}
		}
	}
	return end(syscall.SIGKILL), end(syscall.SIGTERM)
}

func TestAdoptionAfterAKill(t *testing.T) {
	h := newHost(t)
	kill, _ := h.process()
	running, booting, dies, leaves := h.create("running"), "booting", h.create("dies"), h.create("leaves")
	created := h.wait(h.begin(&bangerv1.VMSpec{Name: booting, Env: []string{bootHangs}}, false)).GetResultId()
	go func() { _, _ = h.start(booting) }()
	h.until(booting, "starting")
	rm := h.get(h.wait(h.begin(&bangerv1.VMSpec{Name: "rm", RemoveOnExit: true}, true)).GetResultId())
	kill()
	h.killSupervisor(dies.GetId())
	h.killSupervisor(rm.GetId())
	h.stopBehindTheBack(leaves.GetId())
	if n := len(h.ls(h.paths.VMs())); n != 5 {
		t.Fatalf("%d directories", n)
	}

	h.run()
	if v := h.get("running"); v.GetState() != "running" || v.GetSupervisorPid() != running.GetSupervisorPid() || v.GetStartedAtMs() != running.GetStartedAtMs() {
		t.Errorf("running: %v", v)
	}
	if v := h.get("dies"); v.GetState() != "stopped" || v.GetReason() != "the supervisor was killed" {
		t.Errorf("dies: %v", v)
	}
	if v := h.get("leaves"); v.GetState() != "stopped" || v.GetReason() != "stopped" {
		t.Errorf("leaves: %v", v)
	}
	if v := h.get(created); v.GetState() != "starting" {
		t.Errorf("booting: %v", v)
	}
	h.until("rm", "")
	// What was adopted is watched and can be ended.
	h.killSupervisor(running.GetId())
	h.until("running", "stopped")
	for _, name := range []string{"running", booting, "dies", "leaves"} {
		if err := h.remove(name, true); err != nil {
			t.Error(err)
		}
	}
	h.nothingLeft()
}

// stopBehindTheBack stops a VM without its daemon.
func (h *host) stopBehindTheBack(id string) {
	h.t.Helper()
	c := rpc.Client(h.paths.SupervisorSocket(id))
	defer c.CloseIdleConnections()
	resp, err := bangerv1connect.NewSupervisorServiceClient(c, rpc.BaseURL).
		Stop(h.t.Context(), connect.NewRequest(&bangerv1.SupervisorStopRequest{}))
	if err != nil || resp.Msg.GetPhase() != "exited" {
		h.t.Fatalf("%v, %v", resp, err)
	}
}

func TestWhatAKilledDaemonLeftHalfDoneIsFinished(t *testing.T) {
	h := newHost(t)
	kill, _ := h.process()
	h.create("deleting")
	h.create("half")
	h.create("stopping")
	h.begin(&bangerv1.VMSpec{Name: "pulls", Image: "large"}, true)
	for len(h.ls(h.paths.Staging())) == 0 {
		time.Sleep(time.Millisecond)
	}
	kill()
	// The states that a kill at the right moment leaves.
	h.edit("UPDATE vms SET state = 'deleting' WHERE name = 'deleting'")
	h.edit("UPDATE vms SET state = 'created', made = 0 WHERE name = 'half'")
	h.edit("UPDATE vms SET state = 'stopping' WHERE name = 'stopping'")
	if err := os.Mkdir(filepath.Join(h.paths.VMs(), ".removed-x"), 0o700); err != nil {
		t.Fatal(err)
	}

	h.run()
	h.until("deleting", "")
	h.until("half", "")
	if v := h.until("stopping", "stopped"); v.GetReason() != "stopped" {
		t.Errorf("%v", v)
	}
	if err := h.remove("stopping", false); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Minute); len(h.ls(h.paths.Staging())) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // in the background
	}
	h.nothingLeft()
}

// edit changes the database while no daemon runs.
func (h *host) edit(statement string) {
	h.t.Helper()
	db, err := sql.Open("sqlite", h.paths.Database())
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		h.t.Fatal(err)
	}
}

func TestARowThatSaysStoppedIsCorrected(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	stop()
	h.edit("UPDATE vms SET state = 'stopped', supervisor_pid = 0")
	h.run()
	if got := h.until("dev", "running"); got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", got)
	}
}

func TestAVMWhoseDirectoryIsGone(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.get(h.wait(h.begin(&bangerv1.VMSpec{Name: "dev"}, false)).GetResultId())
	stop()
	if err := os.RemoveAll(v.GetDir()); err != nil {
		t.Fatal(err)
	}
	h.run()
	if got := h.get("dev"); !strings.HasSuffix(got.GetReason(), "is gone") {
		t.Errorf("%v", got)
	}
	if err := h.remove("dev", false); err != nil {
		t.Error(err)
	}
	h.nothingLeft()
}

// TestWedgedSupervisors: one that does not answer keeps its VM while the VM is wanted, and is killed when it is not.
func TestWedgedSupervisors(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	stop := h.run()
	for name, what := range map[string]string{"mute": mute, "stone": neverListen, "unwanted": mute} {
		h.wait(h.begin(&bangerv1.VMSpec{Name: name, Env: []string{what}}, false))
		go func() { _, _ = h.start(name) }()
		h.until(name, "starting")
		dir := vmdir.Dir(h.get(name).GetDir())
		for {
			if _, ok, _ := dir.ReadProcess(); ok {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	h.edit("UPDATE vms SET state = 'stopping' WHERE name = 'unwanted'")
	began := time.Now()
	h.run()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the start took %v", took)
	}
	h.until("unwanted", "stopped")
	for _, name := range []string{"mute", "stone"} {
		if v := h.get(name); v.GetState() != "starting" {
			t.Errorf("%v", v)
		}
	}
	// A supervisor that does not listen is killed at once, one that listens and is silent after the bound.
	if _, err := h.vms.Kill(t.Context(), connect.NewRequest(&bangerv1.KillVMRequest{Ref: "stone"})); err != nil {
		t.Error(err)
	}
	if v := h.get("stone"); v.GetState() != "stopped" {
		t.Errorf("%v", v)
	}
}

func TestTheStoreIsWhatTheTestsThinkItIs(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	stop()
	db, err := store.Open(t.Context(), h.paths.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	row, err := db.VM(t.Context(), vm.ID(v.GetId()))
	if err != nil || row.State != vm.Running || !row.Made {
		t.Errorf("%+v, %v", row, err)
	}
}
