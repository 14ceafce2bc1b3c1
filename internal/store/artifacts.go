package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"banger/internal/fault"
)

// Kind of an artifact.
type Kind string

// The kinds.
const (
	Image  Kind = "image"
	Kernel Kind = "kernel"
)

// column of a VM's row that names the digest of what it uses of the kind.
func (k Kind) column() string {
	if k == Kernel {
		return "kernel_digest"
	}
	return "image_digest"
}

// Artifact is an image or a kernel of this host: a name for the digest under which its directory is found. Several names
// may stand for one digest. One that is kept without a name has its digest as its name.
type Artifact struct {
	Kind      Kind
	Name      string
	Digest    string
	CreatedAt time.Time
}

// Unnamed reports whether it is kept without a name.
func (a Artifact) Unnamed() bool { return a.Name == a.Digest }

// Happened is what the event of a change of names says: a verb ("added", "tagged"), and more for people.
type Happened struct {
	Verb    string
	Message string
}

// PutArtifact records that the name stands for the digest from now on. A digest that gets its first name is not kept
// without one any more, and one that has a name needs not be.
func (s *Store) PutArtifact(ctx context.Context, a Artifact, h Happened) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		if a.Unnamed() {
			var names int
			err := tx.QueryRowContext(ctx, "SELECT count(*) FROM artifacts WHERE kind = ? AND digest = ?", a.Kind, a.Digest).Scan(&names)
			if err != nil || names > 0 {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO artifacts (kind, name, digest, created_ms) VALUES (?, ?, ?, ?)
			ON CONFLICT (kind, name) DO UPDATE SET digest = excluded.digest, created_ms = excluded.created_ms`,
			a.Kind, a.Name, a.Digest, millis(a.CreatedAt))
		if err == nil && !a.Unnamed() {
			_, err = tx.ExecContext(ctx, "DELETE FROM artifacts WHERE kind = ? AND name = ?", a.Kind, a.Digest)
		}
		if err != nil {
			return err
		}
		return s.recordArtifact(ctx, tx, a, h)
	})
}

func (s *Store) recordArtifact(ctx context.Context, tx *sql.Tx, a Artifact, h Happened) error {
	return s.record(ctx, tx, Event{Kind: string(a.Kind) + "." + h.Verb, ObjectID: a.Digest, Object: a.Name, Message: h.Message})
}

// ForgetArtifact forgets the name, unless it is the last one of a digest that VMs use: then it forgets nothing and returns
// those. A name that is not there is no error.
func (s *Store) ForgetArtifact(ctx context.Context, kind Kind, name string) (users []VM, err error) {
	err = s.change(ctx, func(tx *sql.Tx) error {
		a := Artifact{Kind: kind, Name: name}
		err := tx.QueryRowContext(ctx, "SELECT digest FROM artifacts WHERE kind = ? AND name = ?", kind, name).Scan(&a.Digest)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		var others int
		err = tx.QueryRowContext(ctx, "SELECT count(*) FROM artifacts WHERE kind = ? AND digest = ? AND name <> ?", kind, a.Digest, name).
			Scan(&others)
		if err == nil && others == 0 {
			users, err = queryVMs(ctx, tx, "SELECT "+columns+" FROM vms WHERE "+kind.column()+" = ? ORDER BY name", a.Digest)
		}
		if err != nil || len(users) > 0 {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM artifacts WHERE kind = ? AND name = ?", kind, name); err != nil {
			return err
		}
		return s.recordArtifact(ctx, tx, a, Happened{Verb: "removed"})
	})
	return users, err
}

// DeleteArtifact forgets the name, whoever uses what it stands for. One that is not there is no error.
func (s *Store) DeleteArtifact(ctx context.Context, kind Kind, name string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		a := Artifact{Kind: kind, Name: name}
		err := tx.QueryRowContext(ctx, "DELETE FROM artifacts WHERE kind = ? AND name = ? RETURNING digest", kind, name).Scan(&a.Digest)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return s.recordArtifact(ctx, tx, a, Happened{Verb: "removed"})
	})
}

// Artifact returns the artifact of that name.
func (s *Store) Artifact(ctx context.Context, kind Kind, name string) (Artifact, error) {
	a := Artifact{Kind: kind, Name: name}
	var created int64
	err := s.db.QueryRowContext(ctx, "SELECT digest, created_ms FROM artifacts WHERE kind = ? AND name = ?", kind, name).
		Scan(&a.Digest, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return Artifact{}, fault.New(fault.NotFound, "%s %s is not here", kind, name).
			WithHint("banger %s pull %s", kind, name)
	}
	a.CreatedAt = fromMillis(created)
	return a, s.wrap(err)
}

// Artifacts returns every artifact of that kind by name.
func (s *Store) Artifacts(ctx context.Context, kind Kind) ([]Artifact, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT name, digest, created_ms FROM artifacts WHERE kind = ? ORDER BY name", kind)
	if err != nil {
		return nil, s.wrap(err)
	}
	defer rows.Close()
	var all []Artifact
	for rows.Next() {
		a := Artifact{Kind: kind}
		var created int64
		if err := rows.Scan(&a.Name, &a.Digest, &created); err != nil {
			return nil, s.wrap(err)
		}
		a.CreatedAt = fromMillis(created)
		all = append(all, a)
	}
	return all, s.wrap(rows.Err())
}

// DigestUsed reports whether a name stands for the digest or a VM was made with it. A digest that is not used cannot
// become so (InsertVM sees to that) unless it is published again.
func (s *Store) DigestUsed(ctx context.Context, kind Kind, digest string) (bool, error) {
	var n int
	err := s.db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM artifacts WHERE kind = ?1 AND digest = ?2)
		+ (SELECT count(*) FROM vms WHERE `+kind.column()+` = ?2)`, kind, digest).Scan(&n)
	return n > 0, s.wrap(err)
}
