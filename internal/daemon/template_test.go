package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	bangerv1 "banger/proto/banger/v1"
)

// templatesEnv makes a daemon in a process of its own start VMs from templates, with these faults of the fake VMM.
const templatesEnv = "BANGER_TEST_TEMPLATES"

// withTemplates has VMs start from templates. faults are those of the fake VMM that makes them.
func (h *host) withTemplates(faults string) {
	h.cfg.Settings.VMM.Templates, h.cfg.Times.Lull = true, time.Hour // no prepared ones, unless a test wants them
	h.cfg.Drivers = map[string]hypervisor.Driver{"fake": fakevmm.New(fakevmm.Options{Faults: faults})}
}

func (h *host) templates() []*bangerv1.Template {
	h.t.Helper()
	resp, err := h.temps.List(h.t.Context(), connect.NewRequest(&bangerv1.ListTemplatesRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.Msg.GetTemplates()
}

// theTemplate is the only one.
func (h *host) theTemplate() *bangerv1.Template {
	h.t.Helper()
	all := h.templates()
	if len(all) != 1 {
		h.t.Fatalf("templates: %v", all)
	}
	return all[0]
}

func (h *host) warm(req *bangerv1.WarmTemplateRequest) (*bangerv1.Operation, error) {
	resp, err := h.temps.Warm(h.t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return h.wait(resp.Msg.GetOperationId()), nil
}

func (h *host) prune(all, dry bool) []*bangerv1.Pruned {
	h.t.Helper()
	resp, err := h.temps.Prune(h.t.Context(), connect.NewRequest(&bangerv1.PruneTemplatesRequest{All: all, DryRun: dry}))
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.Msg.GetPruned()
}

// flip changes a bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVMsStartFromOneTemplate(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.run()
	a, b := h.create("a"), h.create("b")
	made := h.theTemplate()
	if a.GetFromTemplate() != made.GetKey() || b.GetFromTemplate() != made.GetKey() || a.GetTemplateFault()+b.GetTemplateFault() != "" {
		t.Errorf("%v\n%v\n%v", made, a, b)
	}
	if !slices.Equal(made.GetUsedBy(), []string{"a", "b"}) || made.GetCpus() != 1 || made.GetVmm() != "fake" || made.GetKernel() != "6.1-fake" {
		t.Errorf("%v", made)
	}
	if _, err := h.stop("a"); err != nil {
		t.Fatal(err)
	}
	v, err := h.startCold("a")
	if err != nil || v.GetFromTemplate() != "" || h.launched(v).Template != nil {
		t.Errorf("cold: %v, %v", v, err)
	}
	cpus := uint32(2)
	if _, err := h.set(&bangerv1.SetVMRequest{Ref: "b", Cpus: &cpus}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.stop("b"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("b"); err != nil || v.GetFromTemplate() == made.GetKey() || len(h.templates()) != 2 {
		t.Errorf("another shape: %v, %v", v, err)
	}
	h.inOrder()
}

// A template that was made ahead is the one that VMs are started from.
func TestWarm(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.run()
	op, err := h.warm(&bangerv1.WarmTemplateRequest{})
	if err != nil || op.GetState() != "done" || h.theTemplate().GetKey() != op.GetResultId() {
		t.Fatalf("%v, %v", op, err)
	}
	if v := h.create("dev"); v.GetFromTemplate() != op.GetResultId() || len(h.templates()) != 1 {
		t.Errorf("%v", v)
	}
	if op, err := h.warm(&bangerv1.WarmTemplateRequest{Cpus: 2, MemoryBytes: 512 << 20, Kernel: "linux"}); err != nil || op.GetState() != "done" || len(h.templates()) != 2 {
		t.Errorf("%v, %v", op, err)
	}
	for _, req := range []*bangerv1.WarmTemplateRequest{{Cpus: 1000}, {MemoryBytes: 1}, {Kernel: "nonesuch"}} {
		if _, err := h.warm(req); err == nil {
			t.Errorf("%v: no error", req)
		}
	}
}

func TestSwitchedOff(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.cfg.Settings.VMM.Templates = false
	h.run()
	if v := h.create("dev"); v.GetFromTemplate() != "" || v.GetTemplateFault() != "" || len(h.templates()) != 0 {
		t.Errorf("%v", v)
	}
	if op, err := h.warm(&bangerv1.WarmTemplateRequest{}); err != nil || op.GetFault().GetHint() != "banger config set vmm.templates on" {
		t.Errorf("%v, %v", op, err)
	}
}

// A template that is damaged is said to be, made anew and used.
func TestADamagedTemplate(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.withTemplates("")
	h.run()
	h.create("dev")
	key := h.theTemplate().GetKey()
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(h.paths.Templates(), key, "state"))
	if problem := h.theTemplate().GetProblem(); problem != "its file state was changed" {
		t.Errorf("problem %q", problem)
	}
	v, err := h.start("dev")
	if err != nil || v.GetFromTemplate() != key || !strings.Contains(v.GetTemplateFault(), "its file state was changed; it was made anew") {
		t.Errorf("%v, %v", v, err)
	}
	if made := h.theTemplate(); made.GetProblem() != "" || made.GetFailures() != 0 {
		t.Errorf("%v", made)
	}
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("dev"); err != nil || v.GetTemplateFault() != "" || v.GetFromTemplate() != key {
		t.Errorf("%v, %v", v, err)
	}
}

// After three failures in a row VMs are booted without another try, until the failures are forgotten.
func TestThreeFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		faults, why string
		env         []string
	}{
		"cannot be made":     {"start-error", "start error was asked for", nil},
		"cannot be restored": {"", staleTemplate, []string{noRestore}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.cfg.Log = nil
			h.withTemplates(tc.faults)
			stop := h.run()
			h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: tc.env}, false))
			for i := range 5 {
				v, err := h.start("dev")
				if err != nil || v.GetFromTemplate() != "" || !strings.Contains(v.GetTemplateFault(), tc.why) {
					t.Fatalf("start %d: %v, %v", i, v, err)
				}
				if _, err := h.stop("dev"); err != nil {
					t.Fatal(err)
				}
			}
			off := h.theTemplate()
			if !off.GetOff() || off.GetFailures() != 3 || !strings.Contains(off.GetLastFailure(), tc.why) || off.GetUsedBytes() != 0 {
				t.Errorf("%v", off)
			}
			if left := h.prune(true, false); len(left) > 0 {
				t.Errorf("pruned: %v", left)
			}
			if _, err := h.temps.Remove(t.Context(), connect.NewRequest(&bangerv1.RemoveTemplateRequest{Ref: off.GetKey()[:6]})); err != nil {
				t.Error(err)
			}
			if all := h.templates(); len(all) > 0 {
				t.Errorf("forgotten: %v", all)
			}
			stop()
			h.withTemplates("")
			h.run()
			h.create("other")
			if made := h.theTemplate(); made.GetFailures() != 0 || made.GetOff() {
				t.Errorf("%v", made)
			}
		})
	}
}

