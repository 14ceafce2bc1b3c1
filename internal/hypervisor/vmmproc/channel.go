package vmmproc

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"banger/internal/fault"
)

// dialPause is the time between two looks for a socket that is about to appear.
const dialPause = 2 * time.Millisecond

// errGone is what Dial returns when the VMM has ended.
var errGone = errors.New("the VMM has ended")

// Dial connects to a Unix socket of a VMM, which may not be there yet, until ctx ends or gone is closed.
func Dial(ctx context.Context, path string, gone <-chan struct{}) (net.Conn, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil || !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-gone:
			return nil, errGone
		case <-time.After(dialPause):
		}
	}
}

// Channel is a Unix socket behind which one connection at a time is served, as QEMU does with a character device. A
// second connection would be made and then hear nothing, so it is refused until the first is closed.
type Channel struct {
	Path string
	Gone <-chan struct{} // closed when the VMM has ended

	mu    sync.Mutex // guards the fields below
	used  bool
	ready net.Conn // made by Prepare, for the next Connect
}

// Prepare opens the connection that the next Connect returns.
func (c *Channel) Prepare(ctx context.Context) error {
	conn, err := Dial(ctx, c.Path, c.Gone)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready = conn
	return nil
}

// Close closes a connection that was prepared and not used.
func (c *Channel) Close() {
	if conn := c.take(); conn != nil {
		_ = conn.Close()
	}
}

// take returns the connection that was prepared, if there is one.
func (c *Channel) take() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.ready
	c.ready = nil
	return conn
}

// Connect opens the connection.
func (c *Channel) Connect(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	used := c.used
	c.used = true
	c.mu.Unlock()
	if used {
		return nil, fault.New(fault.Conflict, "the agent channel is in use")
	}
	conn, err := c.take(), error(nil)
	if conn == nil {
		conn, err = Dial(ctx, c.Path, c.Gone)
	}
	if err != nil {
		c.release()
		class := fault.ClassOf(err)
		if class == fault.Internal {
			class = fault.Unavailable
		}
		return nil, fault.Wrap(class, err, "connect to the agent channel")
	}
	return &channelConn{Conn: conn, release: sync.OnceFunc(c.release)}, nil
}

func (c *Channel) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = false
}

// channelConn frees its Channel when it is closed.
type channelConn struct {
	net.Conn
	release func()
}

// Close closes the connection; another may be opened then.
func (c *channelConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}
