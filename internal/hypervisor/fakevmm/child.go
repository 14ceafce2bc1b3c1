package fakevmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/agent"
	"banger/internal/agent/procfs"
	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// The child's descriptors beyond the usual three, and what it says on the first.
const (
	fdWords   = 3
	fdOrders  = 4
	wordReady = "ready"
	wordDone  = "done" // the last order but quit was carried out
	wordHalt  = "halt" // paused without an order
)

// What it is told on the other, a line each.
const (
	orderQuit   = "quit"
	orderPause  = "pause"
	orderResume = "resume"
	orderResize = "resize" // BYTES SERIAL
	orderSave   = "save"   // PATH
)

// closeTimeout bounds how long the agent's commands are waited for when the machine ends.
const closeTimeout = 2 * time.Second

// Main runs a fake VMM and exits, if this process was started as one. Otherwise it returns at once.
func Main() {
	if os.Getenv(Env) == "" {
		return
	}
	os.Exit(run())
}

func run() int {
	var spec childSpec
	if err := json.Unmarshal([]byte(os.Getenv(envSpec)), &spec); err != nil {
		fmt.Fprintln(os.Stderr, "fake vmm: specification:", err)
		return 2
	}
	for _, name := range []string{Env, envSpec} { // not for the commands of the "guest"
		os.Unsetenv(name)
	}
	syscall.CloseOnExec(fdWords)
	syscall.CloseOnExec(fdOrders)
	if spec.Faults.DieAtStart {
		fmt.Fprintln(os.Stderr, "fake vmm: death at the start was asked for")
		return 1
	}
	c := &child{spec: spec, words: os.NewFile(fdWords, "words"), ended: make(chan string, 1), gate: newGate()}
	return c.run()
}

// child is the machine seen from inside.
type child struct {
	spec  childSpec
	words *os.File
	ended chan string // the reason of the end; the first one counts
	gate  *gate       // shut while the machine is paused

	mu         sync.Mutex // mu guards the fields below; Disks of spec too
	configured agentwire.Config
}

var _ agent.System = (*child)(nil)

// Configure takes the identity and does nothing with it: this is not a machine.
func (c *child) Configure(_ context.Context, config agentwire.Config) (agentwire.Configured, error) {
	c.mu.Lock()
	c.configured = config
	c.mu.Unlock()
	fmt.Printf("fake vmm: configured as %s\n", config.Hostname)
	return agentwire.Configured{Millis: map[string]int64{"fake": 0}}, nil
}

// Stats says little, and always the same: this machine has no traffic of its own.
func (c *child) Stats() (agentwire.Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	data := c.spec.Disks[c.configured.Disks.Data]
	return agentwire.Stats{
		MemoryTotal: c.spec.Memory, MemoryAvailable: c.spec.Memory / 4 * 3, Processes: 1, DataTotal: data, DataUsed: data / 10,
	}, nil
}

// Ports lists what the commands of this machine listen on: of the host's, the ports of processes that descend from this.
func (c *child) Ports() (agentwire.Ports, error) {
	all, err := procfs.Root("/proc").Ports()
	all.Ports = slices.DeleteFunc(all.Ports, func(p agentwire.Port) bool { return !descends(p.PID, os.Getpid()) })
	return all, err
}

// descends reports whether a process was started by ancestor or by one that was.
func descends(pid, ancestor int) bool {
	for pid > 1 && pid != ancestor {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent
		if len(fields) < 2 {
			return false
		}
		pid, _ = strconv.Atoi(fields[1])
	}
	return pid == ancestor
}

// Grow believes that the file system is as large as the disk.
func (c *child) Grow(_ context.Context, g agentwire.Grow) (agentwire.Grown, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := c.spec.Disks[c.configured.Disks.Data]
	if size < g.Bytes {
		return agentwire.Grown{}, fault.New(fault.Timeout, "the disk has %d bytes and not the expected %d", size, g.Bytes)
	}
	return agentwire.Grown{Device: size, FileSystem: size}, nil
}

// SetClock leaves the host's clock alone.
func (c *child) SetClock(clock agentwire.Clock) error {
	fmt.Printf("fake vmm: clock set to %s\n", time.Unix(0, clock.UnixNano).UTC().Format(time.RFC3339))
	return nil
}

// Sync has nothing to write out.
func (c *child) Sync() error {
	fmt.Println("fake vmm: synced")
	return nil
}

