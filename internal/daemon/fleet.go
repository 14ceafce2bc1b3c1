package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hostmem"
	"banger/internal/keylock"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// Bounds of what is asked of supervisors.
const (
	defaultGrace = 10 * time.Second // for a guest to shut down when nobody says
	stopSlack    = 25 * time.Second // on top of the grace: the supervisor's own ladder below the guest
	killLimit    = 15 * time.Second // for a killed VM to be gone
	removeLimit  = 60 * time.Second // for a removal that has begun, whoever waits for it
	pauseLimit   = 15 * time.Second // for a guest's CPUs to stop or to go on
	growLimit    = time.Minute      // for a guest to grow its file system
)

// restartsAtOnce is how many VMs are started by their restart policies at the same time.
const restartsAtOnce = 3

// fleet runs VMs: it starts, watches and ends their supervisors and records in the store what becomes of them. One
// watcher for each live VM (watch.go) is the only one that records the end of a run.
type fleet struct {
	// Fixed after newFleet.
	cfg      Config
	log      *slog.Logger
	store    *store.Store
	stopping <-chan struct{} // closed when the daemon begins to stop
	released func(context.Context, store.VM)

	// Synchronised by themselves.
	locks  keylock.Map[vm.ID]
	ctx    context.Context // ends the watchers
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the fleet

	starts    chan struct{} // as many restarts may go on at once
	templates *templates    // set before the first start
	admission *admission
	preparer  preparer

	mu        sync.Mutex // guards the fields below
	runs      map[vm.ID]*run
	comebacks map[vm.ID]*comeback
	reported  map[string]bool // directories without a row that were logged
	own       map[vm.ID]bool  // hidden VMs that an operation of this daemon has made
}

