package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/vm"
)

// Every change of state is one UPDATE that names the states it may come from, so that two that race cannot both
// happen. A move that vm.State.CanGo does not allow is a fault of class Conflict that names the state the VM is in.

// Running is what is known of a VM whose guest is ready.
type Running struct {
	SupervisorPID int
	VMMPID        int
	Accelerator   string
	At            time.Time
}

// Ended is what is known of a VM that does not run any more.
type Ended struct {
	Failed   bool // the guest never became ready
	WasReady bool // the guest is known to have become ready
	Reason   string
	Code     int
	At       time.Time
	ActiveAt time.Time // last use; zero when not known
	// Expected says that somebody asked for it. StaysDown, that the VM's restart policy leaves it as it is.
	Expected  bool
	StaysDown bool
	Suspended bool // its memory is kept
}

// MoveToStarting records that a supervisor is about to be spawned: by hand, or again by the VM's restart policy. What
// waited for the next start happens now.
func (s *Store) MoveToStarting(ctx context.Context, id vm.ID, again bool) (VM, error) {
	assign := "reason = '', supervisor_pid = 0, vmm_pid = 0, exit_code = 0, started_ms = 0, pending = ''"
	if again {
		return s.move(ctx, id, vm.Starting, assign+", restarts = restarts + 1")
	}
	// A start by hand that fails is for whoever asked: the policy is about VMs that ran.
	return s.move(ctx, id, vm.Starting, assign+", restarts = 0, wanted = 0")
}

// MoveToRunning records that the guest is ready, or that it runs again after a pause. A reset has been carried out.
func (s *Store) MoveToRunning(ctx context.Context, id vm.ID, r Running) (VM, error) {
	return s.move(ctx, id, vm.Running, `reason = '', supervisor_pid = ?, vmm_pid = ?, accelerator = ?, started_ms = ?,
		reset_token = '', wanted = 1`, r.SupervisorPID, r.VMMPID, r.Accelerator, millis(r.At))
}

// MoveToPaused records that the guest's CPUs stand still.
func (s *Store) MoveToPaused(ctx context.Context, id vm.ID) (VM, error) {
	return s.move(ctx, id, vm.Paused, "reason = ''")
}

// MoveToStopping records that the VM is on its way down. ordered says that somebody wants it to stay down.
func (s *Store) MoveToStopping(ctx context.Context, id vm.ID, ordered bool) (VM, error) {
	if ordered {
		return s.move(ctx, id, vm.Stopping, "reason = '', wanted = 0")
	}
	return s.move(ctx, id, vm.Stopping, "reason = ''")
}

// MoveToEnded records the end of a run: the VM is stopped, suspended, or failed.
func (s *Store) MoveToEnded(ctx context.Context, id vm.ID, e Ended) (VM, error) {
	state := vm.Stopped
	switch {
	case e.Suspended:
		state = vm.Suspended
	case e.Failed:
		state = vm.Failed
	}
	more := ""
	if e.WasReady {
		more += ", reset_token = ''"
	}
	if e.StaysDown || e.Suspended {
		more += ", wanted = 0"
	}
	return s.move(ctx, id, state, `reason = ?, supervisor_pid = 0, vmm_pid = 0, exit_code = ?, started_ms = 0,
		stopped_ms = ?, active_ms = max(active_ms, ?), pending = ''`+more,
		e.Reason, e.Code, millis(e.At), millis(e.ActiveAt))
}

// MoveToRestored records that a VM without processes has other files than before: with the memory of a saved machine it is
// suspended, without one stopped. resetToken is that of the VM when they were saved.
func (s *Store) MoveToRestored(ctx context.Context, id vm.ID, state vm.State, resetToken string) (VM, error) {
	return s.moveFrom(ctx, id, state, []vm.State{vm.Created, vm.Stopped, vm.Failed, vm.Suspended},
		"reason = '', pending = '', reset_token = ?", resetToken)
}

// MoveToDeleting records that the VM is to go. There is no way back: whoever finds it in this state finishes it.
func (s *Store) MoveToDeleting(ctx context.Context, id vm.ID) (VM, error) {
	return s.move(ctx, id, vm.Deleting, "reason = '', wanted = 0")
}

// SetReason changes the reason of a VM that is in the given state, and nothing when it is in another one.
func (s *Store) SetReason(ctx context.Context, id vm.ID, state vm.State, reason string) error {
	return s.exec(ctx, "UPDATE vms SET reason = ? WHERE id = ? AND state = ?", reason, id, state)
}

func (s *Store) move(ctx context.Context, id vm.ID, to vm.State, assign string, args ...any) (VM, error) {
	var from []vm.State
	for _, state := range vm.States() {
		if state.CanGo(to) {
			from = append(from, state)
		}
	}
	return s.moveFrom(ctx, id, to, from, assign, args...)
}

// moveFrom is move from some states only.
func (s *Store) moveFrom(ctx context.Context, id vm.ID, to vm.State, states []vm.State, assign string, args ...any) (VM, error) {
	var from []string
	for _, state := range states {
		from = append(from, "'"+string(state)+"'") // constants of package vm: no quotes in them
	}
	query := "UPDATE vms SET state = ?, " + assign + " WHERE id = ? AND state IN (" + strings.Join(from, ", ") +
		") RETURNING " + columns
	args = append(append([]any{to}, args...), id)
	var v VM
	err := s.change(ctx, func(tx *sql.Tx) (err error) { // so that a commit that fails is heard of
		if v, err = scan(tx.QueryRowContext(ctx, query, args...)); err != nil {
			return err
		}
		return s.recordVM(ctx, tx, v, "vm."+string(to), v.Reason)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return VM{}, s.illegal(ctx, id, to)
	}
	return v, err
}

// illegal says why the VM cannot go to that state.
func (s *Store) illegal(ctx context.Context, id vm.ID, to vm.State) error {
	v, err := s.VM(ctx, id)
	if err != nil {
		return err
	}
	return v.Refuse(to)
}

// Refuse is the fault of a request that the VM's state does not allow: it says which state that is and what would work.
func (v VM) Refuse(to vm.State) error {
	verbs := map[vm.State]string{
		vm.Starting: "started", vm.Running: "unpaused", vm.Paused: "paused", vm.Stopping: "stopped", vm.Stopped: "stopped",
		vm.Failed: "ended", vm.Suspended: "suspended", vm.Deleting: "removed",
	}
	f := fault.New(fault.Conflict, "vm %s is %s, it cannot be %s", v.Name(), v.State, orElse(verbs[to], string(to)))
	return f.WithHint("%s", v.wayOut(to))
}

// wayOut is the command that brings the VM nearer to where somebody wants it.
func (v VM) wayOut(to vm.State) string {
	command := "show"
	switch {
	case v.State == vm.Deleting:
		return "banger vm list"
	case v.State == vm.Paused:
		command = "unpause"
	case v.State == vm.Starting, v.State == vm.Stopping:
		command = "wait"
	case v.State.Live() && to == vm.Starting:
		command = "restart"
	case !v.State.Live() && to != vm.Deleting:
		command = "start"
	}
	return "banger vm " + command + " " + string(v.Name())
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
