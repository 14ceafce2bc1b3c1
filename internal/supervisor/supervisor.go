// Package supervisor is the process that runs one VM. There is one for each running VM; it outlives the daemon that
// started it and ends with its VM.
//
// It is the parent of the VMM, which dies with it. It owns the connection to the guest's agent, the console log and
// the record of how the VM ended. What it is to start stands in supervisor.json; callers watch and steer it through
// SupervisorService on a socket that exists before the boot begins.
//
// One goroutine, the one in Run, leads the VM from phase to phase: boot (boot.go), then waiting for tasks (control.go),
// then the stop ladder (stop.go). Nobody else changes the machine. Everything else only reads the board (status.go),
// gives orders (stop.go) or uses the link to the guest (link.go, exec.go, meter.go), so a guest that hangs holds up
// nobody but those who speak with it.
//
// The end has an order that callers may rely on. When a watcher hears of phase "exited", or a Stop returns, the VMM is
// gone, exit.json is durable, and process.json, socket, run directory and lock are free: the VM can be started again
// at once, even though this process still lives for the moment it takes to answer those who asked.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/undo"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Config is what a Supervisor needs.
type Config struct {
	Dir     vmdir.Dir                    // of the VM; supervisor.json is there
	Drivers map[string]hypervisor.Driver // by the name that supervisor.json uses
	Log     *slog.Logger
	// Step is for tests: it is called before each of Steps and makes it fail. Nil in production.
	Step func(name string) error
}

// Supervisor runs one VM once. Each of its parts has a lock of its own; none is held while another is taken, nor
// across anything that can wait.
type Supervisor struct {
	// Fixed after New.
	dir     vmdir.Dir
	drivers map[string]hypervisor.Driver
	log     *slog.Logger
	times   times
	step    func(name string) error // see at
	clock   func() (clockWatch, error)

	// Fixed once prepare has returned, which is before anybody can call.
	launch    vmdir.Launch
	driver    hypervisor.Driver
	runDir    string
	process   vmdir.Process // its VMM is changed by the leading goroutine only
	suspended bool          // the machine was saved and must not run again; leading goroutine only
	halted    bool          // the VMM was told to pause and has not resumed since; leading goroutine only
	console   *console
	vmmLog    *vmmLog

	// Synchronised by themselves.
	board  *board
	orders *orders
	link   *link
	meter  *meter
	tasks  chan task      // taken by the leading goroutine while the guest is ready or paused
	halts  chan string    // why the VMM has paused the guest; room for one, others are of the same kind
	stuck  chan struct{}  // closed when the VMM survived SIGKILL for too long
	gone   chan struct{}  // closed when phase exited has been published
	done   chan struct{}  // closed when Run has returned
	calls  sync.WaitGroup // what runs for callers; see enter

	called atomic.Pointer[string] // the VM's name, if it has got one since

	mu      sync.Mutex // guards the fields below
	ran     bool
	closing bool // no new calls
}

// times are the bounds of everything that waits, except for those that Launch has.
type times struct {
	connect    time.Duration // one try to reach the agent
	retry      time.Duration // longest pause between two tries
	grace      time.Duration // of a Stop that names none, and of a host that shuts down
	answer     time.Duration // the agent's answer to Shutdown; longer when the grace leaves room for it
	settle     time.Duration // from the end of the grace until the guest is down: sync and unmount
	doubt      time.Duration // for the VMM to end although what should end it failed: its answer may have been lost
	quit       time.Duration // the VMM's answer to Quit, and then its end
	term       time.Duration // from SIGTERM to the end
	kill       time.Duration // from SIGKILL until the VMM counts as stuck in the kernel
	save       time.Duration // saving the machine: some GiB to the disk
	sync       time.Duration // the guest's writing out before that; without it, it is a power cut
	task       time.Duration // what the VMM is told to do: pause, resume
	grow       time.Duration // growing the disk in VMM and guest
	clock      time.Duration // setting the guest's clock
	ask        time.Duration // the guest's answer to a question: what listens there
	sample     time.Duration // between two samples of the history
	fresh      time.Duration // a sample that old is still fresh
	measure    time.Duration // the guest's part of a sample; it is left out when it takes longer
	probe      time.Duration // for a guest that is ready to wait for the name of its accelerator
	farewell   time.Duration // for callers to take what they asked for, at the end
	closeLimit time.Duration // of Close
}

// errHeld says that another supervisor runs this VM.
var errHeld = errors.New("another supervisor runs this vm")

