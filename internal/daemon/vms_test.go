package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"banger/internal/fault"
	"banger/internal/netstack"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

func TestLifeOfAVM(t *testing.T) {
	h := newHost(t)
	h.run()
	v := h.create("dev", "A=b")
	want := &bangerv1.VM{
		State: "running", Vmm: "fake", Accelerator: "tcg", VmmPid: 4242, KernelVersion: "6.1-fake", Address: netstack.Address(16),
		Spec: &bangerv1.VMSpec{Name: "dev", Image: "small", Kernel: "linux", Cpus: 1, MemoryBytes: 1 << 30, DiskBytes: 256 << 20, Env: []string{"A=b"}},
	}
	if diff := cmp.Diff(want, v, cmpopts.IgnoreUnexported(bangerv1.VM{}, bangerv1.VMSpec{}),
		cmpopts.IgnoreFields(bangerv1.VM{}, "Id", "CreatedAtMs", "StartedAtMs", "SupervisorPid", "ImageDigest", "Dir", "DiskUsedBytes")); diff != "" {
		t.Error(diff)
	}
	record, err := vmdir.Dir(v.GetDir()).ReadRecord()
	if err != nil || string(record.ID) != v.GetId() || record.Spec.Name != "dev" || len(record.MachineID) != 32 {
		t.Errorf("record %+v, %v", record, err)
	}
	if again, err := h.start("dev"); err != nil || again.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("start of a running vm: %v, %v", again, err)
	}
	if err := h.remove("dev", false); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger vm rm --force dev" {
		t.Errorf("rm of a running vm: %v", err)
	}
	endpoint, err := h.vms.Endpoint(t.Context(), connect.NewRequest(&bangerv1.EndpointRequest{Ref: "de"}))
	if err != nil || endpoint.Msg.GetSocket() != h.paths.SupervisorSocket(v.GetId()) || filepath.Base(endpoint.Msg.GetConsoleLog()) != "console.log" {
		t.Errorf("endpoint %v, %v", endpoint, err)
	}
	for range 2 { // of a stopped one: nothing to do
		stopped, err := h.vms.Stop(t.Context(), connect.NewRequest(&bangerv1.StopVMRequest{Ref: v.GetId()[:6]}))
		if err != nil || stopped.Msg.GetState() != "stopped" || stopped.Msg.GetReason() != "stopped" || stopped.Msg.GetVmmPid() != 0 {
			t.Errorf("stop: %v, %v", stopped, err)
		}
	}
	endpoint, err = h.vms.Endpoint(t.Context(), connect.NewRequest(&bangerv1.EndpointRequest{Ref: "dev"}))
	if err != nil || endpoint.Msg.GetSocket() != "" {
		t.Errorf("endpoint of a stopped vm: %v, %v", endpoint, err)
	}
	if v, err = h.start("dev"); err != nil || v.GetState() != "running" || v.GetReason() != "" {
		t.Errorf("start: %v, %v", v, err)
	}
	killed, err := h.vms.Kill(t.Context(), connect.NewRequest(&bangerv1.KillVMRequest{Ref: "dev"}))
	if err != nil || killed.Msg.GetReason() != "killed" {
		t.Errorf("kill: %v, %v", killed, err)
	}
	if err := h.remove("dev", false); err != nil {
		t.Error(err)
	}
	h.nothingLeft()
}

func TestCreateWithoutStart(t *testing.T) {
	h := newHost(t)
	h.run()
	op := h.wait(h.begin(&bangerv1.VMSpec{}, false))
	v := h.get(op.GetResultId())
	if v.GetState() != "created" || v.GetSpec().GetName() == "" || op.GetTarget() != v.GetSpec().GetName() {
		t.Errorf("%v of %v", v, op)
	}
	if err := h.remove(v.GetId(), false); err != nil {
		t.Error(err)
	}
	h.nothingLeft()
}

