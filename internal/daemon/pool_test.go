package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"banger/internal/daemon"
	"banger/internal/daemon/daemontest"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// poolEnv makes a daemon in a process of its own have a pool.
const poolEnv = "BANGER_TEST_POOL"

func (h *host) withPool(size int) {
	h.cfg.Settings.VMM.WarmPool, h.cfg.Times.Lull = size, 10*time.Millisecond
}

// pool waits until so many VMs wait to be taken.
func (h *host) pool(want int) {
	h.t.Helper()
	var got int32
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		resp, err := h.daemons.Status(h.t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
		if err != nil {
			h.t.Fatal(err)
		}
		if got = resp.Msg.GetPoolReady(); int(got) == want {
			return
		}
	}
	h.t.Fatalf("%d vms are in the pool, not %d", got, want)
}

// withImage has the image that the pool's VMs have pulled.
func (h *host) withImage() {
	h.t.Helper()
	h.create("first")
}

func told(v *bangerv1.VM) string {
	name, _ := os.ReadFile(filepath.Join(v.GetDir(), "told-name"))
	return string(name)
}

// A create takes a VM that runs already, if there is one of its kind; the pool is filled again and shown nowhere.
func TestPool(t *testing.T) {
	h := newHost(t)
	h.withPool(1)
	stop := h.run()
	h.withImage()
	h.pool(1)
	if all, err := h.list(); err != nil || len(all) != 1 {
		t.Errorf("listed: %v, %v", all, err)
	}
	dev := h.create("dev", "A=1")
	launch := h.launched(dev)
	if told(dev) != "dev" || dev.GetSpec().GetPurpose() != "" || dev.GetState() != "running" || launch.Pool || launch.Guest.Hostname != "dev" {
		t.Errorf("%v, told %q, launch %+v", dev, told(dev), launch)
	}
	if len(dev.GetPending()) > 0 || launch.Guest.Env[len(launch.Guest.Env)-1] != "A=1" {
		t.Errorf("pending %v, environment %v", dev.GetPending(), launch.Guest.Env)
	}
	h.pool(1)

	// Another kind is made as ever, and from then on there is one of that, too.
	other := h.wait(h.begin(&bangerv1.VMSpec{Name: "other", Cpus: 2}, true))
	if v := h.get("other"); other.GetState() != "done" || told(v) != "" {
		t.Errorf("%v, told %q", other, told(v))
	}
	h.pool(2)
	h.wait(h.begin(&bangerv1.VMSpec{Name: "another", Cpus: 2}, true))
	if v := h.get("another"); told(v) != "another" || v.GetSpec().GetCpus() != 2 {
		t.Errorf("%v, told %q", v, told(v))
	}

	// It is stopped and started like any other VM, and a daemon that ends leaves no pool.
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("dev"); err != nil || h.launched(v).Pool {
		t.Errorf("%v, %v", v, err)
	}
	stop()
	h.withPool(0)
	h.run()
	h.inOrder()
}

// Two creates at once never get the same VM, and a name that is taken is refused.
func TestPoolIsTakenOnce(t *testing.T) {
	h := newHost(t)
	h.withPool(2)
	stop := h.run()
	h.withImage()
	h.pool(2)
	var creates errgroup.Group
	for _, name := range []string{"a", "b", "c", "d"} {
		creates.Go(func() error { return h.tryCreate(name) })
	}
	if err := creates.Wait(); err != nil {
		t.Error(err)
	}
	dirs := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d"} {
		v := h.get(name)
		dirs[v.GetDir()] = true
		if name := told(v); name != "" && name != v.GetSpec().GetName() {
			t.Errorf("%s was told that it is %s", v.GetSpec().GetName(), name)
		}
	}
	if len(dirs) != 4 {
		t.Errorf("directories: %v", dirs)
	}
	h.pool(2)
	if err := h.tryCreate("a"); !fault.Is(err, fault.Exists) {
		t.Errorf("a name that is taken: %v", err)
	}
	// A guest that does not take its name is dropped, and the VM is made as ever.
	if err := h.tryCreate(deafToIt); err != nil {
		t.Errorf("a guest that does not answer: %v", err)
	}
	stop()
	h.withPool(0)
	h.run()
	h.inOrder()
}

// A VM of the pool keeps nobody from removing its image.
func TestPoolLetsGoOfAnImage(t *testing.T) {
	h := newHost(t)
	h.withPool(1)
	stop := h.run()
	h.withImage()
	h.pool(1)
	if err := h.remove("first", true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.removeImage("small"); err != nil {
		t.Error(err)
	}
	h.pool(0)
	stop()
	h.withPool(0)
	h.run()
	h.inOrder()
}

// A VM of the pool that ends by itself is replaced.
func TestPoolNoticesAnEnd(t *testing.T) {
	h := newHost(t)
	h.withPool(1)
	stop := h.run()
	h.withImage()
	h.pool(1)
	for _, id := range h.ls(h.paths.VMs()) {
		if v := h.get(id); v.GetSpec().GetPurpose() == "pool" {
			h.must(syscall.Kill(int(v.GetSupervisorPid()), syscall.SIGKILL))
		}
	}
	h.must(h.tryCreate("dev")) // whether or not that has been noticed
	h.pool(1)
	h.must(h.tryCreate("other"))
	if v := h.get("other"); told(v) != "other" {
		t.Errorf("%v was told %q", v, told(v))
	}
	stop()
	h.withPool(0)
	h.run()
	h.inOrder()
}

// A step of the pool that fails makes no create fail.
func TestPoolSteps(t *testing.T) {
	for _, step := range atPool() {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			h.withPool(1)
			var left atomic.Int32
			h.cfg.Step = func(_ context.Context, s daemon.Step) error {
				if s == step && left.Add(-1) == 0 {
					return daemontest.FailedStep(s)
				}
				return nil
			}
			stop := h.run()
			left.Store(1)
			h.withImage()
			if step != daemon.StepPoolReady {
				h.pool(1)
			}
			h.create("dev")
			if left.Load() > 0 {
				for deadline := time.Now().Add(time.Minute); left.Load() > 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				}
			}
			if left.Load() > 0 {
				t.Error("the step was not reached")
			}
			stop()
			h.withPool(0)
			h.run()
			h.inOrder()
		})
	}
}

// A daemon that dies at a step of the pool leaves nothing of it.
func TestTheDaemonCanDieAtAStepOfThePool(t *testing.T) {
	for _, step := range atPool() {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			stop := h.run()
			h.withImage()
			stop()
			ended := h.dying(step, poolEnv+"=1")
			if step != daemon.StepPoolReady {
				h.pool(1)
				if err := h.tryCreate("dev"); err == nil {
					t.Error("no error")
				}
			}
			awaitDeath(t, ended)
			h.run()
			h.inOrder()
			if err := h.tryCreate("dev"); err != nil {
				t.Errorf("the next command: %v", err)
			}
			if left := h.fsck(false); len(left) > 0 {
				t.Errorf("fsck: %v", left)
			}
		})
	}
}