// newFleet returns a fleet without VMs. released is called when a VM is gone for good.
func newFleet(cfg Config, log *slog.Logger, db *store.Store, stopping <-chan struct{}, released func(context.Context, store.VM)) *fleet {
	f := &fleet{
		cfg: cfg, log: log, store: db, stopping: stopping, released: released, starts: make(chan struct{}, restartsAtOnce),
		runs: make(map[vm.ID]*run), comebacks: make(map[vm.ID]*comeback), reported: make(map[string]bool),
		own: make(map[vm.ID]bool),
	}
	free := cfg.FreeMemory
	if free == nil {
		free = hostmem.Host{}.Available
	}
	f.admission = &admission{each: cfg.Settings.Limits.StartMemory, free: free, log: log}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// close ends the watchers and waits for them. VMs go on.
func (f *fleet) close() {
	f.cancel()
	f.wg.Wait()
}

func (f *fleet) dir(id vm.ID) vmdir.Dir { return vmdir.Dir(f.cfg.Paths.VM(string(id))) }

// usesTemplate reports whether a VM that runs was started from the template of that key.
func (f *fleet) usesTemplate(key string) bool {
	f.mu.Lock()
	runs := slices.Collect(maps.Values(f.runs))
	f.mu.Unlock()
	return slices.ContainsFunc(runs, func(r *run) bool {
		l, err := r.dir.ReadLaunch()
		return err == nil && l.TemplateKey == key
	})
}

// runOf returns the run of a VM that the fleet watches, or nil.
func (f *fleet) runOf(id vm.ID) *run {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs[id]
}

// lock takes the lock of a VM. While somebody else has it and a run goes on that interrupt says may be cut short, that
// run is killed, so that nobody has to wait for a boot or a slow stop that is not wanted any more.
func (f *fleet) lock(ctx context.Context, id vm.ID, interrupt func(*run) bool) (unlock func(), err error) {
	for wait := 100 * time.Millisecond; ; wait = time.Second {
		try, cancel := context.WithTimeout(ctx, wait)
		unlock, err := f.locks.Lock(try, id)
		cancel()
		if err == nil {
			return unlock, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if r := f.runOf(id); r != nil && interrupt(r) {
			if err := f.halt(ctx, r, true, 0); err != nil {
				return nil, err
			}
		}
	}
}

// tryLock takes the lock of a VM if nobody has it.
func (f *fleet) tryLock(ctx context.Context, id vm.ID) (unlock func(), err error) {
	try, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	return f.locks.Lock(try, id)
}

// Kinds of interrupt.
func patient(*run) bool  { return false }
func noBoot(r *run) bool { return !r.isReady() }
func atOnce(*run) bool   { return true }

// startOptions say how a VM is started.
type startOptions struct {
	again bool // by its restart policy, not by hand
	cold  bool // not from a template
	// admitted says that the memory for it is reserved already.
	admitted bool
	from     *prepared       // the disk is a copy of this one's, and new
	damage   error           // why from, which was there, is not used
	leave    <-chan struct{} // when it is closed, the start goes on by itself
	report   progress.Func   // stage "template"; may be nil
}

// start starts a VM that does not run, by hand or again by its restart policy, and returns when its guest is ready. The
// caller holds the VM's lock. When the guest does not become ready nothing of it runs any more and the VM is failed;
// when ctx ends first, it is stopped.
func (f *fleet) start(ctx context.Context, v store.VM, opt startOptions) error {
	f.preparer.busy.Add(1)
	defer f.preparer.busy.Add(-1)
	launch, err := f.launch(v)
	if err != nil {
		return fault.Context(err, "start vm %s", v.Name())
	}
	if !opt.admitted {
		release, err := f.admission.admit(admissionFor{what: "vm " + string(v.Name()), count: 1}, v.Spec.Memory)
		if err != nil {
			return err
		}
		defer release()
	}
	if !opt.again {
		f.forget(v.ID)
	}
	switch {
	case v.State == vm.Suspended && !opt.cold:
		if err := f.resumption(ctx, v, &launch); err != nil {
			return err
		}
	case v.State == vm.Suspended:
		if err := f.forgetMemory(v.ID); err != nil {
			return withClass(err)
		}
	case opt.from != nil:
		opt.from.use(&launch, f.templates.store)
	case !opt.cold:
		if err := f.templates.choose(ctx, &launch, v.KernelVersion, opt.report); err != nil {
			return fault.Context(err, "start vm %s", v.Name())
		}
		if opt.damage != nil && launch.TemplateFault == "" {
			launch.TemplateFault = opt.damage.Error() + "; it will be made anew"
		}
	}
	if _, err := f.store.MoveToStarting(ctx, v.ID, opt.again); err != nil {
		return err
	}
	if launch.Resume != nil { // it goes on as it was, whatever has been set since
		if err := f.store.SetPending(ctx, v.ID, pendingFor(launch, v.Spec)); err != nil {
			f.log.ErrorContext(ctx, "cannot note what waits for the next start", "vm", v.ID, "error", err)
		}
	}
	r, err := f.spawn(ctx, launch)
	if err != nil {
		end := store.Ended{Failed: true, Reason: err.Error(), At: time.Now()}
		if _, moveErr := f.recordEnded(context.WithoutCancel(ctx), v.ID, end); moveErr != nil {
			f.log.ErrorContext(ctx, "cannot record the end of a vm", "vm", v.ID, "error", moveErr)
		}
		return fault.Context(err, "start vm %s", v.Name())
	}
	if err := f.cfg.step(ctx, StepStartSpawned); err != nil {
		f.takeBack(ctx, r)
		return err
	}
	if err := f.await(ctx, r, opt.leave); err != nil {
		return err
	}
	if err := f.cfg.step(ctx, StepStartReady); err != nil {
		f.takeBack(ctx, r)
		return err
	}
	return nil
}

// takeBack ends a run that nobody wants after all.
func (f *fleet) takeBack(ctx context.Context, r *run) {
	ctx = context.WithoutCancel(ctx)
	if err := f.store.SetWanted(ctx, r.id, false); err != nil {
		f.log.ErrorContext(ctx, "cannot note that a vm stays down", "vm", r.id, "error", err)
	}
	if err := f.halt(ctx, r, true, 0); err != nil {
		f.log.ErrorContext(ctx, "cannot take back a start", "vm", r.id, "error", err)
	}
}

// spawn starts the supervisor and its watcher.
func (f *fleet) spawn(ctx context.Context, launch vmdir.Launch) (*run, error) {
	if err := f.cfg.step(ctx, StepStartRow); err != nil {
		return nil, err
	}
	dir := f.dir(launch.VMID)
	if err := dir.RemoveExit(); err != nil {
		return nil, err
	}
	if err := dir.WriteLaunch(launch); err != nil {
		return nil, fault.Wrap(classOf(err), err, "write %s", paths.VMSupervisorSpec)
	}
	if err := f.cfg.step(ctx, StepStartLaunch); err != nil {
		return nil, errors.Join(err, removeFile(dir.Path(paths.VMSupervisorSpec)))
	}
	argv := append(slices.Clone(f.cfg.SupervisorCommand), "--dir", string(dir))
	id, ended, err := proc.Spawn(argv, f.cfg.SupervisorEnv, supervisorLog(dir))
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Unavailable, err, "start supervisor"), removeFile(dir.Path(paths.VMSupervisorSpec)))
	}
	r := f.newRun(launch.VMID)
	r.spawned, r.ended = id, ended
	return f.track(r), nil
}

