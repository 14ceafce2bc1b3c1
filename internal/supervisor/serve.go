package supervisor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/rpc"
	"banger/internal/sock"
	"banger/internal/undo"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// flush is for the last bytes of calls that have ended, which on a busy host take their time: callers would hear of a
// connection that was cut off and not that the VM has ended. It also bounds the politeness of HTTP/2 towards connections
// without calls, which may take a second.
const flush = 500 * time.Millisecond

// serve begins to answer on the VM's socket. The socket is closed to newcomers by u; hangUp lets callers take the
// final status, cuts off those who do not after a farewell, and waits for all of them.
func (s *Supervisor) serve(u *undo.Stack) (hangUp func(), err error) {
	if err := s.at(StepBootListen); err != nil {
		return nil, err
	}
	ln, err := sock.Listen(s.launch.Paths.SupervisorSocket(string(s.launch.VMID)))
	if err != nil {
		return nil, fault.Context(err, "listen")
	}
	d := &door{Listener: ln, closed: make(chan struct{})}
	u.Add("close the socket", func(context.Context) error { return d.shut() })

	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() { // ends by hangUp
		defer close(served)
		if err := rpc.Serve(ctx, d, s.handler(), flush); err != nil {
			s.log.Error("nobody can call any more", "error", err)
		}
	}()
	return func() {
		s.mu.Lock()
		s.closing = true
		s.mu.Unlock()
		idle := make(chan struct{})
		go func() { s.calls.Wait(); close(idle) }()
		select {
		case <-idle:
		case <-time.After(s.times.farewell):
			s.log.Warn("callers are cut off")
		}
		cancel()
		<-served
		<-idle
	}, nil
}

// handler is the service, with every call counted.
func (s *Supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewSupervisorServiceHandler(service{s},
		connect.WithInterceptors(rpc.Faults(s.log)),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompression("gzip", nil, nil), // a socket on the same host: packing only costs
	))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			http.Error(w, "the supervisor is ending", http.StatusServiceUnavailable)
			return
		}
		defer s.calls.Done()
		mux.ServeHTTP(w, r)
	})
}

// door is a listener that can be shut to newcomers while the server goes on with those inside. To the server it looks
// as if nobody came any more until it closes the listener itself.
type door struct {
	net.Listener
	closed   chan struct{}
	once     sync.Once
	shutOnce sync.Once
	shutErr  error
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if errors.Is(err, net.ErrClosed) {
		<-d.closed
	}
	return conn, err
}

// Close implements net.Listener.
func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.shut()
}

// shut removes the socket.
func (d *door) shut() error {
	d.shutOnce.Do(func() { d.shutErr = d.Listener.Close() })
	return d.shutErr
}

// publish writes the end of the VM into its status.
func publish(st *bangerv1.SupervisorStatus, end ending) {
	st.Phase, st.VmmPid, st.Fault = phaseExited, 0, nil
	st.Exit = &bangerv1.Exit{
		Reason: end.exit.Reason, Code: int32(end.exit.Code), AtMs: end.exit.At.UnixMilli(), Expected: end.exit.Expected,
		Suspended: end.exit.Suspended,
	}
	if end.err != nil {
		st.Fault = rpc.Proto(end.err)
	}
}

// guestAddress is the guest's address without the length of its network's prefix.
func guestAddress(n *agentwire.Network) string {
	if n == nil {
		return ""
	}
	address, _, _ := strings.Cut(n.Address, "/")
	return address
}
