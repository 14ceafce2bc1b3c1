package supervisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	bangerv1 "banger/proto/banger/v1"
)

// careful is a caller that keeps to the window of stdin, as the CLI does.
type careful struct {
	stream *clientStream

	mu      sync.Mutex // guards the fields below
	wake    *sync.Cond
	credit  int64
	stopped bool
}

func newCareful(stream *clientStream, window int64) *careful {
	c := &careful{stream: stream, credit: window}
	c.wake = sync.NewCond(&c.mu)
	return c
}

func (c *careful) add(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit += n
	c.wake.Broadcast()
}

func (c *careful) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	c.wake.Broadcast()
}

// send sends all that r has.
func (c *careful) send(r io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			c.mu.Lock()
			for c.credit < int64(n) && !c.stopped {
				c.wake.Wait()
			}
			c.credit -= int64(n)
			stopped := c.stopped
			c.mu.Unlock()
			if stopped {
				return nil
			}
			if err := c.sendOne(stdin(buf[:n])); err != nil {
				return err
			}
		}
		if err != nil {
			return c.sendOne(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_StdinEof{StdinEof: true}})
		}
	}
}

// sendOne is one at a time.
func (c *careful) sendOne(m *bangerv1.ExecRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream.Send(m)
}

// started receives until the command runs and returns the window.
func started(t *testing.T, stream *clientStream) int64 {
	t.Helper()
	msg, err := stream.Receive()
	if err != nil || msg.GetStarted() == nil {
		t.Fatalf("%v, %v", msg, err)
	}
	return msg.GetStarted().GetStdinWindow()
}

func TestSignalOvertakesStdinThatNobodyReads(t *testing.T) {
	r := readyRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	start := sh("trap 'echo caught; exit 5' INT; echo on; while :; do :; done")
	start.Stdin = true
	stream := r.open(ctx, start)
	window := started(t, stream)
	if window < 2*maxChunk {
		t.Fatalf("window of %d bytes", window)
	}
	c := newCareful(stream, window)
	sent := make(chan error, 1)
	go func() { sent <- c.send(neverEnding{}) }()
	time.Sleep(300 * time.Millisecond) // every window on the way is full
	if err := c.sendOne(&bangerv1.ExecRequest{Kind: &bangerv1.ExecRequest_Signal{Signal: "INT"}}); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatalf("the signal did not get through: %v", err)
		}
		out = append(out, msg.GetStdout()...)
		c.add(msg.GetStdinConsumed())
		if msg.GetExited() != nil {
			if msg.GetExited().GetCode() != 5 || string(out) != "on\ncaught\n" {
				t.Errorf("%v, %q", msg, out)
			}
			break
		}
	}
	c.stop()
	<-sent
	stream.CloseResponse()
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// A caller that keeps to the window gets everything through, in order.
func TestStdinWithCredit(t *testing.T) {
	r := readyRig(t)
	data := make([]byte, 16<<20+7)
	rand.NewChaCha8([32]byte{2}).Read(data)
	start := &bangerv1.ExecStart{Argv: []string{"sha256sum"}, Stdin: true}
	stream := r.open(t.Context(), start)
	c := newCareful(stream, started(t, stream))
	sent := make(chan error, 1)
	go func() { sent <- c.send(bytes.NewReader(data)) }()
	var out []byte
	var told int64
	for {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, msg.GetStdout()...)
		told += msg.GetStdinConsumed()
		c.add(msg.GetStdinConsumed())
		if msg.GetExited() != nil {
			break
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	sum := sha256.Sum256(data)
	if len(out) < 64 || string(out[:64]) != hexadecimal(sum[:]) {
		t.Errorf("the command read something else: %q", out)
	}
	if told > int64(len(data)) || told < int64(len(data))-stdinWindow {
		t.Errorf("%d of %d bytes were told to be consumed", told, len(data))
	}
	stream.CloseResponse()
}

func hexadecimal(b []byte) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func TestStdinQueue(t *testing.T) {
	q := newStdinQueue()
	q.put([]byte("a"))
	q.put(nil)
	q.put([]byte("b"))
	q.end()
	for _, want := range []string{"a", "b"} {
		if b, err := q.take(); string(b) != want || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	for range 2 {
		if _, err := q.take(); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}

	// A caller that ignores the window is held up, until somebody takes something or nobody wants any more.
	q = newStdinQueue()
	q.put(make([]byte, 2*stdinWindow)) // one message always fits
	blocked := make(chan struct{})
	go func() { q.put([]byte("next")); q.put(make([]byte, stdinWindow)); close(blocked) }()
	select {
	case <-blocked:
		t.Error("the queue has no bound")
	case <-time.After(20 * time.Millisecond):
	}
	for range 2 {
		if _, err := q.take(); err != nil {
			t.Error(err)
		}
	}
	<-blocked
	q.kill()
	q.put(make([]byte, 4*stdinWindow))
	if _, err := q.take(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("after the end: %v", err)
	}
}
