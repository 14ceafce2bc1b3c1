package agent

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper collects the ends of processes and hands each to whoever started it. Nothing else in the process may wait for
// children: os/exec and os.Process.Wait would lose the race.
type reaper struct {
	// init: this is PID 1, and run collects every child, orphans of others included. Otherwise each child has a
	// goroutine of its own, so that the other children of the process are left alone.
	init bool

	// mu is held while a process is started, collected or signalled. So no end is lost before its subscription, and
	// no signal meets a process that took over the number of a collected one.
	mu    sync.Mutex
	ended map[int]chan syscall.WaitStatus
}

func newReaper() *reaper { return &reaper{ended: map[int]chan syscall.WaitStatus{}} }

// start calls fork, which returns the number of a new child, and subscribes to that child's end. The channel receives
// once and is never closed.
func (r *reaper) start(fork func() (int, error)) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan syscall.WaitStatus, 1)
	r.ended[pid] = ch
	if !r.init {
		go r.waitFor(pid) // ends with the process, which its command sees to
	}
	return pid, ch, nil
}

// waitFor collects one child.
func (r *reaper) waitFor(pid int) {
	for {
		// Without collecting it yet: that is done under the lock.
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect(pid)
}

// run collects children as PID 1 until ctx ends.
func (r *reaper) run(ctx context.Context) {
	child := make(chan os.Signal, 1) // one pending signal stands for any number of ends
	signal.Notify(child, syscall.SIGCHLD)
	defer signal.Stop(child)
	for {
		r.mu.Lock()
		for r.collect(-1) {
		}
		r.mu.Unlock()
		select {
		case <-child:
		case <-ctx.Done():
			return
		}
	}
}

// collect collects one ended child, any for pid -1, and reports whether there was one. r.mu is held.
func (r *reaper) collect(pid int) bool {
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || got <= 0 {
			return false
		}
		if ch, ok := r.ended[got]; ok {
			delete(r.ended, got)
			ch <- status
		}
		return true
	}
}

// signal sends sig to the process group of a child that was started as the leader of one. It does nothing after the
// child's end.
func (r *reaper) signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ended[pid]; !ok {
		return nil
	}
	return syscall.Kill(-pid, sig)
}
