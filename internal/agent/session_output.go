package agent

import (
	"bytes"
	"sort"
	"sync"

	"banger/internal/agentwire"
)

// maxRuns bounds how often the output can change between stdout and stderr in what is kept: a command that writes a byte
// to each in turn must not make the agent large.
const maxRuns = 8 << 10

// sessionOutput keeps the last agentwire.SessionOutput bytes that a session has written. Writing never waits; who reads
// too slowly misses something and is told how much.
type sessionOutput struct {
	mu    sync.Mutex // guards the fields below
	moved *sync.Cond // there is more, or something else that readers wait for has changed
	buf   []byte     // a ring once it has its full size
	start uint64     // how many bytes were written before what is kept
	end   uint64     // how many bytes were written
	runs  []run      // what is kept, by stream; the first begins at start or before it
	ended bool       // nothing comes any more
}

// run is a piece of output of one stream; it ends where the next one begins.
type run struct {
	from  uint64
	frame agentwire.FrameType
}

func newSessionOutput() *sessionOutput {
	o := new(sessionOutput)
	o.moved = sync.NewCond(&o.mu)
	return o
}

// Write takes one frame, as a pump makes it.
func (o *sessionOutput) Write(frame []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	t, data := agentwire.FrameType(frame[0]), frame[agentwire.HeaderLen:]
	if n := len(o.runs); n == 0 || o.runs[n-1].frame != t {
		o.runs = append(o.runs, run{o.end, t})
	}
	for len(data) > 0 {
		n := o.place(data)
		data = data[n:]
		o.end += uint64(n)
	}
	if o.end-o.start > agentwire.SessionOutput {
		o.start = o.end - agentwire.SessionOutput
	}
	o.forget()
	o.moved.Broadcast()
	return len(frame), nil
}

// place puts as much of data into the buffer as goes in at once, which grows with what it holds.
func (o *sessionOutput) place(data []byte) int {
	at := int(o.end % agentwire.SessionOutput)
	data = data[:min(len(data), agentwire.SessionOutput-at)]
	if at == len(o.buf) {
		o.buf = append(o.buf, data...)
		return len(data)
	}
	return copy(o.buf[at:], data)
}

// forget drops the runs of which nothing is kept, and the oldest output where there are too many.
func (o *sessionOutput) forget() {
	if over := len(o.runs) - maxRuns; over > 0 {
		o.start = max(o.start, o.runs[over].from)
	}
	for len(o.runs) > 1 && o.runs[1].from <= o.start {
		o.runs = o.runs[1:] // append moves the rest now and then
	}
}

// finish says that nothing comes any more, and gives back what is not needed for what is kept.
func (o *sessionOutput) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.buf, o.runs = bytes.Clone(o.buf), append([]run(nil), o.runs...)
	o.moved.Broadcast()
}

// wake has readers look again at what they wait for.
func (o *sessionOutput) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moved.Broadcast()
}

// await waits until nothing comes any more or stop says that nobody wants to know.
func (o *sessionOutput) await(stop func() bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.ended && !stop() {
		o.moved.Wait()
	}
}

// written is how much there was.
func (o *sessionOutput) written() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end
}

// past returns from where to read to get the last so many bytes or lines, whichever is less, from the beginning of a
// line. A negative number is no bound. Where everything is asked for that is the beginning, kept or not.
func (o *sessionOutput) past(size, lines int) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if size == 0 || lines == 0 {
		return o.end
	}
	from := uint64(0)
	if size > 0 && o.end-o.start > uint64(size) {
		from = o.lineAfter(o.end - uint64(size))
	}
	if lines > 0 {
		if at, ok := o.lastLines(lines); ok {
			from = max(from, at)
		}
	}
	return from
}

// lineAfter is the beginning of the first line at or after from, or from itself if no line begins there.
func (o *sessionOutput) lineAfter(from uint64) uint64 {
	for at := from; at < o.end; at++ {
		if at == o.start || o.at(at-1) == '\n' {
			return at
		}
	}
	return from
}

// lastLines is where the last so many lines begin; ok is false if there are not as many.
func (o *sessionOutput) lastLines(lines int) (from uint64, ok bool) {
	for at := o.end; at > o.start; at-- {
		if o.at(at-1) != '\n' || at == o.end { // the line feed at the very end ends the last line
			continue
		}
		if lines--; lines == 0 {
			return at, true
		}
	}
	return 0, false
}

func (o *sessionOutput) at(offset uint64) byte { return o.buf[offset%agentwire.SessionOutput] }

// next waits for output at or after from and copies some of one stream to buf. dropped is how much is lost between from
// and what it copied. With follow it waits; n is 0 when there is nothing to wait for: the session has ended, stop says
// so, or follow is not set.
func (o *sessionOutput) next(buf []byte, from uint64, follow bool, stop func() bool) (n int, t agentwire.FrameType, dropped uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for from == o.end && follow && !o.ended && !stop() {
		o.moved.Wait()
	}
	if from < o.start {
		dropped, from = o.start-from, o.start
	}
	if from == o.end || stop() {
		return 0, 0, dropped
	}
	i, until := sort.Search(len(o.runs), func(i int) bool { return o.runs[i].from > from }), o.end
	if i < len(o.runs) {
		until = o.runs[i].from
	}
	t = o.runs[i-1].frame // the first run begins at start or before it
	at := from % agentwire.SessionOutput
	until = min(until, from+agentwire.SessionOutput-at)
	return copy(buf, o.buf[at:at+until-from]), t, dropped
}
