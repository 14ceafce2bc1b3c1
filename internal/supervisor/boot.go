package supervisor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/proc"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// probeLimit bounds the question which accelerator is in use, on which nothing depends. It is usually answered long
// before the guest is ready.
const probeLimit = 30 * time.Second

var (
	errDeadline = errors.New("the boot deadline has passed")
	errDied     = errors.New("the vmm is gone")
	errNoAnswer = errors.New("the agent does not answer")
)

// boot starts the VM, from its template if it has one and in several attempts if need be: a guest may hang in its first
// seconds under software emulation. It returns a machine whose guest is configured, or none and how that ended; then no
// VMM is left.
func (s *Supervisor) boot() (hypervisor.Machine, ending) {
	s.board.update(func(st *bangerv1.SupervisorStatus) { st.TemplateFault = s.launch.TemplateFault })
	if s.launch.Resume != nil {
		return s.goOn()
	}
	if machine := s.restore(); machine != nil {
		return machine, ending{}
	}
	attempts := max(1, s.launch.Attempts)
	for n := 1; ; n++ {
		machine, failed := s.attempt(n, nil)
		if failed == nil {
			return machine, ending{}
		}
		if s.orders.asked.Err() != nil {
			return nil, ending{exit: vmdir.Exit{Reason: "stopped while it was starting", Code: failed.code, Expected: true}}
		}
		if n < attempts && !failed.final && !s.isStuck() {
			s.log.Warn("boot attempt failed", "attempt", n, "error", failed.err)
			continue
		}
		return nil, s.bootFailed(failed, n)
	}
}

// goOn starts the VM from a saved machine that it goes on from. It is not booted when that fails: what is in the memory is
// somebody's work.
func (s *Supervisor) goOn() (hypervisor.Machine, ending) {
	machine, failed := s.attempt(1, s.launch.Resume)
	switch {
	case failed == nil:
		return machine, ending{}
	case s.orders.asked.Err() != nil:
		return nil, ending{exit: vmdir.Exit{Reason: "stopped while it was resuming", Code: failed.code, Expected: true}}
	}
	if fault.HintOf(failed.err) == "" {
		failed.err = fault.Wrap(fault.ClassOf(failed.err), failed.err, "it cannot go on from its memory").
			WithHint("banger vm start --cold %s   # drops the memory, keeps the disk", s.name())
	}
	return nil, s.bootFailed(failed, 1)
}

// restore starts the VM from its template, if it has one. When that fails it says so on the board and returns nil.
func (s *Supervisor) restore() hypervisor.Machine {
	if s.launch.Template == nil || s.orders.asked.Err() != nil {
		return nil
	}
	machine, failed := s.attempt(1, s.launch.Template)
	if failed == nil {
		s.board.update(func(st *bangerv1.SupervisorStatus) { st.FromTemplate = true })
		return machine
	}
	if s.orders.asked.Err() == nil {
		s.log.Warn("the vm does not start from its template, it is booted", "template", s.launch.TemplateKey, "error", failed.err)
		s.board.update(func(st *bangerv1.SupervisorStatus) { st.TemplateFault = failed.err.Error() })
	}
	return nil
}

// bootFailed puts the last failure into the one line that users get to see.
func (s *Supervisor) bootFailed(failed *failure, attempts int) ending {
	reason := strings.ReplaceAll(strings.TrimSpace(failed.err.Error()), "\n", " / ")
	if attempts > 1 {
		reason += fmt.Sprintf(" (the last of %d attempts)", attempts)
	}
	err := fault.New(fault.ClassOf(failed.err), "vm %s: %s", s.name(), reason)
	if err.Hint = fault.HintOf(failed.err); err.Hint == "" {
		err.Hint = "banger vm logs " + s.name()
	}
	return ending{exit: vmdir.Exit{Reason: reason, Code: failed.code, Failed: true}, err: err}
}

// failure is how one attempt failed.
type failure struct {
	err   error // in words for the user
	final bool  // another attempt would fail in the same way
	code  int   // the VMM's exit code if there was a VMM
}

