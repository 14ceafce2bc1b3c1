package term

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/progress"
)

// buffered returns a Term that writes to buffers, as to pipes.
func buffered(t *testing.T, width int) (term *Term, out, errOut *bytes.Buffer) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	out, errOut = new(bytes.Buffer), new(bytes.Buffer)
	return New(Config{Stdin: null, Stdout: out, Stderr: errOut, Width: width, Getenv: func(string) string { return "" }}), out, errOut
}

func TestFailureByteForByte(t *testing.T) {
	err := fault.Wrap(fault.NotFound, fault.New(fault.NotFound, "no vm \x1b[31m%q", "dev").WithHint("banger vm list"), "remove")
	for _, tc := range []struct {
		name   string
		format Format
		err    error
		want   string
	}{
		{"with a hint", FormatTable, err, "banger: error: remove: no vm \"dev\"\nbanger: hint: banger vm list\n"},
		{"without", FormatTable, errors.New("one\ntwo"), "banger: error: one two\n"},
		{"json", FormatJSON, err, `{"error":{"class":"not_found","message":"remove: no vm \"dev\"","hint":"banger vm list"}}` + "\n"},
		{"json without", FormatJSON, errors.New("a<b"), `{"error":{"class":"internal","message":"a<b"}}` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			term, out, errOut := buffered(t, 0)
			term.SetFormat(tc.format)
			term.Failure(tc.err)
			if diff := cmp.Diff(tc.want, errOut.String()); diff != "" {
				t.Error(diff)
			}
			if out.Len() > 0 {
				t.Errorf("stdout has %q", out)
			}
		})
	}
}

func TestJSONModeIsSilentOnStderr(t *testing.T) {
	term, _, errOut := buffered(t, 0)
	term.SetFormat(FormatJSON)
	term.Note("a note")
	term.Hint("a hint")
	p := term.Progress()
	p.Update(progress.Update{Stage: "image", Message: "m"})
	p.Close()
	if errOut.Len() > 0 {
		t.Errorf("stderr has %q", errOut)
	}
}

func TestJSONEscapesWhatTerminalsActUpon(t *testing.T) {
	term, out, _ := buffered(t, 0)
	if err := term.WriteJSON(map[string]string{"a": "\x1b[31m\u009b1m\x7f<ü>"}); err != nil {
		t.Fatal(err)
	}
	want := "{\n  \"a\": \"\\u001b[31m\\u009b1m\\u007f<ü>\"\n}\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func table() Table {
	return Table{
		Columns: []Column{{Title: "NAME"}, {Title: "STATE", Fixed: true}, {Title: "SOURCE"}, {Title: "PID", Right: true, Fixed: true}},
		Rows: [][]string{
			{"dev", "running", "debian:bookworm", "7"},
			{strings.Repeat("long-", 12) + "name", "stopped", "oci:" + strings.Repeat("x", 40), "12345"},
		},
	}
}

func TestTableFits(t *testing.T) {
	for _, tc := range []struct {
		width int
		want  string
	}{
		{80, `
NAME                            STATE    SOURCE                            PID
dev                             running  debian:bookworm                     7
long-long-long-long-long-long…  stopped  oci:xxxxxxxxxxxxxxxxxxxxxxxxxx…  12345
`},
		{200, `
NAME                                                              STATE    SOURCE                                          PID
dev                                                               running  debian:bookworm                                   7
long-long-long-long-long-long-long-long-long-long-long-long-name  stopped  oci:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  12345
`},
	} {
		term, out, _ := buffered(t, tc.width)
		if err := term.Table(table()); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > tc.width {
				t.Errorf("a line has %d characters at %d columns", n, tc.width)
			}
		}
		if diff := cmp.Diff(strings.TrimPrefix(tc.want, "\n"), out.String()); tc.width == 200 && diff != "" {
			t.Error(diff)
		}
		if tc.width == 80 && (!strings.Contains(out.String(), "…") || !strings.Contains(out.String(), "stopped  oci:")) {
			t.Errorf("not shortened as it should be:\n%s", out)
		}
	}
}

func TestPipesGetWholeTables(t *testing.T) {
	term, out, _ := buffered(t, 0)
	if err := term.Table(table()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "…") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("a pipe got\n%s", out)
	}
}

