package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite opens a file that cannot be written to for reading, and such a connection stays so: of a file system that was
// read-only for a moment the pool would keep one for good. Reading from it is right, so only writers look.

const (
	// readersEnd is how long a write waits for connections that can only read and are in use; readersPause is between two
	// looks. Reading takes milliseconds.
	readersEnd   = 10 * time.Second
	readersPause = 5 * time.Millisecond
)

// write runs do with a connection for writing. It is run again when the connection turned out to be one that can only read,
// which is found before anything was done.
func (s *Store) write(ctx context.Context, do func(*sql.Conn) error) error {
	for began := time.Now(); ; {
		err := s.tryWrite(ctx, do)
		// As long as one such connection is in use, new ones cannot write either: they share the index of the log.
		if !isReadOnlyError(err) || unix.Access(s.path, unix.W_OK) != nil || time.Since(began) > s.readersEnd {
			return s.wrap(err)
		}
		select {
		case <-time.After(readersPause):
		case <-ctx.Done():
			return s.wrap(err)
		}
	}
}

func (s *Store) tryWrite(ctx context.Context, do func(*sql.Conn) error) error {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	readOnly, err := isReadOnly(c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	if readOnly {
		s.drop(c)
		// A new one. If that one cannot write either, SQLite says so when it is to.
		if c, err = s.db.Conn(ctx); err != nil {
			return err
		}
	}
	if err = do(c); isReadOnlyError(err) {
		s.drop(c)
		return err
	}
	return errors.Join(err, c.Close())
}

// exec runs one statement that writes.
func (s *Store) exec(ctx context.Context, query string, args ...any) error {
	return s.write(ctx, func(c *sql.Conn) error {
		_, err := c.ExecContext(ctx, query, args...)
		return err
	})
}

// drop closes a connection for good, and with it those that are idle: they were opened at about the same time, and what
// connections of one process share of the log is only made anew when none is left.
func (s *Store) drop(c *sql.Conn) {
	_ = c.Raw(func(any) error { return driver.ErrBadConn }) // this is how the pool is told
	_ = c.Close()
	s.db.SetMaxIdleConns(-1)
	s.db.SetMaxIdleConns(maxConns)
}

func isReadOnly(c *sql.Conn) (readOnly bool, err error) {
	err = c.Raw(func(conn any) error {
		if asker, ok := conn.(interface{ IsReadOnly(string) (bool, error) }); ok {
			readOnly, err = asker.IsReadOnly("main")
		}
		return err
	})
	return readOnly, err
}

func isReadOnlyError(err error) bool {
	coded, ok := errors.AsType[*sqlite.Error](err)
	return ok && coded.Code()&0xff == sqlite3.SQLITE_READONLY
}
