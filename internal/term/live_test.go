package term

import (
	"bytes"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
)

func TestSpark(t *testing.T) {
	nan := math.NaN()
	for _, tc := range []struct {
		name   string
		values []float64
		width  int
		top    float64
		want   string
		ascii  string
	}{
		{"nothing", nil, 4, 100, "    ", "    "},
		{"from the right", []float64{100}, 4, 100, "   █", "   #"},
		{"the newest", []float64{100, 100, 0, 50, 100}, 3, 100, "▁▅█", "_=#"},
		{"all heights", []float64{0, 1, 2, 3, 4, 5, 6, 7}, 8, 7, "▁▂▃▄▅▆▇█", "_.:-=+*#"},
		{"little is seen", []float64{0, 0.01}, 2, 100, "▁▂", "_."},
		{"above the top", []float64{500}, 1, 100, "█", "#"},
		{"below nothing", []float64{-5, math.Inf(-1), math.Inf(1)}, 3, 100, "▁▁█", "__#"},
		{"own top", []float64{1, 2, 4}, 3, 0, "▃▅█", ":=#"},
		{"all zero, own top", []float64{0, 0}, 2, 0, "▁▁", "__"},
		{"unknown", []float64{nan, 50, nan}, 3, 100, " ▅ ", " = "},
		{"no room", []float64{1}, 0, 1, "", ""},
		{"less than no room", []float64{1}, -3, 1, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := (&Term{utf8: true}).Spark(tc.values, tc.width, tc.top); got != tc.want {
				t.Errorf("spark %q, want %q", got, tc.want)
			}
			if got := (&Term{}).Spark(tc.values, tc.width, tc.top); got != tc.ascii {
				t.Errorf("spark in ASCII %q, want %q", got, tc.ascii)
			}
		})
	}
}

func TestLocale(t *testing.T) {
	for _, tc := range []struct {
		env  string
		want bool
	}{
		{"", false}, {"LANG=C", false}, {"LANG=en_US.UTF-8", true}, {"LANG=C.utf8", true}, {"LANG=de_DE", false},
		{"LC_ALL=C LANG=en_US.UTF-8", false}, {"LC_CTYPE=C.UTF-8 LANG=C", true}, {"LC_ALL=C.UTF-8 LC_CTYPE=C", true},
	} {
		got := utf8Locale(func(name string) string {
			for word := range strings.FieldsSeq(tc.env) {
				if value, ok := strings.CutPrefix(word, name+"="); ok {
					return value
				}
			}
			return ""
		})
		if got != tc.want {
			t.Errorf("%q: %v", tc.env, got)
		}
	}
}

// Columns come and go with the width; without a terminal they are always the same.
func TestColumnsByWidth(t *testing.T) {
	table := Table{
		Columns: []Column{
			{Title: "NAME"}, {Title: "STATE", Fixed: true}, {Title: "PID", Right: true, Fixed: true, Rank: 1},
			{Title: "LABELS", Rank: 2, Extra: true}, {Title: "NOTHING", Rank: 3, Extra: true},
		},
		Rows: [][]string{{"dev", "running", "7", "team=web", "-"}, {strings.Repeat("n", 30), "stopped", "12", "", ""}},
	}
	for width, want := range map[int]string{
		0:  "NAME STATE PID",
		20: "NAME STATE",
		33: "NAME STATE",
		34: "NAME STATE PID",
		44: "NAME STATE PID LABELS",
		99: "NAME STATE PID LABELS",
	} {
		term, out, _ := buffered(t, width)
		if err := term.Table(table); err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(out.String(), "\n")
		if got := strings.Join(strings.Fields(head), " "); got != want {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); width > 0 && n > width {
				t.Errorf("%d columns: a line has %d: %q", width, n, line)
			}
		}
	}
}

func TestRows(t *testing.T) {
	columns := []Column{{Title: "TIME", Least: 8}, {Title: "N", Right: true, Least: 3}, {Title: "MESSAGE"}}
	write := func(width int) string {
		term, out, _ := buffered(t, width)
		rows := term.Rows(columns)
		for _, err := range []error{
			rows.Header(), rows.Row("10:00:00", "1", "short"), rows.Row("10:00:00", "12345", strings.Repeat("x", 20)+"\x1b[31m\n"), rows.Row("10:00:00", "2", ""),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return out.String()
	}
	want := `
TIME        N  MESSAGE
10:00:00    1  short
10:00:00  12345  xxxxxxxxxxxxxxxxxxxx
10:00:00      2
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), write(0)); diff != "" {
		t.Error(diff)
	}
	want = `
TIME        N  MESSAGE
10:00:00    1  short
10:00:00  12345  xxxxxxx…
10:00:00      2
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), write(25)); diff != "" {
		t.Error(diff)
	}
	for line := range strings.Lines(write(12)) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 12 {
			t.Errorf("a line has %d characters: %q", n, line)
		}
	}
}

func TestJSONLine(t *testing.T) {
	term, out, _ := buffered(t, 0)
	if err := term.WriteJSONLine(map[string]any{"a": "\u009b", "b": []int{1}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("{\"a\":\"\\u009b\",\"b\":[1]}\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

// The terminal is taken over with the first frame and given back once, whoever closes.
func TestScreen(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 3, Cols: 40}); err != nil {
		t.Fatal(err)
	}
	term := New(Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(string) string { return "" }})
	if !term.Live() {
		t.Fatal("a terminal that cannot be drawn on")
	}
	s := term.Screen()
	if rows, cols := s.Size(); rows != 3 || cols != 40 {
		t.Errorf("size %d %d", rows, cols)
	}
	for _, err := range []error{s.Draw([]string{"one", "two"}), s.Draw([]string{"1", "2", "3", "4"})} {
		if err != nil {
			t.Error(err)
		}
	}
	s.Leave()
	s.Leave()
	if err := s.Draw([]string{"again"}); err != nil {
		t.Error(err)
	}
	term.Close()
	term.Close()
	if err := s.Draw([]string{"late"}); err != nil {
		t.Error(err)
	}
	tty.Close()
	got, _ := io.ReadAll(master) // ends with EIO
	const enter, leave = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
	want := enter + "\x1b[H\x1b[2Kone\r\r\n\x1b[2Ktwo\r\r\n\x1b[J" + "\x1b[H\x1b[2K1\r\r\n\x1b[2K2\r\r\n\x1b[2K3" + leave +
		enter + "\x1b[H\x1b[2Kagain\r\r\n\x1b[J" + leave
	if diff := cmp.Diff(want, string(got)); diff != "" { // the line discipline adds a \r to each \n
		t.Error(diff)
	}
}

func TestNothingLiveWithoutATerminal(t *testing.T) {
	term, _, _ := buffered(t, 80)
	if term.Live() {
		t.Error("a buffer can be drawn on")
	}
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	dumb := New(Config{Stdin: tty, Stdout: tty, Stderr: new(bytes.Buffer), Getenv: func(name string) string {
		return map[string]string{"TERM": "dumb"}[name]
	}})
	if dumb.Live() {
		t.Error("a dumb terminal can be drawn on")
	}
	plain := New(Config{Stdin: tty, Stdout: tty, Stderr: os.Stderr, Getenv: func(string) string { return "" }})
	plain.SetFormat(FormatJSON)
	if plain.Live() {
		t.Error("JSON is drawn")
	}
}
