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

// Artifact is an image or a kernel that was pulled: a name for the digest under which its directory is found.
type Artifact struct {
	Kind      Kind
	Name      string
	Digest    string
	CreatedAt time.Time
}

// PutArtifact records that the name stands for the digest from now on.
func (s *Store) PutArtifact(ctx context.Context, a Artifact) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO artifacts (kind, name, digest, created_ms) VALUES (?, ?, ?, ?)
			ON CONFLICT (kind, name) DO UPDATE SET digest = excluded.digest, created_ms = excluded.created_ms`,
			a.Kind, a.Name, a.Digest, millis(a.CreatedAt))
		if err != nil {
			return err
		}
		return s.record(ctx, tx, Event{Kind: string(a.Kind) + ".added", ObjectID: a.Digest, Object: a.Name})
	})
}

// DeleteArtifact forgets the name. One that is not there is no error.
func (s *Store) DeleteArtifact(ctx context.Context, kind Kind, name string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		var digest string
		err := tx.QueryRowContext(ctx, "DELETE FROM artifacts WHERE kind = ? AND name = ? RETURNING digest", kind, name).Scan(&digest)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return s.record(ctx, tx, Event{Kind: string(kind) + ".removed", ObjectID: digest, Object: name})
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
	column := "image_digest"
	if kind == Kernel {
		column = "kernel_digest"
	}
	var n int
	err := s.db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM artifacts WHERE kind = ?1 AND digest = ?2)
		+ (SELECT count(*) FROM vms WHERE `+column+` = ?2)`, kind, digest).Scan(&n)
	return n > 0, s.wrap(err)
}
