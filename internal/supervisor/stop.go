package supervisor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	bangerv1 "banger/proto/banger/v1"
)

// maxGrace bounds what a caller of Stop may ask for.
const maxGrace = 10 * time.Minute

// orders are what callers want done to the VM. Giving one never blocks; the leading goroutine carries them out.
type orders struct {
	asked  context.Context // ends with the first order of any kind
	killed context.Context // ends with the first order to kill
	ask    context.CancelFunc
	kill   context.CancelFunc

	mu    sync.Mutex    // guards grace
	grace time.Duration // of the first order; valid once asked has ended
}

func newOrders() *orders {
	o := new(orders)
	o.asked, o.ask = context.WithCancel(context.Background())
	o.killed, o.kill = context.WithCancel(context.Background())
	return o
}

// stop orders the ladder. Later orders join the first.
func (o *orders) stop(grace time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.asked.Err() == nil {
		o.grace = grace
		o.ask()
	}
}

// killNow orders the end of the ladder's patience, also when it is under way.
func (o *orders) killNow() {
	o.kill()
	o.stop(0)
}

func (o *orders) graceTime() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.grace
}

// Stop implements the RPC. It returns when the VM has ended, also for those who came while it was ending.
func (s service) Stop(ctx context.Context, req *connect.Request[bangerv1.SupervisorStopRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	grace := time.Duration(req.Msg.GetGraceMs()) * time.Millisecond
	switch {
	case req.Msg.GetGraceMs() < 0 || req.Msg.GetGraceMs() > maxGrace.Milliseconds():
		return nil, fault.New(fault.Invalid, "grace of %d ms is not between 0 and %d", req.Msg.GetGraceMs(), maxGrace.Milliseconds())
	case req.Msg.GetKill():
		s.orders.killNow()
	case grace == 0:
		s.orders.stop(s.times.grace)
	default:
		s.orders.stop(grace)
	}
	return s.awaitEnd(ctx)
}

// awaitEnd answers when the VM has ended.
func (s service) awaitEnd(ctx context.Context) (*connect.Response[bangerv1.SupervisorStatus], error) {
	select {
	case <-s.gone:
	case <-s.stuck:
		status, _ := s.board.get()
		if status.GetPhase() == phaseExited { // it did die in the end
			return connect.NewResponse(status), nil
		}
		return nil, fault.New(fault.Timeout, "vm %s: the vmm (pid %d) did not die when it was killed: it is stuck in the host's kernel",
			s.name(), status.GetVmmPid())
	case <-ctx.Done():
		return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "vm %s: wait for its end", s.name())
	}
	status, _ := s.board.get()
	return connect.NewResponse(status), nil
}

// rung is one step of the stop ladder.
type rung struct {
	name   string // of its step, too
	reason string // what exit.json says when the VMM ended on this rung
	try    func(context.Context) error
	limit  time.Duration // of try; when it fails the next rung's turn comes soon
	wait   time.Duration // for the end of the VMM, after try
}

func (s *Supervisor) ladder(m hypervisor.Machine) []rung {
	grace := s.orders.graceTime()
	// A guest that hangs should be gone when the grace is over. One that is only slow must not lose what it has not
	// synced, so the agent gets all the time that the other rungs do not need.
	others := s.times.quit + s.times.term + 2*s.times.doubt
	answer := max(min(s.times.answer, max(grace, time.Second)), grace-others)
	slow := fmt.Sprintf("stopped: the guest did not shut down within %v, ", grace)
	return []rung{
		{
			name: StepStopAgent, reason: "stopped",
			try:   func(ctx context.Context) error { return s.shutdownGuest(ctx, m, grace) },
			limit: answer, wait: grace + s.times.settle,
		},
		{name: StepStopQuit, reason: slow + "the vmm was told to quit", try: m.Quit, limit: s.times.quit, wait: s.times.quit},
		{
			name: StepStopTerminate, reason: slow + "the vmm was terminated",
			try:   func(context.Context) error { return m.Signal(int(syscall.SIGTERM)) },
			limit: s.times.term, wait: s.times.term,
		},
	}
}

// climb ends the VMM, gently first, and says what it took. It returns when the VMM is gone.
func (s *Supervisor) climb(m hypervisor.Machine) string {
	for _, r := range s.ladder(m) {
		if s.orders.killed.Err() != nil {
			s.reap(m)
			return "killed"
		}
		if s.tryRung(m, r) {
			return r.reason
		}
	}
	s.reap(m)
	if s.orders.killed.Err() != nil {
		return "killed"
	}
	return fmt.Sprintf("killed: the guest did not shut down within %v and the vmm did not end", s.orders.graceTime())
}

