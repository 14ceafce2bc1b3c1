package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

func ptr[T any](v T) *T { return &v }

func (h *host) pause(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Pause(h.t.Context(), connect.NewRequest(&bangerv1.PauseVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) unpause(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Unpause(h.t.Context(), connect.NewRequest(&bangerv1.UnpauseVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) restart(ref string) (*bangerv1.VM, error) {
	resp, err := h.vms.Restart(h.t.Context(), connect.NewRequest(&bangerv1.RestartVMRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestPauseAndUnpause(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	for range 2 {
		if got, err := h.pause("dev"); err != nil || got.GetState() != "paused" {
			t.Fatalf("%v, %v", got, err)
		}
	}
	h.inOrder()
	stop()
	h.run() // it is adopted as it is
	if got := h.get("dev"); got.GetState() != "paused" || got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", got)
	}
	for range 2 {
		if got, err := h.unpause("dev"); err != nil || got.GetState() != "running" || got.GetStartedAtMs() != v.GetStartedAtMs() {
			t.Errorf("%v, %v", got, err)
		}
	}
	if _, err := h.pause("dev"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.stop("dev"); err != nil || got.GetState() != "stopped" {
		t.Errorf("stop of a paused vm: %v, %v", got, err)
	}
	h.inOrder()
}

// TestIllegalRequests: each says in which state the VM is and what would work.
func TestIllegalRequests(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("runs")
	h.create("paused")
	h.wait(h.begin(&bangerv1.VMSpec{Name: "made"}, false))
	if _, err := h.pause("paused"); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		err        error
		want, hint string
	}{
		"pause of a stopped vm":   {second(h.pause("made")), "vm made is created, it cannot be paused", "banger vm start made"},
		"unpause of a stopped vm": {second(h.unpause("made")), "vm made is created, it cannot be unpaused", "banger vm start made"},
		"start of a paused vm":    {second(h.start("paused")), "vm paused is paused, it cannot be started", "banger vm unpause paused"},
		"rm of a paused vm":       {h.remove("paused", false), "vm paused is paused", "banger vm rm --force paused"},
		"reset of a running vm":   {second(h.reset("runs", false)), "vm runs is running, it cannot be reset", "banger vm reset --force runs"},
		"grow of a paused vm": {
			second(h.set(&bangerv1.SetVMRequest{Ref: "paused", DiskBytes: ptr(uint64(1 << 30))})), "vm paused is paused, its disk cannot grow now", "banger vm unpause paused",
		},
	} {
		if !fault.Is(tt.err, fault.Conflict) || tt.err.Error() != tt.want || fault.HintOf(tt.err) != tt.hint {
			t.Errorf("%s: %v (hint %q)", name, tt.err, fault.HintOf(tt.err))
		}
	}
}

func TestRestart(t *testing.T) {
	h := newHost(t)
	h.run()
	v := h.create("dev")
	again, err := h.restart("dev")
	if err != nil || again.GetState() != "running" || again.GetSupervisorPid() == v.GetSupervisorPid() || again.GetRestarts() != 0 {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.restart("dev"); err != nil || v.GetState() != "running" {
		t.Errorf("restart of a stopped vm: %v, %v", v, err)
	}
	h.inOrder()
}

func TestRename(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.create("beta-sandbox")
	if _, err := h.rename("dev", "beta-sandbox"); !fault.Is(err, fault.Exists) {
		t.Errorf("a taken name: %v", err)
	}
	if _, err := h.rename("dev", "Beta"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad name: %v", err)
	}
	v, err := h.rename("dev", "beta") // a prefix of another name
	if err != nil || v.GetSpec().GetName() != "beta" || !slices.Equal(v.GetPending(), []string{"name"}) {
		t.Fatalf("%v, %v", v, err)
	}
	if v, err := h.rename("beta", "dev"); err != nil || len(v.GetPending()) != 0 {
		t.Errorf("back: %v, %v", v, err)
	}
	if _, err := h.rename("dev", "beta"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.vms.Get(t.Context(), connect.NewRequest(&bangerv1.GetVMRequest{Ref: "dev"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("the old name: %v", err)
	}
	if v, err := h.restart("beta"); err != nil || len(v.GetPending()) != 0 {
		t.Errorf("%v, %v", v, err)
	}
	if l, err := vmdir.Dir(v.GetDir()).ReadLaunch(); err != nil || l.Guest.Hostname != "beta" {
		t.Errorf("%+v, %v", l.Guest, err)
	}
	h.inOrder()
}

func TestSet(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	for name, tt := range map[string]struct {
		req  *bangerv1.SetVMRequest
		want string
	}{
		"cpus":    {&bangerv1.SetVMRequest{Cpus: ptr(uint32(5))}, "5 cpus are more than the 4 that fake allows"},
		"memory":  {&bangerv1.SetVMRequest{MemoryBytes: ptr(uint64(1))}, "memory of 1B is too small: the kernel needs at least 128M"},
		"smaller": {&bangerv1.SetVMRequest{DiskBytes: ptr(uint64(255 << 20))}, "the disk of vm dev has 256M, a disk of 255M would be smaller: it can only grow"},
		"larger":  {&bangerv1.SetVMRequest{DiskBytes: ptr(uint64(1 << 60))}, "a disk of 1E is not possible: it can be 256M to 16T"},
		"restart": {&bangerv1.SetVMRequest{Restart: ptr("sometimes")}, `unknown restart policy "sometimes": one of no, on-failure, always`},
		"idle":    {&bangerv1.SetVMRequest{AutoStopMs: ptr(int64(-5))}, "an idle time of -1ms is not possible"},
		"label":   {&bangerv1.SetVMRequest{SetLabels: map[string]string{"a=b": "c"}}, `label "a=b" is not a name: no spaces, no '='`},
	} {
		tt.req.Ref = "dev"
		if _, err := h.set(tt.req); !fault.Is(err, fault.Invalid) || err.Error() != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	v, err := h.set(&bangerv1.SetVMRequest{
		Ref: "dev", Cpus: ptr(uint32(2)), MemoryBytes: ptr(uint64(2 << 30)), DiskBytes: ptr(uint64(1 << 30)), AutoStopMs: ptr(int64(60_000)),
		Restart: ptr("always"), Description: ptr("mine"), SetLabels: map[string]string{"team": "a", "x": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"cpus", "memory"}, v.GetPending()); diff != "" {
		t.Error(diff)
	}
	s := v.GetSpec()
	if s.GetCpus() != 2 || s.GetMemoryBytes() != 2<<30 || s.GetDiskBytes() != 1<<30 || s.GetAutoStopMs() != 60_000 ||
		s.GetRestart() != "always" || s.GetDescription() != "mine" || len(s.GetLabels()) != 2 {
		t.Errorf("%v", s)
	}
	disk := filepath.Join(v.GetDir(), "disk.ext4")
	if told, err := os.ReadFile(disk + ".told"); err != nil || string(told) != "1073741824" {
		t.Errorf("the guest was told %s, %v", told, err)
	}
	h.inOrder()
	if v, err = h.set(&bangerv1.SetVMRequest{Ref: "dev", Cpus: ptr(uint32(1)), RemoveLabels: []string{"x", "y"}}); err != nil ||
		!slices.Equal(v.GetPending(), []string{"memory"}) || len(v.GetSpec().GetLabels()) != 1 {
		t.Errorf("%v, %v", v, err)
	}
	if v, err = h.restart("dev"); err != nil || len(v.GetPending()) != 0 {
		t.Errorf("%v, %v", v, err)
	}
	if l, err := vmdir.Dir(v.GetDir()).ReadLaunch(); err != nil || l.Machine.CPUs != 1 || l.Machine.Memory != 2<<30 {
		t.Errorf("%+v, %v", l.Machine, err)
	}
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if v, err = h.set(&bangerv1.SetVMRequest{Ref: "dev", DiskBytes: ptr(uint64(2 << 30))}); err != nil || len(v.GetPending()) != 0 {
		t.Errorf("grow of a stopped vm: %v, %v", v, err)
	}
	h.inOrder()
	want := "vm.changed: cpus 1 to 2, memory 1G to 2G, auto-stop 0s to 1m0s, restart no to always, description, labels"
	if got := h.kinds("dev"); !slices.Contains(got, want) || !slices.Contains(got, "vm.changed: disk 256M to 1G") {
		t.Errorf("%q", got)
	}
}

func TestADiskThatTheGuestDoesNotHearOf(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev", cannotGrow)
	_, err := h.set(&bangerv1.SetVMRequest{Ref: "dev", DiskBytes: ptr(uint64(1 << 30)), Cpus: ptr(uint32(2))})
	if !fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "banger vm restart dev" {
		t.Errorf("%v", err)
	}
	// The row says what the file has: the guest sees it at the next start.
	if v := h.get("dev"); v.GetSpec().GetDiskBytes() != 1<<30 || v.GetSpec().GetCpus() != 1 || !slices.Equal(v.GetPending(), []string{"disk"}) {
		t.Errorf("%v", v)
	}
	if v, err := h.set(&bangerv1.SetVMRequest{Ref: "dev", Cpus: ptr(uint32(2))}); err != nil || !slices.Equal(v.GetPending(), []string{"cpus", "disk"}) {
		t.Errorf("%v, %v", v, err)
	}
	h.inOrder()
}

func TestReset(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	v := h.create("dev")
	dir := vmdir.Dir(v.GetDir())
	if v, err := h.reset("dev", true); err != nil || v.GetState() != "stopped" {
		t.Fatalf("%v, %v", v, err)
	}
	r, err := dir.ReadRecord()
	if err != nil || r.ResetToken == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	stop()
	h.loseDatabase()
	h.run() // the reset is not forgotten with the database
	if _, err := h.start("dev"); err != nil {
		t.Fatal(err)
	}
	if l, err := dir.ReadLaunch(); err != nil || l.Guest.ResetRoot != r.ResetToken {
		t.Errorf("%+v, %v", l.Guest, err)
	}
	if r, err := dir.ReadRecord(); err != nil || r.ResetToken != "" {
		t.Errorf("after the start: %+v, %v", r, err)
	}
	if _, err := h.restart("dev"); err != nil {
		t.Fatal(err)
	}
	if l, err := dir.ReadLaunch(); err != nil || l.Guest.ResetRoot != "" {
		t.Errorf("the second start: %+v, %v", l.Guest, err)
	}
}

func TestWait(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	wait := func(ctx context.Context, states ...string) (*bangerv1.VM, error) {
		resp, err := h.vms.Wait(ctx, connect.NewRequest(&bangerv1.WaitVMRequest{Ref: "dev", States: states}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	if v, err := wait(t.Context(), "running", "paused"); err != nil || v.GetState() != "running" {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := wait(t.Context(), "gone"); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := wait(short); !fault.Is(err, fault.Timeout) && !fault.Is(err, fault.Cancelled) {
		t.Errorf("%v", err)
	}
	type outcome struct {
		state string
		err   error
	}
	ended, gone := make(chan outcome, 1), make(chan outcome, 1)
	go func() {
		v, err := wait(t.Context())
		ended <- outcome{v.GetState(), err}
	}()
	go func() {
		v, err := wait(t.Context(), "failed")
		gone <- outcome{v.GetState(), err}
	}()
	time.Sleep(20 * time.Millisecond)
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if o := <-ended; o.err != nil || o.state != "stopped" {
		t.Errorf("%v", o)
	}
	if err := h.remove("dev", false); err != nil {
		t.Fatal(err)
	}
	if o := <-gone; !fault.Is(o.err, fault.NotFound) {
		t.Errorf("%v", o)
	}
}

func TestListFilters(t *testing.T) {
	h := newHost(t)
	h.run()
	for name, labels := range map[string]map[string]string{"a": {"team": "x", "ci": ""}, "b": {"team": "y"}, "c": nil} {
		h.wait(h.begin(&bangerv1.VMSpec{Name: name, Labels: labels}, false))
	}
	h.wait(h.begin(&bangerv1.VMSpec{Name: "d", Image: "large", Labels: map[string]string{"team": "x"}}, true))
	digest := h.get("d").GetImageDigest()
	for name, tt := range map[string]struct {
		req  *bangerv1.ListVMsRequest
		want string
	}{
		"all":             {&bangerv1.ListVMsRequest{}, "a b c d"},
		"state":           {&bangerv1.ListVMsRequest{States: []string{"running", "paused"}}, "d"},
		"key":             {&bangerv1.ListVMsRequest{Labels: []string{"team"}}, "a b d"},
		"value":           {&bangerv1.ListVMsRequest{Labels: []string{"team=x"}}, "a d"},
		"both":            {&bangerv1.ListVMsRequest{Labels: []string{"team=x", "ci"}}, "a"},
		"empty value":     {&bangerv1.ListVMsRequest{Labels: []string{"ci="}}, "a"},
		"other value":     {&bangerv1.ListVMsRequest{Labels: []string{"team="}}, ""},
		"image":           {&bangerv1.ListVMsRequest{Images: []string{"large"}}, "d"},
		"images":          {&bangerv1.ListVMsRequest{Images: []string{"large", "small"}}, "a b c d"},
		"digest":          {&bangerv1.ListVMsRequest{Images: []string{digest}}, "d"},
		"state and label": {&bangerv1.ListVMsRequest{States: []string{"created"}, Labels: []string{"team=x"}}, "a"},
	} {
		resp, err := h.vms.List(t.Context(), connect.NewRequest(tt.req))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range resp.Msg.GetVms() {
			names = append(names, v.GetSpec().GetName())
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestEvents(t *testing.T) {
	h := newHost(t)
	h.run()
	watch := func(req *bangerv1.WatchEventsRequest) (next func() string, cancel func()) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		stream, err := h.events.Watch(ctx, connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return func() string {
			if !stream.Receive() {
				t.Fatal(stream.Err())
			}
			return stream.Msg().GetKind() + " " + stream.Msg().GetObject()
		}, cancel
	}
	next, cancel := watch(&bangerv1.WatchEventsRequest{})
	defer cancel()
	v := h.create("dev")
	for _, want := range []string{"image.added small", "kernel.added linux"} {
		if got := next(); got != want && got != "kernel.added linux" && got != "image.added small" { // both at once
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, want := range []string{"vm.created dev", "vm.starting dev", "vm.running dev"} {
		if got := next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if err := h.remove("dev", true); err != nil {
		t.Fatal(err)
	}
	h.wait(h.begin(&bangerv1.VMSpec{Name: "other"}, false))
	want := []string{"vm.created: image small", "vm.starting", "vm.running", "vm.deleting", "vm.removed"}
	for _, ref := range []string{"dev", v.GetId()} { // also of one that is gone
		if diff := cmp.Diff(want, h.kinds(ref)); diff != "" {
			t.Errorf("%s: %s", ref, diff)
		}
	}
	resp, err := h.events.List(t.Context(), connect.NewRequest(&bangerv1.ListEventsRequest{Limit: 2}))
	if err != nil || len(resp.Msg.GetEvents()) != 2 || resp.Msg.GetEvents()[1].GetKind() != "vm.created" {
		t.Fatalf("%v, %v", resp, err)
	}
	// A watcher goes on where another one was.
	resumed, cancelResumed := watch(&bangerv1.WatchEventsRequest{After: resp.Msg.GetEvents()[0].GetSeq()})
	defer cancelResumed()
	if got := resumed(); got != "vm.created other" {
		t.Errorf("%q", got)
	}
	old, cancelOld := watch(&bangerv1.WatchEventsRequest{History: true, Ref: "other"})
	defer cancelOld()
	if got := old(); got != "vm.created other" {
		t.Errorf("%q", got)
	}
	if err := h.remove("other", true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"vm.deleting other", "vm.removed other"} {
		if got := old(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