func TestCreateRefusesAtOnce(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	for name, tt := range map[string]struct {
		spec  *bangerv1.VMSpec
		class fault.Class
		hint  string
	}{
		"name":        {&bangerv1.VMSpec{Name: "Dev"}, fault.Invalid, "banger vm run --name dev"},
		"name taken":  {&bangerv1.VMSpec{Name: "dev"}, fault.Exists, "banger vm rm dev"},
		"memory":      {&bangerv1.VMSpec{MemoryBytes: 1 << 20}, fault.Invalid, "banger vm run --memory 512M"},
		"disk":        {&bangerv1.VMSpec{DiskBytes: 1 << 20}, fault.Invalid, "banger vm run --disk 10G"},
		"cpus":        {&bangerv1.VMSpec{Cpus: 5}, fault.Invalid, "banger vm run --cpus 4"},
		"many cpus":   {&bangerv1.VMSpec{Cpus: 1<<32 - 1}, fault.Invalid, "banger vm run --cpus 4"},
		"image":       {&bangerv1.VMSpec{Image: "none"}, fault.NotFound, "banger image catalog"},
		"kernel":      {&bangerv1.VMSpec{Kernel: "none"}, fault.NotFound, "banger kernel catalog"},
		"environment": {&bangerv1.VMSpec{Env: []string{"x"}}, fault.Invalid, ""},
	} {
		_, err := h.vms.Create(t.Context(), connect.NewRequest(&bangerv1.CreateVMRequest{Spec: tt.spec, Start: true}))
		if !fault.Is(err, tt.class) || fault.HintOf(err) != tt.hint {
			t.Errorf("%s: %v (hint %q)", name, err, fault.HintOf(err))
		}
	}
	if err := h.remove("dev", true); err != nil {
		t.Error(err)
	}
	h.nothingLeft()
}

// TestCreateThatFails fails a create at every stage.
func TestCreateThatFails(t *testing.T) {
	broken := fault.New(fault.Exhausted, "no space left").WithHint("df -h")
	for name, tt := range map[string]struct {
		setup func(*host)
		env   string
		class fault.Class
		text  string
	}{
		"probe":  {func(h *host) { h.cfg.Drivers["fake"] = driver{func() error { return broken }} }, "", fault.Exhausted, "no space"},
		"image":  {func(h *host) { h.images.During = func(context.Context, string) error { return broken } }, "", fault.Exhausted, "no space"},
		"kernel": {func(h *host) { h.kernels.During = func(context.Context, string) error { return broken } }, "", fault.Exhausted, "no space"},
		"disk": {func(h *host) {
			h.cfg.FormatDisk = func(context.Context, string, uint64, string) error { return broken }
		}, "", fault.Exhausted, "create vm dev: no space"},
		"initramfs":        {func(h *host) { h.cfg.Initramfs = func(string, string) (string, error) { return "", broken } }, "", fault.Exhausted, "no space"},
		"spawn":            {func(h *host) { h.cfg.SupervisorCommand = []string{"/nonexistent"} }, "", fault.Unavailable, "start supervisor"},
		"supervisor exits": {func(h *host) { h.cfg.SupervisorCommand = []string{"/bin/false"} }, "", fault.Unavailable, "the supervisor did not start"},
		"boot":             {func(*host) {}, bootFails, fault.Unavailable, "the guest fell over; its console ends with: boom"},
		"lean kernel":      {func(h *host) { h.kernels.Missing = []string{"CONFIG_PCI"} }, bootFails, fault.Unavailable, "the guest fell over"},
		"supervisor dies":  {func(*host) {}, bootDies, fault.Unavailable, "the supervisor was killed"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			tt.setup(h)
			h.cfg.Log = nil
			h.run()
			op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: environment(tt.env)}, true))
			f := op.GetFault()
			if op.GetState() != "failed" || f.GetClass() != string(tt.class) || !strings.Contains(f.GetMessage(), tt.text) {
				t.Errorf("%v", op)
			}
			if f.GetHint() == "banger vm logs dev" {
				t.Error("the hint names a vm that is gone")
			}
			if at := strings.HasPrefix(f.GetHint(), "banger kernel show linux   # "); at != (h.kernels.Missing != nil) {
				t.Errorf("hint %q", f.GetHint())
			}
			h.nothingLeft()
		})
	}
}

func environment(setting string) []string {
	if setting == "" {
		return nil
	}
	return []string{setting}
}