// tryRung tries one rung and reports whether the VMM is gone. An order to kill cuts it short.
func (s *Supervisor) tryRung(m hypervisor.Machine, r rung) bool {
	ctx, cancel := context.WithTimeout(s.orders.killed, r.limit)
	defer cancel()
	defer onDone(ctx, m, cancel)()
	err := s.at(r.name)
	if err == nil {
		err = r.try(ctx)
	}
	wait := r.wait
	if err != nil && !isDone(m) {
		s.log.Warn("stop: this way does not work", "rung", r.name, "error", err)
		wait = min(wait, s.times.doubt)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-m.Done():
		return true
	case <-s.orders.killed.Done():
	case <-timer.C:
		s.log.Warn("stop: the vmm goes on", "rung", r.name, "waited", wait)
	}
	return isDone(m) // it may have gone together with the other event
}

// onDone calls f when the VMM is gone. The function it returns ends that and must be called.
func onDone(ctx context.Context, m hypervisor.Machine, f func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-m.Done():
			f()
		case <-ctx.Done():
		}
	})
	return func() { cancel(); wg.Wait() }
}

// shutdownGuest tells the agent to go down. A paused guest goes on for that; a connection that is lost at the moment
// gets the chance to come back.
func (s *Supervisor) shutdownGuest(ctx context.Context, m hypervisor.Machine, grace time.Duration) error {
	if s.halted {
		if err := s.at(StepStopResume); err != nil {
			return err
		}
		if err := s.resume(ctx, m); err != nil {
			return err
		}
	}
	client, err := s.link.await(ctx)
	if err != nil {
		return err
	}
	return client.Shutdown(ctx, agentwire.Shutdown{GraceMillis: grace.Milliseconds()})
}

// reap kills the VMM and waits until it is gone. That has no bound: as long as the process is there it has the disk
// open, and saying that the VM has ended would invite a second one onto it. Those who wait for it have bounds.
func (s *Supervisor) reap(m hypervisor.Machine) {
	if err := s.at(StepStopKill); err != nil {
		s.log.Error("cannot do without killing the vmm", "error", err)
	}
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		s.log.Error("cannot kill the vmm", "pid", m.PID(), "error", err)
	}
	timer := time.NewTimer(s.times.kill)
	defer timer.Stop()
	select {
	case <-m.Done():
		return
	case <-timer.C:
	}
	s.log.Error("the vmm does not die", "pid", m.PID(), "waited", s.times.kill)
	close(s.stuck) // at most once: after this the VMM ends or nothing more happens
	<-m.Done()
}

// endedByItself says why a VMM ended that nobody told to.
func (s *Supervisor) endedByItself(exit hypervisor.Exit) ending {
	out := ending{}
	out.exit.Code = exit.Code
	out.exit.Reason = whyEnded(exit, s.console.end.lines(40))
	return out
}

// whyEnded puts the end of a VMM into words. console is the end of what the guest printed: it may lie, so it decides
// nothing but the words.
func whyEnded(exit hypervisor.Exit, console []string) string {
	last := strings.Join(console, "\n")
	switch {
	case exit.Signal != "":
		return "the vmm was killed by " + signalText(exit.Signal)
	case strings.Contains(last, panicText):
		_, what, _ := strings.Cut(last, panicText)
		what, _, _ = strings.Cut(what, "\n")
		return "guest kernel panic" + what
	case exit.Reason == hypervisor.ReasonGuestShutdown, strings.Contains(last, "reboot: Power down"):
		return "guest powered off"
	case exit.Reason == hypervisor.ReasonGuestReset, strings.Contains(last, "reboot: Restarting system"):
		return "guest rebooted, which ends a vm"
	case exit.Reason == hypervisor.ReasonSignal, exit.Reason == hypervisor.ReasonQuit:
		return "the vmm was told to end by somebody else"
	case exit.Detail != "":
		return fmt.Sprintf("the vmm exited with code %d: %s", exit.Code, oneLine(exit.Detail))
	}
	return fmt.Sprintf("the vmm exited with code %d", exit.Code)
}

const panicText = "Kernel panic - not syncing"

// signalText turns "killed" into "signal 9 (killed)".
func signalText(name string) string {
	for sig := syscall.Signal(1); sig < 65; sig++ {
		if sig.String() == name {
			return fmt.Sprintf("signal %d (%s)", int(sig), name)
		}
	}
	return name
}

// oneLine joins the lines of a text that goes into a message.
func oneLine(text string) string {
	var t tail
	t.write([]byte(text))
	return strings.Join(t.lines(3), " / ")
}