// New returns a Supervisor for the VM in c.Dir. It touches nothing yet.
func New(c Config) *Supervisor {
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Supervisor{
		dir: c.Dir, drivers: c.Drivers, log: log.With("component", "supervisor"), step: c.Step,
		clock: watchHostClock,
		times: times{
			connect: 10 * time.Second, retry: 5 * time.Second, grace: 10 * time.Second, answer: 5 * time.Second,
			settle: 5 * time.Second, doubt: 500 * time.Millisecond, quit: 2 * time.Second, term: 2 * time.Second, kill: 10 * time.Second,
			save: 5 * time.Minute, sync: 10 * time.Second, task: 10 * time.Second, grow: time.Minute, clock: 5 * time.Second, ask: 10 * time.Second,
			sample: 5 * time.Second, fresh: 200 * time.Millisecond, measure: 2 * time.Second,
			probe: 500 * time.Millisecond, farewell: 2 * time.Second, closeLimit: 15 * time.Second,
		},
		orders: newOrders(), link: newLink(), meter: newMeter(), tasks: make(chan task), halts: make(chan string, 1),
		stuck: make(chan struct{}), gone: make(chan struct{}), done: make(chan struct{}),
	}
}

// Run boots the VM and returns when it is gone and everything of this run is cleaned up. The error is nil when the
// guest became ready or somebody stopped it before, and when another supervisor already runs this VM. The end of ctx,
// SIGTERM and SIGINT stop the VM in order; SIGHUP is ignored.
func (s *Supervisor) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ran || s.closing {
		s.mu.Unlock()
		return errors.New("supervisor: Run was called twice or after Close")
	}
	s.ran = true
	s.mu.Unlock()
	defer close(s.done)

	ctx, release := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer release()
	hangup := make(chan os.Signal, 1) // taken and never read; signal.Ignore would be inherited by the VMM
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	defer context.AfterFunc(ctx, func() { s.orders.stop(s.times.grace) })()

	lock, err := takeLock(s.dir.Path(paths.VMLock))
	if errors.Is(err, errHeld) {
		s.log.Info("nothing to do: another supervisor holds the lock of this vm", "dir", string(s.dir))
		return nil
	}
	if err != nil {
		return err
	}
	var cleanup undo.Stack // never disarmed: this is how every run ends
	cleanup.Add("release the lock", func(context.Context) error { return lock.Close() })
	if err := s.prepare(&cleanup); err != nil {
		return errors.Join(err, s.finish(&cleanup, failedEnding(err)))
	}
	hangUp, err := s.serve(&cleanup)
	if err != nil {
		return errors.Join(err, s.finish(&cleanup, failedEnding(err)))
	}
	end := s.live()
	err = errors.Join(end.err, s.finish(&cleanup, end))
	hangUp()
	return err
}

// Close kills the VM if Run is still under way, and waits until Run has returned. It may be called more than once.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	s.closing = true
	ran := s.ran
	s.mu.Unlock()
	if !ran {
		return nil
	}
	s.orders.killNow()
	select {
	case <-s.done:
		return nil
	case <-time.After(s.times.closeLimit):
		return errors.New("supervisor: the vm did not end in time")
	}
}

// enter counts one call, unless the end has come: calls.Wait must not overlap with the first calls.Add.
func (s *Supervisor) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.calls.Add(1)
	return true
}

// prepare reads what is to be started and makes the ground clean. Whatever it did is on u.
func (s *Supervisor) prepare(u *undo.Stack) error {
	if err := s.readLaunch(); err != nil {
		return err
	}
	s.log = s.log.With("vm", string(s.launch.VMID))
	if err := s.removeLeftovers(); err != nil {
		return err
	}
	u.Add("remove the run directory", func(context.Context) error { return os.RemoveAll(s.runDir) })
	if err := os.MkdirAll(s.runDir, 0o700); err != nil {
		return fault.Wrap(fault.Internal, err, "make run directory")
	}
	self, err := proc.Self()
	if err != nil {
		return err
	}
	s.process = vmdir.Process{Supervisor: self, StartedAt: time.Now()}
	u.Add("remove process.json", func(context.Context) error { return s.dir.RemoveProcess() })
	if err := s.at(StepBootPrepare); err != nil {
		return err
	}
	if err := s.dir.WriteProcess(s.process); err != nil {
		return fault.Wrap(fault.Internal, err, "write process.json")
	}
	s.console = newConsole(s.dir.Path(paths.VMConsole), s.launch.ConsoleLimit, s.log)
	u.Add("close the console log", func(context.Context) error { s.console.Close(); return nil })
	s.vmmLog = &vmmLog{log: s.log}
	s.board = newBoard(s.firstStatus())
	return nil
}

// takeLock takes the lock of the VM for as long as the file is open. The VMM does not inherit it.
func takeLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "open lock")
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	_ = file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errHeld
	}
	return nil, fault.Wrap(fault.Internal, err, "lock %s", path)
}

// readLaunch reads supervisor.json and checks what could do harm later.
func (s *Supervisor) readLaunch() error {
	launch, err := s.dir.ReadLaunch()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "read supervisor.json")
	}
	id := string(launch.VMID)
	s.launch, s.runDir = launch, launch.Paths.VMRun(id)
	s.driver = s.drivers[launch.Driver]
	switch {
	case id == "" || id == "." || id == ".." || launch.Paths.Run == "" || filepath.Dir(s.runDir) != filepath.Clean(launch.Paths.Run):
		// The run directory is removed at the end: it must be this VM's own.
		return fault.New(fault.Invalid, "supervisor.json: vm id %q or run directory %q is not valid", id, launch.Paths.Run)
	case s.driver == nil:
		return fault.New(fault.Invalid, "supervisor.json: unknown driver %q", launch.Driver)
	case launch.BootDeadline <= 0:
		return fault.New(fault.Invalid, "supervisor.json: boot deadline %v is not valid", launch.BootDeadline)
	}
	return nil
}

