package daemon_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/daemon"
	"banger/internal/daemon/builder"
	"banger/internal/daemon/daemontest"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/paths"
	bangerv1 "banger/proto/banger/v1"
)

// scenario is the way to a step: what has to be there, and the command that comes by it. The host has a VM "other" that
// runs and must not notice anything.
type scenario struct {
	prepare func(*host)
	act     func(*host) error
	// again is done afterwards, with a daemon that works; it must succeed whatever was done by then.
	again func(*host) error
	// passes: what was done by then counts, a failure there is only logged.
	passes bool
}

func scenarios() map[daemon.Step]scenario {
	none := func(*host) {}
	created := func(h *host) { h.wait(h.begin(&bangerv1.VMSpec{Name: "dev"}, false)) }
	running := func(h *host) { h.create("dev") }
	create := scenario{prepare: none, act: func(h *host) error { return h.tryCreate("dev") }, again: func(h *host) error {
		if err := h.remove("dev", true); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return h.tryCreate("dev")
	}}
	same := func(prepare func(*host), act func(*host) error) scenario {
		return scenario{prepare: prepare, act: act, again: act}
	}
	start := same(created, func(h *host) error { return second(h.start("dev")) })
	stop := same(running, func(h *host) error { return second(h.stop("dev")) })
	remove := scenario{prepare: running, act: func(h *host) error { return h.remove("dev", true) }, again: func(h *host) error {
		if err := h.remove("dev", true); !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	}}
	size := uint64(512 << 20)
	grow := same(running, func(h *host) error { return second(h.set(&bangerv1.SetVMRequest{Ref: "dev", DiskBytes: &size})) })
	rename := scenario{prepare: created, act: func(h *host) error { return second(h.rename("dev", "new")) }, again: func(h *host) error {
		if _, err := h.rename("dev", "new"); !fault.Is(err, fault.NotFound) {
			return err
		}
		return second(h.start("new"))
	}}
	reset := same(created, func(h *host) error { return second(h.reset("dev", false)) })
	pull := same(none, func(h *host) error { return h.tryPull("small", true) })
	pulled := pull
	pulled.passes = true
	forget := scenario{prepare: func(h *host) { h.must(h.tryPull("large", false)) }, act: func(h *host) error { return second(h.removeImage("large")) },
		again: func(h *host) error {
			if _, err := h.removeImage("large"); !fault.Is(err, fault.NotFound) {
				return err
			}
			return nil
		}}
	forgotten := forget
	forgotten.passes = true
	base := func(h *host) { h.must(h.registerTar("base")) }
	build := same(base, func(h *host) error {
		return h.tryBuild(&bangerv1.BuildImageRequest{Name: "new", From: "base", Argv: []string{"made"}})
	})
	export := same(base, func(h *host) error { return h.tryExport("base", filepath.Join(h.outside(), "layout"), "oci-layout") })
	export.again = func(h *host) error {
		if left := h.ls(h.outside()); !slices.Equal(left, []string{"base.tar"}) { // nothing half written
			h.t.Errorf("the user's directory has %v", left)
		}
		return export.act(h)
	}
	suspend := scenario{prepare: running, act: func(h *host) error { return second(h.suspend("dev")) }, again: func(h *host) error {
		return errors.Join(second(h.suspend("dev")), second(h.start("dev")))
	}}
	snapshot := same(running, func(h *host) error {
		return second(h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Name: "one"}))
	})
	snapshot.again = func(h *host) error {
		if left := h.ls(filepath.Join(h.get("dev").GetDir(), paths.VMSnapshots)); slices.ContainsFunc(left, func(n string) bool { return n[0] == '.' }) {
			h.t.Errorf("left: %v", left)
		}
		if _, err := h.removeSnapshot("dev", "one"); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return snapshot.act(h)
	}
	restore := scenario{prepare: func(h *host) { running(h); h.twoStates("dev") }, act: func(h *host) error { return h.restore("dev", "one") },
		again: func(h *host) error {
			h.eitherState("dev")
			if err := h.restore("dev", "one"); err != nil {
				return err
			}
			if v := h.get("dev"); v.GetState() != "running" || h.diskSays(v) != "one" || h.launched(v).Resume == nil {
				h.t.Errorf("restored: %v, its disk says %q", v, h.diskSays(v))
			}
			return nil
		}}
	fork := scenario{prepare: running, act: func(h *host) error { return second(h.fork("dev", "kid-1", "kid-2")) }, again: func(h *host) error {
		if names := h.vmNames(); slices.Contains(names, "kid-1") != slices.Contains(names, "kid-2") {
			h.t.Errorf("half a fork is left: %v", names)
		}
		for _, name := range []string{"kid-1", "kid-2"} {
			if err := h.remove(name, true); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return second(h.fork("dev", "kid-1", "kid-2"))
	}}
	forked := fork
	forked.passes = true
	return map[daemon.Step]scenario{
		daemon.StepForkStaged: fork, daemon.StepForkRow: fork, daemon.StepForkBuilt: fork, daemon.StepForkStarted: fork,
		daemon.StepForkMade:    forked,
		daemon.StepSnapshotDir: snapshot, daemon.StepSnapshotSaved: snapshot, daemon.StepSnapshotNamed: snapshot,
		daemon.StepRestorePrepared: restore, daemon.StepRestoreEnded: restore, daemon.StepRestoreMemory: restore, daemon.StepRestoreDisk: restore,
		daemon.StepRestoreRow: restore, daemon.StepRestoreStarted: restore,
		daemon.StepSuspendDir: suspend, daemon.StepSuspendEnded: suspend,
		daemon.StepCreateFetched: create, daemon.StepCreateRow: create, daemon.StepCreateDir: create,
		daemon.StepCreateDisk: create, daemon.StepCreateRecord: create, daemon.StepCreateMade: create,
		daemon.StepStartRow: start, daemon.StepStartLaunch: start, daemon.StepStartSpawned: start, daemon.StepStartReady: start,
		daemon.StepStopRow: stop, daemon.StepStopEnded: stop,
		daemon.StepRemoveRow: remove, daemon.StepRemoveEnded: remove, daemon.StepRemoveRun: remove, daemon.StepRemoveDir: remove,
		daemon.StepGrowFile: grow, daemon.StepGrowGuest: grow,
		daemon.StepChangeRow: rename, daemon.StepChangeRecord: rename,
		daemon.StepResetRow: reset, daemon.StepResetRecord: reset,
		library.StepStaged: pull, library.StepMoved: pull, library.StepNamed: pull, library.StepRow: pulled,
		daemon.StepOwnRoot: build, daemon.StepOwnReady: build, builder.StepLayer: build, builder.StepPacked: build,
		builder.StepExported:    export,
		library.StepForgetNames: forget, library.StepForgetRow: forgotten, library.StepForgetGone: forgotten,
	}
}

