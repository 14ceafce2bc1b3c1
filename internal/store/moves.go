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
	Failed bool // the guest never became ready
	Reason string
	Code   int
	At     time.Time
}

// MoveToStarting records that a supervisor is about to be spawned.
func (s *Store) MoveToStarting(ctx context.Context, id vm.ID) (VM, error) {
	return s.move(ctx, id, vm.Starting, "reason = '', supervisor_pid = 0, vmm_pid = 0, exit_code = 0, started_ms = 0")
}

// MoveToRunning records that the guest is ready.
func (s *Store) MoveToRunning(ctx context.Context, id vm.ID, r Running) (VM, error) {
	return s.move(ctx, id, vm.Running, "reason = '', supervisor_pid = ?, vmm_pid = ?, accelerator = ?, started_ms = ?",
		r.SupervisorPID, r.VMMPID, r.Accelerator, millis(r.At))
}

// MoveToStopping records that the VM was asked to stop.
func (s *Store) MoveToStopping(ctx context.Context, id vm.ID) (VM, error) {
	return s.move(ctx, id, vm.Stopping, "reason = ''")
}

// MoveToEnded records the end of a run: the VM is stopped, or failed.
func (s *Store) MoveToEnded(ctx context.Context, id vm.ID, e Ended) (VM, error) {
	state := vm.Stopped
	if e.Failed {
		state = vm.Failed
	}
	return s.move(ctx, id, state,
		"reason = ?, supervisor_pid = 0, vmm_pid = 0, exit_code = ?, started_ms = 0, stopped_ms = ?",
		e.Reason, e.Code, millis(e.At))
}

// MoveToDeleting records that the VM is to go. There is no way back: whoever finds it in this state finishes it.
func (s *Store) MoveToDeleting(ctx context.Context, id vm.ID) (VM, error) {
	return s.move(ctx, id, vm.Deleting, "reason = ''")
}

// SetReason changes the reason of a VM that is in the given state, and nothing when it is in another one.
func (s *Store) SetReason(ctx context.Context, id vm.ID, state vm.State, reason string) error {
	_, err := s.db.ExecContext(ctx, "UPDATE vms SET reason = ? WHERE id = ? AND state = ?", reason, id, state)
	return s.wrap(err)
}

func (s *Store) move(ctx context.Context, id vm.ID, to vm.State, assign string, args ...any) (VM, error) {
	var from []string
	for _, state := range []vm.State{vm.Created, vm.Starting, vm.Running, vm.Stopping, vm.Stopped, vm.Failed, vm.Deleting} {
		if state.CanGo(to) {
			from = append(from, "'"+string(state)+"'") // constants of package vm: no quotes in them
		}
	}
	query := "UPDATE vms SET state = ?, " + assign + " WHERE id = ? AND state IN (" + strings.Join(from, ", ") +
		") RETURNING " + columns
	args = append(append([]any{to}, args...), id)
	var v VM
	err := s.inTx(ctx, func(tx *sql.Tx) (err error) { // so that a commit that fails is heard of
		v, err = scan(tx.QueryRowContext(ctx, query, args...))
		return err
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
	f := fault.New(fault.Conflict, "vm %s is %s, it cannot become %s", v.Name(), v.State, to).
		WithHint("banger vm show %s", v.Name())
	if to == vm.Starting && v.State.Live() {
		f = f.WithHint("banger vm stop %s", v.Name())
	}
	return f
}
