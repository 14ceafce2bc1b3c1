// Package store is banger's database: one SQLite file, the only SQL of the project.
//
// It is in WAL mode with full synchronisation: what a method has returned from survives the end of the process and of
// the machine. Each method is one transaction. A Store is safe for concurrent use; one process at a time has it open
// (the daemon's lock sees to that).
//
// The file carries banger's application id and, as its user version, the number of the last migration. A file of a
// newer banger or of another program is refused before anything writes to it.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// maxConns is how many connections there are: readers beside one writer. More only cost memory.
const maxConns = 4

// applicationID marks the file as banger's: "bngr" in ASCII.
const applicationID = 0x626e6772

// Store is an open database.
type Store struct {
	db         *sql.DB
	path       string
	file       os.FileInfo // of the open database
	readersEnd time.Duration
	events     struct {
		keep atomic.Int64

		mu      sync.Mutex    // guards the field below
		changed chan struct{} // closed after the next event; nil when nobody waits
	}
}

// Open opens the database at path and brings its schema up to date; a missing one is made (0600). It returns a fault
// of class Conflict, and leaves the file as it is, when the file was made by a newer banger, belongs to another program
// or is damaged (IsDamaged).
func Open(ctx context.Context, path string) (*Store, error) {
	if err := inspectFile(path); err != nil {
		return nil, err
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 {
		// A daemon was killed: the newest header may be in the log. Looking at it must not replay it into the file.
		if err := inspectLog(ctx, path); err != nil {
			return nil, err
		}
	}
	if err := create(path); err != nil {
		return nil, openError(err, path)
	}
	db, err := sql.Open("sqlite", dsn(path, "rw"))
	if err != nil {
		return nil, openError(err, path)
	}
	db.SetMaxOpenConns(maxConns)
	db.SetMaxIdleConns(maxConns)
	s := &Store{db: db, path: path, readersEnd: readersEnd}
	s.KeepEvents(standardEvents)
	if err := s.prepare(ctx); err != nil {
		db.Close()
		return nil, err
	}
	if s.file, err = os.Stat(path); err != nil {
		db.Close()
		return nil, openError(err, path)
	}
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// dsn is path for the driver. Transactions take the write lock at once: one that reads first and then finds that
// somebody else has written would fail half way.
func dsn(path, mode string) string {
	query := url.Values{
		"mode":    {mode},
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(5000)", "foreign_keys(1)", "synchronous(2)"},
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
}

// create makes an empty file, which SQLite takes for an empty database, so that its mode is right from the start.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// inspectFile checks the header of the file (sqlite.org/fileformat2.html, section 1.3) without SQLite.
func inspectFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return openError(err, path)
	}
	defer f.Close()
	header := make([]byte, 100)
	n, err := io.ReadFull(f, header)
	switch {
	case errors.Is(err, io.EOF): // empty
		return nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return openError(err, path)
	case n < len(header), string(header[:16]) != "SQLite format 3\x00":
		return damaged(path, errors.New("it is not an SQLite file"))
	}
	return checkMarks(path, int64(binary.BigEndian.Uint32(header[68:])), int64(binary.BigEndian.Uint32(header[60:])))
}

// inspectLog checks the same as inspectFile with the write-ahead log taken into account, read only.
func inspectLog(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, "ro"))
	if err != nil {
		return openError(err, path)
	}
	defer db.Close()
	app, version, err := marks(ctx, db)
	if err != nil {
		return openError(err, path)
	}
	return checkMarks(path, app, version)
}

func marks(ctx context.Context, db *sql.DB) (app, version int64, err error) {
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return 0, 0, err
	}
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	return app, version, err
}

func checkMarks(path string, app, version int64) error {
	unmarked := app == 0 && version == 0 // made, but the first migration was cut off; prepare looks closer
	if app != applicationID && !unmarked {
		return fault.New(fault.Conflict, "%s is the database of another program", path).
			WithHint("mv %s %s.other", path, path)
	}
	if newest := int64(len(migrationNames())); version > newest {
		return fault.New(fault.Conflict, "%s was made by a newer banger (schema %d, this one knows %d)",
			path, version, newest).WithHint("banger version")
	}
	return nil
}

// prepare checks that the file can be read, switches it to WAL and runs the migrations that it lacks.
func (s *Store) prepare(ctx context.Context) error {
	app, version, err := marks(ctx, s.db)
	if err != nil {
		return openError(err, s.path)
	}
	if app == 0 {
		var tables int
		if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
			return openError(err, s.path)
		}
		if tables > 0 {
			return checkMarks(s.path, -1, 0)
		}
	}
	var verdict string
	if err := s.db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return openError(err, s.path)
	}
	if verdict != "ok" {
		return damaged(s.path, errors.New(verdict))
	}
	if _, err := s.db.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return openError(err, s.path)
	}
	for i, name := range migrationNames() {
		if number := int64(i + 1); number > version {
			if err := s.migrate(ctx, name, number); err != nil {
				return openError(fmt.Errorf("migration %s: %w", name, err), s.path)
			}
		}
	}
	return nil
}

// migrationNames lists the migrations in order; the first is number 1.
func migrationNames() []string {
	names, err := fs.Glob(migrations, "migrations/*.sql") // sorted by name
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return names
}

func (s *Store) migrate(ctx context.Context, name string, number int64) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	return s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return err
		}
		marks := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, number)
		_, err := tx.ExecContext(ctx, marks)
		return err
	})
}

// inTx runs do in a transaction that is committed when do returns nil.
func (s *Store) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	return s.write(ctx, func(c *sql.Conn) error {
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := do(tx); err != nil {
			return errors.Join(s.wrap(err), ignoreDone(tx.Rollback()))
		}
		return tx.Commit()
	})
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) { // the context ended and took the transaction with it
		return nil
	}
	return err
}

func damaged(path string, cause error) error {
	return fault.Wrap(fault.Conflict, errDamaged{cause}, "database %s is damaged", path).WithHint("mv %s %s.damaged", path, path)
}

func openError(err error, path string) error {
	if coded, ok := errors.AsType[*sqlite.Error](err); ok && isDamage(coded) {
		return damaged(path, err)
	}
	return fault.Wrap(classOf(err), err, "open database %s", path)
}

// wrap makes a fault of what the driver said. Faults pass as they are.
func (s *Store) wrap(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); err == nil || ok {
		return err
	}
	if coded, ok := errors.AsType[*sqlite.Error](err); ok && isDamage(coded) {
		return damaged(s.path, err)
	}
	return fault.Wrap(classOf(err), err, "database %s", s.path)
}

func isDamage(err *sqlite.Error) bool {
	code := err.Code() & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

func classOf(err error) fault.Class {
	if coded, ok := errors.AsType[*sqlite.Error](err); ok {
		switch coded.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return fault.Exhausted
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
			return fault.Denied
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return fault.Unavailable
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fault.Denied
	}
	return fault.ClassOf(err)
}

// millis is t as it is stored: 0 for no time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
