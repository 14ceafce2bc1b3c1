// Package agent is the guest's end of banger: it answers the host's calls and runs its commands.
//
// It is what cmd/banger-agent runs as PID 1 of a guest, but only what belongs to being PID 1 needs one: mounts, disks,
// network and going down are behind System (package agent/machine is the real one). With another System the same
// Server runs in an ordinary process, where it starts commands on the host; that is how the fake VMM and the tests use
// it.
//
// One stream serves one request. A command lives as long as its stream: when the host goes away it is hung up on. A
// session (session.go) is a command that does not: streams are attached to it, as many as wanted, and none of them holds
// it up, whatever becomes of them.
package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agent/tool"
	"banger/internal/agentwire"
	"banger/internal/fault"
)

// System is the machine that the agent runs on.
type System interface {
	// Configure gives the machine its identity and its disks. It is called at most once.
	Configure(ctx context.Context, config agentwire.Config) (agentwire.Configured, error)
	// Shutdown ends every process and then the machine. It is called at most once by a Server, after the answer was
	// sent, on the goroutine of the request.
	Shutdown(s agentwire.Shutdown)

	// The others are called only after Configure has succeeded, from any number of goroutines.

	// Stats says what the machine uses.
	Stats() (agentwire.Stats, error)
	// Ports says what listens.
	Ports() (agentwire.Ports, error)
	// Grow makes the file system of the data disk as large as the disk, once that has the size of g.
	Grow(ctx context.Context, g agentwire.Grow) (agentwire.Grown, error)
	// SetClock sets the clock.
	SetClock(c agentwire.Clock) error
	// Sync returns when everything that was written to files by then is on the data disk.
	Sync() error
	// Wake takes note of a restore: see agentwire.Wake.
	Wake(ctx context.Context, w agentwire.Wake) error
}

// Toolbox is a System that has the agent's own programs: see agentwire.ExecStart.Tool.
type Toolbox interface {
	// Tool makes everything ready for the program of that name and says how it is started.
	Tool(name string) (tool.Program, error)
}

// Rehearser is a System that can make ready for being saved: what a first command needs of the disks is in memory then,
// and nothing waits to be written to them.
type Rehearser interface {
	Rehearse(ctx context.Context) error
}

// Stream is one stream to the host: a yamux stream, a net.Conn or a pollable file. SetDeadline with a time in the past
// must wake whoever reads or writes.
type Stream interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// Config of a Server.
type Config struct {
	System System
	Build  string // said in Hello
	// Init says that this process is PID 1: it reaps every orphan. Otherwise only the Server's own children.
	Init bool
	// Configured, if it is not nil, is a configuration that this machine has had before: the Server begins with it. Only a
	// machine that is not one, whose state is not kept by its VMM, needs this.
	Configured *agentwire.Config
	// Ended is called after each command, on a goroutine of that command, and returns at once. It may be nil.
	Ended func()
	// Log receives one line per event worth telling. It may be nil.
	Log func(line string)
}

// Server answers a host. Make one per process with NewServer.
type Server struct {
	system System
	build  string
	ended  func()
	log    func(string)
	reaper *reaper
	ctx    context.Context // ends the commands
	cancel context.CancelFunc
	wg     sync.WaitGroup // streams, leftovers, the reaper

	accounts accounts
	sessions sessionTable

	mu     sync.Mutex // guards the fields below
	state  state
	config agentwire.Config
	down   bool // Shutdown was asked for
	closed bool
}

// state is how far Configure has come.
type state int

const (
	waiting state = iota
	configuring
	configured
	broken
)

