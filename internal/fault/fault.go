// Package fault is the one error type of banger: a class that survives every wire, a sentence for people, and a hint
// that says how to mend it.
//
// A fault is made where the cause is known and wrapped once per layer with context. Its message is lower case without
// a final period and names the object ("vm dev: ..."); its hint is a command that can be run as it stands. An error
// that is not a fault counts as Internal: its full chain goes to the log, a short sentence to the user.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Class says what kind of failure it is, for programs. The strings are part of the wire and of the JSON output.
type Class string

// The classes. Exit codes of each: ExitCode.
const (
	Invalid     Class = "invalid"             // the request itself is wrong
	NotFound    Class = "not_found"           // what it names does not exist
	Exists      Class = "already_exists"      // what it would make exists
	Conflict    Class = "failed_precondition" // the object is in a state that does not allow it
	Unavailable Class = "unavailable"         // a part that is needed is missing or does not answer
	Exhausted   Class = "resource_exhausted"  // no space, memory, addresses
	Denied      Class = "permission_denied"   // not allowed to
	Timeout     Class = "timeout"             // a deadline of banger's own passed
	Cancelled   Class = "cancelled"           // the caller gave up
	Internal    Class = "internal"            // everything else
)

// classes lists every class with the exit code of a banger command that fails with it (docs/cli.md has the table).
var classes = map[Class]int{
	Internal: 125, Invalid: 240, NotFound: 241, Exists: 242, Conflict: 243, Unavailable: 244,
	Exhausted: 245, Denied: 246, Timeout: 247, Cancelled: 130,
}

// Error is a failure of a known class.
type Error struct {
	Class   Class
	Message string
	Hint    string // a command to run; may be empty
	Cause   error  // may be nil
}

// New returns a fault of class c. The format follows fmt.Sprintf.
func New(c Class, format string, args ...any) *Error {
	return &Error{Class: c, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns a fault of class c whose message is the formatted text, a colon and err. The hint of a fault inside
// err is kept.
func Wrap(c Class, err error, format string, args ...any) *Error {
	return &Error{Class: c, Message: fmt.Sprintf(format, args...), Hint: HintOf(err), Cause: err}
}

// Context adds what was being done to err and keeps its class and hint. It returns nil for a nil err.
func Context(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return Wrap(ClassOf(err), err, format, args...)
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error returns the message and the chain of causes.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// ClassOf returns the class of the outermost fault in err's chain; a context's end counts as Cancelled or Timeout,
// any other error as Internal.
func ClassOf(err error) Class {
	var f *Error
	switch {
	case errors.As(err, &f):
		return f.Class
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Internal
}

// Is reports whether err is of class c.
func Is(err error, c Class) bool { return err != nil && ClassOf(err) == c }

// HintOf returns the first hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var f *Error
		if !errors.As(err, &f) {
			return ""
		}
		if f.Hint != "" {
			return f.Hint
		}
		err = f.Cause
	}
	return ""
}

// ParseClass returns the class of that name; an unknown one (a newer peer's) is Internal.
func ParseClass(s string) Class {
	if _, ok := classes[Class(s)]; ok {
		return Class(s)
	}
	return Internal
}

// ExitCode is the exit code of a banger command that fails with class c.
func ExitCode(c Class) int {
	if code, ok := classes[c]; ok {
		return code
	}
	return classes[Internal]
}
