package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/config"
	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// What a VM's environment can ask of its fake supervisor about templates and memories.
const (
	noRestore     = "FAKE=norestore" // does not start from a template: it is booted
	noResume      = "FAKE=noresume"  // does not go on from its memory
	saveFails     = "FAKE=nosave"    // Save fails, the VM goes on
	savedDies     = "FAKE=saved"     // the supervisor dies right after the memory was saved
	savingDies    = "FAKE=saving"    // and before what it is was written
	staleTemplate = "the template is damaged"
)

// Shape implements hypervisor.Shaper.
func (driver) Shape(_ context.Context, spec hypervisor.Spec) (string, error) {
	return fmt.Sprintf("fake\ncpus %d\nmemory %d", spec.CPUs, spec.Memory), nil
}

// comesFrom is what a fake supervisor makes of a template or a memory.
func (f *fake) comesFrom() (exit vmdir.Exit, failed bool) {
	switch {
	case f.launch.Resume != nil && asks(f.launch, noResume):
		return vmdir.Exit{Reason: "it cannot go on from its memory", Failed: true, Code: 1}, true
	case f.launch.Template != nil && asks(f.launch, noRestore):
		f.update(func(s *bangerv1.SupervisorStatus) { s.TemplateFault = staleTemplate })
	case f.launch.Template != nil:
		f.update(func(s *bangerv1.SupervisorStatus) { s.FromTemplate, s.TemplateFault = true, f.launch.TemplateFault })
	default:
		f.update(func(s *bangerv1.SupervisorStatus) { s.TemplateFault = f.launch.TemplateFault })
	}
	return exit, false
}

// Save writes files that say which VM and, for the memory, what was written to its disk last. A copy of the disk is asked
// for with a snapshot, after which the VM goes on.
func (f *fake) Save(ctx context.Context, req *connect.Request[bangerv1.SupervisorSaveRequest]) (*connect.Response[bangerv1.SupervisorSaveResponse], error) {
	if asks(f.launch, saveFails) {
		return nil, fault.New(fault.Exhausted, "no space")
	}
	dir := req.Msg.GetDir()
	shape, err := driver{}.Shape(ctx, f.launch.Machine)
	if err != nil {
		return nil, err
	}
	m := vmdir.SavedMachine{Launch: f.launch, Shape: shape}
	m.Launch.Template, m.Launch.Resume = nil, nil
	m.Disk, err = vmdir.StampOf(f.launch.Paths.VM(string(f.launch.VMID)) + "/" + paths.VMDisk)
	if err != nil {
		return nil, err
	}
	m.Disks = map[string]uint64{"data": uint64(m.Disk.Size)}
	if asks(f.launch, savingDies) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	for _, name := range []string{vmdir.SavedMemory, vmdir.SavedState} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name+" of "+m.Launch.Guest.Hostname), 0o600); err != nil {
			return nil, err
		}
	}
	if req.Msg.GetDisk() {
		copied := filepath.Join(dir, vmdir.SavedDisk)
		if _, err := diskcopy.Copy(ctx, f.launch.Machine.Disks[1].Path, copied); err != nil {
			return nil, err
		}
		if m.Disk, err = vmdir.StampOf(copied); err != nil {
			return nil, err
		}
	}
	if err := vmdir.WriteSaved(dir, m); err != nil {
		return nil, err
	}
	if asks(f.launch, savedDies) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	if !req.Msg.GetSuspend() {
		return connect.NewResponse(&bangerv1.SupervisorSaveResponse{StillUs: 7}), nil
	}
	f.stop <- "suspended"
	for {
		s, changed := f.get()
		if s.Phase == "exited" {
			return connect.NewResponse(&bangerv1.SupervisorSaveResponse{}), nil
		}
		<-changed
	}
}

