package hostclock

import (
	"errors"
	"os"
	"testing"
)

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
