package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/vm"
)

// VM is the row of one VM. Times are in UTC and of millisecond precision.
type VM struct {
	ID            vm.ID
	Spec          vm.Spec
	MachineID     string
	Driver        string
	ImageDigest   string
	KernelDigest  string
	KernelVersion string
	Made          bool // its directory is complete; a VM without it is the leftover of a create that was cut off
	CreatedAt     time.Time

	State         vm.State
	Reason        string // why it is in that state, when that is not obvious
	Accelerator   string // of the last run
	SupervisorPID int    // 0 when it does not run
	VMMPID        int    // 0 when it does not run
	ExitCode      int    // of the VMM in the last run
	StartedAt     time.Time
	StoppedAt     time.Time

	ActiveAt   time.Time // last use
	Wanted     bool      // by its restart policy it is to run; false after somebody has stopped it
	Restarts   int       // by its restart policy since it was last started by hand
	Pending    []string  // settings that wait for the next start
	ResetToken string    // of a reset that the next start carries out; empty: none

	Address int        // number of its address: see netstack.Address; the store chooses it
	Origin  *vm.Origin // of a VM that was made by a fork; nil: by a create
}

// Name of the VM.
func (v VM) Name() vm.Name { return v.Spec.Name }

// Hidden reports whether it is one of the daemon's own.
func (v VM) Hidden() bool { return v.Spec.Hidden() }

// columns of a VM in the order of scan.
const columns = `id, spec, machine_id, driver, image_digest, kernel_digest, kernel_version, made, created_ms,
	state, reason, accelerator, supervisor_pid, vmm_pid, exit_code, started_ms, stopped_ms, active_ms, wanted, restarts,
	pending, reset_token, address, forked_from`

func scan(row interface{ Scan(...any) error }) (v VM, err error) {
	var spec []byte
	var created, started, stopped, active int64
	var pending, origin string
	err = row.Scan(&v.ID, &spec, &v.MachineID, &v.Driver, &v.ImageDigest, &v.KernelDigest, &v.KernelVersion, &v.Made,
		&created, &v.State, &v.Reason, &v.Accelerator, &v.SupervisorPID, &v.VMMPID, &v.ExitCode, &started, &stopped,
		&active, &v.Wanted, &v.Restarts, &pending, &v.ResetToken, &v.Address, &origin)
	if err != nil {
		return VM{}, err
	}
	v.CreatedAt, v.StartedAt, v.StoppedAt = fromMillis(created), fromMillis(started), fromMillis(stopped)
	v.ActiveAt, v.Pending = fromMillis(active), splitList(pending)
	if err := json.Unmarshal(spec, &v.Spec); err != nil {
		return VM{}, fmt.Errorf("vm %s: spec: %w", v.ID, err)
	}
	if origin != "" {
		if err := json.Unmarshal([]byte(origin), &v.Origin); err != nil {
			return VM{}, fmt.Errorf("vm %s: origin: %w", v.ID, err)
		}
	}
	return v, nil
}