func (h *host) suspend(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Suspend(h.t.Context(), connect.NewRequest(&bangerv1.SuspendVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) startCold(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Start(h.t.Context(), connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref, Cold: true}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// memory reports whether the memory of a VM is on the disk.
func (h *host) memory(v *bangerv1.VM) bool {
	_, err := os.Stat(filepath.Join(v.GetDir(), paths.VMSuspended))
	return err == nil
}

// launched is what a VM's supervisor was told.
func (h *host) launched(v *bangerv1.VM) vmdir.Launch {
	h.t.Helper()
	l, err := vmdir.Dir(v.GetDir()).ReadLaunch()
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func TestSuspendAndResume(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	v, err := h.suspend("dev")
	if err != nil || v.GetState() != "suspended" || v.GetSupervisorPid() != 0 {
		t.Fatalf("%v, %v", v, err)
	}
	if again, err := h.suspend("dev"); err != nil || again.GetState() != "suspended" {
		t.Errorf("again: %v, %v", again, err)
	}
	h.inOrder()
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
	if !h.memory(v) {
		t.Error("no memory is kept")
	}
	v, err = h.start("dev")
	if err != nil || v.GetState() != "running" || h.launched(v).Resume == nil {
		t.Fatalf("%v, %v", v, err)
	}
	if h.memory(v) {
		t.Error("the memory of a vm that has gone on is kept")
	}
	h.inOrder()
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.suspend("dev"); !fault.Is(err, fault.Conflict) {
		t.Errorf("of a stopped one: %v", err)
	}
}

// What is set of a suspended VM waits for its next boot.
func TestChangesOfASuspendedVM(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	if _, err := h.suspend("dev"); err != nil {
		t.Fatal(err)
	}
	size, cpus := uint64(1<<30), uint32(2)
	if _, err := h.set(&bangerv1.SetVMRequest{Ref: "dev", DiskBytes: &size}); !fault.Is(err, fault.Conflict) || !strings.HasPrefix(fault.HintOf(err), "banger vm resume dev") {
		t.Errorf("disk: %v, hint %q", err, fault.HintOf(err))
	}
	for _, force := range []bool{false, true} {
		if _, err := h.reset("dev", force); !fault.Is(err, fault.Conflict) || !strings.HasPrefix(fault.HintOf(err), "banger vm resume dev") {
			t.Errorf("reset: %v, hint %q", err, fault.HintOf(err))
		}
	}
	if v, err := h.rename("dev", "new"); err != nil || !slices.Equal(v.GetPending(), []string{"name"}) {
		t.Errorf("rename: %v, %v", v, err)
	}
	if v, err := h.set(&bangerv1.SetVMRequest{Ref: "new", Cpus: &cpus}); err != nil || !slices.Equal(v.GetPending(), []string{"cpus", "name"}) {
		t.Errorf("set: %v, %v", v, err)
	}
	v, err := h.start("new")
	if err != nil || !slices.Equal(v.GetPending(), []string{"cpus", "name"}) {
		t.Fatalf("resume: %v, %v", v, err)
	}
	if l := h.launched(v); l.Machine.CPUs != 1 || l.Guest.Hostname != "dev" || l.Name != "new" || l.Resume == nil {
		t.Errorf("%+v", l)
	}
	h.inOrder()
}

func TestAResumeThatIsRefused(t *testing.T) {
	h := newHost(t)
	h.run()
	for name, tc := range map[string]struct {
		env, want string
		touch     func(*bangerv1.VM) error
	}{
		"fails": {env: noResume, want: "cannot go on from its memory"},
		"disk": {want: "its disk was written to after its memory was saved", touch: func(v *bangerv1.VM) error {
			return os.Chtimes(filepath.Join(v.GetDir(), paths.VMDisk), time.Now(), time.Now())
		}},
		"shape": {want: "the VMM or the host is another one than when it was saved: cpus 9", touch: func(v *bangerv1.VM) error {
			dir := filepath.Join(v.GetDir(), paths.VMSuspended)
			m, err := vmdir.ReadSaved(dir)
			m.Shape = strings.Replace(m.Shape, "cpus 1", "cpus 9", 1)
			return errors.Join(err, vmdir.WriteSaved(dir, m))
		}},
		"layout": {want: "it was saved by another banger", touch: func(v *bangerv1.VM) error {
			return os.WriteFile(filepath.Join(v.GetDir(), paths.VMSuspended, vmdir.SavedManifest), []byte(`{"layout": 99}`), 0o600)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h.create(name, strings.Fields(tc.env)...)
			v, err := h.suspend(name)
			if err != nil {
				t.Fatal(err)
			}
			if tc.touch != nil {
				if err := tc.touch(v); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := h.start(name); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("start: %v", err)
			} else if tc.env == "" && !strings.HasPrefix(fault.HintOf(err), "banger vm start --cold "+name) {
				t.Errorf("hint %q", fault.HintOf(err))
			}
			if v := h.get(name); v.GetState() != "suspended" || !h.memory(v) {
				t.Errorf("afterwards: %v", v)
			}
			v, err = h.startCold(name)
			if err != nil || v.GetState() != "running" || h.memory(v) || h.launched(v).Resume != nil {
				t.Errorf("cold: %v, %v", v, err)
			}
			h.inOrder()
		})
	}
}

// A supervisor that dies in the middle of a suspend leaves the VM either suspended or stopped.
func TestSupervisorsThatDieWhileTheySave(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	for _, tc := range []struct{ name, env, state string }{
		{"after", savedDies, "suspended"}, {"before", savingDies, "stopped"}, {"not", saveFails, "running"},
	} {
		h.create(tc.name, tc.env)
		_, err := h.suspend(tc.name)
		if err == nil {
			t.Errorf("%s: no error", tc.name)
		}
		v := h.until(tc.name, tc.state)
		if h.memory(v) != (tc.state == "suspended") {
			t.Errorf("%s: memory %v", tc.name, h.memory(v))
		}
		h.inOrder()
		if v, err := h.start(tc.name); err != nil || v.GetState() != "running" {
			t.Errorf("%s: start: %v, %v", tc.name, v, err)
		}
	}
	h.inOrder()
}

// A database that is lost is rebuilt with suspended VMs in it.
func TestSuspendedVMsOutliveTheDatabase(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	stop := h.run()
	h.create("dev")
	if _, err := h.suspend("dev"); err != nil {
		t.Fatal(err)
	}
	stop()
	h.loseDatabase()
	h.run()
	if v := h.get("dev"); v.GetState() != "suspended" {
		t.Errorf("%v", v)
	}
	if v, err := h.start("dev"); err != nil || h.launched(v).Resume == nil {
		t.Errorf("%v, %v", v, err)
	}
	h.inOrder()
}

func TestIdleVMsAreSuspended(t *testing.T) {
	h := newHost(t)
	h.cfg.Times.Poll = 20 * time.Millisecond
	h.cfg.Settings.Defaults.AutoStop = 300 * time.Millisecond
	h.cfg.Settings.Defaults.IdleAction = config.IdleSuspend
	h.run()
	h.create("idle", working) // what runs in it goes on after a suspend
	h.create("stays", saveFails)
	h.until("idle", "suspended")
	if events := h.kinds("idle"); !slices.ContainsFunc(events, func(e string) bool {
		return strings.HasPrefix(e, "vm.idle: nobody has used it for") && strings.HasSuffix(e, "it is suspended")
	}) {
		t.Errorf("%q", events)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if slices.ContainsFunc(h.kinds("stays"), func(e string) bool { return strings.Contains(e, "it goes on, because it cannot be suspended") }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q", h.kinds("stays"))
		}
	}
	if v := h.get("stays"); v.GetState() != "running" {
		t.Errorf("%v", v)
	}
	h.inOrder()
}
