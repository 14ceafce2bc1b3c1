package supervisor

import (
	"context"
	"errors"
	"os"
	"time"

	"banger/internal/hostclock"
)

// clockWatch waits for jumps of the host's clock: hostclock.Watch, or a test's.
type clockWatch interface {
	Wait() error
	Close() error
}

func watchHostClock() (clockWatch, error) { return hostclock.New() }

// keepClock sets the guest's clock whenever that of the host has jumped, because it was set or because the host was asleep,
// until ctx ends. One that is paused is told when it goes on.
func (s *Supervisor) keepClock(ctx context.Context) {
	watch, err := s.clock()
	if err != nil {
		s.log.Warn("the guest's clock does not follow the host's when that is set", "error", err)
		return
	}
	defer context.AfterFunc(ctx, func() { _ = watch.Close() })()
	for ctx.Err() == nil {
		err := watch.Wait()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			s.log.Warn("the guest's clock does not follow the host's any more", "error", err)
			return
		case s.board.phase() != phaseReady:
			continue
		}
		if err := s.setClock(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("the host's clock has jumped, the guest's cannot be set", "error", err)
			continue
		}
		s.log.Info("the guest's clock was set: the host's has jumped", "now", time.Now())
	}
}
