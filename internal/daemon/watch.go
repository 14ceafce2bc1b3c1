package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/rpc"
	"banger/internal/store"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Pauses between two tries to reach a supervisor: short at first, because one that was spawned just now needs some
// milliseconds until it listens.
const (
	firstPause  = 2 * time.Millisecond
	lastPause   = 500 * time.Millisecond
	recordPause = time.Second // between two tries to write to the store
)

// Phases of a supervisor (SupervisorStatus.phase).
const (
	phaseStarting = "starting"
	phaseReady    = "ready"
	phasePaused   = "paused"
	phaseStopping = "stopping"
	phaseExited   = "exited"
)

// hostRestarted is why a VM ended that ran when the host went down.
const hostRestarted = "the host was restarted"

// run is one run of one VM, from the spawn or the adoption of its supervisor until its end is recorded.
type run struct {
	// Fixed.
	id         vm.ID
	dir        vmdir.Dir
	supervisor *supervisor
	spawned    proc.Identity   // zero for an adopted one
	ended      <-chan struct{} // closed when the spawned process was reaped; nil for an adopted one
	settled    chan struct{}   // closed when the guest is ready, or with gone
	gone       chan struct{}   // closed when the end is recorded

	paused bool // of the watcher: the last phase that it recorded

	mu      sync.Mutex // guards the fields below
	ready   bool
	since   time.Time // when this daemon saw it ready first
	resumed time.Time // when it was unpaused last
	use     use
	origin  origin
	killed  bool  // by this daemon, because its supervisor did not end it
	fault   error // why the guest did not become ready
}

func (r *run) isReady() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready
}

func (r *run) isGone() bool {
	select {
	case <-r.gone:
		return true
	default:
		return false
	}
}

// origin says what a run was started from.
type origin struct {
	template string // key of the template; "": it was booted, or goes on from its own memory
	fault    string // what was wrong with templates
}

func (r *run) from() origin {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.origin
}

// noteOrigin keeps what a supervisor says about templates.
func (r *run) noteOrigin(s *bangerv1.SupervisorStatus) {
	o := origin{template: r.from().template, fault: s.GetTemplateFault()}
	if s.GetFromTemplate() && o.template == "" {
		l, err := r.dir.ReadLaunch()
		if err != nil {
			return
		}
		o.template = l.TemplateKey
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.origin = o
}

// outcome is nil when the guest became ready. Valid once settled is closed.
func (r *run) outcome() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ready {
		return nil
	}
	return r.fault
}

// newRun returns a run that nobody watches yet.
func (f *fleet) newRun(id vm.ID) *run {
	return &run{
		id: id, dir: f.dir(id), supervisor: dialSupervisor(f.cfg.Paths.SupervisorSocket(string(id))),
		settled: make(chan struct{}), gone: make(chan struct{}),
	}
}

// adopt returns the run of a VM that the row says is live, and watches it from now on if nobody does yet.
func (f *fleet) adopt(v store.VM) *run {
	r := f.newRun(v.ID)
	if v.State == vm.Running || v.State == vm.Paused || v.State == vm.Stopping { // its guest was ready, whatever its supervisor is able to say
		r.ready, r.since = true, v.StartedAt
		close(r.settled)
	}
	r.paused, r.use.last = v.State == vm.Paused, v.ActiveAt
	return f.track(r)
}

// track begins to watch a run, or returns the one of that VM that is watched.
func (f *fleet) track(r *run) *run {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.runs[r.id]; known != nil {
		return known
	}
	f.runs[r.id] = r
	f.wg.Go(func() { f.watch(r) })
	return r
}

// watch follows a supervisor until its VM has ended and records that, or until the daemon stops.
func (f *fleet) watch(r *run) {
	defer r.supervisor.close()
	ended := r.ended // nil once it was heard of, and for an adopted run
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		var last *bangerv1.SupervisorStatus
		err := r.supervisor.watch(f.ctx, func(s *bangerv1.SupervisorStatus) error {
			pause, last = firstPause, s
			r.note(s)
			r.noteOrigin(s)
			return f.observe(r, s)
		})
		if last.GetPhase() == phaseExited {
			// A short-lived guest may have been ready and gone before its supervisor was asked again.
			if err := f.observe(r, last); err != nil {
				f.log.Warn("cannot record that a guest was ready", "vm", r.id, "error", err)
			}
			f.finish(r, endOf(last), rpc.FromProto(last.GetFault()))
			return
		}
		if f.ctx.Err() != nil {
			return
		}
		if end, dead := f.bury(r); dead {
			f.finish(r, end, nil)
			return
		}
		if last != nil {
			f.log.Warn("lost the connection to a supervisor", "vm", r.id, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ended:
			ended, pause = nil, firstPause
		case <-f.ctx.Done():
			return
		}
	}
}

