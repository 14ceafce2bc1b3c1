// Package term is the only writer to the user's terminal.
//
// The answer of a command goes to stdout: a table or lines for people, one JSON value with --format json. Everything
// else goes to stderr: progress, notes, and failures as "banger: error:" and "banger: hint:" lines. In JSON mode stderr
// carries at most one JSON object, {"error": {"class", "message", "hint"}}, and neither notes nor progress. What a
// guest's command writes passes through untouched; every other text that may come from outside is sanitised first.
// Control sequences are written only to a terminal.
package term

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"

	"banger/internal/fault"
)

// Format is how answers are written.
type Format string

// The formats.
const (
	FormatTable Format = "table"
	FormatJSON  Format = "json"
)

// Formats lists every format, for completion and messages.
var Formats = []string{string(FormatTable), string(FormatJSON)}

// ParseFormat returns the format of that name or a fault of class Invalid.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case FormatTable, FormatJSON:
		return f, nil
	}
	return "", fault.New(fault.Invalid, "unknown format %q: one of %s", s, strings.Join(Formats, ", "))
}

// Term is where a command's input comes from and its output goes to.
type Term struct {
	// Fixed after New.
	stdin          *os.File
	stdout, stderr io.Writer
	outFD, errFD   int // -1 when it is no terminal
	color          bool
	dumb           bool // a terminal that knows no control sequences
	utf8           bool // the locale's characters
	width          int  // 0: ask the terminal

	mu     sync.Mutex // guards the fields that follow, and all writes but those of a guest's command
	format Format
	live   *Progress // drawn on stderr at the moment; nil mostly
	saved  *saved    // terminal modes to go back to; nil outside raw mode
	screen *Screen   // that has been taken over; nil mostly
}

// Config says what to write to. Nil streams are the process's own.
type Config struct {
	Stdin          *os.File
	Stdout, Stderr io.Writer
	Getenv         func(string) string // nil: os.Getenv
	Width          int                 // of the terminal, for tests; 0: ask it
}

// New returns a Term. Close gives the terminal back as it was.
func New(cfg Config) *Term {
	if cfg.Stdin == nil {
		cfg.Stdin = os.Stdin
	}
	if cfg.Stdout == nil {
		cfg.Stdout = os.Stdout
	}
	if cfg.Stderr == nil {
		cfg.Stderr = os.Stderr
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	t := &Term{
		stdin: cfg.Stdin, stdout: cfg.Stdout, stderr: cfg.Stderr,
		outFD: terminal(cfg.Stdout), errFD: terminal(cfg.Stderr), width: cfg.Width, format: FormatTable,
	}
	t.dumb = cfg.Getenv("TERM") == "dumb"
	t.color = cfg.Getenv("NO_COLOR") == "" && !t.dumb
	t.utf8 = utf8Locale(cfg.Getenv)
	return t
}

// terminal returns w's descriptor if w is a terminal, else -1.
func terminal(w any) int {
	f, ok := w.(*os.File)
	if !ok || f == nil {
		return -1
	}
	if fd := int(f.Fd()); term.IsTerminal(fd) {
		return fd
	}
	return -1
}

// Close ends progress, a screen and raw mode. It may be called more than once.
func (t *Term) Close() {
	t.mu.Lock()
	live, screen := t.live, t.screen
	t.mu.Unlock()
	if screen != nil {
		screen.Close()
	}
	if live != nil {
		live.Close()
	}
	t.Restore()
}

// SetFormat sets how answers are written.
func (t *Term) SetFormat(f Format) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.format = f
}

// JSON reports whether answers are JSON.
func (t *Term) JSON() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.format == FormatJSON
}

// Stdout is for the bytes of a guest's command and for generated files such as completion scripts.
func (t *Term) Stdout() io.Writer { return t.stdout }

// Stderr is for the bytes of a guest's command.
func (t *Term) Stderr() io.Writer { return t.stderr }

// StdoutTTY reports whether stdout is a terminal.
func (t *Term) StdoutTTY() bool { return t.outFD >= 0 }

// Width is the number of columns of stdout, 0 when it is no terminal.
func (t *Term) Width() int { return t.columns(t.outFD) }

func (t *Term) columns(fd int) int {
	if t.width > 0 {
		return t.width
	}
	if fd < 0 {
		return 0
	}
	if cols, _, err := term.GetSize(fd); err == nil && cols > 0 {
		return cols
	}
	return 80
}

// Answer writes one line of the command's answer to stdout. The text is sanitised.
func (t *Term) Answer(format string, args ...any) error {
	return t.answer(Sanitize(fmt.Sprintf(format, args...)) + "\n")
}

// answer writes text to stdout, above the progress if there is some on the same terminal.
func (t *Term) answer(text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		t.live.eraseLocked()
	}
	_, err := io.WriteString(t.stdout, text)
	return err
}

// WriteJSON writes v to stdout as indented JSON.
func (t *Term) WriteJSON(v any) error {
	data, err := encode(v, "  ")
	if err != nil {
		return err
	}
	return t.answer(string(data))
}

// WriteJSONLine writes v to stdout as JSON in one line: an element of an answer that has no end.
func (t *Term) WriteJSONLine(v any) error {
	data, err := encode(v, "")
	if err != nil {
		return err
	}
	return t.answer(string(data))
}

// encode is JSON that is safe to show on a terminal: json leaves DEL and the C1 controls as they are.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, r := range b.String() {
		if r >= 0x7f && r <= 0x9f {
			fmt.Fprintf(&out, `\u%04x`, r)
			continue
		}
		out.WriteRune(r)
	}
	return out.Bytes(), nil
}

// Note writes one line for people to stderr. JSON mode has no notes.
func (t *Term) Note(format string, args ...any) {
	if t.JSON() {
		return
	}
	t.line("banger: " + Sanitize(fmt.Sprintf(format, args...)))
}

// Hint writes a command that may help to stderr. JSON mode has no hints of their own.
func (t *Term) Hint(format string, args ...any) {
	if t.JSON() {
		return
	}
	t.line("banger: hint: " + Sanitize(fmt.Sprintf(format, args...)))
}

// line writes a line to stderr, above the progress if there is some.
func (t *Term) line(text string) { t.text(text + "\n") }

func (t *Term) text(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		t.live.eraseLocked()
	}
	_, _ = io.WriteString(t.stderr, text) // nobody is left to be told
}

// failure is an error in JSON.
type failure struct {
	Class   fault.Class `json:"class"`
	Message string      `json:"message"`
	Hint    string      `json:"hint,omitempty"`
}

// FailureJSON is the JSON form of err, as it stands under "error".
func FailureJSON(err error) any {
	return failure{Class: fault.ClassOf(err), Message: Sanitize(err.Error()), Hint: Sanitize(fault.HintOf(err))}
}

// Failure writes err to stderr: an error line and a hint line, or one JSON object in JSON mode.
func (t *Term) Failure(err error) {
	if t.JSON() {
		if data, jsonErr := encode(map[string]any{"error": FailureJSON(err)}, ""); jsonErr == nil {
			t.line(strings.TrimSuffix(string(data), "\n"))
		}
		return
	}
	t.line(t.paint(t.errFD, red, "banger: error:") + " " + Sanitize(err.Error()))
	if hint := fault.HintOf(err); hint != "" {
		t.Hint("%s", hint)
	}
}

// Colours, as SGR parameters.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	dim    = "2"
)

// paint colours text when fd is a terminal that wants colours.
func (t *Term) paint(fd int, sgr, text string) string {
	if fd < 0 || !t.color || sgr == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}
