// Package vmmproc runs a VMM as a child process: with nothing it does not need, and never longer than its parent.
//
// It knows no VMM; the drivers add that.
package vmmproc

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor"
)

// Config of a Process.
type Config struct {
	Path    string // of the program
	Args    []string
	Env     []string   // all of the environment
	Files   []*os.File // descriptors 3, 4, ... of the process
	Console io.Writer  // gets its standard output; nil drops it
	Log     io.Writer  // gets its standard error; nil drops it
	// Unconfined leaves the process its privileges. A fake VMM runs the "guest's" commands on the host and needs them.
	Unconfined bool
}

// Process is a running VMM.
//
// What it is not allowed: to outlive the thread that started it, to gain privileges (no_new_privs), to write core
// dumps (the guest's memory is in them) and, when banger runs as root, every capability but one: see dropCapabilities.
// What is left when banger runs as root: it still is user 0, so it may write root's files. Another user id would need
// all files handed over as descriptors; an ordinary user who runs banger does not have this problem.
type Process struct {
	cmd    *exec.Cmd
	free   bool // Config.Unconfined
	stderr *tail
	exited chan struct{} // closed when the process was reaped and its output was copied
}

// copyTimeout is how long the output may still take after the process has ended.
const copyTimeout = 2 * time.Second

// Start starts the program. Its standard input is /dev/null and it leads a process group of its own.
func Start(c Config) (*Process, error) {
	p := &Process{
		cmd:    exec.Command(c.Path, c.Args...), //nolint:noctx // outlives every context; ends by a signal or by itself
		free:   c.Unconfined,
		stderr: &tail{next: &sink{w: c.Log}},
		exited: make(chan struct{}),
	}
	p.cmd.Env = c.Env
	p.cmd.Dir = "/"
	p.cmd.Stdout = &sink{w: c.Console}
	p.cmd.Stderr = p.stderr
	p.cmd.ExtraFiles = c.Files
	p.cmd.WaitDelay = copyTimeout
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // a ^C at the terminal is not for it
		Pdeathsig: syscall.SIGKILL,
	}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal, and does nothing when the process has ended. The process is known by a descriptor, so that no
// other process that got the same id is hit.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Exited is closed when the process was reaped and its output was copied.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Exit says how the process ended and what it said last. Valid after Exited is closed.
func (p *Process) Exit() hypervisor.Exit {
	state := p.cmd.ProcessState
	exit := hypervisor.Exit{Code: state.ExitCode(), Detail: p.stderr.String()}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		exit.Signal = status.Signal().String()
	}
	return exit
}

// run starts the process and waits for it, both on one thread of its own: the kernel sends Pdeathsig when the thread
// that forked ends, not the process. The thread is never unlocked, so that it ends with this goroutine: what it gave
// up for its child it cannot get back.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	if !p.free {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			started <- os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
			return
		}
		dropCapabilities()
	}
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	// A limit belongs to a process and not to a thread, so it cannot be set before the fork without setting it here
	// too. Best effort: the process may be gone already.
	_ = unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	started <- nil
	_ = p.cmd.Wait() // ProcessState has what matters; errors of copying are sink's
	close(p.exited)
}

// dropCapabilities takes every capability but one out of this thread's bounding set, so that a program started by it
// as root cannot have them. CAP_DAC_OVERRIDE stays: root's BANGER_HOME may be below a directory of another user
// ("sudo banger"), which root could not enter without it. An ordinary user has no capabilities and may not drop any
// either, so errors mean that there is nothing to do.
func dropCapabilities() {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		if capability == unix.CAP_DAC_OVERRIDE {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			return
		}
	}
}

// sink is a writer that takes everything: when w fails once, the rest is dropped, since a full disk must not stop the
// machine whose console is written there.
type sink struct {
	w      io.Writer // nil drops everything
	failed bool
}

// Write never fails.
func (s *sink) Write(p []byte) (int, error) {
	if s.w != nil && !s.failed {
		_, err := s.w.Write(p)
		s.failed = err != nil
	}
	return len(p), nil
}

// maxTail is how much of what the VMM says is kept for messages.
const maxTail = 4 << 10

// tail passes on what is written and keeps its end.
type tail struct {
	next io.Writer

	mu  sync.Mutex // mu guards the field below
	buf []byte
}

// Write keeps the last maxTail bytes.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.buf = append(t.buf, p...)
	if extra := len(t.buf) - maxTail; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	t.mu.Unlock()
	return t.next.Write(p)
}

// String returns the kept text without control characters: it may have come from the guest.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean := strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7f) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(t.buf), "?"))
	return strings.TrimSpace(clean)
}