// observe records what a supervisor says of a VM that has not ended. Moves that the store refuses are of no account: the
// VM is on its way somewhere else, or was there already, because who asked for it has recorded it. After any other error
// the caller asks the supervisor again. Only the watcher calls it.
func (f *fleet) observe(r *run, s *bangerv1.SupervisorStatus) error {
	paused := s.GetPhase() == phasePaused
	switch s.GetPhase() {
	case phaseReady, phasePaused:
		if !r.isReady() || r.paused && !paused {
			if err := f.recordRunning(r, s); err != nil {
				return err
			}
		}
		if paused && !r.paused {
			if _, err := f.store.MoveToPaused(f.ctx, r.id); err != nil && !fault.Is(err, fault.Conflict) {
				return err
			}
		}
		if r.paused && !paused {
			r.resume()
		}
		r.paused = paused
	case phaseExited:
		if s.GetReadyAtMs() > 0 && !r.isReady() {
			return f.recordRunning(r, s)
		}
	case phaseStopping:
		if _, err := f.store.MoveToStopping(f.ctx, r.id, false); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return nil
}

// recordRunning records that the guest is ready, and tells who waits for that.
func (f *fleet) recordRunning(r *run, s *bangerv1.SupervisorStatus) error {
	v, err := f.store.MoveToRunning(f.ctx, r.id, store.Running{
		SupervisorPID: int(s.GetSupervisorPid()), VMMPID: int(s.GetVmmPid()), Accelerator: s.GetAccelerator(),
		At: time.UnixMilli(s.GetStartedAtMs()),
	})
	if err != nil && !fault.Is(err, fault.Conflict) {
		return err
	}
	if err == nil {
		f.syncRecord(f.ctx, v) // a reset has been carried out
	}
	if err == nil && !r.isReady() { // for the first time: what is paused may be being suspended
		f.firstRun(r, s)
	}
	r.mu.Lock()
	first := !r.ready
	r.ready = true
	if first {
		r.since = time.Now()
	}
	r.mu.Unlock()
	if first {
		close(r.settled)
	}
	return nil
}

// firstRun takes care of what a VM was started from, now that it runs.
func (f *fleet) firstRun(r *run, s *bangerv1.SupervisorStatus) {
	if err := f.forgetMemory(r.id); err != nil { // it goes on from there and writes to its disk
		f.log.Warn("cannot remove the memory of a vm that has gone on", "vm", r.id, "error", err)
	}
	if r.ended == nil { // begun by a daemon before this one, perhaps for a restore that cannot be taken back any more
		f.finishRestore(f.ctx, r.id)
	}
	if l, err := r.dir.ReadLaunch(); err == nil {
		f.templates.used(f.ctx, l.TemplateKey, s.GetFromTemplate(), s.GetTemplateFault())
	}
}

// resume notes that the guest goes on after a pause.
func (r *run) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resumed = time.Now()
}

// finish records the end of a run. It does not give up while the daemon lives: what is not recorded is found again by
// the next one.
func (f *fleet) finish(r *run, end store.Ended, cause error) {
	r.mu.Lock()
	ready, ran := r.ready, time.Since(r.since)
	end.WasReady, end.ActiveAt = ready, r.use.last
	r.mu.Unlock()
	var v store.VM
	for {
		var err error
		v, err = f.recordEnded(f.ctx, r.id, end)
		if err == nil || fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			break // a Conflict is a VM that is being deleted
		}
		if f.ctx.Err() != nil {
			return
		}
		f.log.Error("cannot record the end of a vm", "vm", r.id, "error", err)
		select {
		case <-time.After(recordPause):
		case <-f.ctx.Done():
			return
		}
	}
	f.log.Info("vm has ended", "vm", r.id, "reason", end.Reason, "failed", end.Failed, "code", end.Code)
	f.mu.Lock()
	delete(f.runs, r.id)
	f.mu.Unlock()
	f.wg.Go(func() { f.templates.evict(f.ctx, "") }) // what it was started from may have a successor
	r.mu.Lock()
	if r.fault = cause; cause == nil {
		r.fault = notReady(orElse(string(v.Name()), string(r.id)), end)
	}
	r.mu.Unlock()
	if !ready {
		close(r.settled)
		ran = 0
	}
	close(r.gone)
	if v.ID != "" {
		f.afterEnd(v, ran)
	}
}

// notReady is what a start gets to hear when the supervisor itself could not say it.
func notReady(name string, end store.Ended) error {
	if !end.Failed {
		return fault.New(fault.Cancelled, "vm %s: %s", name, end.Reason)
	}
	return fault.New(fault.Unavailable, "vm %s: %s", name, end.Reason).WithHint("banger vm logs %s", name)
}

// removeEnded removes a VM that is to go when it has ended. Without force it stays if it was started again before.
func (f *fleet) removeEnded(id vm.ID, force bool) {
	err := f.remove(f.ctx, id, force)
	if v, readErr := f.store.VM(f.ctx, id); fault.Is(err, fault.Conflict) && readErr == nil && !v.State.Live() {
		f.log.Warn("a vm that was to be removed is kept", "vm", id, "reason", err) // it has snapshots
	}
	if err != nil && !fault.Is(err, fault.Conflict) && f.ctx.Err() == nil {
		f.log.Error("cannot remove a vm that has ended", "vm", id, "error", err)
	}
}

