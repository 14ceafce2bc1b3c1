package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// adoptLimit bounds what one VM can hold up a daemon that starts. answerLimit is its supervisor's share, arriveLimit the
// time that one gets which was spawned by a daemon that died right after that.
const (
	adoptLimit  = 20 * time.Second
	answerLimit = 5 * time.Second
	arriveLimit = 2 * time.Second
)

// evidence is what a daemon that starts finds out about one VM.
type evidence struct {
	state  vm.State
	made   bool   // its directory was completed
	alive  bool   // a supervisor holds its lock
	phase  string // what that answers; "" when it does not
	orphan bool   // its directory is gone
}

// action is what is to be done about it.
type action string

const (
	// keep: nothing runs and the row says so, or what runs is on its way out and the row knows it.
	keep action = "keep"
	// destroy: it is half made, because a daemon died in the middle of a create, or half removed. Finish the removal.
	destroyIt action = "destroy"
	// watchIt: a supervisor runs it, and what it says will be recorded as it comes: that the guest is ready, that the VM
	// has ended. One that does not answer is given time: it may be busy, and its VM is the user's.
	watchIt action = "watch"
	// revive: the row says that it does not run, but its supervisor does (a row that was restored from a backup). The
	// supervisor is right.
	revive action = "revive"
	// stopAgain: somebody wanted it stopped, but the order never reached its supervisor.
	stopAgain action = "stop again"
	// killIt: its supervisor hangs and the VM was to stop or had stopped. Nothing is lost by the end of both.
	killIt action = "kill"
	// recordEnd: its supervisor is gone. How it ended is in exit.json, or it was killed.
	recordEnd action = "record the end"
	// lament: its directory is gone, and its disk with it. Only the user can say what to do.
	lament action = "lament"
)

// decide is the whole of adoption: every combination of evidence has one outcome.
//
//	half made, or deleting     destroy
//	created, stopped, failed
//	  no supervisor            keep (lament when its directory is gone)
//	  answers starting, ready  revive
//	  answers stopping, exited keep: it is leaving
//	  does not answer          kill
//	starting, running
//	  no supervisor            record the end
//	  answers or not           watch
//	stopping
//	  no supervisor            record the end
//	  answers starting, ready  stop again
//	  answers stopping, exited watch
//	  does not answer          kill
func decide(e evidence) action {
	working := e.phase == phaseStarting || e.phase == phaseReady
	switch {
	case !e.made || e.state == vm.Deleting:
		return destroyIt
	case !e.alive && e.state.Live():
		return recordEnd
	case !e.alive && e.orphan:
		return lament
	case !e.alive:
		return keep
	case e.state == vm.Starting || e.state == vm.Running:
		return watchIt
	case e.phase == "":
		return killIt
	case e.state == vm.Stopping && working:
		return stopAgain
	case e.state == vm.Stopping:
		return watchIt
	case working:
		return revive
	}
	return keep
}

// reconcile brings rows, directories and processes in line. All VMs at once, each within its own bound.
func (f *fleet) reconcile(ctx context.Context) error {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var wg sync.WaitGroup
	for _, v := range all {
		known[string(v.ID)] = true
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, adoptLimit)
			defer cancel()
			if err := f.reconcileOne(bounded, v); err != nil {
				f.log.ErrorContext(ctx, "cannot adopt", "vm", v.ID, "state", v.State, "error", err)
			}
		})
	}
	wg.Wait()
	for _, dir := range list(f.cfg.Paths.VMs()) {
		if id := filepath.Base(dir); !known[id] && !strings.HasPrefix(id, ".") {
			f.log.WarnContext(ctx, "a vm directory without a row is left alone", "dir", dir)
		}
	}
	return nil
}

