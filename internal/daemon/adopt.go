package daemon

import (
	"context"
	"os"
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
	lonely bool   // it is one of a daemon's own VMs, and what it was for is gone
}

// action is what is to be done about it.
type action string

const (
	// keep: nothing runs and the row says so, or what runs is on its way out and the row knows it.
	keep action = "keep"
	// destroy: it is half made, because a daemon died in the middle of a create, or half removed, or it was for an
	// operation that has died. Finish the removal.
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
//	half made, deleting or lonely  destroy
//	created, stopped, failed, suspended
//	  no supervisor                    keep (lament when its directory is gone)
//	  answers starting, ready, paused  revive
//	  answers stopping, exited         keep: it is leaving
//	  does not answer                  kill
//	starting, running, paused
//	  no supervisor                    record the end
//	  answers or not                   watch
//	stopping
//	  no supervisor                    record the end
//	  answers starting, ready, paused  stop again
//	  answers stopping, exited         watch
//	  does not answer                  kill
func decide(e evidence) action {
	working := e.phase == phaseStarting || e.phase == phaseReady || e.phase == phasePaused
	switch {
	case !e.made || e.state == vm.Deleting || e.lonely:
		return destroyIt
	case !e.alive && e.state.Live():
		return recordEnd
	case !e.alive && e.orphan:
		return lament
	case !e.alive:
		return keep
	case e.state == vm.Starting || e.state == vm.Running || e.state == vm.Paused:
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

// reconcile brings rows, directories and processes in line. All VMs at once, each within its own bound. A daemon that
// starts does it for every VM; later, VMs with which somebody does something at that moment are left alone.
func (f *fleet) reconcile(ctx context.Context, atStart bool) error {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, v := range all {
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, adoptLimit)
			defer cancel()
			if err := f.reconcileOne(bounded, v.ID, atStart); err != nil && ctx.Err() == nil {
				f.log.ErrorContext(ctx, "cannot adopt", "vm", v.ID, "state", v.State, "error", err)
			}
		})
	}
	wg.Wait()
	return f.reportStrays(ctx)
}

// reportStrays logs, once for each, the directories that no row belongs to. Nothing is done about them: see fsck.
func (f *fleet) reportStrays(ctx context.Context) error {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, v := range all {
		known[string(v.ID)] = true
	}
	strays := map[string]bool{}
	for _, dir := range list(f.cfg.Paths.VMs()) {
		if id := name(dir); !known[id] && !strings.HasPrefix(id, ".") {
			strays[dir] = true
		}
	}
	f.mu.Lock()
	before := f.reported
	f.reported = strays
	f.mu.Unlock()
	for dir := range strays {
		if !before[dir] {
			f.log.WarnContext(ctx, "a vm directory without a row is left alone", "dir", dir)
		}
	}
	return nil
}

func (f *fleet) reconcileOne(ctx context.Context, id vm.ID, atStart bool) error {
	lock := f.locks.Lock
	if !atStart {
		lock = f.tryLock
	}
	unlock, err := lock(ctx, id)
	if err != nil {
		if !atStart {
			return nil // somebody is at it
		}
		return err
	}
	defer unlock()
	v, err := f.store.VM(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if atStart {
		v = f.mend(ctx, v)
	}
	if err := f.settle(ctx, v); err != nil {
		return err
	}
	return f.cfg.step(ctx, StepAdoptDone)
}

// settle finds out what there is of a VM and does what decide says. The caller holds the VM's lock.
func (f *fleet) settle(ctx context.Context, v store.VM) error {
	e, release, err := f.examine(ctx, v)
	if err != nil {
		return err
	}
	defer release()
	if err := f.cfg.step(ctx, StepAdoptExamined); err != nil {
		return err
	}
	todo := decide(e)
	if todo == watchIt && f.runOf(v.ID) != nil {
		return nil // as it should be
	}
	if todo != keep && todo != lament {
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
		f.adopt(v).hearOut(ctx, e)
	case revive:
		if v, err = f.store.MoveToStarting(ctx, v.ID, false); err != nil {
			return err
		}
		f.adopt(v).hearOut(ctx, e)
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
		if reason := "its directory " + string(f.dir(v.ID)) + " is gone"; v.Reason != reason {
			return f.store.SetReason(ctx, v.ID, v.State, reason)
		}
	}
	return nil
}

// hearOut waits until the watcher of a VM whose guest is ready has recorded that, so that nobody is told of a VM that
// starts when it runs.
func (r *run) hearOut(ctx context.Context, e evidence) {
	if e.phase != phaseReady && e.phase != phasePaused {
		return
	}
	select {
	case <-r.settled:
	case <-time.After(answerLimit):
	case <-ctx.Done():
	}
}

// examine collects the evidence. When no supervisor is alive its lock is held until release, so that none comes up.
func (f *fleet) examine(ctx context.Context, v store.VM) (evidence, func(), error) {
	e := evidence{state: v.State, made: v.Made, lonely: f.abandoned(v)}
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
	var ran time.Duration
	if v.State != vm.Starting {
		end.WasReady = true
		ran = end.At.Sub(v.StartedAt)
	}
	if v, err = f.recordEnded(ctx, v.ID, end); err != nil {
		return err
	}
	f.afterEnd(v, ran)
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
