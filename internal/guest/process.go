package guest

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Event is one thing that a Process did. Exactly one field is set; the last two belong to sessions.
type Event struct {
	Stdout []byte
	Stderr []byte
	Exited *agentwire.ExecExited

	Dropped uint64 // bytes of output that are not there any more, before what comes next
	Over    string // why nothing comes any more: agentwire.OverRead, OverRemoved
}

// last reports whether nothing comes after it.
func (e Event) last() bool { return e.Exited != nil || e.Over != "" }

// Process is a command in the guest, or a session that this is attached to. One goroutine calls Next; any others may call
// the rest.
type Process struct {
	Started agentwire.ExecStarted

	conn     net.Conn
	frames   *agentwire.Reader // used by Next only
	attached bool              // to a session

	writeMu sync.Mutex // held while a frame is written

	mu     sync.Mutex // guards the fields below
	wake   *sync.Cond
	credit int  // bytes of stdin that may be sent
	ended  bool // exited, broken or closed: nothing more is sent
	closed bool
}

func newProcess(conn net.Conn, frames *agentwire.Reader, started agentwire.ExecStarted) *Process {
	p := &Process{Started: started, conn: conn, frames: frames, credit: agentwire.StdinWindow}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// WriteStdin sends b to the command. It blocks while the command does not read and depends on another goroutine calling
// Next. After the command has ended it returns io.ErrClosedPipe.
func (p *Process) WriteStdin(b []byte) error {
	for len(b) > 0 {
		n, err := p.reserve(len(b))
		if err != nil {
			return err
		}
		if err := p.send(agentwire.FrameStdin, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// reserve waits until stdin may be sent and takes at most want bytes of what is allowed.
func (p *Process) reserve(want int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.credit == 0 && !p.ended {
		p.wake.Wait()
	}
	if p.ended {
		return 0, io.ErrClosedPipe
	}
	n := min(want, p.credit, stdinChunk)
	p.credit -= n
	return n, nil
}

// stdinChunk makes frame and yamux header fill whole pages: the guest's end of virtio-serial receives page by page.
const stdinChunk = 32<<10 - 32

// CloseStdin ends the command's stdin. Output still comes.
func (p *Process) CloseStdin() error { return p.send(agentwire.FrameStdinEOF, nil) }

// Resize changes the size of the command's terminal.
func (p *Process) Resize(rows, cols uint16) error {
	payload, err := json.Marshal(agentwire.Resize{Rows: rows, Cols: cols})
	if err != nil {
		return err
	}
	return p.send(agentwire.FrameResize, payload)
}

// Signal sends a signal, by name with or without SIG ("TERM") or by number, to the command's process group, or to the
// foreground group of its terminal.
func (p *Process) Signal(name string) error {
	if _, err := agentwire.ParseSignal(name); err != nil {
		return err
	}
	return p.send(agentwire.FrameSignal, []byte(name))
}

// send writes one frame.
func (p *Process) send(t agentwire.FrameType, payload []byte) error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	if p.hasEnded() {
		return io.ErrClosedPipe
	}
	err := agentwire.WriteFrame(p.conn, t, payload)
	if err != nil && p.hasEnded() {
		return io.ErrClosedPipe // it ended meanwhile, and took the stream with it
	}
	return err
}

func (p *Process) hasEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Next returns the next event; Exited or Over is the last. The caller owns its bytes. When the connection to the guest breaks
// the error is a fault of class Unavailable, after Close it is os.ErrClosed.
func (p *Process) Next() (Event, error) {
	for {
		ev, got, err := p.next()
		if err == nil && !got {
			continue
		}
		if err != nil || ev.last() {
			p.end()
		}
		if err != nil {
			return Event{}, p.explain(err)
		}
		return ev, nil
	}
}

// next reads one frame. It may be one that is no event: got is false then.
func (p *Process) next() (ev Event, got bool, err error) {
	t, payload, err := p.frames.Next()
	if err != nil {
		return ev, false, err
	}
	switch t {
	case agentwire.FrameStdout:
		return Event{Stdout: append([]byte{}, payload...)}, true, nil
	case agentwire.FrameStderr:
		return Event{Stderr: append([]byte{}, payload...)}, true, nil
	case agentwire.FrameCredit:
		return ev, false, p.addCredit(payload)
	case agentwire.FrameExited:
		exited, err := parseExited(payload)
		return Event{Exited: exited}, true, err
	case agentwire.FrameDropped, agentwire.FrameOver:
		if p.attached {
			ev, err := attachedEvent(t, payload)
			return ev, true, err
		}
	}
	return ev, false, agentwire.ErrFrame
}

// addCredit takes the agent's word that stdin was consumed.
func (p *Process) addCredit(payload []byte) error {
	n, err := agentwire.ParseCredit(payload)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.credit += n; p.credit > agentwire.StdinWindow {
		return agentwire.ErrFrame
	}
	p.wake.Broadcast()
	return nil
}

// parseExited reads how the command ended and brings it into the range that a shell knows.
func parseExited(payload []byte) (*agentwire.ExecExited, error) {
	var exited agentwire.ExecExited
	if err := json.Unmarshal(payload, &exited); err != nil {
		return nil, agentwire.ErrFrame
	}
	if exited.Code < 0 || exited.Code > 255 {
		return nil, agentwire.ErrFrame
	}
	if exited.Signal != "" && unix.SignalNum(exited.Signal) == 0 {
		exited.Signal = strconv.Itoa(max(exited.Code-128, 0)) // a real-time signal, which has no name
	}
	return &exited, nil
}

// explain turns an error of the stream into what Next promises.
func (p *Process) explain(err error) error {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	switch {
	case closed:
		return os.ErrClosed
	case errors.Is(err, agentwire.ErrFrame):
		return fault.Wrap(fault.Unavailable, err, "command in the guest")
	}
	return fault.Wrap(fault.Unavailable, err, "command in the guest: the connection to the agent broke")
}

// end lets nobody write or wait any more.
func (p *Process) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.wake.Broadcast()
}

// Close ends the stream. A command that still runs is hung up on (with a terminal) or killed, a session goes on. It may be
// called more than once and unblocks every other call.
func (p *Process) Close() error {
	p.mu.Lock()
	p.ended, p.closed = true, true
	p.wake.Broadcast()
	p.mu.Unlock()
	_ = p.conn.SetDeadline(time.Unix(1, 0)) // wakes Next; closing alone does not on a yamux stream
	hangUp(p.conn)
	return nil
}