func TestProgressLine(t *testing.T) {
	start := time.Unix(1000, 0)
	counted := &stage{
		update: progress.Update{Stage: "kernel", Message: "downloading linux-image-6.1.0-9-cloud-amd64", Done: 12 << 20, Total: 48 << 20, Unit: "bytes"},
		began:  start, last: start.Add(4 * time.Second), rate: 3 << 20,
	}
	plain := &stage{update: progress.Update{Stage: "boot", Message: "waiting for the guest"}, began: start, last: start}
	done := &stage{
		update: progress.Update{Stage: "image", Message: "packages", Done: 120, Total: 120, Unit: "packages"},
		began:  start, last: start.Add(2 * time.Second),
	}
	now := start.Add(5 * time.Second)
	for _, tc := range []struct {
		name  string
		stage *stage
		at    phase
		width int
		want  string
	}{
		{"narrow", counted, active, 79, `/ kernel  downloading linux-image-6.1.0-9-…  12M/48M 25%  3M/s  eta 12s    5.0s`},
		{"wide", counted, active, 119, `/ kernel  downloading linux-image-6.1.0-9-cloud-amd64       [#####---------------]  12M/48M 25%  3M/s  eta 12s    5.0s`},
		{"very narrow", counted, active, 40, `/ kernel  12M/48M 25%  3M/s  eta 12s   …`},
		{"quiet", counted, quiet, 79, `- kernel  downloading linux-image-6.1.0-9-cloud-amd64  12M/48M 25%    4.0s`},
		{"no counters", plain, active, 60, `/ boot    waiting for the guest                         5.0s`},
		{"done", done, over, 79, `* image   packages                               120/120 packages 100%    2.0s`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := tc.stage.line(tc.at, now, tc.width, len("kernel"), 1)
			if len([]rune(got)) > tc.width {
				t.Errorf("%d characters in %d columns", len([]rune(got)), tc.width)
			}
			if squeeze(got) != squeeze(tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// squeeze makes runs of spaces one: their number follows from the width, which is checked by itself.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

// clocked returns a plain progress whose time is moved by hand.
func clocked(t *testing.T) (p *Progress, advance func(time.Duration), text func() string) {
	t.Helper()
	term, _, errOut := buffered(t, 0)
	now := time.Unix(1000, 0)
	p = &Progress{t: term, now: func() time.Time { return now }, stop: make(chan struct{}), started: now}
	return p, func(d time.Duration) {
			now = now.Add(d)
			p.show()
		}, func() string {
			defer errOut.Reset()
			return errOut.String()
		}
}

func TestPlainProgressIsRareAndPlain(t *testing.T) {
	p, advance, text := clocked(t)
	p.Update(progress.Update{Stage: "image", Message: "fetching", Done: 1 << 20, Total: 10 << 20, Unit: "bytes"})
	advance(2 * time.Second)
	if got := text(); got != "" {
		t.Errorf("a short job said %q", got)
	}
	advance(900 * time.Millisecond)
	p.Update(progress.Update{Stage: "image", Message: "fetching", Done: 2 << 20, Total: 10 << 20, Unit: "bytes"})
	advance(200 * time.Millisecond)
	if got, want := text(), "banger: image: fetching (2M/10M 20%) 3.1s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for range 20 { // counters alone: nothing for ten seconds
		advance(400 * time.Millisecond)
		p.Update(progress.Update{Stage: "image", Message: "fetching", Done: 3 << 20, Total: 10 << 20, Unit: "bytes"})
	}
	if got := text(); got != "" {
		t.Errorf("said too soon: %q", got)
	}
	p.Update(progress.Update{Stage: "image", Message: "unpacking"})
	advance(100 * time.Millisecond)
	if got, want := text(), "banger: image: unpacking 11s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is over or quiet follows from what the other stages report.
func TestPhases(t *testing.T) {
	p, advance, _ := clocked(t)
	report := func(stage, message string) { p.Update(progress.Update{Stage: stage, Message: message}) }
	want := func(when string, phases ...phase) {
		t.Helper()
		var got []phase
		for _, s := range p.stages {
			got = append(got, p.phase(s, p.now()))
		}
		if !cmp.Equal(phases, got) {
			t.Errorf("%s: phases %v, want %v", when, got, phases)
		}
	}
	report("kernel", "a")
	advance(100 * time.Millisecond)
	report("image", "a")
	want("both have begun", active, active)
	advance(10 * time.Second)
	want("nobody says anything", active, active)
	report("image", "b")
	want("one goes on", quiet, active)
	report("kernel", "b")
	want("both go on", active, active)
	advance(time.Second)
	report("boot", "a")
	want("the next has begun", over, over, active)
	advance(time.Minute)
	want("it takes long", over, over, active)
}

func TestSummary(t *testing.T) {
	p, advance, text := clocked(t)
	p.Update(progress.Update{Stage: "image", Message: "a"})
	advance(8 * time.Second)
	p.Update(progress.Update{Stage: "image", Message: "b"})
	p.Update(progress.Update{Stage: "disk", Message: "a"})
	advance(time.Second)
	p.Update(progress.Update{Stage: "boot", Message: "a"})
	advance(2 * time.Second)
	text()
	p.summariseLocked(p.now())
	if got, want := text(), "banger: image 8.0s, disk 1.0s, boot 2.0s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRate(t *testing.T) {
	s := &stage{began: time.Unix(0, 0), last: time.Unix(0, 0), mark: time.Unix(0, 0)}
	for i := range 10 {
		s.take(progress.Update{Done: uint64(i+1) * 1000, Total: 1 << 20, Unit: "bytes"}, time.Unix(int64(i+1), 0))
	}
	if s.rate < 990 || s.rate > 1010 {
		t.Errorf("rate = %.0f, want 1000", s.rate)
	}
	s.take(progress.Update{Message: "next file", Done: 5, Unit: "bytes"}, time.Unix(11, 0))
	if s.rate != 0 {
		t.Errorf("rate of the next file begins with %.0f", s.rate)
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0s", 1234 * time.Millisecond: "1.2s", 42 * time.Second: "42s", 72 * time.Second: "1m12s",
		3*time.Hour + 5*time.Minute: "3h05m", 292 * time.Hour: "12d4h",
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%s) = %q, want %q", d, got, want)
		}
	}
}

// On a terminal, progress hides the cursor, and Close shows it again and leaves nothing on the screen.
func TestLiveProgressCleansUp(t *testing.T) {
	screen, tty := openPTY(t)
	term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(string) string { return "" }})
	p := term.Progress()
	p.Update(progress.Update{Stage: "image", Message: "fetching", Done: 1, Total: 2, Unit: "bytes"})
	p.Update(progress.Update{Stage: "kernel", Message: "fetching"})
	p.show()
	term.Note("a note in between")
	p.show()
	if err := term.Answer("an answer too"); err != nil {
		t.Fatal(err)
	}
	p.show()
	term.Close()
	term.Close()
	tty.Close()
	text := screen()
	for _, want := range []string{"image", "kernel", "banger: a note in between", "\x1b[J\x1b[?25han answer too"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if strings.Count(text, "\x1b[?25l") != strings.Count(text, "\x1b[?25h") || !strings.HasSuffix(text, "\x1b[J\x1b[?25h") {
		t.Errorf("the cursor is not back: %q", text)
	}
}

func TestNoColor(t *testing.T) {
	for env, want := range map[string]string{"": "\x1b[31mbanger: error:\x1b[0m x\r\n", "1": "banger: error: x\r\n"} {
		screen, tty := openPTY(t)
		term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(name string) string {
			return map[string]string{"NO_COLOR": env}[name]
		}})
		term.Failure(errors.New("x"))
		tty.Close()
		if got := screen(); got != want {
			t.Errorf("NO_COLOR=%q: got %q, want %q", env, got, want)
		}
	}
}

func TestRawIsRestored(t *testing.T) {
	_, tty := openPTY(t)
	term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty})
	before := modes(t, tty)
	if err := term.Raw(); err != nil {
		t.Fatal(err)
	}
	if err := term.Raw(); err != nil { // after a stop
		t.Fatal(err)
	}
	if cmp.Equal(before, modes(t, tty)) {
		t.Error("raw mode changed nothing")
	}
	term.Close()
	if diff := cmp.Diff(before, modes(t, tty)); diff != "" {
		t.Errorf("not as before: %s", diff)
	}
}

// openPTY returns a terminal and a function that returns all that was written to it once it is closed.
func openPTY(t *testing.T) (screen func() string, tty *os.File) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); tty.Close() })
	text := make(chan string, 1)
	go func() { // ends when both ends are closed
		var b bytes.Buffer
		_, _ = b.ReadFrom(master)
		text <- b.String()
	}()
	return func() string { return <-text }, tty
}
