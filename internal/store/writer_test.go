package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// connector opens its first connections for reading only, as SQLite does while a file system is read-only.
type connector struct {
	path     string
	readOnly atomic.Int64 // how many more
	driver   driver.Driver
}

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	if c.readOnly.Add(-1) >= 0 {
		return c.driver.Open(dsn(c.path, "ro"))
	}
	return c.driver.Open(dsn(c.path, "rw"))
}

func (c *connector) Driver() driver.Driver { return c.driver }

// whileReadOnly makes the next n connections of a store read-only.
func whileReadOnly(t *testing.T, s *Store, n int64) *connector {
	t.Helper()
	c := &connector{path: s.path, driver: s.db.Driver()}
	c.readOnly.Store(n)
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	s.db = sql.OpenDB(c)
	s.db.SetMaxOpenConns(maxConns)
	s.db.SetMaxIdleConns(maxConns)
	return c
}

// fillPool takes all connections at once, so that the pool has as many.
func fillPool(t *testing.T, s *Store) {
	t.Helper()
	var all []*sql.Conn
	for range maxConns {
		c, err := s.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnectionsThatCanOnlyReadDoNotStay(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001")
	whileReadOnly(t, s, maxConns)
	fillPool(t, s)
	if _, err := s.FindVM(t.Context(), "dev"); err != nil {
		t.Errorf("read: %v", err)
	}
	if err := s.SetPending(t.Context(), "000000000001", []string{"cpus"}); err != nil {
		t.Errorf("a statement: %v", err)
	}
	insert(t, s, "two", "000000000002") // a transaction
	if open := s.db.Stats().OpenConnections; open != 1 {
		t.Errorf("%d connections are open, of which all but one can only read", open)
	}
	if v, err := s.FindVM(t.Context(), "dev"); err != nil || len(v.Pending) != 1 {
		t.Errorf("%v, %v", v.Pending, err)
	}
}

func TestWritesWhileTheFileSystemIsReadOnly(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001")
	s.readersEnd = 0 // the file system only seems to be read-only
	c := whileReadOnly(t, s, 1<<40)
	for range maxConns + 1 {
		if err := s.SetWanted(t.Context(), "000000000001", true); !fault.Is(err, fault.Denied) {
			t.Errorf("a statement: %v", err)
		}
		if _, err := s.MoveToDeleting(t.Context(), "000000000001"); !fault.Is(err, fault.Denied) {
			t.Errorf("a transaction: %v", err)
		}
		if _, err := s.FindVM(t.Context(), "dev"); err != nil {
			t.Errorf("read: %v", err)
		}
	}
	c.readOnly.Store(0)
	insert(t, s, "two", "000000000002")
}

// remount makes the file system of a directory read-only for what is opened from now on, and writable again.
func remount(t *testing.T, dir string) (writable func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	writable = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(writable)
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return writable
}

// Connections of one process share the index of the log. One that was opened while the file system was read-only keeps the
// others from writing as long as it is in use.
func TestWritesWaitForReadersOfAReadOnlyFileSystem(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001")
	writable := remount(t, filepath.Dir(s.path))
	if err := s.SetWanted(t.Context(), "000000000001", true); err != nil {
		t.Logf("an open connection: %v", err)
	}
	s.db.SetMaxIdleConns(-1) // all end, and leave the log where it is
	s.db.SetMaxIdleConns(maxConns)
	reader, err := s.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows, err := reader.QueryContext(t.Context(), "SELECT id FROM vms")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetWanted(t.Context(), "000000000001", true); !fault.Is(err, fault.Denied) {
		t.Errorf("read-only: %v", err)
	}
	writable()
	written := make(chan error, 1)
	go func() { written <- s.SetWanted(t.Context(), "000000000001", true) }()
	select {
	case err := <-written:
		t.Errorf("it was written beside the reader: %v", err)
		written <- err
	case <-time.After(100 * time.Millisecond):
	}
	if err := errors.Join(rows.Close(), reader.Close()); err != nil {
		t.Error(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}
