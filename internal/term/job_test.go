package term

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"banger/internal/progress"
)

// What a job prints stands above the stages that run, and nothing of these is left when they end.
func TestPrintAboveStages(t *testing.T) {
	screen, tty := openPTY(t)
	term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(string) string { return "" }})
	p := term.Progress()
	p.Begin("#1", "RUN make")
	p.Print("#1 RUN make")
	p.Begin("#2", "COPY . .")
	p.Print("#2 \x1b[2Jhostile\r\nline", "#2 \x1b]0;title\x07second")
	p.End("#1")
	p.Print("#1 DONE 0.1s")
	p.End("#2")
	p.Print("#2 DONE 0.1s")
	p.Close()
	p.Print("late")
	tty.Close()
	text := screen()
	if strings.Count(text, "\x1b[?25l") == 0 || !strings.HasSuffix(text, "\x1b[?25hlate\r\n") {
		t.Errorf("the cursor is not back: %q", text)
	}
	for _, bad := range []string{"\x1b[2J", "\x1b]0", "\x07"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q reached the terminal", bad)
		}
	}
	var want = []string{"#1 RUN make", "#2 hostile line", "#2 second", "#1 DONE 0.1s", "#2 DONE 0.1s", "late"}
	if got := screenLines(text); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("the screen shows %q, want %q", got, want)
	}
}

// screenLines plays the sequences that progress uses and returns the lines that are left.
func screenLines(text string) (lines []string) {
	row, line := 0, ""
	for len(text) > 0 {
		switch {
		case strings.HasPrefix(text, "\r\n"), strings.HasPrefix(text, "\n"):
			if row < len(lines) {
				lines[row] = line
			} else {
				lines = append(lines, line)
			}
			row, line = row+1, ""
			text = text[strings.IndexByte(text, '\n')+1:]
		case text[0] == '\r':
			line, text = "", text[1:]
		case strings.HasPrefix(text, "\x1b["):
			end := strings.IndexAny(text[2:], "AJKhl") + 2
			switch text[end] {
			case 'A':
				row -= int(text[2] - '0')
			case 'J':
				lines = lines[:row]
			}
			text = text[end+1:]
		default:
			line, text = line+text[:1], text[1:]
		}
	}
	return lines
}

// A stage that runs until its end is neither quiet nor over before, and elsewhere than on a terminal it is not mentioned.
func TestStageUntilEnd(t *testing.T) {
	p, advance, text := clocked(t)
	p.Begin("#1", "RUN make")
	advance(time.Minute)
	p.Update(progress.Update{Stage: "image", Message: "fetching"})
	advance(9 * time.Second)
	p.Update(progress.Update{Stage: "image", Message: "unpacking"})
	advance(2 * time.Second)
	if got := p.phase(p.stages[0], p.now()); got != active {
		t.Errorf("phase %v", got)
	}
	if got, want := text(), "banger: image: unpacking 11s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.End("#1")
	p.End("#1")
	if len(p.stages) != 1 {
		t.Errorf("%d stages", len(p.stages))
	}
}

func TestQuietAndPlainModes(t *testing.T) {
	for mode, want := range map[ProgressMode]string{ProgressQuiet: "", ProgressPlain: "line\r\n"} {
		screen, tty := openPTY(t)
		term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(string) string { return "" }})
		p := term.ProgressAs(mode)
		p.Begin("#1", "RUN make")
		p.Update(progress.Update{Stage: "image", Message: "fetching"})
		p.Print("line")
		p.Close()
		tty.Close()
		if got := screen(); got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
	}
}

func TestConfirm(t *testing.T) {
	interrupted := errors.New("interrupted")
	for _, tc := range []struct {
		typed string
		want  bool
		err   error
	}{
		{"y\n", true, nil}, {"YES\n", true, nil}, {" y \n", true, nil}, {"n\n", false, nil}, {"\n", false, nil},
		{"yesterday\n", false, nil}, {"\x04", false, nil}, {"", false, interrupted},
	} {
		t.Run(tc.typed, func(t *testing.T) {
			master, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { master.Close(); tty.Close() })
			term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty})
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if tc.err != nil {
				time.AfterFunc(10*time.Millisecond, func() { cancel(tc.err) })
			} else if _, err := master.WriteString(tc.typed); err != nil {
				t.Fatal(err)
			}
			got, err := term.Confirm(ctx, "remove \x1b[31mit?")
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%v, %v; want %v, %v", got, err, tc.want, tc.err)
			}
		})
	}
}

func TestNobodyToAsk(t *testing.T) {
	buffers, _, _ := buffered(t, 80)
	if buffers.CanAsk() {
		t.Error("a buffer is asked")
	}
	_, tty := openPTY(t)
	terminal := New(Config{Stdin: tty, Stdout: tty, Stderr: tty})
	if !terminal.CanAsk() {
		t.Error("a terminal is not asked")
	}
	terminal.SetFormat(FormatJSON)
	if terminal.CanAsk() {
		t.Error("a program is asked")
	}
}
