package term

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/progress"
)

// How progress is paced.
const (
	frameEvery  = 100 * time.Millisecond // on a terminal
	checkEvery  = 500 * time.Millisecond // elsewhere
	quietFor    = 3 * time.Second        // a stage that said nothing for so long, while others did, is not animated
	showCounted = 3 * time.Second        // elsewhere: age of a stage with counters before it is mentioned
	showOther   = 10 * time.Second       // elsewhere: age of any other stage
	changeEvery = 5 * time.Second        // elsewhere: between two lines of a stage that says something new
	repeatEvery = 10 * time.Second       // elsewhere: between two lines that differ in counters only
	maxWidth    = 120                    // columns; a wider terminal leaves the rest empty
	summaryFrom = 5 * time.Second        // on a terminal: jobs from that length on leave their stages on the screen
)

// Progress shows how far a job is. On a terminal every stage has a line that is redrawn in place; elsewhere stages that
// take long get a plain line now and then. Update may be called from any goroutine.
type Progress struct {
	// Fixed after New.
	t    *Term
	live bool // drawn in place
	mute bool
	now  func() time.Time
	stop chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	// t.mu guards the fields that follow.
	stages  []*stage
	started time.Time
	closed  bool
	steps   bool // Begin was called: what the job did has been printed step by step
	drawn   int  // lines on the screen that belong to the progress
	frame   int
}

// phase is what a stage is at.
type phase int

const (
	active phase = iota
	quiet        // it has said nothing for a while, while others did: nobody knows
	over
)

// stage is one line.
type stage struct {
	update      progress.Update
	known       bool      // it runs until End, however little it says
	began, last time.Time // first and latest update
	rate        float64   // per second, smoothed
	mark        time.Time // rate is measured from here
	markDone    uint64
	printed     time.Time // plain mode
	printedText string
}

// ProgressMode is how a job is shown.
type ProgressMode string

// The modes.
const (
	ProgressAuto  ProgressMode = "auto"  // in place on a terminal, plain elsewhere
	ProgressPlain ProgressMode = "plain" // line by line, also on a terminal
	ProgressQuiet ProgressMode = "quiet" // not at all
)

// Progress starts to show a job. Close it before anything else is written to the terminal by other means than Term.
// One is shown at a time.
func (t *Term) Progress() *Progress { return t.ProgressAs(ProgressAuto) }

// ProgressAs is Progress in the given mode. In JSON mode there is none, whatever it says.
func (t *Term) ProgressAs(mode ProgressMode) *Progress {
	p := &Progress{
		t: t, now: time.Now, stop: make(chan struct{}),
		live: mode == ProgressAuto && t.errFD >= 0 && !t.dumb, mute: mode == ProgressQuiet || t.JSON(),
	}
	p.started = p.now()
	if p.mute {
		return p
	}
	t.mu.Lock()
	t.live = p
	t.mu.Unlock()
	p.wg.Add(1)
	go p.run()
	return p
}

func (p *Progress) run() {
	defer p.wg.Done()
	every := checkEvery
	if p.live {
		every = frameEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.show()
		}
	}
}

// Update takes a report in. It never waits for the terminal longer than one write.
func (p *Progress) Update(u progress.Update) {
	if u.Stage == "" {
		return
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.updateLocked(u)
}

func (p *Progress) updateLocked(u progress.Update) *stage {
	now := p.now()
	for _, s := range p.stages {
		if s.update.Stage == u.Stage {
			s.take(u, now)
			return s
		}
	}
	s := &stage{update: u, began: now, last: now, mark: now, markDone: u.Done}
	p.stages = append(p.stages, s)
	return s
}

// Begin shows a stage that runs until End, on a terminal only: elsewhere its owner prints what there is to say.
func (p *Progress) Begin(name, message string) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.updateLocked(progress.Update{Stage: name, Message: message}).known = true
	p.steps = true
}

// End takes a stage off the display.
func (p *Progress) End(name string) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.stages = slices.DeleteFunc(p.stages, func(s *stage) bool { return s.update.Stage == name })
}

// Print writes lines to stderr, above what is drawn there. Each is sanitised.
func (p *Progress) Print(lines ...string) {
	if p.mute {
		return
	}
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(Sanitize(line) + "\n")
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.live && !p.closed {
		p.drawLocked(b.String())
		return
	}
	_, _ = io.WriteString(p.t.stderr, b.String())
}

// take replaces the stage's report and measures the rate over windows of about a second.
func (s *stage) take(u progress.Update, now time.Time) {
	if u == s.update {
		return
	}
	old := s.update
	s.update, s.last = u, now
	if u.Message != old.Message || u.Done < old.Done || u.Unit != old.Unit {
		s.rate, s.mark, s.markDone = 0, now, u.Done
		return
	}
	window := now.Sub(s.mark)
	if window < time.Second {
		return
	}
	rate := float64(u.Done-s.markDone) / window.Seconds()
	if s.rate > 0 {
		rate = 0.6*s.rate + 0.4*rate
	}
	s.rate, s.mark, s.markDone = rate, now, u.Done
}

