package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/agentwire"
)

const (
	// chunk is how much output makes one frame at most: with the headers of frame and stream a whole buffer of the
	// guest's virtio-serial driver.
	chunk = 32<<10 - 32

	// After a command has ended, what it wrote is still read. A background process that holds its pipe may not delay
	// the end for longer than that: drainIdle without output, drainTime of waiting in all, or drainBytes, which is
	// more than any pipe holds.
	drainIdle  = 200 * time.Millisecond
	drainTime  = 2 * time.Second
	drainLook  = 10 * time.Millisecond
	drainBytes = 2 << 20

	endOfText = 4 // ^D: how a terminal is told the end of input
)

// frameWriter lets several goroutines write whole frames.
type frameWriter struct {
	mu   sync.Mutex
	conn Stream
}

// Write writes one frame.
func (w *frameWriter) Write(frame []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn.Write(frame)
}

// pump carries one output of a command to where it goes, in whole frames. It never reads more than it can write: a host
// that does not read stops the command.
type pump struct {
	from     *os.File
	frame    agentwire.FrameType
	ended    bool // nothing more can come; valid after run returned
	draining atomic.Bool
}

// drain tells run that the command has ended.
func (p *pump) drain() {
	p.draining.Store(true)
	_ = p.from.SetReadDeadline(time.Now().Add(drainIdle)) // for a read that waits already
}

// run copies until the output ends, the host is gone, or after drain the rest is read.
func (p *pump) run(out io.Writer) {
	buf := make([]byte, agentwire.HeaderLen+chunk)
	idle := drainIdle
	var waited time.Duration
	var drained int
	for {
		draining := p.draining.Load()
		var began time.Time
		if draining {
			if waited > drainTime || drained > drainBytes {
				return
			}
			began = time.Now()
			_ = p.from.SetReadDeadline(began.Add(idle))
		}
		n, err := p.from.Read(buf[agentwire.HeaderLen:])
		if draining {
			waited += time.Since(began)
			drained += n
		}
		if n > 0 {
			agentwire.PutHeader(buf, p.frame, n)
			if _, err := out.Write(buf[:agentwire.HeaderLen+n]); err != nil {
				return
			}
		}
		if err != nil {
			// The deadline that drain set may strike before the pipe was looked at.
			if errors.Is(err, os.ErrDeadlineExceeded) && !draining {
				idle = drainLook
				continue
			}
			p.ended = !errors.Is(err, os.ErrDeadlineExceeded)
			return
		}
	}
}

// discard reads f until it ends or the server closes.
func (s *Server) discard(f *os.File) {
	defer func() { _ = f.Close() }()
	stop := context.AfterFunc(s.ctx, func() { _ = f.Close() })
	defer stop()
	_ = f.SetReadDeadline(time.Time{})
	buf := make([]byte, 4096)
	for {
		if _, err := f.Read(buf); err != nil {
			return
		}
	}
}

// input takes the host's frames. It never blocks on the command, so that a signal or the host's end is seen at once.
type input struct {
	conn    Stream
	frames  *agentwire.Reader
	command *command
	queue   stdinQueue
	gone    chan struct{} // closed when read returns
}

// read runs until the stream ends or the host breaks the rules.
func (in *input) read() {
	defer close(in.gone)
	defer func() { _ = in.conn.SetDeadline(time.Unix(1, 0)) }() // wakes a pump that the host does not read from
	for {
		t, payload, err := in.frames.Next()
		if err != nil || in.handle(t, payload) != nil {
			return
		}
	}
}

// handle does one frame.
func (in *input) handle(t agentwire.FrameType, payload []byte) error {
	switch t {
	case agentwire.FrameStdin:
		return in.queue.push(payload)
	case agentwire.FrameStdinEOF:
		in.queue.finish()
		return nil
	case agentwire.FrameResize:
		var size agentwire.Resize
		if err := json.Unmarshal(payload, &size); err != nil {
			return err
		}
		if in.command.tty != nil && size.Rows > 0 && size.Cols > 0 {
			_ = resize(in.command.tty, size)
		}
		return nil
	case agentwire.FrameSignal:
		sig, err := agentwire.ParseSignal(string(payload))
		if err != nil {
			return err
		}
		in.command.signal(sig)
		return nil
	}
	return agentwire.ErrFrame
}

// stdinQueue holds the stdin that the command has not read yet: at most agentwire.StdinWindow, which the host keeps by
// the credit it is given.
type stdinQueue struct {
	mu       sync.Mutex // guards the fields below
	wake     *sync.Cond
	buf      []byte
	spare    []byte // the buffer that was drained last
	finished bool   // the host sent everything
	closed   bool   // nobody reads any more
}

func (q *stdinQueue) init() { q.wake = sync.NewCond(&q.mu) }

// push adds data. More than the window is an error of the host.
func (q *stdinQueue) push(p []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.buf)+len(p) > agentwire.StdinWindow || q.finished {
		return agentwire.ErrFrame
	}
	q.buf = append(q.buf, p...)
	q.wake.Signal()
	return nil
}

// finish says that nothing more comes.
func (q *stdinQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.finished = true
	q.wake.Signal()
}

// close ends drainTo.
func (q *stdinQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Signal()
}

// take waits for data and takes all of it, giving back the buffer of the call before. Without data it is the end, of
// the host's data or (closed) of the command.
func (q *stdinQueue) take(back []byte) (data []byte, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.spare = back[:0]
	for len(q.buf) == 0 && !q.finished && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return nil, true
	}
	data, q.buf, q.spare = q.buf, q.spare, nil
	return data, false
}

// drainTo writes the queue to the command and gives the host credit for what was taken. A command that closed its
// stdin gets no more, but the host is still let go on.
func (q *stdinQueue) drainTo(c *command, out *frameWriter) {
	var in io.Writer // nil for none
	if c.stdin != nil {
		in = c.stdin
	}
	if q.copyTo(in, out) {
		c.endStdin()
	}
}

// copyTo writes the queue to in and gives the host credit for what was taken. It reports whether it came to the end of
// what the host has sent.
func (q *stdinQueue) copyTo(in io.Writer, out io.Writer) (end bool) {
	var data []byte
	broken := in == nil
	credit := 0
	for {
		var closed bool
		if data, closed = q.take(data); closed {
			return false
		}
		if len(data) == 0 {
			return true
		}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), chunk)
			if !broken {
				_, err := in.Write(rest[:n])
				broken = err != nil
			}
			rest = rest[n:]
			credit += n
			// Small amounts are not worth a frame: the host has enough left.
			if credit >= agentwire.StdinWindow/4 {
				if agentwire.WriteCredit(out, credit) != nil {
					return false
				}
				credit = 0
			}
		}
	}
}

// endStdin tells the command that nothing more comes.
func (c *command) endStdin() {
	switch {
	case c.stdin == nil:
	case c.stdin == c.tty:
		_, _ = c.tty.Write([]byte{endOfText})
	default:
		_ = c.stdin.Close()
	}
}