// endOf is what a supervisor's last status says.
func endOf(s *bangerv1.SupervisorStatus) store.Ended {
	return store.Ended{
		Failed: s.GetFault() != nil, Reason: s.GetExit().GetReason(), Code: int(s.GetExit().GetCode()),
		At: time.UnixMilli(s.GetExit().GetAtMs()), Expected: s.GetExit().GetExpected(),
	}
}

// bury finds out whether the supervisor of a run is dead. If it is, it cleans up what that has left and says how the
// run ended.
func (f *fleet) bury(r *run) (end store.Ended, dead bool) {
	select {
	case <-r.ended:
	default:
		if r.ended != nil { // it may not have got as far as to take the lock
			return store.Ended{}, false
		}
	}
	release, alive, err := claim(r.dir)
	if err != nil {
		f.log.Error("cannot look after a vm", "vm", r.id, "error", err)
		return store.Ended{}, false
	}
	if alive {
		return store.Ended{}, false
	}
	defer release()
	r.mu.Lock()
	ready, killed := r.ready, r.killed
	r.mu.Unlock()
	end, err = f.cleanUp(r.id, r.dir, ready)
	if err != nil {
		f.log.Error("cannot clean up after a vm", "vm", r.id, "error", err)
		return store.Ended{}, false // and once more
	}
	if killed {
		end.Failed, end.Reason = false, "killed, together with its supervisor, which did not answer"
		if !ready {
			end.Reason = "killed while it was starting"
		}
	}
	return end, true
}

// cleanUp removes what a dead supervisor has left and says how its run ended. The caller holds the supervisor's lock, so
// that no other comes up meanwhile: one that was spawned by a daemon that died finds no supervisor.json any more.
func (f *fleet) cleanUp(id vm.ID, dir vmdir.Dir, ready bool) (store.Ended, error) {
	process, started, err := dir.ReadProcess()
	if err != nil {
		f.log.Warn("process record is unreadable", "vm", id, "error", err)
	}
	if err := process.VMM.Kill(syscall.SIGKILL); err != nil { // it dies with its supervisor; this is not left to hope
		return store.Ended{}, err
	}
	for deadline := time.Now().Add(killLimit); process.VMM.Alive(); time.Sleep(firstPause) {
		if time.Now().After(deadline) {
			return store.Ended{}, fault.New(fault.Timeout, "vm %s: the vmm (pid %d) does not die", id, process.VMM.PID)
		}
	}
	if err := os.RemoveAll(f.cfg.Paths.VMRun(string(id))); err != nil {
		return store.Ended{}, err
	}
	exit, known, err := dir.ReadExit()
	if err != nil {
		f.log.Warn("exit record is unreadable", "vm", id, "error", err)
	}
	if err := errors.Join(dir.RemoveProcess(), removeFile(dir.Path(paths.VMSupervisorSpec))); err != nil {
		return store.Ended{}, err
	}
	if known {
		return store.Ended{
			Failed: exit.Failed, WasReady: !exit.Failed, Reason: exit.Reason, Code: exit.Code, At: exit.At, Expected: exit.Expected,
		}, nil
	}
	self, err := proc.Self()
	switch {
	case err == nil && started && process.Supervisor.BootID != self.BootID:
		return store.Ended{Reason: hostRestarted, Code: -1, At: time.Now()}, nil
	case !ready && !started:
		return store.Ended{Failed: true, Reason: "the supervisor did not start", Code: -1, At: time.Now()}, nil
	}
	return store.Ended{Failed: !ready, Reason: "the supervisor was killed", Code: -1, At: time.Now()}, nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// claim takes the lock that a supervisor holds as long as it lives. alive says that one does; then nothing is held. A
// directory that is gone has no supervisor. release is never nil.
func claim(dir vmdir.Dir) (release func(), alive bool, err error) {
	nothing := func() {}
	// An old supervisor lets go of the lock a moment before it ends, so the process alone says nothing.
	f, err := os.OpenFile(dir.Path(paths.VMLock), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nothing, false, nil
	}
	if err != nil {
		return nothing, false, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		f.Close()
		return nothing, true, nil
	case err != nil:
		f.Close()
		return nothing, false, err
	}
	return func() { f.Close() }, false, nil
}

func supervisorLog(dir vmdir.Dir) string { return dir.Path(paths.VMSupervisorLog) }

// errNoStream says that a supervisor ended a stream without a last word.
var errNoStream = errors.New("the supervisor's stream has ended")

// ask bounds a question that is answered at once.
func ask(ctx context.Context, s *supervisor, limit time.Duration) (*bangerv1.SupervisorStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.status(ctx)
}
