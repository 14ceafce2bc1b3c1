package agent

import (
	"errors"
	"slices"
	"sync"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

const (
	// inputRoom is how much a session holds that its command has not read.
	inputRoom = 2 * agentwire.MaxSessionWrite
	// inputPatience is how long a SessionWrite waits for room.
	inputPatience = 5 * time.Second
)

// Why input was not taken.
var (
	errInputClosed = errors.New("nobody reads the input any more")
	errInputFull   = errors.New("the input is full")
)

// sessionInput is what a session's clients have sent and its command has not read. One goroutine, in run, writes it to
// the command, so that a client that goes away while the command does not read leaves nobody behind.
type sessionInput struct {
	mu     sync.Mutex // guards the fields below
	moved  *sync.Cond
	buf    []byte
	eof    bool // nothing comes after buf
	closed bool // nobody reads any more
}

func newSessionInput() *sessionInput {
	in := new(sessionInput)
	in.moved = sync.NewCond(&in.mu)
	return in
}

// put adds all of p or nothing; eof says that nothing comes after it. It waits for room until stop says that it is of no
// use, which who changes that tells by wake.
func (in *sessionInput) put(p []byte, eof bool, stop func() bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.closed && !in.eof && len(in.buf)+len(p) > inputRoom && !stop() {
		in.moved.Wait()
	}
	switch {
	case in.closed || in.eof:
		return errInputClosed
	case len(in.buf)+len(p) > inputRoom:
		return errInputFull
	}
	in.buf, in.eof = append(in.buf, p...), eof
	in.moved.Broadcast()
	return nil
}

// take waits for input and takes all of it. Without any it is the end: nobody sends or nobody reads any more.
func (in *sessionInput) take(back []byte) []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.buf) == 0 && !in.eof && !in.closed {
		in.moved.Wait()
	}
	if in.closed {
		return nil
	}
	data := in.buf
	in.buf = back[:0]
	in.moved.Broadcast()
	return data
}

func (in *sessionInput) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed, in.buf = true, nil
	in.moved.Broadcast()
}

func (in *sessionInput) wake() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.moved.Broadcast()
}

// run writes the input to the command until there is no more.
func (in *sessionInput) run(c *command) {
	defer in.close()
	var data []byte
	for {
		if data = in.take(data); len(data) == 0 {
			c.endStdin()
			return
		}
		if _, err := c.stdin.Write(data); err != nil {
			return
		}
	}
}

// feed is how one attached stream puts its input in.
type feed struct {
	in   *sessionInput
	stop func() bool
}

// Write implements io.Writer.
func (f feed) Write(p []byte) (int, error) {
	if err := f.in.put(p, false, f.stop); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keys is what a request means as input, and whether it is the last. A terminal has no end, only a key for it.
func keys(req agentwire.SessionWrite, tty bool) (data []byte, eof bool) {
	data = slices.Clone(req.Data)
	switch {
	case req.Enter && tty:
		data = append(data, '\r')
	case req.Enter:
		data = append(data, '\n')
	}
	if req.EOF && tty {
		return append(data, endOfText), false
	}
	return data, req.EOF
}

// writeSession does MethodSessionWrite.
func (s *Server) writeSession(req agentwire.SessionWrite) error {
	ss, err := s.sessions.find(req.ID)
	if err != nil {
		return err
	}
	switch {
	case len(req.Data) > agentwire.MaxSessionWrite:
		return fault.New(fault.Invalid, "more than %d bytes of input at once", agentwire.MaxSessionWrite)
	case ss.input == nil:
		return fault.New(fault.Conflict, "session %s has no input: it was started without one", ss.label())
	}
	data, eof := keys(req, ss.command.tty != nil)
	deadline := time.Now().Add(inputPatience)
	defer time.AfterFunc(inputPatience, ss.input.wake).Stop()
	err = ss.input.put(data, eof, func() bool { return !time.Now().Before(deadline) })
	switch {
	case errors.Is(err, errInputFull):
		return fault.New(fault.Timeout, "the command of session %s does not read its input", ss.label())
	case err != nil:
		return fault.New(fault.Conflict, "the command of session %s reads no more input", ss.label())
	}
	return nil
}
