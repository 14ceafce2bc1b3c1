package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qmp"
	"banger/internal/hypervisor/vmmproc"
)

const (
	// startTimeout bounds the time until QEMU has taken its arguments and answers. It is 30-60 ms; the bound is for a
	// machine that is busy with ten other starts.
	startTimeout = 30 * time.Second

	// lastWords is how long the end of the control channel, with the reason of the shutdown in it, is waited for after
	// the process has ended. What it said is in the socket's buffer by then.
	lastWords = time.Second
)

// Machine is one QEMU process.
type Machine struct {
	driver  *Driver
	spec    hypervisor.Spec
	process *vmmproc.Process
	ready   chan struct{} // closed when handshake has returned; qmp is fixed then
	qmp     *qmp.Client   // nil if the handshake failed
	done    chan struct{}
	exit    hypervisor.Exit // valid after done
	agent   vmmproc.Channel
	base    *os.File      // what Spec.Restore.Memory was when it was mapped, which may be removed meanwhile; else nil
	stops   chan struct{} // receives when the CPUs have stopped; has room for one

	mu      sync.Mutex // mu guards the fields below
	reason  string     // of the shutdown, as QEMU said
	stopped time.Time  // when the CPUs were stopped last
	resumed time.Time  // when they went on
}

var (
	_ hypervisor.Machine     = (*Machine)(nil)
	_ hypervisor.Pauser      = (*Machine)(nil)
	_ hypervisor.DiskResizer = (*Machine)(nil)
	_ hypervisor.Saver       = (*Machine)(nil)
)

// Start starts QEMU and returns when it runs the guest. See hypervisor.Driver for the contract.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m, err := d.spawn(ctx, spec, spec.Restore != nil)
	if err != nil {
		return nil, err
	}
	if spec.Restore == nil {
		return m, nil
	}
	if err := m.restore(ctx, *spec.Restore); err != nil {
		died := isClosed(m.process.Exited())
		m.destroy()
		return nil, fault.Context(startFault(err, died, m.exit), "restore")
	}
	return m, nil
}

// spawn starts QEMU and returns when it has taken its arguments. With incoming it then waits for a migration, and stands
// still after it.
func (d *Driver) spawn(ctx context.Context, spec hypervisor.Spec, incoming bool) (*Machine, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	host, err := d.Probe(ctx)
	if err != nil {
		return nil, err
	}
	known := machineHost{Accelerator: host.Accelerator, Incoming: incoming}
	if known.Accelerator == TCG {
		known.TSCKHz = d.hostTSC()
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.ClassOf(err), context.Cause(ctx), "start QEMU")
	}
	m := &Machine{driver: d, spec: spec, ready: make(chan struct{}), done: make(chan struct{}), stops: make(chan struct{}, 1)}
	m.removeSockets() // of a run that was cut off
	if spec.Restore != nil {
		if m.base, err = os.Open(spec.Restore.Memory); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "saved memory")
		}
	}
	m.process, err = vmmproc.Start(vmmproc.Config{
		Path: host.Path, Args: args(spec, known), Env: environment(), Console: spec.Console, Log: spec.Log,
	})
	if err != nil {
		m.closeBase()
		return nil, fault.Wrap(fault.Unavailable, err, "start QEMU")
	}
	m.agent.Path, m.agent.Gone = filepath.Join(spec.RunDir, agentSocket), m.process.Exited()
	go m.wait()

	m.qmp, err = m.handshake(ctx)
	died := isClosed(m.process.Exited())
	close(m.ready)
	if err == nil {
		return m, nil
	}
	m.destroy()
	return nil, startFault(err, died || ctx.Err() == nil, m.exit)
}

// destroy ends QEMU the hard way and returns when it is cleaned up after.
func (m *Machine) destroy() {
	_ = m.process.Signal(syscall.SIGKILL)
	<-m.done
}