// attempt makes one boot, or one start from a template. When it fails it leaves no VMM.
func (s *Supervisor) attempt(n int, template *hypervisor.Saved) (hypervisor.Machine, *failure) {
	limit := s.launch.BootDeadline
	if template != nil {
		limit = cmp.Or(s.launch.RestoreDeadline, limit)
	}
	ctx, cancel := context.WithTimeoutCause(s.orders.asked, limit, errDeadline)
	defer cancel()
	s.board.update(func(st *bangerv1.SupervisorStatus) { st.BootAttempts = int32(n) })
	s.console.begin(n, time.Now())
	s.vmmLog.end.reset()

	spec := s.launch.Machine
	spec.RunDir, spec.Console, spec.Log, spec.Restore = s.runDir, s.console, s.vmmLog, template
	spec.Halted = func(reason string) {
		select {
		case s.halts <- reason:
		default:
		}
	}
	if err := s.at(StepBootStart); err != nil {
		return nil, &failure{err: err, final: true}
	}
	machine, err := s.driver.Start(ctx, spec)
	if err != nil {
		return nil, s.startFailed(ctx, err, limit)
	}
	if err = s.at(StepBootRecord); err == nil {
		s.setVMM(machine.PID())
		err = s.bringUp(ctx, machine)
	}
	if err == nil {
		return machine, nil
	}
	if s.orders.asked.Err() != nil {
		s.board.update(func(st *bangerv1.SupervisorStatus) { st.Phase = phaseStopping })
	}
	died := isDone(machine) // by itself, that is
	s.reap(machine)
	s.setVMM(0)
	failed := s.explain(ctx, err, machine.Exit(), died, limit)
	failed.code = machine.Exit().Code
	return nil, failed
}

// startFailed explains an error of the driver. It has undone everything. What it cannot start now it cannot start a
// moment later, unless it hung.
func (s *Supervisor) startFailed(ctx context.Context, err error, limit time.Duration) *failure {
	if errors.Is(context.Cause(ctx), errDeadline) {
		return &failure{err: fault.Wrap(fault.Timeout, err, "the vmm did not start within %v", limit)}
	}
	return &failure{err: err, final: true}
}

// explain finds the words for a guest that did not become ready.
func (s *Supervisor) explain(ctx context.Context, err error, exit hypervisor.Exit, died bool, limit time.Duration) *failure {
	var f *fault.Error
	switch {
	case died:
		why := whyEnded(exit, s.console.end.lines(40))
		// A VMM that complains and exits (bad arguments, a disk it cannot open) will do so again. A guest that crashed
		// or a VMM that was killed may have better luck.
		refused := exit.Signal == "" && exit.Code != 0
		return &failure{
			err:   fault.New(fault.Unavailable, "%s before the guest was ready%s", why, s.lastWords(why, exit.Detail)),
			final: refused,
		}
	case errors.Is(context.Cause(ctx), errDeadline):
		why := s.lastWords("", "")
		if !errors.Is(err, errDeadline) {
			why = ": " + err.Error() + why
		}
		return &failure{err: fault.New(fault.Timeout, "the guest was not ready within %v%s", limit, why)}
	case errors.As(err, &f):
		// The agent's own answer, for example that a disk cannot be mounted.
		return &failure{err: fault.Context(err, "the guest cannot be configured"), final: true}
	}
	return &failure{err: fault.Wrap(fault.Unavailable, err, "the guest cannot be configured")}
}

// lastWords is the end of what the VMM and the guest said, for a message that has said known. detail is what the VMM
// said if the driver knows better than its log.
func (s *Supervisor) lastWords(known, detail string) string {
	var out string
	said := oneLine(detail)
	if said == "" {
		said = strings.Join(s.vmmLog.end.lines(3), " / ")
	}
	if said != "" && !strings.Contains(known, said) {
		out = "; the vmm says: " + said
	}
	lines := s.console.end.lines(3)
	if len(lines) == 0 {
		return out + "; its console is empty"
	}
	return out + "; its console ends with: " + strings.Join(lines, " / ")
}

// bringUp connects to the agent and configures the guest. It tries until ctx ends, the VMM is gone or the agent
// refuses.
func (s *Supervisor) bringUp(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer onDone(ctx, m, func() { cancel(errDied) })()
	p := pause{limit: s.times.retry}
	var last error // of a try that ended by itself: it says more than that the time is over
	for {
		err := s.configure(ctx, m)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return cmp.Or(last, context.Cause(ctx))
		case isFinal(err):
			return err
		case !fault.Is(err, fault.Timeout):
			last = err
		}
		s.log.Debug("guest does not answer yet", "error", err)
		if err := p.wait(ctx, m.Done()); err != nil {
			return cmp.Or(last, err)
		}
	}
}

// isFinal reports whether the guest has given an answer, as opposed to none. Another answer is not to be expected.
func isFinal(err error) bool {
	var f *fault.Error
	if !errors.As(err, &f) {
		return false
	}
	return f.Class != fault.Unavailable && f.Class != fault.Timeout && f.Class != fault.Cancelled
}