// atStart are the steps that a daemon comes by when it starts.
func atStart() []daemon.Step {
	return []daemon.Step{daemon.StepAdoptExamined, daemon.StepAdoptDone, daemon.StepRebuildRow}
}

// atPool are the steps of the pool, which a create does without: see pool_test.go.
func atPool() []daemon.Step {
	return []daemon.Step{daemon.StepPoolReady, daemon.StepPoolNamed, daemon.StepPoolRecord}
}

func second[T any](_ T, err error) error { return err }

// tryCreate creates and starts a VM and waits for the outcome.
func (h *host) tryCreate(name string) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.vms.Create(ctx, connect.NewRequest(&bangerv1.CreateVMRequest{Spec: &bangerv1.VMSpec{Name: name}, Start: true}))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}

// outcome waits for the end of an operation and returns its fault.
func (h *host) outcome(ctx context.Context, id string) error {
	stream, err := h.ops.Watch(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		return err
	}
	defer stream.Close()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if f := last.GetFault(); f != nil {
		return fault.New(fault.ParseClass(f.GetClass()), "%s", f.GetMessage())
	}
	return nil
}

func TestEveryStepHasAScenario(t *testing.T) {
	ways := scenarios()
	for _, s := range daemon.Steps() {
		if _, ok := ways[s]; !ok && !slices.Contains(slices.Concat(atStart(), atPool()), s) {
			t.Errorf("step %s is not tested", s)
		}
	}
	if n := len(ways) + len(atStart()) + len(atPool()); n != len(daemon.Steps()) {
		t.Errorf("%d scenarios for %d steps", n, len(daemon.Steps()))
	}
}

// TestEveryStepCanFail makes each step fail once. The command says so; nothing leaks, nothing is lost, and the next
// command works.
func TestEveryStepCanFail(t *testing.T) {
	for step, way := range scenarios() {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			var armed atomic.Bool
			h.cfg.Step = func(_ context.Context, s daemon.Step) error {
				if s == step && armed.CompareAndSwap(true, false) {
					return daemontest.FailedStep(s)
				}
				return nil
			}
			h.cfg.Log = nil
			h.cfg.Times.Reconcile = 50 * time.Millisecond
			h.run()
			other := h.create("other")
			way.prepare(h)
			armed.Store(true)
			if err := way.act(h); (err == nil) != way.passes {
				t.Errorf("err = %v", err)
			}
			if armed.Load() {
				t.Fatal("the step was not reached")
			}
			h.inOrder()
			if err := way.again(h); err != nil {
				t.Errorf("the next command: %v", err)
			}
			h.inOrder()
			if v := h.get("other"); v.GetState() != "running" || v.GetSupervisorPid() != other.GetSupervisorPid() {
				t.Errorf("the other vm: %v", v)
			}
		})
	}
}

// dying runs a daemon in a process of its own that kills itself at a step. ended is closed when it is gone.
func (h *host) dying(step daemon.Step, env ...string) (ended <-chan error) {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(h.t.Context(), os.Args[0], "fake-daemon", filepath.Dir(h.paths.Data))
	cmd.Env = append(os.Environ(), "BANGER_READY_FD=3", daemontest.EnvDieAt+"="+string(step))
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	w.Close()
	gone := make(chan error, 1)
	go func() {
		gone <- cmd.Wait()
		h.http.CloseIdleConnections()
	}()
	_, _ = io.ReadAll(r) // ready, or dead already
	return gone
}

