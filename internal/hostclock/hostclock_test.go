package hostclock

import (
	"errors"
	"os"
	"testing"
	"time"
)

// A timer that had run out would be taken for one jump after the other.
func TestTheTimerDoesNotRunOut(t *testing.T) {
	if end := time.Unix(never, 0); end.Year() < 2200 {
		t.Errorf("it runs out at %v", end)
	}
}

// The clock of the host is not for tests to set: what is tested is that a Watch does not see what is not there, and ends.
func TestWatchEnds(t *testing.T) {
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- w.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("ended by itself: %v", err)
	default:
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("err = %v", err)
	}
}
