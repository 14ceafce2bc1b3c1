package term

import (
	"errors"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// saved is the state of the terminal before raw mode.
type saved struct {
	fd    int
	modes *term.State
}

// Interactive reports whether a person sits at both ends: stdin and stdout are terminals and banger is in the
// terminal's foreground. Asking never stops a background job: it only reads the terminal's settings.
func (t *Term) Interactive() bool {
	return t.outFD >= 0 && t.InputTTY() && t.Foreground()
}

// InputTTY reports whether stdin is a terminal.
func (t *Term) InputTTY() bool { return terminal(t.stdin) >= 0 }

// Foreground reports whether banger may read from the terminal at stdin: a background job that tries is stopped
// (SIGTTIN). It is true when stdin is no terminal.
func (t *Term) Foreground() bool {
	fd := terminal(t.stdin)
	if fd < 0 {
		return true
	}
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if errors.Is(err, unix.ENOTTY) { // a terminal, but not the controlling one: it has no job control for us
		return true
	}
	return err == nil && group == unix.Getpgrp()
}

// Size is the size of the terminal at stdout, or at stdin if stdout is none.
func (t *Term) Size() (rows, cols int, ok bool) {
	for _, fd := range []int{t.outFD, terminal(t.stdin)} {
		if fd < 0 {
			continue
		}
		if cols, rows, err := term.GetSize(fd); err == nil && rows > 0 && cols > 0 {
			return rows, cols, true
		}
	}
	return 0, 0, false
}

// Raw switches the terminal at stdin to raw mode: every key is a byte for the guest. Restore or Close ends it. Calling
// it again (after the process was stopped and continued) switches again and keeps the modes to go back to.
func (t *Term) Raw() error {
	fd := int(t.stdin.Fd())
	modes, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		t.saved = &saved{fd: fd, modes: modes}
	}
	return nil
}

// Restore ends raw mode. It does nothing outside of it.
func (t *Term) Restore() {
	t.mu.Lock()
	s := t.saved
	t.saved = nil
	t.mu.Unlock()
	if s == nil {
		return
	}
	// Whoever sets modes from the background is stopped unless it ignores SIGTTOU (tcsetattr(3)); a shell may have taken
	// the terminal back by now.
	signal.Ignore(unix.SIGTTOU)
	_ = term.Restore(s.fd, s.modes) // a terminal that is gone needs no restoring
	signal.Reset(unix.SIGTTOU)
}