func awaitDeath(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("the daemon ended: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the daemon has not died")
	}
}

// TestTheDaemonCanDieAtEveryStep kills a daemon at each step. The next one finds everything in order.
func TestTheDaemonCanDieAtEveryStep(t *testing.T) {
	for step, way := range scenarios() {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			h.cfg.Log = nil
			stop := h.run()
			other := h.create("other")
			way.prepare(h)
			stop()
			ended := h.dying(step)
			if err := way.act(h); err == nil {
				t.Error("no error")
			}
			awaitDeath(t, ended)
			h.run()
			h.inOrder()
			if err := way.again(h); err != nil {
				t.Errorf("the next command: %v", err)
			}
			h.inOrder()
			if v := h.get("other"); v.GetState() != "running" || v.GetSupervisorPid() != other.GetSupervisorPid() {
				t.Errorf("the other vm: %v", v)
			}
			if left := h.fsck(false); len(left) > 0 {
				t.Errorf("fsck: %v", left)
			}
		})
	}
}

// TestTheDaemonCanDieWhileItStarts kills a daemon in the middle of its adoption of three VMs.
func TestTheDaemonCanDieWhileItStarts(t *testing.T) {
	for _, step := range atStart() {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			h.cfg.Log = nil
			stop := h.run()
			pids := map[string]int32{}
			for _, name := range []string{"a", "b", "c"} {
				pids[name] = h.create(name).GetSupervisorPid()
			}
			if _, err := h.stop("c"); err != nil {
				t.Fatal(err)
			}
			stop()
			h.loseDatabase()
			awaitDeath(t, h.dying(step))
			h.run()
			h.inOrder()
			for _, name := range []string{"a", "b"} {
				if v := h.get(name); v.GetState() != "running" || v.GetSupervisorPid() != pids[name] {
					t.Errorf("%v", v)
				}
			}
			if v := h.get("c"); v.GetState() != "stopped" || v.GetReason() != "stopped" {
				t.Errorf("%v", v)
			}
		})
	}
}

// loseDatabase removes the database, as rm -f does.
func (h *host) loseDatabase() {
	h.t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(h.paths.Database() + suffix); err != nil && !os.IsNotExist(err) {
			h.t.Fatal(err)
		}
	}
}

// mountSmall puts a small file system where a host keeps its data.
func (h *host) mountSmall(size string) {
	h.t.Helper()
	if os.Geteuid() != 0 {
		h.t.Skip("only root can mount a small file system")
	}
	if err := os.MkdirAll(h.paths.Data, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", h.paths.Data, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI_REQUIRED") != "" {
			h.t.Fatal(err)
		}
		h.t.Skipf("this host lets nobody mount a tmpfs: %v", err)
	}
	h.t.Cleanup(func() {
		if err := syscall.Unmount(h.paths.Data, syscall.MNT_DETACH); err != nil {
			h.t.Error(err)
		}
	})
}

// TestNoSpace fills the disk. Commands say so; what is there stays, and everything works again when there is space.
func TestNoSpace(t *testing.T) {
	h := newHost(t)
	h.mountSmall("4m")
	h.cfg.Log = nil
	h.run()
	h.create("dev")
	if _, err := h.stop("dev"); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(h.paths.Data, "ballast")
	fill := func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4096); ; {
			if _, err := f.Write(block); err != nil {
				return
			}
		}
	}
	fill()
	if err := h.tryCreate("new"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("create: %v", err)
	}
	if _, err := h.start("dev"); err == nil {
		t.Error("a start without space works")
	}
	if _, err := h.rename("dev", "dev2"); err == nil {
		t.Error("a rename without space works")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.inOrder()
	if v, err := h.start("dev"); err != nil || v.GetState() != "running" {
		t.Errorf("%v, %v", v, err)
	}
	if err := h.tryCreate("new"); err != nil {
		t.Error(err)
	}
	h.inOrder()
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
}

// TestReadOnly makes the data read-only under a running daemon, as a kernel does with a disk that fails.
func TestReadOnly(t *testing.T) {
	h := newHost(t)
	h.mountSmall("16m")
	h.cfg.Log = nil
	h.cfg.Times.Reconcile = 50 * time.Millisecond // what could not be undone is done by the reconciliation
	h.run()
	v := h.create("dev")
	// A file system that is open for writing cannot be made read-only: the lock files and the database are. It is made
	// read-only for what is opened from now on by mounting it over itself.
	if err := syscall.Mount(h.paths.Data, h.paths.Data, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("", h.paths.Data, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := h.tryCreate("new"); err == nil {
		t.Error("a create works")
	}
	if got := h.get("dev"); got.GetState() != "running" || got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", got)
	}
	if err := syscall.Unmount(h.paths.Data, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	h.inOrder()
	if err := h.tryCreate("new"); err != nil {
		t.Error(err)
	}
	h.inOrder()
}