// handshake connects to QEMU's control socket and waits until it runs the guest. The socket answers early, but a
// command only when every argument was taken and every device made.
func (m *Machine) handshake(ctx context.Context) (*qmp.Client, error) {
	conn, err := vmmproc.Dial(ctx, filepath.Join(m.spec.RunDir, qmpSocket), m.process.Exited())
	if err != nil {
		return nil, err
	}
	client, err := qmp.New(ctx, conn, m.event)
	if err != nil {
		return nil, err
	}
	if err := client.Execute(ctx, "query-status", nil, nil); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// startFault says why a machine did not start. Itself is whether QEMU ended by itself.
func startFault(err error, itself bool, exit hypervisor.Exit) error {
	if !itself {
		return fault.Wrap(fault.ClassOf(err), err, "start QEMU")
	}
	text := exit.Detail
	if text == "" {
		return fault.Wrap(fault.Internal, err, "start QEMU")
	}
	text = strings.TrimPrefix(lastLine(text), "qemu-system-x86_64: ")
	switch {
	case strings.Contains(text, "Cannot allocate memory"):
		return fault.New(fault.Exhausted, "start QEMU: not enough memory on this host: %s", text).
			WithHint("banger vm run --memory 512M")
	case strings.Contains(text, "Permission denied"):
		return fault.New(fault.Denied, "start QEMU: %s", text)
	case strings.Contains(text, `Failed to get "write" lock`):
		return fault.New(fault.Conflict, "start QEMU: a disk is in use by another process: %s", text)
	}
	return fault.New(fault.Internal, "start QEMU: %s", text)
}

// wait cleans up after the process and publishes how it ended.
func (m *Machine) wait() {
	<-m.process.Exited()
	<-m.ready
	if m.qmp != nil {
		select {
		case <-m.qmp.Done():
		case <-time.After(lastWords):
		}
		m.qmp.Close()
	}
	m.agent.Close()
	m.closeBase()
	m.removeSockets()
	m.mu.Lock()
	reason := m.reason
	m.mu.Unlock()
	m.exit = m.process.Exit()
	m.exit.Reason = reason
	close(m.done)
}

// event keeps the reason of a shutdown, and tells of a pause that nobody asked for. QEMU's way with a write for which
// the host has no space is to stop the machine, so that the write can be tried again.
func (m *Machine) event(e qmp.Event) {
	var data struct {
		Reason string `json:"reason"`
		Action string `json:"action"`
	}
	if e.Data != nil && json.Unmarshal(e.Data, &data) != nil || len(data.Reason) > 64 {
		return
	}
	switch {
	case e.Name == "STOP":
		m.mu.Lock()
		defer m.mu.Unlock()
		m.stopped = time.Now()
		select {
		case m.stops <- struct{}{}:
		default:
		}
	case e.Name == "RESUME":
		m.mu.Lock()
		defer m.mu.Unlock()
		m.resumed = time.Now()
	case e.Name == "SHUTDOWN":
		m.mu.Lock()
		defer m.mu.Unlock()
		m.reason = data.Reason
	case e.Name == "BLOCK_IO_ERROR" && data.Action == "stop" && m.spec.Halted != nil:
		m.spec.Halted("the host cannot write to the vm's disk: " + strings.ToLower(data.Reason))
	}
}

func (m *Machine) closeBase() {
	if m.base != nil {
		_ = m.base.Close()
	}
}

func (m *Machine) removeSockets() {
	for _, name := range []string{qmpSocket, agentSocket, stateSocket, devicesFile} {
		_ = os.Remove(filepath.Join(m.spec.RunDir, name)) // mostly not there: QEMU removes them when it ends well
	}
}

// PID returns the process id of QEMU.
func (m *Machine) PID() int { return m.process.PID() }

// ConnectAgent connects to the agent's virtio-serial port. QEMU serves one connection at a time, so a second one is
// refused until the first is closed.
func (m *Machine) ConnectAgent(ctx context.Context) (net.Conn, error) {
	conn, err := m.agent.Connect(ctx)
	return conn, fault.Context(err, "vm %s", m.spec.Name)
}

// Quit tells QEMU to end.
func (m *Machine) Quit(ctx context.Context) error {
	if isClosed(m.process.Exited()) {
		return nil
	}
	err := m.qmp.Execute(ctx, "quit", nil, nil)
	if err == nil || errors.Is(err, qmp.ErrClosed) { // it may end before it answers
		return nil
	}
	return fault.Context(err, "quit QEMU of %s", m.spec.Name)
}

// Signal sends a signal to QEMU.
func (m *Machine) Signal(sig int) error {
	return fault.Context(m.process.Signal(syscall.Signal(sig)), "signal QEMU of %s", m.spec.Name)
}

// Done is closed when QEMU has ended and its sockets are gone.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit says how QEMU ended.
func (m *Machine) Exit() hypervisor.Exit { return m.exit }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
