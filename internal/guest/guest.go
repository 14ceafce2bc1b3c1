// Package guest is the host's side of the agent in a guest: it calls the agent's methods and runs commands by it.
//
// A Client needs streams. On a VMM with one byte channel to the guest a Mux makes them; where every connection is a
// stream of its own the VMM's dialer is used as it is. Whatever comes from the guest is hostile: sizes are limited,
// texts are made fit for a terminal, and every call ends with its context.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Dialer opens streams to a guest's agent. It is safe for concurrent use.
type Dialer interface {
	Dial(ctx context.Context) (net.Conn, error)
}

// Mux carries many streams on one byte channel.
type Mux struct {
	session *yamux.Session
	opening chan struct{} // full while a stream is being opened
}

// ConnectMux begins a session on conn. It repeats its greeting until the agent answers, so that it may be called while
// the guest still boots; ctx bounds it. The Mux owns conn, which is closed if ConnectMux fails.
//
// When an answer fails to come although the guest runs, the agent may still be in the middle of a message of a session
// before. A new connection to the channel makes it start anew.
func ConnectMux(ctx context.Context, conn net.Conn) (*Mux, error) {
	session, err := agentwire.Connect(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &Mux{session: session, opening: make(chan struct{}, 1)}, nil
}

// Dial opens a stream.
func (m *Mux) Dial(ctx context.Context) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	// Opening blocks while the channel is full, which can be for ever when the guest hangs. One goroutine may wait for
	// that, however often a guest is called that does not answer.
	select {
	case m.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "agent channel")
	}
	opened := make(chan result, 1)
	go func() {
		stream, err := m.session.OpenStream()
		<-m.opening
		if err != nil {
			opened <- result{err: err}
			return
		}
		opened <- result{conn: stream}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fault.Wrap(fault.Unavailable, r.err, "agent channel")
		}
		return r.conn, nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				_ = r.conn.Close() // waits like the opening did: until the channel moves or is closed
			}
		}()
		return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "agent channel")
	}
}

// Done is closed when the session ended, by Close or by itself.
func (m *Mux) Done() <-chan struct{} { return m.session.CloseChan() }

// Close ends the session, every stream of it, and the channel.
func (m *Mux) Close() error { return m.session.Close() }

// Client calls the agent. It is safe for concurrent use.
type Client struct {
	dialer Dialer
}

// NewClient returns a Client that opens its streams by d.
func NewClient(d Dialer) *Client { return &Client{dialer: d} }

// Hello asks the agent who it is.
func (c *Client) Hello(ctx context.Context) (agentwire.Hello, error) {
	var hello agentwire.Hello
	err := c.call(ctx, agentwire.MethodHello, nil, &hello)
	return hello, err
}

// Configure gives the guest its identity and its disks. It can be done once per boot.
func (c *Client) Configure(ctx context.Context, config agentwire.Config) (agentwire.Configured, error) {
	var configured agentwire.Configured
	err := c.call(ctx, agentwire.MethodConfigure, config, &configured)
	return configured, err
}

// Shutdown tells the guest to go down. It returns when the agent begins with it.
func (c *Client) Shutdown(ctx context.Context, s agentwire.Shutdown) error {
	return c.call(ctx, agentwire.MethodShutdown, s, nil)
}

// Stats asks what the guest uses.
func (c *Client) Stats(ctx context.Context) (agentwire.Stats, error) {
	var stats agentwire.Stats
	err := c.call(ctx, agentwire.MethodStats, nil, &stats)
	return checkStats(stats), err
}

// Ports asks what listens in the guest. What makes no sense is left out.
func (c *Client) Ports(ctx context.Context) ([]agentwire.Port, error) {
	var ports agentwire.Ports
	err := c.call(ctx, agentwire.MethodPorts, nil, &ports)
	return checkPorts(ports.Ports), err
}

