// Package vmclient speaks to the supervisor of one VM: commands in the guest and the streams of their input and output.
package vmclient

import (
	"context"
	"net"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"banger/internal/rpc"
	"banger/proto/banger/v1/bangerv1connect"
)

// Client is a connection to one VM's supervisor, for one stream.
type Client struct {
	service bangerv1connect.SupervisorServiceClient
	plain   bangerv1connect.SupervisorServiceClient // the same, with Connect's own errors

	mu     sync.Mutex // guards the fields below
	conns  []net.Conn
	closed bool
}

// New returns a client of the supervisor that listens on socket (VMService.Endpoint tells which).
func New(socket string) *Client {
	s := new(Client)
	h := rpc.Client(socket)
	if transport, ok := h.Transport.(*http.Transport); ok {
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return conn, s.keep(conn)
		}
	}
	s.service = bangerv1connect.NewSupervisorServiceClient(h, rpc.BaseURL, connect.WithInterceptors(rpc.Faults(nil)))
	s.plain = bangerv1connect.NewSupervisorServiceClient(h, rpc.BaseURL)
	return s
}

// keep remembers a connection for Close.
func (s *Client) keep(conn net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return net.ErrClosed
	}
	s.conns = append(s.conns, conn)
	return nil
}

// Close cuts the connection, whatever goes on over it.
func (s *Client) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, conn := range s.conns {
		conn.Close()
	}
}
