package supervisor

import (
	"os"
	"sync"
	"testing"
	"time"

	"banger/internal/agentwire"
)

// fakeClockWatch jumps when a test says so.
type fakeClockWatch struct {
	jump   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (w *fakeClockWatch) Wait() error {
	select {
	case <-w.jump:
		return nil
	case <-w.closed:
		return os.ErrClosed
	}
}

func (w *fakeClockWatch) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// The guest's clock follows the host's when that jumps, and a guest that is paused is left alone.
func TestTheGuestsClockFollowsTheHosts(t *testing.T) {
	set := make(chan time.Time, 10)
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.clock = func(c agentwire.Clock) { set <- time.Unix(0, c.UnixNano) }
	})})
	watch := &fakeClockWatch{jump: make(chan struct{}), closed: make(chan struct{})}
	r.sup.clock = func() (clockWatch, error) { return watch, nil }
	r.start()
	r.ready()
	before := time.Now()
	watch.jump <- struct{}{}
	if at := <-set; at.Before(before.Add(-time.Second)) || time.Since(at) > time.Minute {
		t.Errorf("set to %v", at)
	}
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	watch.jump <- struct{}{}
	watch.jump <- struct{}{} // the one before has been dealt with
	if len(set) > 0 {
		t.Error("the clock of a paused guest was set")
	}
	if _, err := r.unpause(); err != nil {
		t.Fatal(err)
	}
	<-set
	if _, err := r.stop(false, 0); err != nil {
		t.Fatal(err)
	}
	<-watch.closed
}