// Grow has the guest grow the file system of its data disk, which has got g.Bytes.
func (c *Client) Grow(ctx context.Context, g agentwire.Grow) (agentwire.Grown, error) {
	var grown agentwire.Grown
	if err := c.call(ctx, agentwire.MethodGrow, g, &grown); err != nil {
		return agentwire.Grown{}, err
	}
	if grown.Device > g.Bytes || grown.FileSystem > grown.Device {
		return agentwire.Grown{}, fault.New(fault.Unavailable, "guest grow: the answer makes no sense")
	}
	return grown, nil
}

// SetClock sets the guest's clock.
func (c *Client) SetClock(ctx context.Context, now time.Time) error {
	return c.call(ctx, agentwire.MethodClock, agentwire.Clock{UnixNano: now.UnixNano()}, nil)
}

// Wake tells the guest that it was restored.
func (c *Client) Wake(ctx context.Context, w agentwire.Wake) error {
	return c.call(ctx, agentwire.MethodWake, w, nil)
}

// Sync has the guest write out what was written to files: see agent.System.
func (c *Client) Sync(ctx context.Context) error { return c.call(ctx, agentwire.MethodSync, nil, nil) }

// Rehearse has the guest make ready for being saved: see agent.Rehearser.
func (c *Client) Rehearse(ctx context.Context) error {
	return c.call(ctx, agentwire.MethodRehearse, nil, nil)
}

// Exec starts a command. The context bounds the start only; the Process lives until it is closed.
func (c *Client) Exec(ctx context.Context, start agentwire.ExecStart) (*Process, error) {
	var started agentwire.ExecStarted
	conn, frames, err := c.open(ctx, agentwire.MethodExec, start, &started)
	if err != nil {
		return nil, err
	}
	return newProcess(conn, frames, started), nil
}

// call makes one request that has one answer.
func (c *Client) call(ctx context.Context, method string, params, result any) error {
	conn, _, err := c.open(ctx, method, params, result)
	if err != nil {
		return err
	}
	hangUp(conn)
	return nil
}

// hangUp closes a stream. The end of a stream is a message too, which waits while the channel is full (the guest is
// paused, say); nobody waits for that longer than a moment, and closing the channel ends it.
func hangUp(conn net.Conn) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = conn.Close()
	}()
	select {
	case <-closed:
	case <-time.After(time.Second):
	}
}

// open opens a stream, makes a request on it and reads the answer. The stream is closed on failure.
func (c *Client) open(ctx context.Context, method string, params, result any) (net.Conn, *agentwire.Reader, error) {
	conn, err := c.dialer.Dial(ctx)
	if err != nil {
		return nil, nil, fault.Context(err, "guest %s", method)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	frames := agentwire.NewReader(conn)
	err = request(conn, frames, method, params, result)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return conn, frames, nil
	}
	hangUp(conn)
	var f *fault.Error
	switch {
	case ctx.Err() != nil:
		err = fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "guest %s", method)
	case !errors.As(err, &f):
		err = fault.Wrap(fault.Unavailable, err, "guest %s: no answer from the agent", method)
	}
	return nil, nil, err
}

// request writes a request and reads its answer.
func request(conn net.Conn, frames *agentwire.Reader, method string, params, result any) error {
	if err := agentwire.WriteRequest(conn, method, params); err != nil {
		if errors.Is(err, agentwire.ErrFrame) {
			return fault.New(fault.Invalid, "guest %s: the request is larger than %d bytes", method, agentwire.MaxJSON)
		}
		return err
	}
	t, payload, err := frames.Next()
	if err != nil {
		return err
	}
	if t != agentwire.FrameResponse {
		return agentwire.ErrFrame
	}
	var resp agentwire.Response
	if err := json.Unmarshal(payload, &resp); err != nil {
		return agentwire.ErrFrame
	}
	if resp.Fault != nil {
		return resp.Fault.Err()
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Result, result); err != nil {
		return agentwire.ErrFrame
	}
	return nil
}
