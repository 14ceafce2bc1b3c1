package supervisor

import (
	"errors"
	"io"
	"sync"

	"banger/internal/fault"
	"banger/internal/guest"
	bangerv1 "banger/proto/banger/v1"
)

// stdinWindow is how much stdin is taken from a caller beyond what went to the guest. A caller that keeps to it can
// always be heard: its signals do not wait behind stdin that the command does not read.
const stdinWindow = 512 << 10

// stdinQueue is the stdin of one command on its way from the caller to the guest.
type stdinQueue struct {
	mu     sync.Mutex // guards the fields below
	wake   *sync.Cond
	chunks [][]byte
	size   int  // of chunks, in bytes
	eof    bool // there is no more to come
	dead   bool // nobody wants any more
}

func newStdinQueue() *stdinQueue {
	q := new(stdinQueue)
	q.wake = sync.NewCond(&q.mu)
	return q
}

// put appends b. It blocks while a caller does not keep to the window, and drops b when nobody wants it.
func (q *stdinQueue) put(b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.size > 0 && q.size+len(b) > stdinWindow && !q.dead {
		q.wake.Wait()
	}
	if len(b) == 0 || q.dead {
		return
	}
	q.chunks = append(q.chunks, b)
	q.size += len(b)
	q.wake.Broadcast()
}

// end says that there is no more to come.
func (q *stdinQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.eof = true
	q.wake.Broadcast()
}

// kill says that nobody wants any more.
func (q *stdinQueue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead, q.chunks, q.size = true, nil, 0
	q.wake.Broadcast()
}

// take returns the next chunk, or io.EOF after the last, or io.ErrClosedPipe after kill.
func (q *stdinQueue) take() ([]byte, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.chunks) == 0 && !q.eof && !q.dead {
		q.wake.Wait()
	}
	switch {
	case q.dead:
		return nil, io.ErrClosedPipe
	case len(q.chunks) == 0:
		return nil, io.EOF
	}
	b := q.chunks[0]
	q.chunks[0] = nil
	q.chunks = q.chunks[1:]
	q.size -= len(b)
	q.wake.Broadcast()
	return b, nil
}

// execSender makes the messages to a caller one at a time.
type execSender struct {
	mu     sync.Mutex // held while a message is sent
	stream *execStream
}

func (s *execSender) send(m *bangerv1.ExecResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(m)
}

// feed passes stdin on to the command and tells the caller how much, until there is no more, the command has ended
// or the queue was killed. An error means that guest or caller is gone.
func (s service) feed(q *stdinQueue, process *guest.Process, out *execSender) error {
	defer q.kill()
	untold := 0
	for {
		b, err := q.take()
		switch {
		case errors.Is(err, io.EOF):
			err = process.CloseStdin()
			if err == nil {
				return nil
			}
		case err == nil:
			err = process.WriteStdin(b)
		}
		switch {
		case errors.Is(err, io.ErrClosedPipe): // what comes now is of no use to anybody
			return nil
		case err != nil:
			return fault.Wrap(fault.Unavailable, err, "vm %s: the connection to the guest broke", s.name())
		}
		// Not every time: keys that are pressed would come in pairs.
		if untold += len(b); untold >= stdinWindow/4 {
			if err := out.send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_StdinConsumed{StdinConsumed: int64(untold)}}); err != nil {
				return err
			}
			untold = 0
		}
	}
}
