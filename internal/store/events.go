package store

import (
	"context"
	"database/sql"
	"time"

	"banger/internal/vm"
)

// Event is something that happened. Seq ascends and is never used again.
type Event struct {
	Seq      int64
	At       time.Time
	Kind     string // "vm.stopped": what it happened to, and what
	ObjectID string
	Object   string // its name at that time
	Message  string // for people; may be empty
}

// Kinds of events beside "vm." and a state.
const (
	EventCreated = "vm.created"
	EventRemoved = "vm.removed"
	EventRenamed = "vm.renamed"
	EventChanged = "vm.changed"
	EventReset   = "vm.reset"
	EventIdle    = "vm.idle"
	EventRestart = "vm.restart" // its restart policy starts it again
	EventAdopted = "vm.adopted" // its row was made anew from its directory

	EventSnapshotted = "vm.snapshotted"      // by hand
	EventSnapshotOut = "vm.snapshot-removed" // likewise
	EventRestored    = "vm.restored"         // to a snapshot

	EventForked = "vm.forked" // it was made from another VM
)

// standardEvents is how many events are kept until KeepEvents says something else. pruneEvery is after how many new
// ones the old are removed.
const (
	standardEvents = 10_000
	pruneEvery     = 64
)

// KeepEvents sets how many events are kept, about.
func (s *Store) KeepEvents(n int) { s.events.keep.Store(int64(n)) }

// Changed returns a channel that is closed after the next event, and so after the next change of any VM's state.
func (s *Store) Changed() <-chan struct{} {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	if s.events.changed == nil {
		s.events.changed = make(chan struct{})
	}
	return s.events.changed
}

// notify wakes those who wait on Changed.
func (s *Store) notify() {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	if s.events.changed != nil {
		close(s.events.changed)
		s.events.changed = nil
	}
}

// AddEvent records something that is no change of a row.
func (s *Store) AddEvent(ctx context.Context, e Event) error {
	return s.change(ctx, func(tx *sql.Tx) error { return s.record(ctx, tx, e) })
}

// change is inTx for what records events.
func (s *Store) change(ctx context.Context, do func(*sql.Tx) error) error {
	err := s.inTx(ctx, do)
	if err == nil {
		s.notify()
	}
	return err
}

// record adds an event to a transaction.
func (s *Store) record(ctx context.Context, tx *sql.Tx, e Event) error {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	result, err := tx.ExecContext(ctx, "INSERT INTO events (at_ms, kind, object_id, object, message) VALUES (?, ?, ?, ?, ?)",
		millis(e.At), e.Kind, e.ObjectID, e.Object, e.Message)
	if err != nil {
		return err
	}
	seq, err := result.LastInsertId()
	if err != nil || seq%pruneEvery != 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, "DELETE FROM events WHERE seq <= ?", seq-s.events.keep.Load())
	return err
}

// recordVM is record for a VM. What happens to the daemon's own ones is nobody's business.
func (s *Store) recordVM(ctx context.Context, tx *sql.Tx, v VM, kind, message string) error {
	if v.Hidden() {
		return nil
	}
	return s.record(ctx, tx, Event{Kind: kind, ObjectID: string(v.ID), Object: string(v.Name()), Message: message})
}

// EventFilter chooses events. ObjectID and Object may both be empty for all; an event fits when one of them does.
type EventFilter struct {
	ObjectID vm.ID
	Object   string
}

// Events returns at most limit events after the given number, the oldest first.
func (s *Store) Events(ctx context.Context, f EventFilter, after int64, limit int) ([]Event, error) {
	return s.queryEvents(ctx, `SELECT seq, at_ms, kind, object_id, object, message FROM events
		WHERE seq > ?1 AND (?2 = '' AND ?3 = '' OR ?2 <> '' AND object_id = ?2 OR ?3 <> '' AND object = ?3)
		ORDER BY seq LIMIT ?4`, after, f.ObjectID, f.Object, limit)
}

// LatestEvents returns the newest events, at most limit, the oldest of them first.
func (s *Store) LatestEvents(ctx context.Context, f EventFilter, limit int) ([]Event, error) {
	return s.queryEvents(ctx, `SELECT * FROM (SELECT seq, at_ms, kind, object_id, object, message FROM events
		WHERE ?1 = '' AND ?2 = '' OR ?1 <> '' AND object_id = ?1 OR ?2 <> '' AND object = ?2
		ORDER BY seq DESC LIMIT ?3) ORDER BY seq`, f.ObjectID, f.Object, limit)
}

func (s *Store) queryEvents(ctx context.Context, query string, args ...any) ([]Event, error) {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, s.wrap(err)
	}
	defer rows.Close()
	var all []Event
	for rows.Next() {
		var e Event
		var at int64
		if err := rows.Scan(&e.Seq, &at, &e.Kind, &e.ObjectID, &e.Object, &e.Message); err != nil {
			return nil, s.wrap(err)
		}
		e.At = fromMillis(at)
		all = append(all, e)
	}
	return all, s.wrap(rows.Err())
}

// LastEvent is the number of the newest event, 0 when there never was one.
func (s *Store) LastEvent(ctx context.Context) (seq int64, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'").Scan(&seq)
	return seq, s.wrap(err)
}
