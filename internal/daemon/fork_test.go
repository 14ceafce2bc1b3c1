package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/daemon"
	"banger/internal/daemon/daemontest"
	"banger/internal/fault"
	"banger/internal/hostmem"
	"banger/internal/paths"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// tryFork makes a fork and waits for the outcome.
func (h *host) tryFork(req *bangerv1.ForkVMRequest) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	resp, err := h.vms.Fork(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}

// fork makes clones of those names, and returns them.
func (h *host) fork(ref string, names ...string) (clones []*bangerv1.VM, err error) {
	if err := h.tryFork(&bangerv1.ForkVMRequest{Ref: ref, Names: names}); err != nil {
		return nil, err
	}
	for _, name := range names {
		clones = append(clones, h.get(name))
	}
	return clones, nil
}

// vmNames lists the VMs.
func (h *host) vmNames() (names []string) {
	h.t.Helper()
	resp, err := h.vms.List(h.t.Context(), connect.NewRequest(&bangerv1.ListVMsRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, v := range resp.Msg.GetVms() {
		names = append(names, v.GetSpec().GetName())
	}
	slices.Sort(names)
	return names
}

func TestForkOfARunningVM(t *testing.T) {
	h := newHost(t)
	h.run()
	dev := h.create("dev")
	clones, err := h.fork("dev", "one", "two")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{dev.GetAddress(): true, "": true}
	for _, c := range clones {
		if c.GetState() != "running" || seen[c.GetAddress()] || c.GetForkedFrom().GetName() != "dev" || c.GetForkedFrom().GetId() != dev.GetId() ||
			c.GetForkedFrom().GetStillUs() != 7 {
			t.Errorf("%v", c)
		}
		seen[c.GetAddress()] = true
		l := h.launched(c)
		switch id := l.Identity; {
		case l.Resume == nil || id == nil:
			t.Errorf("it was started from %v as %v", l.Resume, id)
		case id.Hostname != c.GetSpec().GetName() || id.MachineID != l.Guest.MachineID || seen[id.MachineID] || seen[id.BootID] || seen[id.Network.MAC]:
			t.Errorf("identity %+v", id)
		default:
			seen[id.MachineID], seen[id.BootID], seen[id.Network.MAC] = true, true, true
		}
		if disk := l.Machine.Disks[1].Path; disk != filepath.Join(c.GetDir(), paths.VMDisk) || l.Machine.ID != c.GetId() {
			t.Errorf("machine %+v", l.Machine)
		}
		if r, err := vmdir.Dir(c.GetDir()).ReadRecord(); err != nil || r.Origin == nil || r.Origin.Name != "dev" || r.Address == 0 {
			t.Errorf("record %+v, %v", r, err)
		}
	}
	if left := h.ls(h.paths.Staging()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// They are VMs like any other.
	if _, err := h.suspend("one"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("one"); err != nil || h.launched(v).Identity != nil {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := h.stop("two"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("two"); err != nil || h.launched(v).Resume != nil {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := h.fork("one", "three"); err != nil {
		t.Error(err)
	}
	h.must(h.remove("dev", true))
	h.inOrder()
}

func TestForkRefuses(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.wait(h.begin(&bangerv1.VMSpec{Name: "down"}, false))
	h.wait(h.begin(&bangerv1.VMSpec{Name: "secret", NoFork: "it has keys"}, true))
	for _, test := range []struct {
		req         *bangerv1.ForkVMRequest
		class       fault.Class
		words, hint string
	}{
		{&bangerv1.ForkVMRequest{Ref: "nobody"}, fault.NotFound, "nobody", "banger vm list"},
		{&bangerv1.ForkVMRequest{Ref: "down"}, fault.Conflict, "no memory", "banger vm fork --disk-only down"},
		{&bangerv1.ForkVMRequest{Ref: "secret"}, fault.Conflict, "it has keys", `banger vm set --no-fork "" secret`},
		{&bangerv1.ForkVMRequest{Ref: "secret", DiskOnly: true}, fault.Conflict, "it has keys", ""},
		{&bangerv1.ForkVMRequest{Ref: "dev", Count: 65}, fault.Invalid, "65", "banger vm fork -n 64 dev"},
		{&bangerv1.ForkVMRequest{Ref: "dev", Count: 3, Names: []string{"a", "b"}}, fault.Invalid, "2 names", ""},
		{&bangerv1.ForkVMRequest{Ref: "dev", Names: []string{"a", "a"}}, fault.Invalid, "two clones", ""},
		{&bangerv1.ForkVMRequest{Ref: "dev", Names: []string{"A"}}, fault.Invalid, "A", ""},
		{&bangerv1.ForkVMRequest{Ref: "dev", Names: []string{"a", "down"}}, fault.Exists, "a vm called down exists already", "banger vm fork -n 2 dev "},
	} {
		_, err := h.vms.Fork(t.Context(), connect.NewRequest(test.req))
		if !fault.Is(err, test.class) || !strings.Contains(err.Error(), test.words) || !strings.Contains(fault.HintOf(err), test.hint) {
			t.Errorf("%v: %v (%s)", test.req, err, fault.HintOf(err))
		}
	}
	if got := h.vmNames(); !slices.Equal(got, []string{"dev", "down", "secret"}) {
		t.Errorf("vms %v", got)
	}
	none := ""
	if _, err := h.set(&bangerv1.SetVMRequest{Ref: "secret", NoFork: &none}); err != nil {
		t.Error(err)
	}
	if _, err := h.fork("secret", "open"); err != nil {
		t.Error(err)
	}
	h.inOrder()
}

func TestForkWithoutMemory(t *testing.T) {
	h := newHost(t)
	h.run()
	h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Labels: map[string]string{"team": "web"}}, false))
	h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 2, DiskOnly: true, RemoveOnExit: true}))
	for _, name := range []string{"dev-1", "dev-2"} {
		v := h.get(name)
		if v.GetState() != "running" || h.launched(v).Resume != nil || !v.GetSpec().GetRemoveOnExit() || v.GetSpec().GetLabels()["team"] != "web" {
			t.Errorf("%v", v)
		}
	}
	h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", DiskOnly: true, NoStart: true}))
	if v := h.get("dev-3"); v.GetState() != "created" {
		t.Errorf("%v", v)
	}
	h.inOrder()
}

// A fork of a VM that is suspended saves nothing: its memory is there. Clones that are not started are suspended, too.
func TestForkOfASuspendedVM(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	h.create("dev")
	second(h.suspend("dev"))
	h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 2, NoStart: true}))
	v := h.get("dev-1")
	if v.GetState() != "suspended" || h.get("dev").GetState() != "suspended" {
		t.Errorf("%v", v)
	}
	mine, err := os.Stat(filepath.Join(v.GetDir(), paths.VMSuspended, vmdir.SavedMemory))
	h.must(err)
	theirs, err := os.Stat(filepath.Join(h.get("dev").GetDir(), paths.VMSuspended, vmdir.SavedMemory))
	h.must(err)
	if !os.SameFile(mine, theirs) {
		t.Error("the memory was copied")
	}
	stop() // their memory is kept over the end of the daemon
	h.run()
	if v, err := h.start("dev-1"); err != nil || h.launched(v).Identity == nil || h.launched(v).Identity.Hostname != "dev-1" {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := h.start("dev"); err != nil || h.launched(v).Identity != nil {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := h.startCold("dev-2"); err != nil || h.launched(v).Resume != nil {
		t.Errorf("%v, %v", v, err)
	}
	h.inOrder()
}

// All or none: one that does not come up takes the others with it.
func TestForkOfWhichOneFails(t *testing.T) {
	h := newHost(t)
	h.run()
	h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{noResume}}, true))
	err := h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 5})
	if err == nil || !strings.Contains(err.Error(), "clone dev-") || !strings.Contains(err.Error(), "cannot go on") {
		t.Errorf("err = %v", err)
	}
	if got := h.vmNames(); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("vms %v", got)
	}
	h.wait(h.begin(&bangerv1.VMSpec{Name: "full", Env: []string{saveFails}}, true))
	if err := h.tryFork(&bangerv1.ForkVMRequest{Ref: "full"}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("err = %v", err)
	}
	h.inOrder()
}

