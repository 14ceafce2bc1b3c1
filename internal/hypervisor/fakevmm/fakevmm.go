// Package fakevmm is a hypervisor.Driver whose machines are not virtual: each is a child process that runs the real
// agent's server on the host.
//
// With it the CLI, the daemon and the supervisor are tested with real processes that can be killed, in milliseconds
// and without a guest. The child is the test binary itself: its TestMain (or the main of a testscript program) calls
// Main first of all, which does nothing unless this process was started as a fake VMM. It must never be in the driver
// map of the production binary: commands "in the guest" run on the host, as the user, without any isolation.
//
// What differs from a real VMM, besides that: disks are looked for but not read, the console has two lines, a paused
// machine is one whose channel stands still while its commands go on, one that is restored from another has its
// configuration and none of its commands, and the commands of a machine that was killed
// with SIGKILL live on until they notice that their streams are gone.
package fakevmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmproc"
)

// Env marks a process as a fake VMM; Main looks for it.
const Env = "BANGER_FAKE_VMM"

const (
	envSpec      = "BANGER_FAKE_VMM_SPEC" // JSON of childSpec
	agentSocket  = "agent.sock"
	startTimeout = 10 * time.Second
	maxCPUs      = 64
)

// Options of a Driver.
type Options struct {
	Binary string // that calls Main; empty means this program
	// Faults is what goes wrong, in the form of ParseFaults. Empty means the value of FaultsEnv.
	Faults string
}

// Driver starts fake machines.
type Driver struct {
	opts Options
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver.
func New(opts Options) *Driver { return &Driver{opts: opts} }

// Name returns "fake".
func (d *Driver) Name() string { return "fake" }

// Features says that the agent channel is one stream, like QEMU's.
func (d *Driver) Features() hypervisor.Features {
	return hypervisor.Features{MaxCPUs: maxCPUs, MuxedAgent: true, Pause: true, ResizeDisk: true, Save: true}
}

// Probe always finds something.
func (d *Driver) Probe(context.Context) (hypervisor.Host, error) {
	path, err := d.binary()
	if err != nil {
		return hypervisor.Host{}, err
	}
	return hypervisor.Host{Version: "1.0", Path: path, Accelerator: "none", Reason: "no guest is run at all"}, nil
}

func (d *Driver) binary() (string, error) {
	if d.opts.Binary != "" {
		return d.opts.Binary, nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "fake vmm")
	}
	return path, nil
}

// childSpec is what the child has to know.
type childSpec struct {
	Name   string
	Socket string
	Memory uint64
	Disks  map[string]uint64 // sizes by serial
	Faults Faults

	Shape      string            // see Driver.Shape
	Configured *agentwire.Config // of the machine that this one is restored from; nil: none, or it waited
}

// Start starts a child and waits until its agent channel listens.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	faults, err := d.faults(spec.Name)
	if err != nil {
		return nil, err
	}
	if spec.CPUs < 1 || spec.CPUs > maxCPUs {
		return nil, fault.New(fault.Invalid, "%d cpus are not possible: the fake vmm has 1 to %d", spec.CPUs, maxCPUs)
	}
	if err := spec.CheckFiles(); err != nil {
		return nil, err
	}
	if faults.StartError {
		return nil, fault.New(fault.Unavailable, "fake vmm: start error was asked for")
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.ClassOf(err), context.Cause(ctx), "start fake vmm")
	}
	m := &Machine{
		name: spec.Name, spec: spec, turn: make(chan struct{}, 1), obeyed: make(chan struct{}),
		ready: make(chan struct{}), told: make(chan struct{}), done: make(chan struct{}),
	}
	if err := m.spawn(d, spec, faults); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-m.ready:
		return m, nil
	case <-m.done:
		return nil, fault.New(fault.Internal, "start fake vmm: %s", m.exit.Detail)
	case <-ctx.Done():
		_ = m.process.Signal(syscall.SIGKILL)
		<-m.done
		return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "start fake vmm")
	}
}

func (d *Driver) faults(name string) (Faults, error) {
	text := d.opts.Faults
	if text == "" {
		text = os.Getenv(FaultsEnv)
	}
	return ParseFaults(text, name)
}

// Machine is one child process.
type Machine struct {
	name    string
	spec    hypervisor.Spec
	turn    chan struct{} // full while an order that is answered is under way
	obeyed  chan struct{} // receives when the child has carried an order out
	process *vmmproc.Process
	ready   chan struct{} // closed when the child says that it listens
	told    chan struct{} // closed when the child's words have ended; reason is fixed then
	reason  string
	done    chan struct{}
	exit    hypervisor.Exit // valid after done
	agent   vmmproc.Channel

	mu     sync.Mutex // mu guards the field below
	orders *os.File   // the child reads orders to quit from the other end of this pipe; nil after done
}

var (
	_ hypervisor.Machine     = (*Machine)(nil)
	_ hypervisor.Pauser      = (*Machine)(nil)
	_ hypervisor.DiskResizer = (*Machine)(nil)
	_ hypervisor.Saver       = (*Machine)(nil)
	_ hypervisor.Shaper      = (*Driver)(nil)
)