func TestTemplatesInUseAreKept(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.cfg.Settings.Limits.Templates = 1 // byte
	h.run()
	used := h.create("used").GetFromTemplate()
	for _, cpus := range []uint32{2, 3} { // each is kept until the next one is made
		op, err := h.warm(&bangerv1.WarmTemplateRequest{Cpus: cpus})
		if err != nil || op.GetState() != "done" {
			t.Fatalf("%v, %v", op, err)
		}
		keys := []string{used, op.GetResultId()}
		for _, made := range h.templates() {
			if !slices.Contains(keys, made.GetKey()) {
				t.Errorf("%v is left", made)
			}
		}
	}
	if gone := h.prune(false, false); len(gone) != 1 || gone[0].GetName() == used || h.theTemplate().GetKey() != used {
		t.Errorf("pruned: %v", gone)
	}
	if gone := h.prune(true, true); len(gone) != 1 || gone[0].GetName() != used || len(h.templates()) != 1 {
		t.Errorf("would be pruned: %v", gone)
	}
	if gone := h.prune(true, false); len(gone) != 1 || len(h.templates()) != 0 {
		t.Errorf("pruned: %v", gone)
	}
	if _, err := h.temps.Remove(t.Context(), connect.NewRequest(&bangerv1.RemoveTemplateRequest{Ref: used})); !fault.Is(err, fault.NotFound) {
		t.Errorf("remove: %v", err)
	}
}

// A daemon that is killed while it makes a template leaves nothing behind, once there is another one.
func TestTheDaemonCanDieWhileItMakesATemplate(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	t.Log("a guest that never becomes ready")
	ended := h.dying("never", templatesEnv+"=never-ready")
	id := h.begin(&bangerv1.VMSpec{Name: "dev"}, true)
	if id == "" {
		t.Fatal("no operation")
	}
	var pid int
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if pid = vmmBelow(h.paths.Run); pid > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no template is being made")
		}
	}
	status, err := h.daemons.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(status.Msg.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, ended)
	h.run()
	h.inOrder()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its vmm, %d, lives", pid)
		}
	}
	if left := h.ls(h.paths.Templates()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
}

// vmmBelow is the fake VMM whose environment names the directory, or 0.
func vmmBelow(dir string) (pid int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(text), fakevmm.Env+"=1") && strings.Contains(string(text), dir+"/") {
			for _, c := range filepath.Base(filepath.Dir(file)) {
				pid = pid*10 + int(c-'0')
			}
			return pid
		}
	}
	return 0
}