// Who waits for a clone of a fork that fails never gets it.
func TestNobodyGetsACloneThatIsTakenBack(t *testing.T) {
	h := newHost(t)
	waiting := make(chan error, 1)
	h.cfg.Step = func(_ context.Context, s daemon.Step) error {
		if s != daemon.StepForkStarted {
			return nil
		}
		go func() { waiting <- second(h.start("dev-1")) }()
		time.Sleep(100 * time.Millisecond) // for it to wait; if it does not yet, this proves less but does not fail
		return daemontest.FailedStep(s)
	}
	h.run()
	h.create("dev")
	if err := h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev"}); err == nil {
		t.Error("no error")
	}
	if err := <-waiting; !fault.Is(err, fault.NotFound) {
		t.Errorf("a start of the clone: %v", err)
	}
	if got := h.vmNames(); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("vms %v", got)
	}
	h.inOrder()
}

// Forks of one VM at the same time, while it is suspended and removed.
func TestForksAtTheSameTime(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	h.create("dev")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 3})) })
	}
	wg.Wait()
	if got := h.vmNames(); len(got) != 13 {
		t.Errorf("vms %v", got)
	}
	addresses := map[string]bool{}
	for _, name := range h.vmNames() {
		addresses[h.get(name).GetAddress()] = true
	}
	if len(addresses) != 13 {
		t.Errorf("addresses %v", addresses)
	}
	results := make([]error, 4)
	for i, do := range []func() error{
		func() error { return h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 2}) },
		func() error { return second(h.suspend("dev")) },
		func() error { return h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 2}) },
		func() error { time.Sleep(5 * time.Millisecond); return h.remove("dev", true) },
	} {
		wg.Go(func() { results[i] = do() })
	}
	wg.Wait()
	h.must(results[3])
	for _, err := range results[:3] {
		if err != nil && fault.Is(err, fault.Internal) {
			t.Error(err)
		}
	}
	if n := len(h.vmNames()); n%2 != 0 { // 12 and two for each fork that was in time
		t.Errorf("%d vms", n)
	}
	h.inOrder()
}

