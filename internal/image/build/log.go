package build

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"

	"banger/internal/image/dockerfile"
)

// Kinds of events, as the wire has them.
const (
	Begin  = "begin"  // Text is the step's title: "[builder 2/3] RUN make"
	Output = "output" // Text is a line
	Cached = "cached" // the step's result was there; it is the last event of the step
	Done   = "done"   // the last event of the step
	Failed = "error"  // Text is what failed; the last event of the step
)

// Event is something that happened in a step.
type Event struct {
	Step     int // from 1; 0 is the build itself
	Kind     string
	Text     string        // one line
	Duration time.Duration // of the step, with Done and Failed
}

// Log receives the events of a build. It is called from several goroutines and must not block for long. The events of one
// step come in their order.
type Log interface {
	Event(e Event)
}

// maxLine is where a line of output is divided.
const maxLine = 8 << 10

// reporter is the log of one step. It is safe for several goroutines.
type reporter struct {
	log   Log
	step  int
	begun time.Time
}

// begin announces the next step.
func (b *builder) begin(title string) *reporter {
	r := &reporter{log: b.opt.Log, step: int(b.steps.Add(1)), begun: time.Now()}
	r.event(Begin, title)
	return r
}

func (b *builder) warn(w dockerfile.Warning) {
	r := &reporter{log: b.opt.Log}
	r.say("warning: %s:%d: %s", b.opt.Plan.Name, w.Line, w.Text)
}

func (r *reporter) event(kind, text string) {
	if r.log == nil {
		return
	}
	e := Event{Step: r.step, Kind: kind, Text: text}
	if kind == Done || kind == Failed {
		e.Duration = time.Since(r.begun)
	}
	r.log.Event(e)
}

// say reports a line of the builder's own.
func (r *reporter) say(format string, args ...any) { r.event(Output, fmt.Sprintf(format, args...)) }

// end reports how the step came out.
func (r *reporter) end(cached bool, err error) {
	switch {
	case err != nil:
		r.event(Failed, strings.ReplaceAll(err.Error(), "\n", " "))
	case cached:
		r.event(Cached, "")
	default:
		r.event(Done, "")
	}
}

// lines is a writer that reports what it is given line by line.
type lines struct {
	r *reporter

	mu   sync.Mutex // guards rest
	rest []byte     // the beginning of a line
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.add(p)
			break
		}
		l.add(p[:i])
		l.flushLocked()
		p = p[i+1:]
	}
	return n, nil
}

// add appends to the line, dividing it where it is too long.
func (l *lines) add(p []byte) {
	for len(l.rest)+len(p) > maxLine {
		room := maxLine - len(l.rest)
		l.rest = append(l.rest, p[:room]...)
		p = p[room:]
		l.flushLocked()
	}
	l.rest = append(l.rest, p...)
}

// flushLocked reports the line. Of what a program wrote over and over with carriage returns, the last is kept.
func (l *lines) flushLocked() {
	text := bytes.TrimRight(l.rest, "\r")
	text = text[bytes.LastIndexByte(text, '\r')+1:]
	l.r.event(Output, strings.ToValidUTF8(string(text), "\uFFFD"))
	l.rest = l.rest[:0]
}

// flush reports a last line without an end.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) > 0 {
		l.flushLocked()
	}
}
