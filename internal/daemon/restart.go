package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"banger/internal/store"
	"banger/internal/vm"
)

// panicReason is how a supervisor's exit record begins when the guest's kernel panicked, which is a failure although
// the VMM ends in order.
const panicReason = "guest kernel panic"

// comeback is what is remembered of a VM whose restart policy is at work.
type comeback struct {
	failures  int  // without a stable run in between
	scheduled bool // a goroutine waits to start it
}

// staysDown is the restart policy: whether a VM that has ended, and that nobody has stopped, is to stay as it is. The end
// of the host is nobody's failure: only "always" outlives it.
func staysDown(policy vm.RestartPolicy, end store.Ended) bool {
	switch policy {
	case vm.RestartAlways:
		return false
	case vm.RestartOnFailure:
		failure := end.Failed || end.Code != 0 || strings.HasPrefix(end.Reason, panicReason)
		return !failure || end.Expected || end.Reason == hostRestarted
	}
	return true
}

// recordEnded records the end of a run together with what the restart policy makes of it, so that a daemon that dies
// right after that leaves no doubt.
func (f *fleet) recordEnded(ctx context.Context, id vm.ID, end store.Ended) (store.VM, error) {
	v, err := f.store.VM(ctx, id)
	if err != nil {
		return store.VM{}, err
	}
	end.StaysDown = staysDown(v.Spec.Restart, end)
	end.Suspended = f.keepsMemory(id)
	return f.store.MoveToEnded(ctx, id, end)
}

// pauseAfter is how long a VM waits that has failed so often before.
func (t *Times) pauseAfter(failures int) time.Duration {
	pause := t.RestartFirst
	for range failures {
		if pause >= t.RestartMost {
			break
		}
		pause *= 2
	}
	return min(pause, t.RestartMost)
}

// afterEnd carries on after the end of a VM was recorded: it is removed, started again after a pause, or left alone. ran
// is how long its guest was ready.
func (f *fleet) afterEnd(v store.VM, ran time.Duration) {
	if v.Spec.Remove {
		f.wg.Go(func() { f.removeEnded(v.ID, false) })
		return
	}
	if !v.Wanted {
		f.forget(v.ID)
		return
	}
	pause, ok := f.schedule(v.ID, ran)
	if !ok {
		return
	}
	why := fmt.Sprintf("in %s", pause.Round(time.Millisecond))
	if v.Reason != "" {
		why += ", after: " + v.Reason
	}
	f.tell(v, store.EventRestart, why)
	f.wg.Go(func() { f.comeBack(v.ID, pause) })
}

// schedule says how long a VM has to wait for its restart, or that it waits already.
func (f *fleet) schedule(id vm.ID, ran time.Duration) (pause time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.comebacks[id]
	if c == nil {
		c = new(comeback)
		f.comebacks[id] = c
	}
	if c.scheduled {
		return 0, false
	}
	if ran >= f.cfg.Times.Stable {
		c.failures = 0
	}
	pause = f.cfg.Times.pauseAfter(c.failures)
	c.failures++
	c.scheduled = true
	return pause, true
}

// forget ends what is remembered of a VM's failures.
func (f *fleet) forget(id vm.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.comebacks, id)
}

// comeBack starts a VM after a pause, if it is still wanted then.
func (f *fleet) comeBack(id vm.ID, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-f.ctx.Done():
		return
	case <-f.stopping:
		return
	}
	unlock, err := f.lock(f.ctx, id, patient)
	if err != nil {
		return // the daemon ends; the next one goes on
	}
	defer unlock()
	f.mu.Lock()
	if c := f.comebacks[id]; c != nil {
		c.scheduled = false
	}
	f.mu.Unlock()
	v, err := f.store.VM(f.ctx, id)
	if err != nil || !mayComeBack(v) {
		return
	}
	if err = f.startAgain(v); err == nil || f.ctx.Err() != nil {
		return
	}
	select {
	case <-f.stopping: // the next daemon goes on
		return
	default:
	}
	f.log.Warn("a vm does not come back", "vm", id, "error", err)
	// A run that has failed has been through afterEnd. One that never began has not.
	if v, err := f.store.VM(f.ctx, id); err == nil && mayComeBack(v) {
		f.afterEnd(v, 0)
	}
}

func mayComeBack(v store.VM) bool {
	return v.Wanted && !v.State.Live() && v.State.CanGo(vm.Starting) && v.Spec.Restart != vm.RestartNo && v.Spec.Restart != ""
}

// startAgain starts a VM by its restart policy. The caller holds its lock. It does not hold up the end of the daemon:
// the start goes on by itself then.
func (f *fleet) startAgain(v store.VM) error {
	select {
	case f.starts <- struct{}{}: // not all at once, after the boot of a host
		defer func() { <-f.starts }()
	case <-f.stopping:
		return nil
	}
	return f.start(f.ctx, v, startOptions{again: true, leave: f.stopping})
}

// comeBackAll continues what the restart policies of ended VMs had begun before this daemon, and what the boot of the
// host asks for.
func (f *fleet) comeBackAll(ctx context.Context) error {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		if mayComeBack(v) {
			f.afterEnd(v, 0)
		}
	}
	return nil
}

// tell records an event of a VM. It is no reason to fail when that does not work.
func (f *fleet) tell(v store.VM, kind, message string) {
	if err := f.store.AddVMEvent(f.ctx, v, kind, message); err != nil && f.ctx.Err() == nil {
		f.log.Error("cannot record an event", "vm", v.ID, "kind", kind, "error", err)
	}
}
