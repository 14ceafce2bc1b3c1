package supervisor

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/hypervisor"
)

// connection is one session with the guest's agent.
type connection struct {
	client *guest.Client
	mux    *guest.Mux // nil where every stream is a connection of its own
}

// lost is closed when the session broke. Without a mux there is no session to break.
func (c *connection) lost() <-chan struct{} {
	if c.mux == nil {
		return nil
	}
	return c.mux.Done()
}

func (c *connection) close() {
	if c.mux != nil {
		_ = c.mux.Close()
	}
}

// link holds the connection to the agent while there is one.
type link struct {
	mu      sync.Mutex    // guards the fields below
	conn    *connection   // nil while there is none
	changed chan struct{} // closed by the next change
}

func newLink() *link { return &link{changed: make(chan struct{})} }

// get returns the connection, or nil, and a channel that is closed when that changes.
func (l *link) get() (*connection, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn, l.changed
}

func (l *link) set(conn *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	close(l.changed)
	l.changed = make(chan struct{})
}

// await returns the client as soon as there is a connection.
func (l *link) await(ctx context.Context) (*guest.Client, error) {
	for {
		conn, changed := l.get()
		if conn != nil {
			return conn.client, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "no connection to the guest")
		}
	}
}

// keepLink makes the connection anew whenever it breaks, until ctx ends. It owns the connection that boot has set.
func (s *Supervisor) keepLink(ctx context.Context, m hypervisor.Machine) {
	for ctx.Err() == nil {
		conn, _ := s.link.get()
		select {
		case <-conn.lost():
		case <-ctx.Done():
		}
		s.link.set(nil)
		conn.close()
		select {
		case <-m.Done():
			return // that is why it broke
		case <-ctx.Done():
			return
		default:
		}
		s.log.Warn("the connection to the guest is lost")
		conn, err := s.reconnect(ctx, m)
		if err != nil {
			return
		}
		s.log.Info("the connection to the guest is back")
		s.link.set(conn)
	}
}

// reconnect tries until it works or ctx ends.
func (s *Supervisor) reconnect(ctx context.Context, m hypervisor.Machine) (*connection, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer onDone(ctx, m, func() { cancel(errDied) })()
	p := pause{limit: s.times.retry}
	told := "" // a guest that hangs for days must not fill the log
	for {
		conn, hello, err := s.connect(ctx, m)
		if err == nil && hello.Configured {
			return conn, nil
		}
		if err == nil {
			conn.close()
			err = errors.New("the agent has forgotten its configuration")
		}
		if err.Error() != told {
			s.log.Warn("cannot connect to the guest", "error", err)
			told = err.Error()
		}
		if err := p.wait(ctx, m.Done()); err != nil {
			return nil, err
		}
	}
}

// connect makes one try to reach the agent and asks who it is.
func (s *Supervisor) connect(ctx context.Context, m hypervisor.Machine) (*connection, agentwire.Hello, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.times.connect, errNoAnswer)
	defer cancel()
	conn, err := s.open(ctx, m)
	if err != nil {
		return nil, agentwire.Hello{}, err
	}
	hello, err := conn.client.Hello(ctx)
	if err == nil && hello.Generation != agentwire.Generation {
		err = fault.New(fault.Internal, "the guest's agent speaks generation %d of the wire and this banger %d",
			hello.Generation, agentwire.Generation)
	}
	if err != nil {
		conn.close()
		return nil, agentwire.Hello{}, err
	}
	return conn, hello, nil
}

// open makes the connection for the kind of channel that the driver has.
func (s *Supervisor) open(ctx context.Context, m hypervisor.Machine) (*connection, error) {
	if !s.driver.Features().MuxedAgent {
		return &connection{client: guest.NewClient(streams{m})}, nil
	}
	channel, err := m.ConnectAgent(ctx)
	if err != nil {
		return nil, err
	}
	mux, err := guest.ConnectMux(ctx, channel) // closes channel when it fails
	if err != nil {
		return nil, err
	}
	return &connection{client: guest.NewClient(mux), mux: mux}, nil
}

// streams is the dialer of a machine on which every connection is a stream.
type streams struct{ machine hypervisor.Machine }

// Dial implements guest.Dialer.
func (s streams) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := s.machine.ConnectAgent(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "agent channel")
	}
	return conn, nil
}

// pause is the time between tries: short at first, doubling up to limit.
type pause struct {
	limit time.Duration
	next  time.Duration
}

// wait waits for the pause. It returns an error when ctx ended or the VMM is gone.
func (p *pause) wait(ctx context.Context, gone <-chan struct{}) error {
	p.next = min(max(2*p.next, 50*time.Millisecond), p.limit)
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-gone:
		return errDied
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
