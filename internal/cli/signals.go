package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"banger/internal/fault"
)

// Signals turns INT, TERM and HUP into the end of the command's context, or hands them to whoever has taken them.
type Signals struct {
	ch     chan os.Signal
	done   chan struct{}
	wg     sync.WaitGroup
	cancel context.CancelCauseFunc
	give   context.CancelCauseFunc
	force  context.Context

	mu    sync.Mutex
	taken chan syscall.Signal // nil: nobody has
	first *Interrupted        // the first signal that nobody had taken
}

// Interrupted is the cause of a context that a signal ended.
type Interrupted struct{ Signal syscall.Signal }

// Error says so.
func (i *Interrupted) Error() string {
	if i.Signal == syscall.SIGINT {
		return "interrupted"
	}
	return "ended by signal " + signalNames[i.Signal]
}

// Unwrap gives it the class of everything that a caller gave up.
func (i *Interrupted) Unwrap() error { return &fault.Error{Class: fault.Cancelled, Message: i.Error()} }

func (i *Interrupted) code() int { return 128 + int(i.Signal) }

var signalNames = map[syscall.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP"}

// NewSignals starts to handle signals. The context ends with the first one, its cause is an *Interrupted. Signals that
// are ignored (nohup, background jobs of scripts) stay so. Close ends it.
func NewSignals(parent context.Context) (context.Context, *Signals) {
	s := &Signals{ch: make(chan os.Signal, 8), done: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(parent)
	s.cancel = cancel
	s.force, s.give = context.WithCancelCause(context.WithoutCancel(parent))
	for sig := range signalNames {
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
	s.wg.Go(s.run)
	return ctx, s
}

// Close stops handling signals.
func (s *Signals) Close() {
	signal.Stop(s.ch)
	close(s.done)
	s.wg.Wait()
	s.cancel(nil)
	s.give(nil)
}

func (s *Signals) run() {
	for {
		select {
		case <-s.done:
			return
		case sig := <-s.ch:
			if n, ok := sig.(syscall.Signal); ok {
				s.handle(n)
			}
		}
	}
}

func (s *Signals) handle(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken != nil:
		select {
		case s.taken <- sig:
		default: // a flood of signals says no more than a few of them
		}
	case s.first == nil:
		s.first = &Interrupted{sig}
		s.cancel(s.first)
	default:
		s.give(s.first)
	}
}

// Take hands signals to the caller until release is called.
func (s *Signals) Take() (taken <-chan syscall.Signal, release func()) {
	if s == nil {
		return nil, func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan syscall.Signal, 8)
	s.taken = ch
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken = nil
	}
}

// Patient returns a context for what has to be brought to an end after the first signal: it ends with the second one.
func (s *Signals) Patient(ctx context.Context) context.Context {
	if s == nil {
		return context.WithoutCancel(ctx)
	}
	return s.force
}
