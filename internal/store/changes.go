package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"banger/internal/fault"
	"banger/internal/vm"
)

// Change is what UpdateVM writes: the whole spec, what of it waits for the next start, and the event that says so.
type Change struct {
	Spec    vm.Spec
	Pending []string
	Kind    string // of the event: EventRenamed, EventChanged
	Message string
}

// UpdateVM changes the settings of a VM that is not being deleted. A name that another VM has is a fault of class Exists.
func (s *Store) UpdateVM(ctx context.Context, id vm.ID, c Change) (VM, error) {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return VM{}, fmt.Errorf("vm %s: spec: %w", id, err)
	}
	return s.update(ctx, id, c.Kind, c.Message, c.Spec.Name, "name = ?, spec = ?, pending = ?",
		c.Spec.Name, string(spec), joinList(c.Pending))
}

// SetReset notes that the next start is to reset the VM's root.
func (s *Store) SetReset(ctx context.Context, id vm.ID, token string) (VM, error) {
	return s.update(ctx, id, EventReset, "at the next start", "", "reset_token = ?", token)
}

// update changes a row that is not being deleted and records an event.
func (s *Store) update(ctx context.Context, id vm.ID, kind, message string, name vm.Name, assign string, args ...any) (VM, error) {
	var v VM
	err := s.change(ctx, func(tx *sql.Tx) (err error) {
		v, err = scan(tx.QueryRowContext(ctx, "UPDATE vms SET "+assign+" WHERE id = ? AND state <> 'deleting' RETURNING "+columns,
			append(args, id)...))
		if err != nil {
			return uniqueName(err, name)
		}
		return s.recordVM(ctx, tx, v, kind, message)
	})
	if errors.Is(err, sql.ErrNoRows) {
		if v, err = s.VM(ctx, id); err == nil {
			err = fault.New(fault.Conflict, "vm %s is %s, it cannot be changed", v.Name(), v.State).WithHint("banger vm list")
		}
		return VM{}, err
	}
	return v, err
}

// SetWanted notes whether the VM is to run by its restart policy.
func (s *Store) SetWanted(ctx context.Context, id vm.ID, wanted bool) error {
	return s.exec(ctx, "UPDATE vms SET wanted = ? WHERE id = ? AND state <> 'deleting'", wanted, id)
}

// SetPending notes which settings of a VM wait for its next start.
func (s *Store) SetPending(ctx context.Context, id vm.ID, pending []string) error {
	return s.exec(ctx, "UPDATE vms SET pending = ? WHERE id = ?", joinList(pending), id)
}

// Touch notes when the VM was last used. It never goes back.
func (s *Store) Touch(ctx context.Context, id vm.ID, at time.Time) error {
	return s.exec(ctx, "UPDATE vms SET active_ms = ?2 WHERE id = ?1 AND active_ms < ?2", id, millis(at))
}

// AddVMEvent records something that happened to a VM and changed nothing in its row.
func (s *Store) AddVMEvent(ctx context.Context, v VM, kind, message string) error {
	return s.change(ctx, func(tx *sql.Tx) error { return s.recordVM(ctx, tx, v, kind, message) })
}