// removeLeftovers removes what an earlier run left that was killed. Its VMM died with it, but two VMMs on one disk
// destroy it, so this is not left to hope.
func (s *Supervisor) removeLeftovers() error {
	old, ok, err := s.dir.ReadProcess()
	if err != nil {
		s.log.Warn("process.json of the last run is unreadable", "error", err)
	}
	if ok && old.VMM.Alive() {
		if err := s.killLeftover(old.VMM); err != nil {
			return err
		}
	}
	if err := s.dir.RemoveExit(); err != nil {
		return fault.Wrap(fault.Internal, err, "remove exit.json")
	}
	if err := os.RemoveAll(s.runDir); err != nil {
		return fault.Wrap(fault.Internal, err, "clean run directory")
	}
	return nil
}

func (s *Supervisor) killLeftover(vmm proc.Identity) error {
	s.log.Warn("killing the vmm of an earlier run", "pid", vmm.PID)
	if err := vmm.Kill(syscall.SIGKILL); err != nil {
		return err
	}
	for deadline := time.Now().Add(s.times.kill); vmm.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fault.New(fault.Unavailable, "the vmm of an earlier run (pid %d) does not die", vmm.PID)
		}
	}
	return nil
}

func (s *Supervisor) firstStatus() *bangerv1.SupervisorStatus {
	return &bangerv1.SupervisorStatus{
		VmId: string(s.launch.VMID), Phase: phaseStarting, SupervisorPid: int32(s.process.Supervisor.PID),
		StartedAtMs: s.process.StartedAt.UnixMilli(), Address: guestAddress(s.launch.Guest.Network),
	}
}

// ending is how the run ended.
type ending struct {
	exit vmdir.Exit // its At is filled in by finish
	err  error      // why the guest never became ready, unless somebody stopped it before
}

func failedEnding(err error) ending {
	return ending{exit: vmdir.Exit{Reason: err.Error(), Failed: true}, err: err}
}

// live leads the VM from its boot to its end.
func (s *Supervisor) live() ending {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	probed := make(chan struct{})
	wg.Go(func() { defer close(probed); s.tellAccelerator(ctx) })

	machine, end := s.boot()
	if machine == nil {
		return end
	}
	wg.Go(func() { s.keepLink(ctx, machine) })
	select { // the daemon records what it hears with phase ready
	case <-probed:
	case <-time.After(s.times.probe):
	}
	s.board.touch()
	s.board.update(func(st *bangerv1.SupervisorStatus) {
		st.Phase, st.ReadyAtMs = phaseReady, time.Now().UnixMilli()
	})
	s.log.Info("guest is ready", "took", time.Since(s.process.StartedAt))
	wg.Go(func() { s.keepSampling(ctx) })
	wg.Go(func() { s.keepClock(ctx) })
	if s.launch.Resume != nil { // sessions may run in it, which whoever looks for idle VMs has to know
		wg.Go(func() { _, _ = s.sample(ctx) })
	}
	for s.orders.asked.Err() == nil {
		select {
		case <-machine.Done():
			return s.endedByItself(machine.Exit())
		case t := <-s.tasks:
			t.done <- s.perform(t, machine)
		case reason := <-s.halts:
			s.guestHalted(reason)
		case <-s.orders.asked.Done():
		}
	}
	s.board.update(func(st *bangerv1.SupervisorStatus) {
		st.Phase, st.Fault, st.Suspended, st.RunningSessions = phaseStopping, nil, s.suspended, 0
	})
	if s.suspended {
		s.reap(machine)
		return ending{exit: vmdir.Exit{Reason: "suspended", Code: machine.Exit().Code, Expected: true, Suspended: true}}
	}
	reason := s.climb(machine)
	return ending{exit: vmdir.Exit{Reason: reason, Code: machine.Exit().Code, Expected: true}}
}

// finish makes the end durable, gives everything back and then tells the watchers: see the package comment.
func (s *Supervisor) finish(u *undo.Stack, end ending) error {
	end.exit.At = time.Now()
	s.log.Info("vm has ended", "reason", end.exit.Reason, "expected", end.exit.Expected, "failed", end.exit.Failed)
	var errs []error
	err := s.at(StepStopRecord)
	if err == nil {
		err = s.dir.WriteExit(end.exit)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("write exit.json: %w", err))
	}
	if err := s.at(StepStopClean); err != nil {
		errs = append(errs, err)
	}
	if err := u.Run(context.Background()); err != nil {
		errs = append(errs, err)
	}
	err = errors.Join(errs...)
	if err != nil {
		s.log.Error("the end of the vm left something behind", "error", err)
	}
	if s.board != nil {
		s.board.update(func(st *bangerv1.SupervisorStatus) { publish(st, end) })
	}
	close(s.gone)
	return err
}
