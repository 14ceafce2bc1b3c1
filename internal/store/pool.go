package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"banger/internal/fault"
)

// ClaimVM makes the VM of a user of one of the daemon's own that runs: v has the name and the settings of the new one. A
// name that another VM has is a fault of class Exists, a VM that has ended or is a user's one of class Conflict.
func (s *Store) ClaimVM(ctx context.Context, v VM) (VM, error) {
	spec, err := json.Marshal(v.Spec)
	if err != nil {
		return VM{}, fmt.Errorf("vm %s: spec: %w", v.ID, err)
	}
	var claimed VM
	err = s.change(ctx, func(tx *sql.Tx) (err error) {
		claimed, err = scan(tx.QueryRowContext(ctx, `UPDATE vms SET name = ?, spec = ?, created_ms = ?
			WHERE id = ? AND state = 'running' AND coalesce(json_extract(spec, '$.purpose'), '') <> '' RETURNING `+columns,
			v.Name(), string(spec), millis(v.CreatedAt), v.ID))
		if err != nil {
			return uniqueName(err, v.Name())
		}
		if err := s.recordVM(ctx, tx, claimed, EventCreated, "image "+claimed.Spec.Image); err != nil {
			return err
		}
		return s.recordVM(ctx, tx, claimed, "vm."+string(claimed.State), "")
	})
	if errors.Is(err, sql.ErrNoRows) {
		return VM{}, fault.New(fault.Conflict, "vm %s cannot be taken: it does not run, or it is somebody's", v.ID)
	}
	return claimed, err
}
