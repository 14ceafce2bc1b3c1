// Package undo keeps what has to be taken back when a path of several steps fails.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Timeout bounds one Run.
const Timeout = 30 * time.Second

// Stack is a list of steps to take back. The zero value is ready; it is not safe for concurrent use.
//
//	var u undo.Stack
//	defer u.Run(ctx)
//	...make a thing...
//	u.Add("remove the thing", func(ctx context.Context) error { ... })
//	...
//	u.Disarm() // everything went well
type Stack struct {
	steps []step
}

type step struct {
	name string
	do   func(context.Context) error
}

// Add puts a step on the stack. name says what it does, for the error.
func (s *Stack) Add(name string, do func(context.Context) error) {
	s.steps = append(s.steps, step{name, do})
}

// Disarm forgets every step.
func (s *Stack) Disarm() { s.steps = nil }

// Run takes the steps, last first, all of them even if some fail, and forgets them. The context's cancellation does
// not reach the steps (they usually run because of it); they get Timeout together.
func (s *Stack) Run(ctx context.Context) error {
	if len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := s.steps[i].do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.steps[i].name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}
