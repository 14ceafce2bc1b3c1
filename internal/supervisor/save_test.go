package supervisor

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// save is the RPC, into a directory of that name in the VM's own, which is made anew.
func (r *rig) save(name string, req *bangerv1.SupervisorSaveRequest) error {
	r.t.Helper()
	req.Dir = r.dir.Path(name)
	if err := errors.Join(os.RemoveAll(req.Dir), os.Mkdir(req.Dir, 0o700)); err != nil {
		r.t.Fatal(err)
	}
	_, err := r.client.Save(r.t.Context(), connect.NewRequest(req))
	return err
}

func (r *rig) suspend() error {
	return r.save(paths.VMSuspended, &bangerv1.SupervisorSaveRequest{Suspend: true})
}

// savedFor prepares the VM for a step that only a VM comes by which goes on from its memory.
func (r *rig) savedFor(step string) {
	r.t.Helper()
	if step != StepBootWake {
		return
	}
	sup := r.spawn()
	if err := r.suspend(); err != nil {
		r.t.Fatal(err)
	}
	sup.wait(r.t)
	r.http.CloseIdleConnections()
	r.resumes()
}

// resumes has the next supervisor go on from what was saved.
func (r *rig) resumes() {
	r.t.Helper()
	dir := r.dir.Path(paths.VMSuspended)
	m, err := vmdir.ReadSaved(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	r.launch.Resume = m.Saved(dir)
}

// goesOn checks that a VM whose resume failed at a step can still go on from its memory, and has the next supervisor
// boot.
func (r *rig) goesOn(step string) {
	r.t.Helper()
	if step != StepBootWake {
		return
	}
	r.works()
	r.launch.Resume = nil
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	r, untouched := stepRig(t)
	sup := r.spawn()
	if err := r.suspend(); err != nil {
		t.Fatal(err)
	}
	sup.wait(t)
	if exit := r.clean(); !exit.Suspended || !exit.Expected || exit.Failed || exit.Reason != "suspended" {
		t.Errorf("exit %+v", exit)
	}
	untouched()
	m, err := vmdir.ReadSaved(r.dir.Path(paths.VMSuspended))
	if err != nil {
		t.Fatal(err)
	}
	if now, err := vmdir.StampOf(r.dir.Path(paths.VMDisk)); err != nil || now != m.Disk {
		t.Errorf("the disk is %+v, saved was %+v; %v", now, m.Disk, err)
	}
	if m.Launch.VMID != r.launch.VMID || m.Shape == "" || len(m.Disks) != 1 {
		t.Errorf("saved %+v", m)
	}
	r.resumes()
	r.works()
	untouched()
}

// A copy of the machine is made while it goes on.
func TestSaveWithDisk(t *testing.T) {
	t.Parallel()
	r, _ := stepRig(t)
	sup := r.spawn()
	if err := r.save("copy", &bangerv1.SupervisorSaveRequest{Disk: true, SyncGuest: true}); err != nil {
		t.Fatal(err)
	}
	if said, err := os.ReadFile(r.dir.Path(paths.VMConsole)); err != nil || !strings.Contains(string(said), "fake vmm: synced\n") {
		t.Errorf("%q, %v", said, err)
	}
	if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"echo", "hello"}}); out != "hello\n" || code != 0 {
		t.Errorf("exec: %q %d", out, code)
	}
	want, _ := os.ReadFile(r.dir.Path(paths.VMDisk))
	if got, err := os.ReadFile(r.dir.Path("copy/" + vmdir.SavedDisk)); err != nil || string(got) != string(want) {
		t.Errorf("the copy has %d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := r.stop(false, 0); err != nil {
		t.Error(err)
	}
	sup.wait(t)
}

// A guest is asked to sync if it runs; one that does not answer is waited for no longer than that.
func TestSyncGuest(t *testing.T) {
	var asked atomic.Int32
	stuck := make(chan struct{})
	r := with(t, func(m *fakeMachine) {
		m.sync = func() error {
			asked.Add(1)
			<-stuck
			return nil
		}
	})
	defer close(stuck)
	r.sup.times.sync = 50 * time.Millisecond
	r.sup.syncGuest(t.Context())
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	r.sup.syncGuest(t.Context())
	if n := asked.Load(); n != 1 {
		t.Errorf("a paused guest was asked: %d", n)
	}
}

func TestSaveRefuses(t *testing.T) {
	t.Parallel()
	r, _ := stepRig(t)
	sup := r.spawn()
	full := r.dir.Path("full")
	if err := errors.Join(os.Mkdir(full, 0o700), os.WriteFile(full+"/mine", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"relative", full, r.dir.Path("missing")} {
		_, err := r.client.Save(t.Context(), connect.NewRequest(&bangerv1.SupervisorSaveRequest{Dir: dir}))
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := os.Stat(full + "/mine"); err != nil {
		t.Error(err)
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Error(err)
	}
	sup.wait(t)
}

// A memory that cannot be restored does not become a boot.
func TestResumeFails(t *testing.T) {
	t.Parallel()
	r, untouched := stepRig(t)
	sup := r.spawn()
	if err := r.suspend(); err != nil {
		t.Fatal(err)
	}
	sup.wait(t)
	r.http.CloseIdleConnections()
	r.resumes()
	if err := os.WriteFile(r.launch.Resume.State, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	sup = r.spawnOnly()
	sup.wait(t)
	if exit := r.clean(); !exit.Failed || exit.Expected {
		t.Errorf("exit %+v", exit)
	}
	untouched()
}

// A VMM that is killed before its memory is on the disk is a VM that has stopped; one that is killed after that makes no
// difference.
func TestVMMDiesWhileItIsSaved(t *testing.T) {
	for _, tc := range []struct {
		step      string
		suspended bool
	}{{StepSaveBegin, false}, {StepSaveSealed, true}} {
		t.Run(tc.step, func(t *testing.T) {
			t.Parallel()
			r, untouched := stepRig(t)
			sup := r.spawn(killAtEnv + "=" + tc.step)
			if err := r.suspend(); (err == nil) != tc.suspended {
				t.Errorf("err = %v", err)
			}
			sup.wait(t)
			_, err := vmdir.ReadSaved(r.dir.Path(paths.VMSuspended))
			if exit := r.clean(); exit.Suspended != tc.suspended || exit.Expected != tc.suspended || (err == nil) != tc.suspended {
				t.Errorf("exit %+v, manifest: %v", exit, err)
			}
			if left := r.vmms(); len(left) > 0 {
				t.Errorf("VMMs are left: %q", left)
			}
			untouched()
			if tc.suspended {
				r.resumes()
			}
			r.works()
		})
	}
}
