package agent

import (
	"encoding/json"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

const (
	// hangUpGrace is how long a command whose client went away may take to end.
	hangUpGrace = 2 * time.Second
	// killGrace is how long a killed one may take: it can be stuck in the kernel.
	killGrace = 5 * time.Second
)

// command is one Exec that was started.
type command struct {
	server *Server
	pid    int
	exited <-chan syscall.WaitStatus
	tty    *os.File // nil with pipes
	stdin  *os.File // nil for none; the tty
	pumps  []*pump
}

// serveExec does Exec: the answer, then frames in both directions until the command ends or the stream does.
func (s *Server) serveExec(conn Stream, frames *agentwire.Reader, params json.RawMessage) {
	var start agentwire.ExecStart
	if err := json.Unmarshal(params, &start); err != nil {
		_ = agentwire.WriteFault(conn, fault.New(fault.Invalid, "malformed exec request"))
		return
	}
	config, err := s.settings()
	if err != nil {
		_ = agentwire.WriteFault(conn, err)
		return
	}
	c, err := s.startCommand(config, start)
	if err != nil {
		_ = agentwire.WriteFault(conn, err)
		return
	}
	// A failed write shows again at the first read.
	_ = agentwire.WriteResult(conn, agentwire.ExecStarted{PID: c.pid})
	c.run(conn, frames)
}

// startCommand starts what start says.
func (s *Server) startCommand(config agentwire.Config, start agentwire.ExecStart) (*command, error) {
	p, err := s.prepare(config, start)
	if err != nil {
		return nil, err
	}
	defer p.tool.Close()
	if !s.reaper.init { // where it is PID 1 its death is the end of everything
		p.death = syscall.SIGKILL
	}
	c := &command{server: s}
	var theirs [3]*os.File
	if start.TTY {
		theirs, err = c.openTTY(p.uid, start)
	} else {
		theirs, err = c.openPipes(p.uid, start.Stdin)
	}
	if err == nil {
		c.pid, c.exited, err = s.reaper.start(func() (int, error) { return p.fork(theirs, start.TTY) })
	}
	for i, f := range theirs {
		if f != nil && (i == 0 || f != theirs[0]) {
			_ = f.Close()
		}
	}
	if err != nil {
		c.closeFiles()
		return nil, err
	}
	return c, nil
}

// openTTY makes a terminal and returns the command's side of it.
func (c *command) openTTY(uid uint32, start agentwire.ExecStart) (theirs [3]*os.File, err error) {
	master, slave, err := openPTY(uid, start.Rows, start.Cols)
	if err != nil {
		return theirs, fault.Wrap(fault.Exhausted, err, "terminal in the guest")
	}
	c.tty, c.stdin = master, master
	c.pumps = []*pump{{from: master, frame: agentwire.FrameStdout}}
	return [3]*os.File{slave, slave, slave}, nil
}

// openPipes makes three pipes, or two if stdin is to be empty, and returns the command's ends. They belong to uid: a
// program that is configured to log to /dev/stdout opens it anew, with its user's rights.
func (c *command) openPipes(uid uint32, stdin bool) (theirs [3]*os.File, err error) {
	if !stdin {
		theirs[0], err = os.Open(os.DevNull)
	} else {
		theirs[0], c.stdin, err = pipe(1)
	}
	for i, frame := range []agentwire.FrameType{agentwire.FrameStdout, agentwire.FrameStderr} {
		if err != nil {
			break
		}
		var ours *os.File
		if ours, theirs[1+i], err = pipe(0); err == nil {
			c.pumps = append(c.pumps, &pump{from: ours, frame: frame})
		}
	}
	if err != nil {
		return theirs, fault.Wrap(fault.Exhausted, err, "pipes in the guest")
	}
	for _, f := range theirs {
		if uid != 0 && (f != theirs[0] || stdin) {
			_ = f.Chown(int(uid), -1) // not allowed, and no matter, where the agent is that user itself
		}
	}
	return theirs, nil
}

// pipe makes a pipe of which the agent keeps the given end: it is pollable. The other is an ordinary one, as commands
// expect.
func pipe(keep int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	_ = unix.SetNonblock(fds[keep], true)
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// run serves the command's stream to the end.
func (c *command) run(conn Stream, frames *agentwire.Reader) {
	out := &frameWriter{conn: conn}
	in := &input{conn: conn, frames: frames, command: c, gone: make(chan struct{})}
	in.queue.init()
	var inputs, outputs sync.WaitGroup
	c.goFunc(&inputs, in.read)
	c.goFunc(&inputs, func() { in.queue.drainTo(c, out) })
	for _, p := range c.pumps {
		c.goFunc(&outputs, func() { p.run(out) })
	}

	status, known := c.wait(in.gone)
	in.queue.close()
	c.stopStdin()
	for _, p := range c.pumps {
		p.drain()
	}
	outputs.Wait()
	if known {
		_ = agentwire.WriteJSON(out, agentwire.FrameExited, exitOf(status))
	}
	_ = conn.SetDeadline(time.Unix(1, 0)) // wakes in.read
	_ = conn.Close()
	inputs.Wait()
	c.leaveFiles()
	c.server.ended()
}

// stopStdin wakes who writes to the command's stdin.
func (c *command) stopStdin() {
	switch {
	case c.stdin == nil:
	case c.stdin == c.tty:
		_ = c.tty.SetWriteDeadline(time.Unix(1, 0))
	default:
		_ = c.stdin.Close()
	}
}

// goFunc runs f as part of the command. A panic in it is logged and hangs nothing up but this command.
func (c *command) goFunc(wg *sync.WaitGroup, f func()) {
	wg.Go(func() {
		defer c.server.recovered()
		f()
	})
}

// wait waits for the command's end, which it brings about itself when the client is gone or the server closes. known
// is false if the command does not even end when killed.
func (c *command) wait(gone <-chan struct{}) (status syscall.WaitStatus, known bool) {
	select {
	case status = <-c.exited:
		return status, true
	case <-gone:
	case <-c.server.ctx.Done():
	}
	if c.tty != nil {
		_ = c.tty.Close() // the kernel hangs up on the session
	} else {
		_ = c.server.reaper.signal(c.pid, syscall.SIGTERM)
	}
	for _, grace := range []time.Duration{hangUpGrace, killGrace} {
		select {
		case status = <-c.exited:
			return status, true
		case <-time.After(grace):
			_ = c.server.reaper.signal(c.pid, syscall.SIGKILL)
		}
	}
	c.server.log("a killed command does not end: pid " + uint32Text(uint32(c.pid)))
	return 0, false
}

// signal sends a signal to the terminal's foreground group or to the command's own.
func (c *command) signal(sig syscall.Signal) {
	if c.tty != nil {
		if group := foreground(c.tty); group > 1 && group != c.pid {
			_ = syscall.Kill(-group, sig)
			return
		}
	}
	_ = c.server.reaper.signal(c.pid, sig)
}

// exitOf is a status as a shell shows it.
func exitOf(status syscall.WaitStatus) agentwire.ExecExited {
	if !status.Signaled() {
		return agentwire.ExecExited{Code: status.ExitStatus()}
	}
	sig := status.Signal()
	return agentwire.ExecExited{Code: 128 + int(sig), Signal: unix.SignalName(sig)}
}

// leaveFiles closes the agent's files, except pipes that background processes still write to: those would be killed
// by the first line they print, so their output is read and dropped until they end.
func (c *command) leaveFiles() {
	for _, p := range c.pumps {
		if p.from == c.tty || p.ended || !c.server.spawn(func() { c.server.discard(p.from) }) {
			_ = p.from.Close()
		}
	}
}

// closeFiles closes the agent's files of a command that was not started.
func (c *command) closeFiles() {
	if c.stdin != nil {
		_ = c.stdin.Close()
	}
	for _, p := range c.pumps {
		_ = p.from.Close()
	}
}