// A host without the memory for the clones says so, and nothing has happened.
func TestForkWithTooLittleMemory(t *testing.T) {
	h := newHost(t)
	free := hostmem.Free{Bytes: 1 << 30, Limit: "control group /test"}
	h.cfg.FreeMemory = func() (hostmem.Free, error) { return free, nil }
	h.run()
	h.create("dev")
	err := h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 30})
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "4.7G") || !strings.Contains(err.Error(), "control group /test") {
		t.Errorf("err = %v", err)
	}
	if got := h.vmNames(); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("vms %v", got)
	}
	h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 6}))
	free.Bytes = 100 << 20
	if err := h.tryCreate("new"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("err = %v", err)
	}
	err = h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev"})
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "for a clone of vm dev") {
		t.Errorf("err = %v", err)
	}
	h.must(h.tryFork(&bangerv1.ForkVMRequest{Ref: "dev", Count: 2, NoStart: true})) // they take none
	h.inOrder()
}

// TestAForkIsCancelled gives a fork up while its clones start.
func TestAForkIsCancelled(t *testing.T) {
	h := newHost(t)
	reached, once := make(chan struct{}), sync.Once{}
	h.cfg.Step = func(ctx context.Context, s daemon.Step) error {
		if s == daemon.StepForkStarted {
			once.Do(func() { close(reached) })
			<-ctx.Done()
		}
		return nil
	}
	h.run()
	h.create("dev")
	resp, err := h.vms.Fork(t.Context(), connect.NewRequest(&bangerv1.ForkVMRequest{Ref: "dev", Count: 3}))
	h.must(err)
	<-reached
	_, err = h.ops.Cancel(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: resp.Msg.GetOperationId()}))
	h.must(err)
	if err := h.outcome(t.Context(), resp.Msg.GetOperationId()); !fault.Is(err, fault.Cancelled) {
		t.Errorf("err = %v", err)
	}
	if got := h.vmNames(); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("vms %v", got)
	}
	h.inOrder()
}