// TestCreateThatIsCancelled cancels a create at every stage.
func TestCreateThatIsCancelled(t *testing.T) {
	for _, stage := range []string{"image", "kernel", "disk", "boot"} {
		t.Run(stage, func(t *testing.T) {
			h := newHost(t)
			reached := make(chan struct{}, 1)
			hang := func(ctx context.Context) error {
				reached <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			switch stage {
			case "image":
				h.images.During = func(ctx context.Context, _ string) error { return hang(ctx) }
			case "kernel":
				h.kernels.During = func(ctx context.Context, _ string) error { return hang(ctx) }
			case "disk":
				h.cfg.FormatDisk = func(ctx context.Context, _ string, _ uint64, dst string) error {
					if err := os.WriteFile(dst, []byte("half"), 0o600); err != nil {
						return err
					}
					return hang(ctx)
				}
			}
			h.run()
			id := h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{bootHangs}}, true)
			if stage == "boot" {
				h.until("dev", "starting")
			} else {
				<-reached
			}
			if _, err := h.ops.Cancel(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})); err != nil {
				t.Fatal(err)
			}
			op := h.wait(id)
			if op.GetState() != "cancelled" || op.GetFault().GetClass() != "cancelled" {
				t.Errorf("%v", op)
			}
			h.nothingLeft()
			h.images.During, h.kernels.During = nil, nil
		})
	}
}

func TestCreatesOfOneNameLeaveOne(t *testing.T) {
	h := newHost(t)
	gate := make(chan struct{})
	h.images.During = func(context.Context, string) error { <-gate; return nil }
	h.run()
	ids := make([]string, 5)
	for i := range ids { // all pass the early check while the image is pulled
		ids[i] = h.begin(&bangerv1.VMSpec{Name: "dev"}, true)
	}
	close(gate)
	done := 0
	for _, id := range ids {
		switch op := h.wait(id); {
		case op.GetState() == "done":
			done++
		case op.GetFault().GetClass() != string(fault.Exists):
			t.Errorf("%v", op)
		}
	}
	if done != 1 || h.images.Pulls.Load() != 1 || h.kernels.Pulls.Load() != 1 {
		t.Errorf("%d creates done, %d image pulls, %d kernel pulls", done, h.images.Pulls.Load(), h.kernels.Pulls.Load())
	}
	if n := len(h.ls(h.paths.VMs())); n != 1 {
		t.Errorf("%d directories", n)
	}
	if err := h.remove("dev", true); err != nil {
		t.Error(err)
	}
	h.nothingLeft()
}

func TestASharedPullSurvivesOneOfItsCreates(t *testing.T) {
	h := newHost(t)
	gate, reached := make(chan struct{}), make(chan struct{}, 2)
	h.images.During = func(ctx context.Context, _ string) error {
		reached <- struct{}{}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h.run()
	a := h.begin(&bangerv1.VMSpec{Name: "a"}, true)
	<-reached
	b := h.begin(&bangerv1.VMSpec{Name: "b"}, true)
	c, err := h.imgs.Pull(t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Reference: "small"}))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // for b to have joined; if it has not, the test proves less but does not fail
	if _, err := h.ops.Cancel(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: a})); err != nil {
		t.Fatal(err)
	}
	if op := h.wait(a); op.GetState() != "cancelled" {
		t.Errorf("%v", op)
	}
	close(gate)
	for _, id := range []string{b, c.Msg.GetOperationId()} {
		if op := h.wait(id); op.GetState() != "done" {
			t.Errorf("%v", op)
		}
	}
	if n := h.images.Pulls.Load(); n != 1 {
		t.Errorf("%d pulls", n)
	}
}