// configure makes one try. It sets the link when it worked.
func (s *Supervisor) configure(ctx context.Context, m hypervisor.Machine) error {
	if err := s.at(StepBootConnect); err != nil {
		return err
	}
	conn, hello, err := s.connect(ctx, m)
	if err != nil {
		return err
	}
	switch {
	case s.launch.Resume != nil && hello.Configured:
		err = s.wake(ctx, conn)
	case s.launch.Resume != nil:
		err = fault.New(fault.Internal, "the saved guest was not configured")
	case s.launch.Prepared && hello.Configured: // or booted after all, and the answer to Configure was lost
		err = s.become(ctx, conn)
	case !hello.Configured: // it is if the answer of a try before was lost
		err = s.identify(ctx, conn, hello)
	}
	if err == nil {
		err = s.at(StepBootReady)
	}
	if err != nil {
		conn.close()
		return err
	}
	s.link.set(conn)
	return nil
}

// identify makes this VM of a guest that waits.
func (s *Supervisor) identify(ctx context.Context, conn *connection, hello agentwire.Hello) error {
	if err := s.at(StepBootConfigure); err != nil {
		return err
	}
	config := s.launch.Guest
	config.Entropy = make([]byte, 64)
	rand.Read(config.Entropy) // never fails
	config.UnixNano = time.Now().UnixNano()
	configured, err := conn.client.Configure(ctx, config)
	if fault.Is(err, fault.Conflict) { // still at work on a try before, whose connection was lost
		return fault.Wrap(fault.Unavailable, err, "configure")
	}
	if err != nil {
		return err
	}
	s.log.Info("guest is configured", "kernel", hello.Kernel, "agent", hello.Build, "millis", configured.Millis)
	return nil
}

// become makes this VM of a guest that was configured for one like it. It can be repeated.
func (s *Supervisor) become(ctx context.Context, conn *connection) error {
	if err := s.at(StepBootConfigure); err != nil {
		return err
	}
	guest := s.launch.Guest
	wake := agentwire.Wake{
		Entropy: make([]byte, 64), UnixNano: time.Now().UnixNano(),
		Identity: &agentwire.Identity{
			Hostname: guest.Hostname, MachineID: guest.MachineID, BootID: bootID(), Network: guest.Network,
		},
		Settings: &agentwire.Settings{Env: guest.Env, User: guest.User, Workdir: guest.Workdir},
	}
	rand.Read(wake.Entropy) // never fails
	return conn.client.Wake(ctx, wake)
}

// bootID is a new boot id: a random UUID (RFC 9562, version 4).
func bootID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// wake tells a guest that goes on what time it is, and perhaps that it is another now. It can be repeated.
func (s *Supervisor) wake(ctx context.Context, conn *connection) error {
	if err := s.at(StepBootWake); err != nil {
		return err
	}
	wake := agentwire.Wake{Entropy: make([]byte, 64), UnixNano: time.Now().UnixNano(), Identity: s.launch.Identity}
	rand.Read(wake.Entropy) // never fails
	if err := conn.client.Wake(ctx, wake); err != nil {
		return err
	}
	s.log.Info("guest goes on")
	return nil
}

// setVMM records the VMM of this attempt, 0 for none. A record that cannot be written does not stop the VM: a daemon
// that comes anew still finds the supervisor.
func (s *Supervisor) setVMM(pid int) {
	s.process.VMM = proc.Identity{}
	if pid > 0 {
		s.process.VMM, _ = proc.Of(pid) // no such process: it is gone already, which Done tells
	}
	if err := s.dir.WriteProcess(s.process); err != nil {
		s.log.Error("cannot write process.json", "error", err)
	}
	s.board.update(func(st *bangerv1.SupervisorStatus) { st.VmmPid = int32(pid) })
}

// tellAccelerator puts the accelerator on the board. It runs beside the boot.
func (s *Supervisor) tellAccelerator(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if host, err := s.driver.Probe(ctx); err == nil {
		s.board.update(func(st *bangerv1.SupervisorStatus) { st.Accelerator = host.Accelerator })
	}
}

// isStuck reports whether a VMM survived SIGKILL for a while: nobody should start another one then.
func (s *Supervisor) isStuck() bool {
	select {
	case <-s.stuck:
		return true
	default:
		return false
	}
}

func isDone(m hypervisor.Machine) bool {
	select {
	case <-m.Done():
		return true
	default:
		return false
	}
}