// NewServer returns a Server that waits for Configure.
func NewServer(c Config) *Server {
	s := &Server{system: c.System, build: c.Build, ended: c.Ended, log: c.Log, reaper: newReaper()}
	if s.log == nil {
		s.log = func(string) {}
	}
	if s.ended == nil {
		s.ended = func() {}
	}
	if c.Configured != nil {
		s.state, s.config = configured, *c.Configured
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if c.Init {
		s.reaper.init = true
		_ = s.spawn(func() { s.reaper.run(s.ctx) })
	}
	return s
}

// Close ends every command and waits for them; it takes seconds when they do not want to end. It does not shut the
// System down.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Serve serves one session on a byte channel: it waits for a host, speaks with it, and returns when the session ended,
// with the reason. The commands of the session are hung up on meanwhile. It closes conn.
func (s *Server) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	session, err := agentwire.Accept(conn)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return err
		}
		if !s.spawn(func() { s.ServeStream(stream) }) {
			_ = stream.Close()
			return fault.New(fault.Unavailable, "the agent is closed")
		}
	}
}

// spawn runs f on a goroutine that Close waits for. A panic in it is logged and ends nothing else: the end of PID 1 is
// the end of the guest.
func (s *Server) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(func() {
		defer s.recovered()
		f()
	})
	return true
}

// recovered must be deferred.
func (s *Server) recovered() {
	if v := recover(); v != nil {
		s.log(fmt.Sprintf("panic: %v\n%s", v, debug.Stack()))
	}
}

// ServeStream serves the one request of a stream and closes it.
func (s *Server) ServeStream(conn Stream) {
	defer func() { _ = conn.Close() }()
	defer s.recovered()
	frames := agentwire.NewReader(conn)
	t, payload, err := frames.Next()
	if err != nil || t != agentwire.FrameRequest {
		return
	}
	var req agentwire.Request
	if err := json.Unmarshal(payload, &req); err != nil {
		_ = agentwire.WriteFault(conn, fault.New(fault.Invalid, "malformed request"))
		return
	}
	switch req.Method {
	case agentwire.MethodHello:
		_ = agentwire.WriteResult(conn, s.hello())
	case agentwire.MethodConfigure:
		s.serveConfigure(conn, req.Params)
	case agentwire.MethodExec:
		s.serveExec(conn, frames, req.Params)
	case agentwire.MethodSessionAttach:
		s.serveAttach(conn, frames, req.Params)
	case agentwire.MethodShutdown:
		s.serveShutdown(conn, req.Params)
	case agentwire.MethodStats, agentwire.MethodPorts, agentwire.MethodGrow, agentwire.MethodClock,
		agentwire.MethodWake, agentwire.MethodSync, agentwire.MethodRehearse:
		writeAnswer(conn, req, s.ask)
	case agentwire.MethodSessionStart, agentwire.MethodSessionList, agentwire.MethodSessionWrite,
		agentwire.MethodSessionStop, agentwire.MethodSessionRemove:
		writeAnswer(conn, req, s.askSession)
	default:
		_ = agentwire.WriteFault(conn, fault.New(fault.Invalid, "unknown method %q", req.Method))
	}
}

// writeAnswer asks and answers.
func writeAnswer(conn Stream, req agentwire.Request, ask func(agentwire.Request) (any, error)) {
	result, err := ask(req)
	if err != nil {
		_ = agentwire.WriteFault(conn, err)
		return
	}
	_ = agentwire.WriteResult(conn, result)
}

// ask passes a request on to the system, if the guest is configured.
func (s *Server) ask(req agentwire.Request) (any, error) {
	if _, err := s.settings(); err != nil {
		return nil, err
	}
	switch req.Method {
	case agentwire.MethodStats:
		stats, err := s.system.Stats()
		stats.Sessions = s.sessions.running()
		return stats, err
	case agentwire.MethodPorts:
		return s.system.Ports()
	case agentwire.MethodGrow:
		var grow agentwire.Grow
		if err := json.Unmarshal(req.Params, &grow); err != nil {
			return nil, fault.New(fault.Invalid, "malformed growth request")
		}
		return s.system.Grow(s.ctx, grow)
	case agentwire.MethodWake:
		var wake agentwire.Wake
		if err := json.Unmarshal(req.Params, &wake); err != nil || wake.UnixNano <= 0 {
			return nil, fault.New(fault.Invalid, "malformed wake request")
		}
		return nil, s.wake(wake)
	case agentwire.MethodSync:
		return nil, s.system.Sync()
	case agentwire.MethodRehearse:
		if r, ok := s.system.(Rehearser); ok {
			return nil, r.Rehearse(s.ctx)
		}
		return nil, nil
	}
	var clock agentwire.Clock
	if err := json.Unmarshal(req.Params, &clock); err != nil || clock.UnixNano <= 0 {
		return nil, fault.New(fault.Invalid, "malformed clock request")
	}
	return nil, s.system.SetClock(clock)
}