// Wake takes the identity and does nothing with it.
func (c *child) Wake(_ context.Context, w agentwire.Wake) error {
	if w.Identity != nil {
		c.mu.Lock()
		c.configured.Hostname = w.Identity.Hostname
		c.mu.Unlock()
		fmt.Printf("fake vmm: woken as %s\n", w.Identity.Hostname)
	}
	return nil
}

// Shutdown ends the machine as a guest that powers off.
func (c *child) Shutdown(agentwire.Shutdown) {
	if !c.spec.Faults.IgnoreShutdown {
		c.end(hypervisor.ReasonGuestShutdown)
	}
}

func (c *child) end(reason string) {
	select {
	case c.ended <- reason:
	default:
	}
}

// run is the life of the machine.
func (c *child) run() int {
	listener, err := net.Listen("unix", c.spec.Socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake vmm:", err)
		return 1
	}
	if c.spec.Configured != nil {
		c.configured = *c.spec.Configured
	}
	server := agent.NewServer(agent.Config{
		System: c, Build: "fake", Configured: c.spec.Configured, Log: func(line string) { fmt.Println(line) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.serve(ctx, listener, server) })
	go c.obey(os.NewFile(fdOrders, "orders")) // ends with the process
	c.watchSignals()
	c.arm()
	fmt.Printf("fake vmm: machine %s is up\n", c.spec.Name)
	fmt.Fprintln(c.words, wordReady)

	reason := <-c.ended
	c.gate.set(false)
	cancel()
	listener.Close() // removes the socket
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		server.Close()
		wg.Wait()
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
	fmt.Println("fake vmm: down,", reason)
	fmt.Fprintln(c.words, reason)
	return 0
}

// serve serves one connection after the other, as a virtio-serial port does.
func (c *child) serve(ctx context.Context, listener net.Listener, server *agent.Server) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		if c.spec.Faults.NeverReady {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			_, _ = io.Copy(io.Discard, conn)
			stop()
			conn.Close()
			continue
		}
		if err := server.Serve(ctx, gated{conn, c.gate}); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
			fmt.Println("fake vmm: session:", err)
		}
	}
}

// obey carries orders out. The end of the orders means that the driver's process is gone.
func (c *child) obey(orders *os.File) {
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		order, rest, _ := strings.Cut(lines.Text(), " ")
		switch order {
		case orderQuit:
			if !c.spec.Faults.IgnoreQuit {
				c.end(hypervisor.ReasonQuit)
			}
			continue
		case orderPause, orderResume:
			c.gate.set(order == orderPause)
		case orderResize:
			size, serial, _ := strings.Cut(rest, " ")
			c.mu.Lock()
			c.spec.Disks[serial], _ = strconv.ParseUint(size, 10, 64)
			c.mu.Unlock()
		case orderSave:
			if err := c.save(rest); err != nil {
				fmt.Println("fake vmm: save:", err)
			}
		}
		fmt.Fprintln(c.words, wordDone)
	}
	c.end(hypervisor.ReasonQuit)
}

// savedState is all that there is to save of a machine that is none.
type savedState struct {
	Shape      string            // of the machine that was saved
	Configured *agentwire.Config // nil: it waited
}

// save writes the state to a new file.
func (c *child) save(path string) error {
	c.mu.Lock()
	state := savedState{Shape: c.spec.Shape}
	if c.configured.Hostname != "" {
		config := c.configured
		state.Configured = &config
	}
	c.mu.Unlock()
	return atomicfile.WriteJSON(path, state)
}

// watchSignals ends the machine on SIGTERM. The other two are taken and not ignored: the commands that the agent starts
// would inherit that.
func (c *child) watchSignals() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() { // ends with the process
		for sig := range signals {
			if sig == syscall.SIGTERM && !c.spec.Faults.IgnoreTerm {
				c.end(hypervisor.ReasonSignal)
			}
		}
	}()
}

// arm sets the timers of the faults that come later.
func (c *child) arm() {
	if d := c.spec.Faults.DieAfter; d > 0 {
		time.AfterFunc(d, func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	}
	if d := c.spec.Faults.PanicAfter; d > 0 {
		time.AfterFunc(d, func() { c.end(hypervisor.ReasonGuestReset) })
	}
	if d := c.spec.Faults.HaltAfter; d > 0 {
		time.AfterFunc(d, func() { c.gate.set(true); fmt.Fprintln(c.words, wordHalt) })
	}
}