// await waits until the guest of r is ready.
func (f *fleet) await(ctx context.Context, r *run, leave <-chan struct{}) error {
	select {
	case <-r.settled:
		return r.outcome()
	case <-leave:
		return fault.New(fault.Unavailable, "the daemon is stopping; the vm goes on starting").WithHint("banger vm list")
	case <-ctx.Done():
	}
	f.takeBack(ctx, r)
	return context.Cause(ctx)
}

// halt ends a run, by the stop ladder or with kill at once, and returns when its end is recorded. A supervisor that does
// not do it is killed. When ctx ends first the stop goes on.
func (f *fleet) halt(ctx context.Context, r *run, kill bool, grace time.Duration) error {
	limit := grace + stopSlack
	if kill {
		limit = killLimit
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := r.order(bounded, kill, grace)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !r.isGone() {
		f.log.WarnContext(ctx, "the supervisor does not end its vm, killing both", "vm", r.id, "error", err)
		f.murder(r)
	}
	timer := time.NewTimer(killLimit)
	defer timer.Stop()
	select {
	case <-r.gone:
		r.supervisor.close() // it waits for those who are still connected
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fault.New(fault.Timeout, "vm %s does not end, even when killed", r.id)
	}
}

// order tells the supervisor to end its VM and waits until it has. One that does not listen yet, or not any more, is
// given a moment.
func (r *run) order(ctx context.Context, kill bool, grace time.Duration) (err error) {
	for pause := firstPause; pause < lastPause; pause *= 2 {
		if err = r.supervisor.stop(ctx, kill, grace); err == nil || ctx.Err() != nil {
			break
		}
		select {
		case <-r.gone:
			return nil
		case <-time.After(pause):
		}
	}
	return err
}

// murder kills the processes of a run. The watcher finds out.
func (f *fleet) murder(r *run) {
	r.mu.Lock()
	r.killed = true
	r.mu.Unlock()
	victims := []proc.Identity{r.spawned}
	if p, ok, err := r.dir.ReadProcess(); err == nil && ok {
		victims = append(victims, p.Supervisor, p.VMM)
	}
	for _, id := range victims {
		if err := id.Kill(syscall.SIGKILL); err != nil {
			f.log.Error("cannot kill", "vm", r.id, "pid", id.PID, "error", err)
		}
	}
}

// stop ends a VM and returns it as it is then. One that does not run is left as it is.
func (f *fleet) stop(ctx context.Context, id vm.ID, kill bool, grace time.Duration) (store.VM, error) {
	interrupt := noBoot
	if kill {
		interrupt = atOnce
	}
	unlock, err := f.lock(ctx, id, interrupt)
	if err != nil {
		return store.VM{}, err
	}
	defer unlock()
	v, err := f.store.VM(ctx, id)
	if err != nil {
		return v, err
	}
	return f.stopLocked(ctx, v, kill, grace)
}

// stopLocked is stop for who holds the VM's lock. Its restart policy leaves the VM alone from now on.
func (f *fleet) stopLocked(ctx context.Context, v store.VM, kill bool, grace time.Duration) (store.VM, error) {
	f.forget(v.ID)
	if !v.State.Live() {
		if v.Wanted {
			if err := f.store.SetWanted(ctx, v.ID, false); err != nil {
				return v, err
			}
		}
		return v, nil
	}
	if v.State != vm.Stopping {
		// It may end by itself at this moment; then there is nothing left to do.
		if _, err := f.store.MoveToStopping(ctx, v.ID, true); err != nil && !fault.Is(err, fault.Conflict) {
			return store.VM{}, err
		}
	}
	if err := f.cfg.step(ctx, StepStopRow); err != nil {
		return store.VM{}, err
	}
	if err := f.halt(ctx, f.adopt(v), kill, grace); err != nil {
		return store.VM{}, err
	}
	if err := f.cfg.step(ctx, StepStopEnded); err != nil {
		return store.VM{}, err
	}
	// It may have ended by itself before the order was written down.
	if err := f.store.SetWanted(ctx, v.ID, false); err != nil {
		return store.VM{}, err
	}
	return f.store.VM(ctx, v.ID)
}

// remove removes a VM for good. One that runs is killed first with force, else refused. A VM that somebody else has
// removed meanwhile is no error. Once it has begun, the caller's cancellation does not stop it.
func (f *fleet) remove(ctx context.Context, id vm.ID, force bool) error {
	interrupt := patient
	if force {
		interrupt = atOnce
	}
	unlock, err := f.lock(ctx, id, interrupt)
	if err != nil {
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
	if err := f.refuseRemoval(v, force); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	return f.destroy(ctx, v.ID)
}

// refuseRemoval refuses to remove a VM that runs, or that has snapshots which somebody took by hand, and says which.
func (f *fleet) refuseRemoval(v store.VM, force bool) error {
	if force {
		return nil
	}
	has, err := f.countSnapshots(v)
	switch {
	case err != nil:
		return err
	case v.State.Live() && has != "":
		return fault.New(fault.Conflict, "vm %s is %s and has %s", v.Name(), v.State, has).
			WithHint("banger vm rm --force %s   # removes them, too", v.Name())
	case v.State.Live():
		return fault.New(fault.Conflict, "vm %s is %s", v.Name(), v.State).WithHint("banger vm rm --force %s", v.Name())
	case has != "":
		return fault.New(fault.Conflict, "vm %s has %s", v.Name(), has).WithHint("banger vm rm --force %s   # removes them, too", v.Name())
	}
	return nil
}

// destroy ends a VM and removes all of it. It can be cut off at any point and done again: the row is the last to go.
// The caller holds the VM's lock.
func (f *fleet) destroy(ctx context.Context, id vm.ID) error {
	v, err := f.store.VM(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err == nil && v.State != vm.Deleting {
		v, err = f.store.MoveToDeleting(ctx, id)
	}
	if err != nil {
		return err
	}
	f.forget(id)
	if err := f.cfg.step(ctx, StepRemoveRow); err != nil {
		return err
	}
	dir := f.dir(id)
	release, alive, err := claim(dir)
	if err != nil {
		return err
	}
	release()
	if r := f.runOf(id); r != nil || alive {
		if err := f.halt(ctx, f.adopt(v), true, 0); err != nil {
			return err
		}
	}
	if err := f.cfg.step(ctx, StepRemoveEnded); err != nil {
		return err
	}
	if err := f.erase(ctx, v); err != nil {
		return err
	}
	f.log.InfoContext(ctx, "vm removed", "vm", id, "name", v.Name())
	f.released(ctx, v)
	return nil
}

// erase removes what is left of a VM whose processes are gone.
func (f *fleet) erase(ctx context.Context, v store.VM) error {
	if err := os.RemoveAll(f.cfg.Paths.VMRun(string(v.ID))); err != nil {
		return fault.Wrap(classOf(err), err, "remove run directory")
	}
	if err := f.cfg.step(ctx, StepRemoveRun); err != nil {
		return err
	}
	if err := atomicfile.RemoveDir(string(f.dir(v.ID))); err != nil {
		return fault.Wrap(classOf(err), err, "remove vm directory")
	}
	if err := f.cfg.step(ctx, StepRemoveDir); err != nil {
		return err
	}
	return f.store.DeleteVM(ctx, v.ID)
}
