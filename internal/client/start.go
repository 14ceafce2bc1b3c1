package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/proc"
	bangerv1 "banger/proto/banger/v1"
)

// ReadyFD is the descriptor on which a new daemon says that it is ready: "ok", or why not as a fault in JSON. EnvReady
// names it in the daemon's environment.
const (
	ReadyFD  = 3
	EnvReady = "BANGER_READY_FD"
)

// readyFault is how a daemon that cannot start says why.
type readyFault struct {
	Class   string `json:"class"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// start starts a daemon unless somebody else has done so by the time it is this client's turn.
func start(ctx context.Context, cfg Config) error {
	if err := cfg.Paths.Ensure(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*startTimeout,
		fault.New(fault.Timeout, "the daemon did not start in time").WithHint("banger daemon logs"))
	defer cancel()
	unlock, err := lockFile(ctx, cfg.Paths.StartLock())
	if err != nil {
		return fault.Context(err, "wait for the start of the daemon")
	}
	defer unlock()
	for try := 0; ; try++ {
		if c, err := Attach(ctx, cfg); err == nil {
			c.Close()
			return nil
		}
		err := spawn(ctx, cfg)
		// A daemon that was killed a moment ago may have had the lock when the new one asked and be gone by now: only a
		// second conflict without a holder is about something else.
		if !fault.Is(err, fault.Conflict) || !held(cfg.Paths.DaemonLock()) && try > 0 {
			return err
		}
		// An old daemon has closed its socket and is still on its way out, or a service manager has just started one.
		for held(cfg.Paths.DaemonLock()) {
			if c, err := Attach(ctx, cfg); err == nil {
				c.Close()
				return nil
			}
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
}

// held reports whether some process has the lock of the file at path.
func held(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// lockFile takes the lock of the file at path, which is created if need be and never removed.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		if err := pause(ctx); err != nil {
			f.Close()
			return nil, err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pollEvery):
		return nil
	}
}

// spawn starts a daemon and waits until it is ready. One that does not become ready is ended.
func spawn(ctx context.Context, cfg Config) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	env := append(append([]string(nil), cfg.Env...), EnvReady+"=3")
	id, ended, err := proc.Spawn(cfg.Command, env, cfg.Paths.DaemonLog(), w)
	w.Close()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "start the daemon")
	}
	stopWaiting := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stopWaiting()
	_ = r.SetReadDeadline(time.Now().Add(startTimeout))
	err = readReady(ctx, r, cfg.Paths)
	if err != nil {
		_ = id.Kill(syscall.SIGTERM)
		select {
		case <-ended: // it says why first and ends then: the next command must not meet it on its way out
		case <-time.After(time.Second):
		}
	}
	return err
}

// readReady reads the daemon's one line.
func readReady(ctx context.Context, r io.Reader, p paths.Paths) error {
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case string(line) == "ok\n":
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Timeout, "the daemon was not ready within %s", startTimeout).WithHint("banger daemon logs")
	}
	var f readyFault
	if json.Unmarshal(line, &f) == nil && f.Message != "" {
		return &fault.Error{Class: fault.ParseClass(f.Class), Message: f.Message, Hint: f.Hint}
	}
	return fault.New(fault.Unavailable, "the daemon ended before it was ready; its log is %s", p.DaemonLog()).
		WithHint("banger daemon logs")
}

// Stop asks the daemon to end, with idle only if no operation runs, and waits until it is gone. VMs go on.
func (c *Client) Stop(ctx context.Context, cfg Config, idle bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fault.New(fault.Timeout, "the daemon did not end within %s", startTimeout))
	defer cancel()
	if c.PID == 0 {
		status, err := c.Daemon.Status(ctx, connect.NewRequest(&bangerv1.StatusRequest{}))
		if err != nil {
			return err
		}
		c.PID = int(status.Msg.GetPid())
	}
	id, idErr := proc.Of(c.PID)
	_, err := c.Daemon.Shutdown(ctx, connect.NewRequest(&bangerv1.ShutdownRequest{IfIdle: idle}))
	c.Close()
	if err != nil && !fault.Is(err, fault.Unavailable) { // unavailable: it was gone before it could answer
		return err
	}
	for idErr == nil && id.Alive() {
		if err := pause(ctx); err != nil {
			return err
		}
	}
	for { // another may have been started meanwhile; then this one is gone all the same
		other, err := Attach(ctx, cfg)
		if errors.Is(err, ErrNotRunning) {
			return nil
		}
		if err == nil {
			other.Close()
		}
		if idErr == nil {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}