// spawn starts the child with two pipes: words from it and orders to it.
func (m *Machine) spawn(d *Driver, spec hypervisor.Spec, faults Faults) (err error) {
	path, err := d.binary()
	if err != nil {
		return err
	}
	m.agent.Path = filepath.Join(spec.RunDir, agentSocket)
	sizes, err := diskSizes(spec)
	if err != nil {
		return err
	}
	child := childSpec{Name: spec.Name, Socket: m.agent.Path, Memory: spec.Memory, Disks: sizes, Faults: faults}
	if err := child.restore(spec); err != nil {
		return err
	}
	config, err := json.Marshal(child)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "fake vmm")
	}
	words, childWords, err := os.Pipe()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "fake vmm")
	}
	defer childWords.Close()
	childOrders, orders, err := os.Pipe()
	if err != nil {
		words.Close()
		return fault.Wrap(fault.Internal, err, "fake vmm")
	}
	defer childOrders.Close()
	m.orders = orders
	m.process, err = vmmproc.Start(vmmproc.Config{
		Path: path, Args: append([]string{"-fake-vmm", spec.Name}, spec.Cmdline...),
		// A program built with -race sleeps for a second when it exits, unless it is told not to.
		Env:     append(os.Environ(), "GORACE=atexit_sleep_ms=0", Env+"=1", envSpec+"="+string(config)),
		Files:   []*os.File{childWords, childOrders},
		Console: spec.Console, Log: spec.Log, Unconfined: true,
	})
	if err != nil {
		words.Close()
		orders.Close()
		return fault.Wrap(fault.Unavailable, err, "start fake vmm")
	}
	m.agent.Gone = m.process.Exited()
	go m.listen(words)
	go m.wait()
	return nil
}

func diskSizes(spec hypervisor.Spec) (map[string]uint64, error) {
	sizes := map[string]uint64{}
	for _, disk := range spec.Disks {
		info, err := os.Stat(disk.Path)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "fake vmm: disk %s", disk.Serial)
		}
		sizes[disk.Serial] = uint64(info.Size())
	}
	return sizes, nil
}

// listen takes the child's words: "ready", "done" after each order that is answered, "halt", then the reason of its end.
func (m *Machine) listen(words *os.File) {
	defer close(m.told)
	defer words.Close()
	lines := bufio.NewScanner(words)
	for lines.Scan() {
		switch word := lines.Text(); word {
		case wordReady:
			close(m.ready)
		case wordHalt:
			if m.spec.Halted != nil {
				m.spec.Halted("the host cannot write to the vm's disk: no space left on device")
			}
		case wordDone:
			select {
			case m.obeyed <- struct{}{}:
			case <-m.process.Exited(): // whoever gave the order has given up, or will
			}
		default:
			m.reason = word
		}
	}
}

// wait cleans up after the child.
func (m *Machine) wait() {
	<-m.process.Exited()
	<-m.told
	_ = os.Remove(m.agent.Path) // there only if the child was killed
	m.mu.Lock()
	m.orders.Close()
	m.orders = nil
	m.mu.Unlock()
	m.exit = m.process.Exit()
	m.exit.Reason = m.reason
	close(m.done)
}

// PID returns the process id of the child.
func (m *Machine) PID() int { return m.process.PID() }

// ConnectAgent connects to the child's agent channel, which serves one connection at a time.
func (m *Machine) ConnectAgent(ctx context.Context) (net.Conn, error) {
	conn, err := m.agent.Connect(ctx)
	return conn, fault.Context(err, "vm %s", m.name)
}

// Quit tells the child to end.
func (m *Machine) Quit(context.Context) error {
	return fault.Context(m.order(orderQuit), "quit fake vmm of %s", m.name)
}

// order sends the child an order. It does nothing when the child has ended.
func (m *Machine) order(text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.orders == nil {
		return nil
	}
	// A line always fits into the pipe, so this does not block.
	if _, err := m.orders.WriteString(text + "\n"); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return nil
}

// command sends an order and waits until the child has carried it out.
func (m *Machine) command(ctx context.Context, text string) error {
	late := func() error {
		return fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "fake vmm of %s: %s", m.name, text)
	}
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return late()
	}
	answer := make(chan error, 1)
	go func() { // ends with the child at the latest
		defer func() { <-m.turn }()
		if err := m.order(text); err != nil {
			answer <- fault.Wrap(fault.Internal, err, "fake vmm of %s: %s", m.name, text)
			return
		}
		select {
		case <-m.obeyed:
			answer <- nil
		case <-m.done:
			answer <- fault.New(fault.Conflict, "fake vmm of %s: it has ended", m.name)
		}
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return late()
	}
}

// Pause makes the child's channel stand still.
func (m *Machine) Pause(ctx context.Context) error { return m.command(ctx, orderPause) }

// Resume makes it go on.
func (m *Machine) Resume(ctx context.Context) error { return m.command(ctx, orderResume) }

// ResizeDisk sets the length of the disk's file, as QEMU does, and tells the child.
func (m *Machine) ResizeDisk(ctx context.Context, serial string, bytes uint64) error {
	i, err := m.spec.GrowableDisk(serial, bytes)
	if err != nil {
		return err
	}
	if err := os.Truncate(m.spec.Disks[i].Path, int64(bytes)); err != nil {
		return fault.Wrap(fault.Internal, err, "fake vmm: disk %s", serial)
	}
	return m.command(ctx, fmt.Sprintf("%s %d %s", orderResize, bytes, serial))
}

// Signal sends a signal to the child.
func (m *Machine) Signal(sig int) error {
	return fault.Context(m.process.Signal(syscall.Signal(sig)), "signal fake vmm of %s", m.name)
}

// Done is closed when the child has ended and its socket is gone.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit says how the child ended.
func (m *Machine) Exit() hypervisor.Exit { return m.exit }
