package term

import (
	"io"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Sequences that take a terminal over and give it back as it was: the alternate screen, no cursor, no wrapping.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// Screen is the whole terminal, drawn anew as often as its owner likes. What was on the terminal before is there again
// after Close.
type Screen struct {
	t *Term

	mu     sync.Mutex // guards the fields below and what is written
	on     bool
	closed bool
}

// Live reports whether stdout can be drawn on: it is a terminal that knows control sequences, and answers are for people.
func (t *Term) Live() bool { return t.outFD >= 0 && !t.dumb && !t.JSON() }

// Screen takes the terminal at stdout over. Close, or Term.Close, gives it back. Only for a terminal that is Live.
func (t *Term) Screen() *Screen {
	s := &Screen{t: t}
	t.mu.Lock()
	t.screen = s
	t.mu.Unlock()
	return s
}

// Size is what can be drawn: rows and columns.
func (s *Screen) Size() (rows, cols int) {
	cols, rows, err := term.GetSize(s.t.outFD)
	if err != nil || rows <= 0 || cols <= 0 {
		return 24, 80
	}
	return rows, cols
}

// Draw replaces what the terminal shows. Lines beyond the last row are left out; each is to fit by itself.
func (s *Screen) Draw(lines []string) error {
	rows, _ := s.Size()
	var b strings.Builder
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if !s.on {
		b.WriteString(enterScreen)
	}
	b.WriteString("\x1b[H")
	for i, line := range lines[:min(len(lines), rows)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		// Erased before and not behind: behind a line of full width the cursor still stands on its last character.
		b.WriteString("\x1b[2K" + line)
	}
	if len(lines) < rows {
		b.WriteString("\r\n\x1b[J")
	}
	s.on = true
	_, err := io.WriteString(s.t.stdout, b.String())
	return err
}

// Leave gives the terminal back until the next Draw: for a process that is about to be stopped.
func (s *Screen) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on {
		_, _ = io.WriteString(s.t.stdout, leaveScreen) // a terminal that is gone needs no restoring
	}
	s.on = false
}

// Close gives the terminal back. It may be called more than once, and nothing is drawn after it.
func (s *Screen) Close() {
	s.Leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}
