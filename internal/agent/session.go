package agent

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// maxGrace bounds what a client can ask for: a stop that nobody waits for any more comes to an end.
const maxGrace = time.Hour

// session is a command that belongs to no stream. It lives until its command ends or the Server closes; what it wrote and
// how it ended is kept for a while.
type session struct {
	command *command       // of a session that was started; fixed then
	output  *sessionOutput // synchronised by itself, as is input
	input   *sessionInput  // nil for none
	done    chan struct{}  // closed when it has ended

	attached atomic.Int32
	removed  atomic.Bool

	// info is guarded by the table's mu.
	info agentwire.Session
}

// label is how messages call a session.
func (ss *session) label() string { return cmp.Or(ss.info.Name, ss.info.ID) } // neither changes

// sessionTable holds a guest's sessions.
type sessionTable struct {
	mu   sync.Mutex // guards the fields below and the info of each session
	last int        // the number of the newest
	all  []*session // the oldest first; one that is being started has no pid
}

// reserve makes room for a session that is to be started.
func (t *sessionTable) reserve(start agentwire.SessionStart) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	running := 0
	for _, ss := range t.all {
		if ss.info.EndedUnix != 0 {
			continue
		}
		if running++; start.Name != "" && ss.info.Name == start.Name {
			return nil, fault.New(fault.Exists, "a session called %s runs already", start.Name)
		}
	}
	switch {
	case running >= agentwire.MaxSessions:
		return nil, fault.New(fault.Exhausted, "%d sessions run already, which is as many as there can be", running)
	case len(start.Name) > agentwire.MaxSessionName:
		return nil, fault.New(fault.Invalid, "the name of the session is longer than %d bytes", agentwire.MaxSessionName)
	}
	t.last++
	ss := &session{output: newSessionOutput(), done: make(chan struct{})}
	ss.info = agentwire.Session{
		ID: strconv.Itoa(t.last), Name: start.Name, Argv: shortened(start.Argv), TTY: start.TTY, Stdin: start.TTY || start.Stdin,
	}
	t.all = append(t.all, ss)
	return ss, nil
}

// shortened is argv as a list shows it.
func shortened(argv []string) []string {
	left := agentwire.MaxSessionText
	var out []string
	for _, arg := range argv {
		if len(arg)+1 > left {
			return append(out, arg[:max(left-1, 0)]+"...")
		}
		out = append(out, arg)
		left -= len(arg) + 1
	}
	return out
}

// forget takes sessions out of the table.
func (t *sessionTable) forget(drop func(*session) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(drop)
}

func (t *sessionTable) forgetLocked(drop func(*session) bool) {
	t.all = slices.DeleteFunc(t.all, func(ss *session) bool {
		if !drop(ss) {
			return false
		}
		ss.removed.Store(true)
		ss.output.wake()
		return true
	})
}

// end notes how a session ended, and forgets the oldest of those that have.
func (t *sessionTable) end(ss *session, exited agentwire.ExecExited) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ss.info.Exited, ss.info.EndedUnix = &exited, max(time.Now().UnixMilli(), 1)
	finished := 0
	for _, one := range t.all {
		if one.info.EndedUnix != 0 {
			finished++
		}
	}
	for ; finished > agentwire.MaxFinished; finished-- {
		var oldest *session // never the one that has just ended: the clock may have been set back
		for _, one := range t.all {
			if one != ss && one.info.EndedUnix != 0 && (oldest == nil || one.info.EndedUnix < oldest.info.EndedUnix) {
				oldest = one
			}
		}
		t.forgetLocked(func(one *session) bool { return one == oldest })
	}
}

// find returns a session that was started.
func (t *sessionTable) find(id string) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ss := range t.all {
		if ss.info.ID == id && ss.info.PID != 0 {
			return ss, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no session %s", id)
}

// show is a session as the host sees it.
func (t *sessionTable) show(ss *session) agentwire.Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return ss.showLocked()
}

func (ss *session) showLocked() agentwire.Session {
	info := ss.info
	info.Attached, info.Output = int(ss.attached.Load()), ss.output.written()
	return info
}

func (t *sessionTable) list() agentwire.Sessions {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := agentwire.Sessions{Sessions: []agentwire.Session{}}
	for _, ss := range t.all {
		if ss.info.PID != 0 {
			out.Sessions = append(out.Sessions, ss.showLocked())
		}
	}
	return out
}

// running counts the sessions that have not ended.
func (t *sessionTable) running() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ss := range t.all {
		if ss.info.PID != 0 && ss.info.EndedUnix == 0 {
			n++
		}
	}
	return n
}

