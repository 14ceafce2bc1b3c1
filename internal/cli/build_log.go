package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

// What an entry of an operation's log is, as it is on the wire.
const (
	logBegin  = "begin"
	logOutput = "output"
	logCached = "cached"
	logDone   = "done"
	logError  = "error"
	logLost   = "lost"
)

// tailLines is how much of a step's output is kept to be shown when it fails and nothing was shown before.
const tailLines = 20

// buildLog prints what the steps of a build say, in the form that users of BuildKit know: a title, the output with the time
// since the step began, how it ended; steps that go on side by side take turns. On a terminal the steps that run also have
// a line below, with their time. It is fed by one goroutine.
type buildLog struct {
	show  *term.Progress
	print func(...string) // where the lines go
	steps map[int32]*buildStep
	last  int32 // the step that the last line is of
	any   bool  // there is a last line
}

type buildStep struct {
	title  string
	began  int64
	over   bool
	failed bool
	tail   []string
}

func newBuildLog(show *term.Progress) *buildLog {
	return &buildLog{show: show, print: show.Print, steps: map[int32]*buildStep{}}
}

// take prints one entry.
func (l *buildLog) take(e *bangerv1.OperationLog) {
	n, text := e.GetStep(), lastOfLine(e.GetText())
	name := "#" + strconv.Itoa(int(n))
	if n <= 0 {
		l.turn(n, "")
		l.print("#0 " + text)
		return
	}
	step := l.steps[n]
	if step == nil {
		step = &buildStep{began: e.GetAtMs()}
		l.steps[n] = step
	}
	switch e.GetKind() {
	case logBegin:
		step.title, step.began = text, e.GetAtMs()
		l.show.Begin(name, text)
		l.turn(n, step.head(name))
		return
	case logOutput:
		step.keep(text)
		text = fmt.Sprintf("%.3f %s", float64(max(e.GetAtMs()-step.began, 0))/1000, text)
	case logCached:
		text = "CACHED"
	case logDone:
		text = "DONE " + seconds(e.GetDurationMs())
	case logError:
		step.failed, text = true, "ERROR: "+text
	case logLost:
		text = "[" + text + "]"
	}
	l.turn(n, step.head(name))
	l.print(name + " " + text)
	if kind := e.GetKind(); kind == logCached || kind == logDone || kind == logError {
		step.over = true
		l.show.End(name)
	}
}

// turn prints the head of a step whose turn it is now, if it was another's.
func (l *buildLog) turn(n int32, head string) {
	if l.any && l.last == n {
		return
	}
	if before := l.steps[l.last]; l.any && before != nil && !before.over {
		l.print("#" + strconv.Itoa(int(l.last)) + " ...")
	}
	if l.any {
		l.print("")
	}
	l.last, l.any = n, true
	if head != "" {
		l.print(head)
	}
}

func (s *buildStep) head(name string) string { return strings.TrimSpace(name + " " + s.title) }

func (s *buildStep) keep(line string) {
	if len(s.tail) == tailLines {
		s.tail = s.tail[1:]
	}
	s.tail = append(s.tail, line)
}

// failures are the last lines of the steps that failed, for a build of which nothing was shown.
func (l *buildLog) failures() (lines []string) {
	for _, n := range slices.Sorted(maps.Keys(l.steps)) {
		if s := l.steps[n]; s.failed {
			lines = append(append(lines, s.head("#"+strconv.Itoa(int(n)))), s.tail...)
		}
	}
	return lines
}

func seconds(ms int64) string { return fmt.Sprintf("%.1fs", float64(max(ms, 0))/1000) }

// lastOfLine is what a terminal would show in the end of a line that was overwritten with carriage returns.
func lastOfLine(s string) string {
	s = strings.TrimRight(s, "\r")
	return s[strings.LastIndexByte(s, '\r')+1:]
}