func (f *fleet) reconcileOne(ctx context.Context, v store.VM) error {
	unlock, err := f.locks.Lock(ctx, v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	e, release, err := f.examine(ctx, v)
	if err != nil {
		return err
	}
	defer release()
	todo := decide(e)
	if todo != keep {
		f.log.InfoContext(ctx, "adoption", "vm", v.ID, "state", v.State, "alive", e.alive, "phase", e.phase, "action", todo)
	}
	switch todo {
	case destroyIt:
		if e.alive { // killing it may take a while: clients are not made to wait for it
			f.wg.Go(func() { f.removeEnded(v.ID, true) })
			return nil
		}
		release()
		return f.destroy(ctx, v.ID)
	case watchIt:
		f.adopt(v)
	case revive:
		if v, err = f.store.MoveToStarting(ctx, v.ID); err != nil {
			return err
		}
		f.adopt(v)
	case stopAgain:
		r := f.adopt(v)
		f.wg.Go(func() { // takes the guest's grace: clients are not made to wait for it
			if err := f.halt(f.ctx, r, false, defaultGrace); err != nil && f.ctx.Err() == nil {
				f.log.Error("cannot stop", "vm", r.id, "error", err)
			}
		})
	case killIt:
		return f.killWedged(v)
	case recordEnd:
		return f.recordEnd(ctx, v)
	case lament:
		return f.store.SetReason(ctx, v.ID, v.State, "its directory "+string(f.dir(v.ID))+" is gone")
	}
	return nil
}

// examine collects the evidence. When no supervisor is alive its lock is held until release, so that none comes up.
func (f *fleet) examine(ctx context.Context, v store.VM) (evidence, func(), error) {
	e := evidence{state: v.State, made: v.Made}
	dir := f.dir(v.ID)
	if _, err := os.Stat(string(dir)); os.IsNotExist(err) {
		e.orphan = true
		return e, func() {}, nil
	}
	if v.State == vm.Starting {
		awaitArrival(ctx, dir)
	}
	release, alive, err := claim(dir)
	if err != nil || !alive {
		return e, sync.OnceFunc(release), err
	}
	e.alive = true
	s := dialSupervisor(f.cfg.Paths.SupervisorSocket(string(v.ID)))
	defer s.close()
	// One that was spawned a moment ago holds the lock before it listens.
	for deadline := time.Now().Add(answerLimit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		if status, err := ask(ctx, s, time.Until(deadline)); err == nil {
			e.phase = status.GetPhase()
			break
		}
	}
	return e, release, nil
}

// awaitArrival waits for a supervisor that was told what to start and has not got as far as to take its lock. It must
// have the lock first: claim would turn it away.
func awaitArrival(ctx context.Context, dir vmdir.Dir) {
	there := func(file string) bool {
		_, err := os.Stat(dir.Path(file))
		return err == nil
	}
	for deadline := time.Now().Add(arriveLimit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(firstPause) {
		if !there(paths.VMSupervisorSpec) || there(paths.VMProcess) || there(paths.VMExit) {
			return
		}
	}
}

// recordEnd records how a VM ended that nobody watched. The caller holds the supervisor's lock, if there is one.
func (f *fleet) recordEnd(ctx context.Context, v store.VM) error {
	end, err := f.cleanUp(v.ID, f.dir(v.ID), v.State != vm.Starting)
	if err != nil {
		return err
	}
	if v, err = f.store.MoveToEnded(ctx, v.ID, end); err != nil {
		return err
	}
	if v.Spec.Remove {
		f.wg.Go(func() { f.removeEnded(v.ID, false) })
	}
	return nil
}

// killWedged ends a supervisor that does not answer and its VM.
func (f *fleet) killWedged(v store.VM) error {
	if _, ok, err := f.dir(v.ID).ReadProcess(); err != nil || !ok {
		return fault.New(fault.Unavailable, "vm %s: a supervisor that does not answer has its lock, and which one is not known", v.Name())
	}
	r := f.newRun(v.ID)
	if v.State.Live() {
		r = f.adopt(v) // records the end
	}
	f.murder(r)
	return nil
}
