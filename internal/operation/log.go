package operation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"banger/internal/progress"
)

// Bounds of what a job's log keeps: while it runs and as one of the keepLogs that ended last, then what is left of it.
const (
	logLimit    = 4 << 20
	logRest     = 64 << 10
	keepLogs    = 4
	maxLogLine  = 16 << 10 // of one line's text
	logOverhead = 64       // of one line beside its text
	logBatch    = 256      // lines that a reader takes at a time
)

// Kinds of lines. The strings are part of the wire.
const (
	LineBegin  = "begin"  // a step begins; Text is its title
	LineOutput = "output" // what it says
	LineCached = "cached" // its result was there already
	LineDone   = "done"
	LineError  = "error"
	LineLost   = "lost" // lines were written faster than this reader took them; Text says how many
)

// Line is one line that a job has written.
type Line struct {
	Step int // of the job's steps, from 1; 0: the job itself
	Kind string
	Text string // without a line end
	At   time.Time
	Took time.Duration // of the step, with LineDone and LineError
}

// LogFunc takes the lines of a job. It may be called from any goroutine and never blocks: what nobody has read in time is
// lost, the oldest first.
type LogFunc func(Line)

// LoggingJob is a Job that also writes lines.
type LoggingJob[T any] func(ctx context.Context, report progress.Func, log LogFunc) (T, error)

// BeginLogged is Begin for a job that writes a log.
func (r *Registry[T]) BeginLogged(spec Spec, do LoggingJob[T]) (id string, err error) {
	log := new(journal)
	o, err := r.begin(spec, func(ctx context.Context, report progress.Func) (T, error) { return do(ctx, report, log.write) }, log, false)
	if err != nil {
		return "", err
	}
	return o.snapshot.ID, nil
}

// Logs calls send with every line that the operation's job has written, as far as they are kept, then with new ones, and
// returns when the operation has ended. It returns the first error of send, or the context's. A slow send holds up nobody.
func (r *Registry[T]) Logs(ctx context.Context, id string, send func(Line) error) error {
	o, err := r.find(id)
	if err != nil {
		return err
	}
	for next := int64(0); ; {
		r.mu.Lock()
		ended, changed := o.snapshot.State != Running, o.wait()
		r.mu.Unlock()
		lines, now, written := o.job.log.after(next)
		next = now
		for _, line := range lines {
			if err := send(line); err != nil {
				return err
			}
		}
		if len(lines) > 0 {
			continue
		}
		if ended { // looked at before the lines: nothing comes after them
			return nil
		}
		select {
		case <-written:
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// retire bounds what the logs of jobs that have ended keep. mu is held.
func (r *Registry[T]) retire(j *job[T]) {
	if j.log == nil {
		return
	}
	r.logged = append(r.logged, j.log)
	if len(r.logged) > keepLogs {
		r.logged[0].trim(logRest)
		r.logged = r.logged[1:]
	}
}

// journal is the log of one job: the newest lines. A nil one has none.
type journal struct {
	mu      sync.Mutex // guards the fields below
	lines   []Line
	first   int64 // number of the first of lines
	size    int
	written chan struct{} // closed with the next line; made by whoever waits for it
}

func (l *journal) write(line Line) {
	if len(line.Text) > maxLogLine {
		line.Text = line.Text[:maxLogLine]
	}
	if line.At.IsZero() {
		line.At = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	l.size += line.cost()
	l.shrink(logLimit)
	if l.written != nil {
		close(l.written)
		l.written = nil
	}
}

func (l *journal) trim(limit int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shrink(limit)
	l.lines = append([]Line(nil), l.lines...) // gives the memory back
}

// shrink drops the oldest lines. mu is held.
func (l *journal) shrink(limit int) {
	drop := 0
	for ; l.size > limit; drop++ {
		l.size -= l.lines[drop].cost()
		l.lines[drop] = Line{}
	}
	l.lines, l.first = l.lines[drop:], l.first+int64(drop)
}

// after returns lines from number next on, with the number that comes after them, and a channel that is closed when there
// are more. What was dropped before it could be read is told of by the first line.
func (l *journal) after(next int64) (lines []Line, now int64, written <-chan struct{}) {
	if l == nil {
		return nil, next, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written == nil {
		l.written = make(chan struct{})
	}
	if lost := l.first - next; lost > 0 {
		lines = append(lines, Line{Kind: LineLost, Text: fmt.Sprintf("%d lines are lost", lost), At: time.Now()})
		next = l.first
	}
	part := l.lines[next-l.first:]
	part = part[:min(len(part), logBatch)]
	return append(lines, part...), next + int64(len(part)), l.written
}

func (l Line) cost() int { return len(l.Text) + len(l.Kind) + logOverhead }
