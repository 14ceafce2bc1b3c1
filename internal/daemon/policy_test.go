package daemon_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	bangerv1 "banger/proto/banger/v1"
)

func TestIdleVMsAreStopped(t *testing.T) {
	h := newHost(t)
	h.cfg.Times.Poll = 20 * time.Millisecond
	h.cfg.Settings.Defaults.AutoStop = 300 * time.Millisecond
	h.run()
	h.create("idle")
	h.create("used", busy)
	h.create("works", working)
	h.wait(h.begin(&bangerv1.VMSpec{Name: "never", AutoStopMs: -1}, true))
	// It has more time than the others: it must not be stopped before it is paused.
	h.wait(h.begin(&bangerv1.VMSpec{Name: "paused", AutoStopMs: 4000}, true))
	paused := h.get("paused")
	if _, err := h.pause("paused"); err != nil {
		t.Fatal(err)
	}
	v := h.until("idle", "stopped")
	if v.GetSpec().GetAutoStopMs() != 300 {
		t.Errorf("%v", v)
	}
	events := h.kinds("idle")
	if i := slices.Index(events, "vm.stopping"); i < 1 || !strings.HasPrefix(events[i-1], "vm.idle: nobody has used it for") {
		t.Errorf("%q", events)
	}
	time.Sleep(400 * time.Millisecond)
	if v := h.get("used"); v.GetState() != "running" || v.GetOpenSessions() != 1 || v.GetLastActiveMs() == 0 {
		t.Errorf("%v", v)
	}
	for _, name := range []string{"never", "works"} {
		if v := h.get(name); v.GetState() != "running" {
			t.Errorf("%v, %q", v, h.kinds(name))
		}
	}
	// A pause is not idleness, and what goes on after one has its whole time.
	if v := h.get("paused"); v.GetState() != "paused" {
		t.Errorf("%v", v)
	}
	if _, err := h.unpause("paused"); err != nil {
		t.Fatal(err)
	}
	if v := h.get("paused"); v.GetState() != "running" || v.GetSupervisorPid() != paused.GetSupervisorPid() {
		t.Errorf("%v", v)
	}
	h.until("paused", "stopped")
	h.inOrder()
}

func fastRestarts(h *host) {
	h.cfg.Times.RestartFirst, h.cfg.Times.RestartMost = 10*time.Millisecond, 40*time.Millisecond
}

func TestRestartPolicies(t *testing.T) {
	h := newHost(t)
	fastRestarts(h)
	h.run()
	create := func(name, policy string, env ...string) {
		t.Helper()
		if op := h.wait(h.begin(&bangerv1.VMSpec{Name: name, Restart: policy, Env: env}, true)); op.GetState() != "done" {
			t.Fatalf("%v", op)
		}
	}
	create("falls", "on-failure", fallsOver)
	create("ends", "on-failure", endsItself)
	create("always", "always", endsItself)
	create("never", "no", fallsOver)
	create("stopped", "always")
	if _, err := h.stop("stopped"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"falls", "always"} {
		for deadline := time.Now().Add(time.Minute); h.get(name).GetRestarts() < 3; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%v %q", h.get(name), h.kinds(name))
			}
		}
	}
	if v := h.until("ends", "stopped"); v.GetRestarts() != 0 {
		t.Errorf("%v", v)
	}
	if v := h.until("never", "stopped"); v.GetRestarts() != 0 {
		t.Errorf("%v", v)
	}
	if v := h.get("stopped"); v.GetState() != "stopped" || v.GetRestarts() != 0 {
		t.Errorf("%v", v)
	}
	if events := h.kinds("falls"); !slices.Contains(events, "vm.restart: in 10ms, after: guest kernel panic: boom") ||
		!slices.Contains(events, "vm.restart: in 40ms, after: guest kernel panic: boom") {
		t.Errorf("%q", events)
	}
	// A stop by hand ends it, whether the VM runs at that moment or waits.
	for _, name := range []string{"falls", "always"} {
		if v, err := h.stop(name); err != nil || v.GetState() != "stopped" {
			t.Errorf("%v, %v", v, err)
		}
	}
	before := h.get("falls").GetRestarts()
	time.Sleep(100 * time.Millisecond)
	if v := h.get("falls"); v.GetState() != "stopped" || v.GetRestarts() != before {
		t.Errorf("%v", v)
	}
	h.inOrder()
	if v, err := h.start("falls"); err != nil || v.GetRestarts() != 0 {
		t.Errorf("a start by hand counts anew: %v, %v", v, err)
	}
	if err := h.remove("falls", true); err != nil {
		t.Error(err)
	}
	h.inOrder()
}

// TestVMsComeBackAfterABoot pretends that the host was booted: processes are gone, and their records are of another boot.
func TestVMsComeBackAfterABoot(t *testing.T) {
	h := newHost(t)
	fastRestarts(h)
	stop := h.run()
	for name, policy := range map[string]string{"always": "always", "failure": "on-failure", "no": "no", "down": "always"} {
		h.wait(h.begin(&bangerv1.VMSpec{Name: name, Restart: policy}, true))
	}
	if _, err := h.stop("down"); err != nil {
		t.Fatal(err)
	}
	vms, err := h.list()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for _, v := range vms {
		if v.GetState() == "running" {
			h.killAsIfBooted(v)
		}
	}
	h.run()
	if v := h.until("always", "running"); v.GetRestarts() != 1 {
		t.Errorf("%v", v)
	}
	for _, name := range []string{"failure", "no"} {
		if v := h.get(name); v.GetState() != "stopped" || v.GetReason() != "the host was restarted" {
			t.Errorf("%v", v)
		}
	}
	if v := h.get("down"); v.GetState() != "stopped" {
		t.Errorf("%v", v)
	}
	h.inOrder()
}
