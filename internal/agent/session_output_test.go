package agent

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"banger/internal/agentwire"
)

func frameOf(t agentwire.FrameType, data []byte) []byte {
	b := make([]byte, agentwire.HeaderLen, agentwire.HeaderLen+len(data))
	agentwire.PutHeader(b, t, len(data))
	return append(b, data...)
}

func never() bool { return false }

// readAll reads what is kept from an offset on, and says how much was lost.
func readAll(o *sessionOutput, from uint64) (stdout, stderr string, dropped uint64) {
	var out, err bytes.Buffer
	buf := make([]byte, 777)
	for {
		n, t, lost := o.next(buf, from, false, never)
		dropped += lost
		from += lost + uint64(n)
		if n == 0 {
			return out.String(), err.String(), dropped
		}
		if t == agentwire.FrameStdout {
			out.Write(buf[:n])
		} else {
			err.Write(buf[:n])
		}
	}
}

// Whatever is written, what is kept is the end of it, each stream in its order, and the rest is counted.
func TestSessionOutputKeepsTheEnd(t *testing.T) {
	for _, total := range []int{0, 1, 1000, agentwire.SessionOutput - 1, agentwire.SessionOutput, agentwire.SessionOutput + 1, 3*agentwire.SessionOutput + 12345} {
		o, rnd := newSessionOutput(), rand.New(rand.NewPCG(1, uint64(total)))
		all := make([]byte, total)
		streams := make([]agentwire.FrameType, total)
		for at := 0; at < total; {
			n := min(1+rnd.IntN(30000), total-at)
			kind := agentwire.FrameStdout + agentwire.FrameType(rnd.IntN(2))
			for i := at; i < at+n; i++ {
				all[i], streams[i] = byte(rnd.Uint32()), kind
			}
			if _, err := o.Write(frameOf(kind, all[at:at+n])); err != nil {
				t.Fatal(err)
			}
			at += n
		}
		o.finish()
		var wantOut, wantErr bytes.Buffer
		for i := max(0, total-agentwire.SessionOutput); i < total; i++ {
			if streams[i] == agentwire.FrameStdout {
				wantOut.WriteByte(all[i])
			} else {
				wantErr.WriteByte(all[i])
			}
		}
		stdout, stderr, dropped := readAll(o, 0)
		if stdout != wantOut.String() || stderr != wantErr.String() || dropped != uint64(max(0, total-agentwire.SessionOutput)) {
			t.Errorf("of %d bytes: %d and %d, want %d and %d; %d dropped", total, len(stdout), len(stderr), wantOut.Len(), wantErr.Len(), dropped)
		}
		if cap(o.buf) > agentwire.SessionOutput+agentwire.SessionOutput/2 || o.written() != uint64(total) {
			t.Errorf("%d bytes in a buffer of %d", o.written(), cap(o.buf))
		}
	}
}

// A command that changes between its streams with every byte costs output, not memory.
func TestSessionOutputBoundsTheRuns(t *testing.T) {
	o := newSessionOutput()
	for i := range 5 * maxRuns {
		_, _ = o.Write(frameOf(agentwire.FrameStdout+agentwire.FrameType(i%2), []byte{byte('a' + i%2)}))
	}
	stdout, stderr, dropped := readAll(o, 0)
	if len(o.runs) > maxRuns || len(stdout)+len(stderr) != maxRuns || dropped != 4*maxRuns || strings.Trim(stdout, "a")+strings.Trim(stderr, "b") != "" {
		t.Errorf("%d runs, %d and %d bytes, %d dropped", len(o.runs), len(stdout), len(stderr), dropped)
	}
}

func TestSessionOutputPast(t *testing.T) {
	o := newSessionOutput()
	_, _ = o.Write(frameOf(agentwire.FrameStdout, []byte("one\ntwo\nthree\nfour")))
	for _, tc := range []struct {
		size, lines int
		want        string
	}{
		{-1, -1, "one\ntwo\nthree\nfour"}, {0, -1, ""}, {-1, 0, ""}, {-1, 1, "four"}, {-1, 2, "three\nfour"}, {-1, 4, "one\ntwo\nthree\nfour"},
		{-1, 99, "one\ntwo\nthree\nfour"}, {4, -1, "four"}, {5, -1, "four"}, {6, -1, "four"}, {10, -1, "three\nfour"}, {2, -1, "ur"}, {10, 1, "four"}, {4, 3, "four"},
		{18, -1, "one\ntwo\nthree\nfour"}, {100, -1, "one\ntwo\nthree\nfour"},
	} {
		if got, _, _ := readAll(o, o.past(tc.size, tc.lines)); got != tc.want {
			t.Errorf("the last %d bytes and %d lines are %q, want %q", tc.size, tc.lines, got, tc.want)
		}
	}
	_, _ = o.Write(frameOf(agentwire.FrameStdout, []byte("\n")))
	if got, _, _ := readAll(o, o.past(-1, 1)); got != "four\n" {
		t.Errorf("the last line is %q", got)
	}
}

// A session that has just ended is kept, also when the clock was set back before.
func TestTheOneThatHasJustEndedIsKept(t *testing.T) {
	table := new(sessionTable)
	for range agentwire.MaxFinished {
		ss := &session{output: newSessionOutput()}
		ss.info.PID, ss.info.EndedUnix = 1, time.Now().Add(time.Hour).UnixMilli()
		table.all = append(table.all, ss)
	}
	last := &session{output: newSessionOutput()}
	last.info.PID = 2
	table.all = append(table.all, last)
	table.end(last, agentwire.ExecExited{})
	if n := len(table.all); n != agentwire.MaxFinished || table.all[n-1] != last {
		t.Errorf("%d are kept, the last one is %+v", n, table.all[n-1].info)
	}
}