// wake passes a wake on and keeps what it says about commands.
func (s *Server) wake(w agentwire.Wake) error {
	if w.Settings != nil {
		if err := checkEnv(w.Settings.Env); err != nil {
			return err
		}
	}
	if err := s.system.Wake(s.ctx, w); err != nil || w.Settings == nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Env, s.config.User, s.config.Workdir = w.Settings.Env, w.Settings.User, w.Settings.Workdir
	return nil
}

// checkEnv refuses what is no environment.
func checkEnv(env []string) error {
	for _, kv := range env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" {
			return fault.New(fault.Invalid, "environment %q is not of the form KEY=VALUE", kv)
		}
	}
	return nil
}

// hello says who the agent is.
func (s *Server) hello() agentwire.Hello {
	hello := agentwire.Hello{Generation: agentwire.Generation, Build: s.build}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		hello.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hello.Configured = s.state == configured
	return hello
}

// serveConfigure does Configure, once.
func (s *Server) serveConfigure(conn Stream, params json.RawMessage) {
	var config agentwire.Config
	if err := json.Unmarshal(params, &config); err != nil {
		_ = agentwire.WriteFault(conn, fault.New(fault.Invalid, "malformed configuration"))
		return
	}
	if err := s.enterConfigure(); err != nil {
		_ = agentwire.WriteFault(conn, err)
		return
	}
	reached := broken // also if Configure panics
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state, s.config = reached, config
	}()
	result, err := s.system.Configure(s.ctx, config)
	if err != nil {
		s.log("configure: " + err.Error())
		_ = agentwire.WriteFault(conn, err)
		return
	}
	// Commands may come as soon as the answer is out.
	s.mu.Lock()
	reached = configured
	s.state, s.config = reached, config
	s.mu.Unlock()
	_ = agentwire.WriteResult(conn, result)
}

// enterConfigure lets the first caller in.
func (s *Server) enterConfigure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case waiting:
		s.state = configuring
		return nil
	case configuring:
		return fault.New(fault.Conflict, "the guest is being configured already")
	case configured:
		return fault.New(fault.Conflict, "the guest is configured already")
	}
	return fault.New(fault.Conflict, "configuring the guest failed before; it has to be started anew")
}

// settings returns what Configure said about commands.
func (s *Server) settings() (agentwire.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.down:
		return agentwire.Config{}, fault.New(fault.Conflict, "the guest is shutting down")
	case s.state != configured:
		return agentwire.Config{}, fault.New(fault.Conflict, "the guest is not configured yet")
	}
	c := s.config
	c.Env = slices.Clone(c.Env)
	return c, nil
}

// serveShutdown answers and then takes the machine down.
func (s *Server) serveShutdown(conn Stream, params json.RawMessage) {
	var req agentwire.Shutdown
	if len(params) > 0 {
		if err := json.Unmarshal(params, &req); err != nil {
			_ = agentwire.WriteFault(conn, fault.New(fault.Invalid, "malformed shutdown request"))
			return
		}
	}
	s.mu.Lock()
	again := s.down
	s.down = true
	s.mu.Unlock()
	_ = agentwire.WriteResult(conn, nil)
	_ = conn.Close() // so that the host has its answer whatever comes now
	if !again {
		s.system.Shutdown(req)
	}
}