// Close ends the display. On a terminal the stages of a long job stay there in one line each.
func (p *Progress) Close() {
	p.once.Do(func() {
		close(p.stop)
		p.wg.Wait()
		if p.mute {
			return
		}
		p.t.mu.Lock()
		defer p.t.mu.Unlock()
		p.eraseLocked()
		p.t.live, p.closed = nil, true
		if p.live && !p.steps && p.now().Sub(p.started) >= summaryFrom {
			p.summariseLocked(p.now())
		}
	})
}

// show draws a frame or prints the lines that are due.
func (p *Progress) show() {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.live {
		p.drawLocked("")
		return
	}
	now := p.now()
	for _, s := range p.stages {
		if s.due(now) {
			p.printLocked(s, now.Sub(s.began))
			s.printed, s.printedText = now, s.update.Message
		}
	}
}

// due reports whether the stage deserves a plain line. Short jobs get none, so that scripts read clean output.
func (s *stage) due(now time.Time) bool {
	if s.known {
		return false
	}
	if s.printed.IsZero() {
		age := showOther
		if s.update.Unit != "" || s.update.Total > 0 {
			age = showCounted
		}
		return now.Sub(s.began) >= age && now.Sub(s.last) < age
	}
	if s.last.Before(s.printed) {
		return false
	}
	wait := repeatEvery
	if s.update.Message != s.printedText {
		wait = changeEvery
	}
	return now.Sub(s.printed) >= wait
}

func (p *Progress) printLocked(s *stage, took time.Duration) {
	text := s.update.Message
	if c := counters(s.update.Done, s.update.Total, s.update.Unit); c != "" {
		text += " (" + c + ")"
	}
	_, _ = io.WriteString(p.t.stderr, "banger: "+Sanitize(s.update.Stage+": "+text)+" "+FormatDuration(took)+"\n")
}

// summariseLocked leaves one line that says how long each stage took.
func (p *Progress) summariseLocked(now time.Time) {
	var parts []string
	for i, s := range p.stages {
		end := s.last
		if end.Equal(s.began) { // it reported once only: it lasted until the next one began
			end = now
			if i+1 < len(p.stages) {
				end = p.stages[i+1].began
			}
		}
		parts = append(parts, Sanitize(s.update.Stage)+" "+FormatDuration(end.Sub(s.began)))
	}
	if len(parts) > 0 {
		_, _ = io.WriteString(p.t.stderr, "banger: "+strings.Join(parts, ", ")+"\n")
	}
}

// phase of a stage, as far as it can be told from the reports: nobody says that a stage is over.
func (p *Progress) phase(s *stage, now time.Time) phase {
	if s.known {
		return active
	}
	if s.update.Total > 0 && s.update.Done >= s.update.Total {
		return over
	}
	for _, other := range p.stages {
		switch {
		case other.began.After(s.last) && other.began.Sub(s.began) > quietFor:
			return over // what comes next has begun
		case other != s && other.last.Sub(s.last) > quietFor && now.Sub(s.last) > quietFor:
			return quiet
		}
	}
	return active
}

// drawLocked replaces the lines on the screen and writes the text above them, all in one piece so that nothing flickers.
// The cursor is hidden while they are there.
func (p *Progress) drawLocked(above string) {
	var b strings.Builder
	if p.drawn == 0 && len(p.stages) > 0 {
		b.WriteString("\x1b[?25l")
	}
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	if above != "" {
		b.WriteString("\r\x1b[J" + above)
	}
	width, now := min(p.t.columns(p.t.errFD), maxWidth), p.now()
	label := 0
	for _, s := range p.stages {
		label = max(label, len(s.update.Stage))
	}
	for _, s := range p.stages {
		b.WriteString("\r" + s.line(p.phase(s, now), now, width-1, label, p.frame) + "\x1b[K\n")
	}
	if len(p.stages) < p.drawn {
		b.WriteString("\r\x1b[J")
		if len(p.stages) == 0 {
			b.WriteString("\x1b[?25h")
		}
	}
	p.drawn = len(p.stages)
	p.frame++
	_, _ = io.WriteString(p.t.stderr, b.String())
}

// eraseLocked takes the lines off the screen and shows the cursor again.
func (p *Progress) eraseLocked() {
	if !p.live || p.drawn == 0 {
		return
	}
	_, _ = fmt.Fprintf(p.t.stderr, "\x1b[%dA\r\x1b[J\x1b[?25h", p.drawn)
	p.drawn = 0
}
