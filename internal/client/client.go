// Package client connects a command to the user's daemon, which it starts when none runs, and to the supervisors of
// VMs, for streams.
//
// One daemon serves a user. Whoever finds none takes the start lock, looks again, starts one in the background and
// waits until it says that it is ready, so that two commands at once start one daemon. A daemon of another build is
// asked to end if it is idle, and replaced; VMs do not notice. While it is busy it goes on serving, as long as both
// speak the same generation of the wire.
package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// Generation of the wire between clients and the daemon.
const Generation = 1

// Bounds of what a client waits for.
const (
	startTimeout = 15 * time.Second // until a new daemon is ready, an old one gone
	helloTimeout = 5 * time.Second  // until a daemon that accepted the connection has answered
	pollEvery    = 10 * time.Millisecond
)

// Config says how to reach the daemon and how to start it.
type Config struct {
	Paths   paths.Paths
	Command []string // starts the daemon: the program's own path, "daemon", "run"
	Env     []string // of the daemon
	Build   string   // of this client
}

// Client holds the daemon's services.
type Client struct {
	Daemon     bangerv1connect.DaemonServiceClient
	VMs        bangerv1connect.VMServiceClient
	Operations bangerv1connect.OperationServiceClient
	Images     bangerv1connect.ImageServiceClient
	Kernels    bangerv1connect.KernelServiceClient
	Events     bangerv1connect.EventServiceClient
	Fsck       bangerv1connect.FsckServiceClient
	Templates  bangerv1connect.TemplateServiceClient
	Snapshots  bangerv1connect.SnapshotServiceClient

	// PID of the daemon.
	PID int

	http *http.Client
}

// Connect returns a client of the running daemon, starting or replacing one as needed.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	for try := 0; ; try++ {
		c, err := Attach(ctx, cfg)
		if errors.Is(err, ErrNotRunning) {
			if err := start(ctx, cfg); err != nil {
				return nil, err
			}
			c, err = Attach(ctx, cfg)
		}
		if errors.Is(err, ErrNotRunning) && try < 3 { // it ended between two steps: somebody stopped or replaced it
			continue
		}
		if err != nil {
			return nil, err
		}
		again, err := c.agree(ctx, cfg)
		if err != nil {
			c.Close()
			return nil, err
		}
		if !again || try >= 3 {
			return c, nil
		}
		c.Close()
	}
}

// ErrNotRunning says that no daemon listens.
var ErrNotRunning = fault.New(fault.Unavailable, "the daemon is not running")

// Attach returns a client of the daemon that runs, whatever its build, or ErrNotRunning. It starts none.
func Attach(ctx context.Context, cfg Config) (*Client, error) {
	socket := cfg.Paths.DaemonSocket()
	if len(socket) > paths.MaxSocketPath {
		return nil, cfg.Paths.Ensure()
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, ErrNotRunning
	case errors.Is(err, syscall.EACCES):
		return nil, fault.Wrap(fault.Denied, err, "connect to the daemon")
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "connect to the daemon")
	}
	conn.Close()
	return newClient(socket), nil
}

func newClient(socket string) *Client {
	h := rpc.Client(socket)
	faults := connect.WithInterceptors(rpc.Faults(nil))
	return &Client{
		Daemon:     bangerv1connect.NewDaemonServiceClient(h, rpc.BaseURL, faults),
		VMs:        bangerv1connect.NewVMServiceClient(h, rpc.BaseURL, faults),
		Operations: bangerv1connect.NewOperationServiceClient(h, rpc.BaseURL, faults),
		Images:     bangerv1connect.NewImageServiceClient(h, rpc.BaseURL, faults),
		Kernels:    bangerv1connect.NewKernelServiceClient(h, rpc.BaseURL, faults),
		Events:     bangerv1connect.NewEventServiceClient(h, rpc.BaseURL, faults),
		Fsck:       bangerv1connect.NewFsckServiceClient(h, rpc.BaseURL, faults),
		Templates:  bangerv1connect.NewTemplateServiceClient(h, rpc.BaseURL, faults),
		Snapshots:  bangerv1connect.NewSnapshotServiceClient(h, rpc.BaseURL, faults),
		http:       h,
	}
}

// Close ends the connections.
func (c *Client) Close() {
	if c != nil && c.http != nil {
		c.http.CloseIdleConnections()
	}
}

// agree exchanges generations and builds. It reports true when the daemon was ended and has to be started anew.
func (c *Client) agree(ctx context.Context, cfg Config) (again bool, err error) {
	helloCtx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	resp, err := c.Daemon.Hello(helloCtx, connect.NewRequest(&bangerv1.HelloRequest{Generation: Generation, Build: cfg.Build}))
	if err != nil {
		return c.helloFailed(ctx, cfg, err)
	}
	hello := resp.Msg
	c.PID = int(hello.GetPid())
	if hello.GetGeneration() == Generation && hello.GetBuild() == cfg.Build {
		return false, nil
	}
	stopErr := c.Stop(ctx, cfg, true)
	switch {
	case stopErr == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case hello.GetGeneration() == Generation:
		return false, nil // busy, but it understands us
	}
	return false, fault.Wrap(fault.Conflict, stopErr, "the daemon is of another version (%s, this is %s)", hello.GetBuild(), cfg.Build).
		WithHint("banger daemon stop")
}

// helloFailed sorts out a daemon that ended just now from one that hangs.
func (c *Client) helloFailed(ctx context.Context, cfg Config, err error) (again bool, _ error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if probe, dialErr := Attach(ctx, cfg); errors.Is(dialErr, ErrNotRunning) {
		return true, nil
	} else if dialErr == nil {
		probe.Close()
	}
	if fault.Is(err, fault.Timeout) {
		return false, fault.New(fault.Timeout, "the daemon did not answer within %s", helloTimeout).WithHint("banger daemon logs")
	}
	return false, fault.Context(err, "greet the daemon")
}