// Each pull waits until the other has begun: were they one after the other, neither would end.
func TestPullsOfDifferentImagesOverlap(t *testing.T) {
	h := newHost(t)
	both := make(chan struct{})
	var begun atomic.Int32
	h.images.During = func(ctx context.Context, _ string) error {
		if begun.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h.run()
	a := h.begin(&bangerv1.VMSpec{Name: "a", Image: "small"}, true)
	b := h.begin(&bangerv1.VMSpec{Name: "b", Image: "large"}, true)
	for _, id := range []string{a, b} {
		if op := h.wait(id); op.GetState() != "done" {
			t.Errorf("%v", op)
		}
	}
	if images, kernels := h.images.Pulls.Load(), h.kernels.Pulls.Load(); images != 2 || kernels != 1 {
		t.Errorf("%d image pulls, %d kernel pulls; want 2 and the shared one", images, kernels)
	}
}

func TestNamesThatArePrefixes(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("beta-sandbox")
	h.create("beta")
	if got := h.get("beta").GetSpec().GetName(); got != "beta" {
		t.Errorf("beta is %s", got)
	}
	if got := h.get("beta-").GetSpec().GetName(); got != "beta-sandbox" {
		t.Errorf("beta- is %s", got)
	}
	if err := h.remove("bet", true); !fault.Is(err, fault.Invalid) {
		t.Errorf("rm of an ambiguous name: %v", err)
	}
	for _, name := range []string{"beta", "beta-sandbox"} {
		if err := h.remove(name, true); err != nil {
			t.Error(err)
		}
	}
	h.nothingLeft()
}

func TestStartThatFailsKeepsTheVM(t *testing.T) {
	h := newHost(t)
	h.run()
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{bootFails}}, false))
	_, err := h.start("dev")
	if !fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "banger vm logs dev" {
		t.Errorf("start: %v", err)
	}
	v := h.get("dev")
	if v.GetState() != "failed" || !strings.HasPrefix(v.GetReason(), "the guest fell over") || v.GetExitCode() != 1 {
		t.Errorf("%v", v)
	}
	if _, err := os.Stat(filepath.Join(h.paths.VM(op.GetResultId()), "disk.ext4")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(v.GetDir(), "disk.ext4")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.start("dev"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "its disk is gone") {
		t.Errorf("start without a disk: %v", err)
	}
}

func TestABootCanBeInterrupted(t *testing.T) {
	for name, act := range map[string]func(*host) error{
		"stop": func(h *host) error {
			_, err := h.vms.Stop(h.t.Context(), connect.NewRequest(&bangerv1.StopVMRequest{Ref: "dev"}))
			return err
		},
		"kill": func(h *host) error {
			_, err := h.vms.Kill(h.t.Context(), connect.NewRequest(&bangerv1.KillVMRequest{Ref: "dev"}))
			return err
		},
		"rm": func(h *host) error { return h.remove("dev", true) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.run()
			h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{bootHangs}}, false))
			started := make(chan error, 1)
			go func() {
				_, err := h.start("dev")
				started <- err
			}()
			h.until("dev", "starting")
			began := time.Now()
			if err := act(h); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if err := <-started; err == nil {
				t.Error("the start succeeded")
			}
			if name != "rm" {
				if v := h.get("dev"); v.GetState() != "stopped" || !strings.Contains(v.GetReason(), "while it was starting") {
					t.Errorf("%v", v)
				}
				return
			}
			h.nothingLeft()
		})
	}
}

func TestAClientThatLeavesTakesItsStartAlong(t *testing.T) {
	h := newHost(t)
	h.run()
	h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{bootHangs}}, false))
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := h.vms.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: "dev"}))
		gone <- err
	}()
	h.until("dev", "starting")
	cancel()
	if err := <-gone; !fault.Is(err, fault.Cancelled) {
		t.Errorf("err = %v", err)
	}
	h.until("dev", "stopped")
}

func TestAVMThatEndsByItself(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev", endsItself)
	if v := h.until("dev", "stopped"); v.GetReason() != "guest powered off" {
		t.Errorf("%v", v)
	}
}

func TestRemoveOnExit(t *testing.T) {
	h := newHost(t)
	h.run()
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", RemoveOnExit: true, Env: []string{endsItself}}, true))
	if op.GetState() != "done" {
		t.Fatalf("%v", op)
	}
	h.until("dev", "")
	h.nothingLeft()
}

func TestKilledSupervisor(t *testing.T) {
	h := newHost(t)
	h.run()
	v := h.create("dev")
	h.killSupervisor(v.GetId())
	if v := h.until("dev", "stopped"); v.GetReason() != "the supervisor was killed" || v.GetExitCode() != -1 {
		t.Errorf("%v", v)
	}
	if left := h.ls(h.paths.Run); len(left) > 0 {
		t.Errorf("run directory: %v", left)
	}
	if v, err := h.start("dev"); err != nil || v.GetState() != "running" {
		t.Errorf("start after that: %v, %v", v, err)
	}
}

func TestConcurrentLife(t *testing.T) {
	h := newHost(t)
	h.run()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprintf("vm-%d", i)
			h.create(name)
			if _, err := h.vms.Stop(t.Context(), connect.NewRequest(&bangerv1.StopVMRequest{Ref: name})); err != nil {
				t.Error(err)
			}
			if _, err := h.start(name); err != nil {
				t.Error(err)
			}
			if err := h.remove(name, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h.nothingLeft()
}
