package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite opens a file that cannot be written to for reading, and such a connection stays so: of a file system that was
// read-only for a moment the pool would keep one for good. Reading from it is right, so only writers look.

// writer takes a connection for writing from the pool, and drops one that can only read. It is to be closed.
func (s *Store) writer(ctx context.Context) (*sql.Conn, error) {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	readOnly, err := isReadOnly(c)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if !readOnly {
		return c, nil
	}
	s.drop(c)
	// A new one. If that one cannot write either, SQLite says so when it is to.
	return s.db.Conn(ctx)
}

// write runs do with a connection for writing. One that cannot write after all is not used again.
func (s *Store) write(ctx context.Context, do func(*sql.Conn) error) error {
	c, err := s.writer(ctx)
	if err != nil {
		return s.wrap(err)
	}
	if err = do(c); isReadOnlyError(err) {
		s.drop(c)
		return s.wrap(err)
	}
	return s.wrap(errors.Join(err, c.Close()))
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