// InsertVM adds a VM in state created, not yet Made. A VM of the same name is a fault of class Exists. Its image and
// kernel must have a name, or a VM that uses them: otherwise they may be about to be removed, and the fault is of class
// Unavailable: resolve them again. A VM of the daemon's own may have no image.
func (s *Store) InsertVM(ctx context.Context, v VM) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		for kind, digest := range map[Kind]string{Image: v.ImageDigest, Kernel: v.KernelDigest} {
			if digest == "" && v.Spec.Hidden() {
				continue
			}
			var n int
			err := tx.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM artifacts WHERE kind = ?1 AND digest = ?2)
				+ (SELECT count(*) FROM vms WHERE `+kind.column()+` = ?2)`, kind, digest).Scan(&n)
			if err != nil {
				return err
			}
			if n == 0 {
				return fault.New(fault.Unavailable, "%s %s was replaced just now", kind, digest)
			}
		}
		v.State, v.Made = vm.Created, false
		if err := insertRow(ctx, tx, v); err != nil {
			return err
		}
		return s.recordVM(ctx, tx, v, EventCreated, "image "+v.Spec.Image)
	})
}

// AdoptVM adds the row of a VM whose directory was found without one, as it is.
func (s *Store) AdoptVM(ctx context.Context, v VM) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		if err := insertRow(ctx, tx, v); err != nil {
			return err
		}
		return s.recordVM(ctx, tx, v, EventAdopted, "from its directory")
	})
}

// insertRow adds a row. The columns that a new VM does not have keep their defaults.
func insertRow(ctx context.Context, tx *sql.Tx, v VM) error {
	spec, err := json.Marshal(v.Spec)
	if err != nil {
		return fmt.Errorf("vm %s: spec: %w", v.ID, err)
	}
	origin := ""
	if v.Origin != nil {
		text, err := json.Marshal(v.Origin)
		if err != nil {
			return fmt.Errorf("vm %s: origin: %w", v.ID, err)
		}
		origin = string(text)
	}
	if v.Address, err = freeAddress(ctx, tx, v.Address); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO vms (id, name, spec, machine_id, driver, image_digest, kernel_digest,
		kernel_version, made, state, reason, exit_code, created_ms, stopped_ms, reset_token, address, forked_from)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		v.ID, v.Name(), string(spec), v.MachineID, v.Driver, v.ImageDigest, v.KernelDigest, v.KernelVersion, v.Made,
		v.State, v.Reason, v.ExitCode, millis(v.CreatedAt), millis(v.StoppedAt), v.ResetToken,
		v.Address, origin)
	return uniqueName(err, v.Name())
}

// Addresses that VMs can have. Those below are for the network itself.
const (
	firstAddress = 16
	lastAddress  = 1<<16 - 2
)

// freeAddress returns the wanted address if there is one and no VM has it, else the lowest that no VM has.
func freeAddress(ctx context.Context, tx *sql.Tx, want int) (int, error) {
	var taken int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM vms WHERE address = ?", want).Scan(&taken); err != nil {
		return 0, err
	}
	if taken == 0 && want >= firstAddress && want <= lastAddress {
		return want, nil
	}
	var free sql.NullInt64
	err := tx.QueryRowContext(ctx, `SELECT min(n) FROM (SELECT ?1 AS n UNION SELECT address + 1 FROM vms WHERE address >= ?1)
		WHERE n NOT IN (SELECT address FROM vms)`, firstAddress).Scan(&free)
	if err != nil {
		return 0, err
	}
	if free.Int64 > lastAddress {
		return 0, fault.New(fault.Exhausted, "all %d addresses are taken by vms", lastAddress-firstAddress+1).WithHint("banger vm list")
	}
	return int(free.Int64), nil
}

// uniqueName says what a broken constraint means.
func uniqueName(err error, name vm.Name) error {
	if coded, ok := errors.AsType[*sqlite.Error](err); ok && coded.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return nameTaken(name)
	}
	return err
}

func nameTaken(name vm.Name) error {
	return fault.New(fault.Exists, "a vm called %s exists already", name).WithHint("banger vm rm %s", name)
}

// CheckName returns a fault of class Exists when a VM has exactly that name.
func (s *Store) CheckName(ctx context.Context, name vm.Name) error {
	var n int
	if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM vms WHERE name = ?", name).Scan(&n); err != nil {
		return s.wrap(err)
	}
	if n > 0 {
		return nameTaken(name)
	}
	return nil
}

// MarkMade records that the VM's directory is complete.
func (s *Store) MarkMade(ctx context.Context, id vm.ID) error {
	return s.exec(ctx, "UPDATE vms SET made = 1 WHERE id = ?", id)
}

// MarkForked records that the directories of VMs that were made together are complete, of all of them or none. With
// suspended, they do not run yet and have the memory of the VM that they were made from.
func (s *Store) MarkForked(ctx context.Context, ids []vm.ID, suspended bool) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			query := "UPDATE vms SET made = 1 WHERE id = ?"
			if suspended {
				query = "UPDATE vms SET made = 1, state = 'suspended' WHERE id = ? AND state = 'created'"
			}
			if _, err := tx.ExecContext(ctx, query, id); err != nil {
				return err
			}
			v, err := scan(tx.QueryRowContext(ctx, "SELECT "+columns+" FROM vms WHERE id = ?", id))
			if err != nil {
				return err
			}
			if err := s.recordVM(ctx, tx, v, EventForked, "from "+string(v.Origin.Name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteVM removes the row. One that is not there is no error.
func (s *Store) DeleteVM(ctx context.Context, id vm.ID) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		v, err := scan(tx.QueryRowContext(ctx, "DELETE FROM vms WHERE id = ? RETURNING "+columns, id))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return s.recordVM(ctx, tx, v, EventRemoved, "")
	})
}

// VM returns the VM with exactly that id.
func (s *Store) VM(ctx context.Context, id vm.ID) (VM, error) {
	v, err := scan(s.db.QueryRowContext(ctx, "SELECT "+columns+" FROM vms WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return VM{}, fault.New(fault.NotFound, "no vm has the id %s", id).WithHint("banger vm list")
	}
	return v, s.wrap(err)
}

// VMs returns every VM, the oldest first.
func (s *Store) VMs(ctx context.Context) ([]VM, error) {
	return s.query(ctx, "SELECT "+columns+" FROM vms ORDER BY created_ms, id")
}

func (s *Store) query(ctx context.Context, query string, args ...any) ([]VM, error) {
	all, err := queryVMs(ctx, s.db, query, args...)
	return all, s.wrap(err)
}

// queryVMs reads VMs, in a transaction or without one.
func queryVMs(ctx context.Context, db interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, query string, args ...any) ([]VM, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []VM
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// FindVM returns the VM that a person means by ref: its exact id, its exact name, or a prefix of the id or the name
// that fits no other VM. One of the daemon's own VMs is found by its whole id or name only.
func (s *Store) FindVM(ctx context.Context, ref string) (VM, error) {
	if ref == "" {
		return VM{}, fault.New(fault.Invalid, "the name of the vm is empty").WithHint("banger vm list")
	}
	found, err := s.query(ctx, "SELECT "+columns+` FROM vms WHERE substr(id, 1, length(?1)) = ?1
		OR substr(name, 1, length(?1)) = ?1 ORDER BY name`, ref)
	if err != nil {
		return VM{}, err
	}
	for _, exact := range []func(VM) bool{
		func(v VM) bool { return string(v.ID) == ref },
		func(v VM) bool { return string(v.Name()) == ref },
	} {
		if i := slices.IndexFunc(found, exact); i >= 0 {
			return found[i], nil
		}
	}
	found = slices.DeleteFunc(found, VM.Hidden)
	switch len(found) {
	case 0:
		return VM{}, s.notFound(ctx, ref)
	case 1:
		return found[0], nil
	}
	return VM{}, ambiguous(ref, found)
}

// maxCandidates is how many VMs an ambiguous reference lists.
const maxCandidates = 8

func ambiguous(ref string, found []VM) error {
	var list []string
	for _, v := range found[:min(len(found), maxCandidates)] {
		list = append(list, fmt.Sprintf("%s (%s)", v.Name(), v.ID))
	}
	if more := len(found) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("%d more", more))
	}
	return fault.New(fault.Invalid, "%q fits more than one vm: %s", ref, strings.Join(list, ", ")).
		WithHint("banger vm list")
}

func (s *Store) notFound(ctx context.Context, ref string) error {
	f := fault.New(fault.NotFound, "no vm is called %q", ref).WithHint("banger vm list")
	all, err := s.VMs(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, v := range all {
		if !v.Hidden() {
			names = append(names, string(v.Name()))
		}
	}
	if near := nearest.Of(ref, names); near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return f
}
