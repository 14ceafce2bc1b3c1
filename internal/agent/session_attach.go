package agent

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// askSession does the methods about sessions that have one answer.
func (s *Server) askSession(req agentwire.Request) (any, error) {
	if _, err := s.settings(); err != nil {
		return nil, err
	}
	switch req.Method {
	case agentwire.MethodSessionStart:
		return asked(req, s.startSession)
	case agentwire.MethodSessionStop:
		return asked(req, s.stopSession)
	case agentwire.MethodSessionWrite:
		return asked(req, func(w agentwire.SessionWrite) (any, error) { return nil, s.writeSession(w) })
	case agentwire.MethodSessionRemove:
		return asked(req, func(r agentwire.SessionRemove) (any, error) { return nil, s.removeSession(r) })
	}
	return s.sessions.list(), nil
}

// asked calls f with the parameters of a request.
func asked[P, R any](req agentwire.Request, f func(P) (R, error)) (any, error) {
	var params P
	if err := json.Unmarshal(req.Params, &params); err != nil {
		return nil, fault.New(fault.Invalid, "malformed %s request", req.Method)
	}
	return f(params)
}

// attachment is a stream that is connected to a session.
type attachment struct {
	session *session
	attach  agentwire.SessionAttach
	out     *frameWriter
	gone    atomic.Bool // the stream has ended
}

// serveAttach does MethodSessionAttach: the answer, then frames in both directions until the session or the stream ends.
func (s *Server) serveAttach(conn Stream, frames *agentwire.Reader, params json.RawMessage) {
	a := &attachment{out: &frameWriter{conn: conn}}
	err := json.Unmarshal(params, &a.attach)
	if err != nil {
		err = fault.New(fault.Invalid, "malformed %s request", agentwire.MethodSessionAttach)
	}
	if err == nil {
		a.session, err = s.sessions.find(a.attach.ID)
	}
	if err != nil {
		_ = agentwire.WriteFault(conn, err)
		return
	}
	a.session.attached.Add(1)
	defer a.session.attached.Add(-1)
	// A failed write shows again at the first read.
	_ = agentwire.WriteResult(conn, s.sessions.show(a.session))
	a.run(s, conn, frames)
}

// run serves the stream to its end.
func (a *attachment) run(s *Server, conn Stream, frames *agentwire.Reader) {
	c := a.session.command
	in := &input{conn: conn, frames: frames, command: c, gone: make(chan struct{})}
	in.queue.init()
	var inputs sync.WaitGroup
	c.goFunc(&inputs, func() {
		defer a.leave()
		in.read()
	})
	c.goFunc(&inputs, func() {
		if a.session.input == nil || !a.attach.Stdin {
			in.queue.copyTo(nil, a.out)
			return
		}
		in.queue.copyTo(feed{a.session.input, a.gone.Load}, a.out) // its end is not the end of the session's input
	})
	if c.tty != nil && a.attach.Rows > 0 && a.attach.Cols > 0 {
		redraw(c, agentwire.Resize{Rows: a.attach.Rows, Cols: a.attach.Cols})
	}
	if over, ok := a.send(); ok {
		a.end(s, over)
	}
	_ = conn.SetDeadline(time.Unix(1, 0)) // wakes in.read
	_ = conn.Close()
	a.leave()
	in.queue.close()
	inputs.Wait()
}

// leave lets go of everything that waits for the session on behalf of the stream.
func (a *attachment) leave() {
	a.gone.Store(true)
	a.session.output.wake()
	if a.session.input != nil {
		a.session.input.wake()
	}
}

// redraw gives the terminal a size, and has a program that uses the whole of it draw everything anew: it is told of a
// size only if that is another one.
func redraw(c *command, size agentwire.Resize) {
	other := size
	if other.Rows++; other.Rows == 0 {
		other.Rows = size.Rows - 1
	}
	_ = resize(c.tty, other)
	_ = resize(c.tty, size)
}

// send sends what the session has written and writes. It ends when there is no more (why says so) or, with ok false, when
// the host is gone.
func (a *attachment) send() (why string, ok bool) {
	o := a.session.output
	from, until := o.past(a.attach.Bytes, a.attach.Lines), o.written()
	stop := func() bool { return a.gone.Load() || a.session.removed.Load() }
	buf := make([]byte, agentwire.HeaderLen+chunk)
	if a.attach.Quiet {
		o.await(stop)
	}
	for !a.attach.Quiet && (a.attach.Follow || from < until) {
		n, t, dropped := o.next(buf[agentwire.HeaderLen:], from, a.attach.Follow, stop)
		if dropped > 0 {
			if agentwire.WriteFrame(a.out, agentwire.FrameDropped, agentwire.DroppedFrame(dropped)) != nil {
				return "", false
			}
		}
		if n == 0 {
			break
		}
		from += dropped + uint64(n)
		agentwire.PutHeader(buf, t, n)
		if _, err := a.out.Write(buf[:agentwire.HeaderLen+n]); err != nil {
			return "", false
		}
	}
	switch {
	case a.gone.Load():
		return "", false
	case a.session.removed.Load():
		return agentwire.OverRemoved, true
	}
	return agentwire.OverRead, true
}

// end sends the last frame: how the session ended, if it did and that was waited for, or else why there is no more.
func (a *attachment) end(s *Server, why string) {
	info := s.sessions.show(a.session)
	if a.attach.Follow && info.Exited != nil {
		_ = agentwire.WriteJSON(a.out, agentwire.FrameExited, info.Exited)
		return
	}
	_ = agentwire.WriteFrame(a.out, agentwire.FrameOver, []byte(why))
}
