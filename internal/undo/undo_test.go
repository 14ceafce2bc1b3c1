package undo

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestRunTakesAllStepsLastFirstWithoutTheCallersCancellation(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var order []string
	var s Stack
	s.Add("first", func(ctx context.Context) error { order = append(order, "first"); return ctx.Err() })
	s.Add("second", func(context.Context) error { order = append(order, "second"); return errors.New("boom") })
	err := s.Run(ctx)
	if got := strings.Join(order, " "); got != "second first" {
		t.Errorf("order %q", got)
	}
	if err == nil || err.Error() != "second: boom" {
		t.Errorf("err = %v", err)
	}
	if err := s.Run(ctx); err != nil || len(order) != 2 {
		t.Error("a second Run did something")
	}
}

func TestDisarm(t *testing.T) {
	var s Stack
	s.Add("x", func(context.Context) error { t.Error("a disarmed step ran"); return nil })
	s.Disarm()
	if err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