// startSession does MethodSessionStart.
func (s *Server) startSession(start agentwire.SessionStart) (agentwire.Session, error) {
	config, err := s.settings()
	if err != nil {
		return agentwire.Session{}, err
	}
	if start.Tool != "" {
		return agentwire.Session{}, fault.New(fault.Invalid, "tool %s cannot be a session", start.Tool)
	}
	ss, err := s.sessions.reserve(start)
	if err != nil {
		return agentwire.Session{}, err
	}
	itself := func(one *session) bool { return one == ss }
	c, err := s.startCommand(config, start.ExecStart)
	if err != nil {
		s.sessions.forget(itself)
		return agentwire.Session{}, err
	}
	ss.command = c
	if c.stdin != nil {
		ss.input = newSessionInput()
	}
	s.sessions.mu.Lock()
	ss.info.PID, ss.info.StartedUnix = c.pid, time.Now().UnixMilli()
	ss.info.User, ss.info.Workdir = cmp.Or(start.User, config.User), start.Workdir[:min(len(start.Workdir), agentwire.MaxSessionText)]
	s.sessions.mu.Unlock()
	if !s.spawn(func() { s.runSession(ss) }) {
		_ = s.reaper.signal(c.pid, syscall.SIGKILL)
		c.closeFiles()
		s.sessions.forget(itself)
		return agentwire.Session{}, fault.New(fault.Unavailable, "the agent is closed")
	}
	return s.sessions.show(ss), nil
}

// runSession is the life of a session from its start to its end.
func (s *Server) runSession(ss *session) {
	c := ss.command
	var inputs, outputs sync.WaitGroup
	if ss.input != nil {
		c.goFunc(&inputs, func() { ss.input.run(c) })
	}
	for _, p := range c.pumps {
		c.goFunc(&outputs, func() { p.run(ss.output) })
	}
	status, known := c.wait(nil)
	if ss.input != nil {
		ss.input.close()
	}
	c.stopStdin()
	for _, p := range c.pumps {
		p.drain()
	}
	outputs.Wait()
	inputs.Wait()
	exited := agentwire.ExecExited{Code: 128 + int(syscall.SIGKILL), Signal: unix.SignalName(syscall.SIGKILL)}
	if known {
		exited = exitOf(status)
	}
	s.sessions.end(ss, exited)
	ss.output.finish()
	close(ss.done)
	c.leaveFiles()
	s.ended()
}

// stopSession does MethodSessionStop.
func (s *Server) stopSession(req agentwire.SessionStop) (agentwire.Session, error) {
	ss, err := s.sessions.find(req.ID)
	if err != nil {
		return agentwire.Session{}, err
	}
	c := ss.command
	switch {
	case req.Signal != "":
		sig, err := agentwire.ParseSignal(req.Signal)
		if err != nil {
			return agentwire.Session{}, err
		}
		c.signal(sig)
	default:
		sig := syscall.SIGTERM
		if c.tty != nil {
			sig = syscall.SIGHUP // an interactive shell heeds no other
		}
		_ = s.reaper.signal(c.pid, sig)
		_ = s.reaper.signal(c.pid, syscall.SIGCONT) // one that is stopped heeds nothing before it is continued
	}
	grace := min(max(time.Duration(req.GraceMillis)*time.Millisecond, 0), maxGrace)
	for _, patience := range []time.Duration{grace, killGrace} {
		select {
		case <-ss.done:
			return s.sessions.show(ss), nil
		case <-s.ctx.Done():
			return agentwire.Session{}, fault.New(fault.Unavailable, "the agent is closed")
		case <-time.After(patience):
			_ = s.reaper.signal(c.pid, syscall.SIGKILL)
		}
	}
	return agentwire.Session{}, fault.New(fault.Timeout, "session %s was killed and does not end", ss.label())
}

// removeSession does MethodSessionRemove.
func (s *Server) removeSession(req agentwire.SessionRemove) error {
	ss, err := s.sessions.find(req.ID)
	if err != nil {
		return err
	}
	if s.sessions.show(ss).EndedUnix == 0 {
		if !req.Force {
			return fault.New(fault.Conflict, "session %s still runs", ss.label())
		}
		if _, err := s.stopSession(agentwire.SessionStop{ID: req.ID, Signal: "KILL"}); err != nil {
			return err
		}
	}
	s.sessions.forget(func(one *session) bool { return one == ss })
	return nil
}
