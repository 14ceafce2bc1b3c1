package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// askLimit bounds one question to a supervisor, which answers at once or not at all. touchEvery is how often the last
// use of a VM is written down while it runs: the next daemon can ask the supervisor.
const (
	askLimit   = 2 * time.Second
	touchEvery = time.Minute
)

// use is how a VM is used, as far as its supervisor has said.
type use struct {
	last     time.Time // last activity; zero when not known
	sessions int32
}

func useOf(s *bangerv1.SupervisorStatus) use {
	last := max(s.GetLastActivityMs(), 0)
	if last == 0 {
		return use{sessions: s.GetOpenSessions()}
	}
	return use{last: time.UnixMilli(last).UTC(), sessions: s.GetOpenSessions()}
}

// note keeps what a supervisor has said.
func (r *run) note(s *bangerv1.SupervisorStatus) use {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := useOf(s)
	if u.last.Before(r.use.last) {
		u.last = r.use.last
	}
	r.use = u
	return u
}

func (r *run) used() use {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.use
}

// poll asks the supervisors of all running VMs when they were used last, and stops those that nobody uses.
func (f *fleet) poll(ctx context.Context) {
	all, err := f.store.VMs(ctx)
	if err != nil {
		f.log.Error("cannot look after idle vms", "error", err)
		return
	}
	var wg sync.WaitGroup
	for _, v := range all {
		r := f.runOf(v.ID)
		if v.State != vm.Running || r == nil {
			continue
		}
		wg.Go(func() { f.pollOne(ctx, v, r) })
	}
	wg.Wait()
}

func (f *fleet) pollOne(ctx context.Context, v store.VM, r *run) {
	status, err := ask(ctx, r.supervisor, askLimit)
	if err != nil {
		return // the watcher and the reconciliation care for one that does not answer
	}
	u := r.note(status)
	if u.last.Sub(v.ActiveAt) >= touchEvery {
		if err := f.store.Touch(ctx, v.ID, u.last); err != nil {
			f.log.Error("cannot note the use of a vm", "vm", v.ID, "error", err)
		}
	}
	if idle := f.idleFor(v, r, status, time.Now()); v.Spec.AutoStop > 0 && idle >= v.Spec.AutoStop {
		f.wg.Go(func() { f.stopIdle(v.ID) }) // takes the guest's grace
	}
}

// idleFor is how long nobody has used a VM: 0 when somebody is connected, and while sessions run that a stop would end. A
// suspend would not: they go on after it. A pause counts as use, or the VM would be stopped as soon as it goes on.
func (f *fleet) idleFor(v store.VM, r *run, status *bangerv1.SupervisorStatus, now time.Time) time.Duration {
	if status.GetOpenSessions() > 0 || status.GetPhase() != phaseReady {
		return 0
	}
	if status.GetRunningSessions() > 0 && !f.suspends(v) {
		return 0
	}
	r.mu.Lock()
	since := r.resumed
	r.mu.Unlock()
	for _, at := range []time.Time{
		v.ActiveAt, v.StartedAt, time.UnixMilli(status.GetReadyAtMs()), time.UnixMilli(status.GetLastActivityMs()),
	} {
		if at.After(since) {
			since = at
		}
	}
	return now.Sub(since)
}

// suspends reports whether a VM that nobody uses is suspended and not stopped.
func (f *fleet) suspends(v store.VM) bool {
	driver := f.cfg.Drivers[v.Driver]
	return f.cfg.Settings.Defaults.IdleAction == config.IdleSuspend && driver != nil && driver.Features().Save
}

// suspendIdle suspends a VM that nobody uses, if the configuration says so and its VMM can. One that cannot be suspended
// now (the disk is full) goes on and is looked at again later: its memory is somebody's work.
func (f *fleet) suspendIdle(v store.VM, r *run, idle time.Duration) bool {
	if !f.suspends(v) {
		return false
	}
	f.tell(v, store.EventIdle, fmt.Sprintf("nobody has used it for %s: it is suspended", idle.Round(time.Second)))
	if _, err := f.suspend(f.ctx, v); err != nil && f.ctx.Err() == nil {
		f.tell(v, store.EventIdle, "it goes on, because it cannot be suspended: "+err.Error())
		r.resume() // not again at once
	}
	return true
}

// stopIdle stops a VM unless somebody has begun to use it or does something with it now.
func (f *fleet) stopIdle(id vm.ID) {
	unlock, err := f.tryLock(f.ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	v, err := f.store.VM(f.ctx, id)
	r := f.runOf(id)
	if err != nil || v.State != vm.Running || r == nil || v.Spec.AutoStop == 0 {
		return
	}
	status, err := ask(f.ctx, r.supervisor, askLimit)
	if err != nil {
		return
	}
	idle := f.idleFor(v, r, status, time.Now())
	if idle < v.Spec.AutoStop {
		return
	}
	if f.suspendIdle(v, r, idle) {
		return
	}
	f.tell(v, store.EventIdle, fmt.Sprintf("nobody has used it for %s: it is stopped", idle.Round(time.Second)))
	if _, err := f.stopLocked(f.ctx, v, false, defaultGrace); err != nil && f.ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
		f.log.Error("cannot stop an idle vm", "vm", id, "error", err)
	}
}
