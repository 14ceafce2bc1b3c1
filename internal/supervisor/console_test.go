package supervisor

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
)

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", path, info.Mode())
	}
	return info.Size()
}

func TestConsoleIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	const limit = 10_000
	c := newConsole(path, limit, slog.New(slog.DiscardHandler))
	var all bytes.Buffer
	for i := range 5000 {
		line := fmt.Sprintf("line %d\n", i)
		if i%1000 == 0 {
			line = strings.Repeat("x", 2*limit+i) + "\n" // larger than the file may be
		}
		all.WriteString(line)
		if n, err := io.WriteString(c, line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if a, b := size(t, path), size(t, path+".1"); a > limit || b > limit {
			t.Fatalf("%d and %d bytes", a, b)
		}
	}
	c.Close()
	io.WriteString(c, "after the end")
	older, _ := os.ReadFile(path + ".1")
	newer, _ := os.ReadFile(path)
	if got := append(older, newer...); len(older) != limit || !bytes.HasSuffix(all.Bytes(), got) {
		t.Errorf("the files hold %d+%d bytes, which are not the end of what was written", len(older), len(newer))
	}
}

func TestConsoleGoesOnWhereTheLastRunEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 2 {
		c := newConsole(path, 1<<20, slog.New(slog.DiscardHandler))
		c.begin(1, now)
		io.WriteString(c, "cut o")
		c.begin(2, now)
		if got := c.end.lines(5); len(got) != 0 {
			t.Errorf("tail of the attempt before: %q", got)
		}
		fmt.Fprintf(c, "run %d\n", i)
		c.Close()
	}
	got, err := os.ReadFile(path)
	const start = "--- banger: start at 2026-01-02T03:04:05Z, attempt "
	want := ""
	for _, run := range []string{"0", "1"} {
		want += start + "1 ---\ncut o\n" + start + "2 ---\nrun " + run + "\n"
	}
	if err != nil || string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestConsoleNeverFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	var logged bytes.Buffer
	c := newConsole(filepath.Join(dir, "console.log"), 100, slog.New(slog.NewTextHandler(&logged, nil)))
	for range 3 {
		if n, err := io.WriteString(c, "lost\n"); n != 5 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if got := strings.Count(logged.String(), "loses output"); got != 1 {
		t.Errorf("said so %d times", got)
	}
	os.Mkdir(dir, 0o700)
	io.WriteString(c, "kept\n")
	c.Close()
	if got, err := os.ReadFile(filepath.Join(dir, "console.log")); err != nil || string(got) != "kept\n" {
		t.Errorf("%q, %v", got, err)
	}
	if got := c.end.lines(10); len(got) != 4 {
		t.Errorf("tail %q", got)
	}
}

func FuzzTailIsFitForATerminal(f *testing.F) {
	f.Add([]byte("plain\nlines\n"))
	f.Add([]byte("\x1b]0;title\x07\x9b31m\xff\xfe\u202e\r\r\n\x00"))
	f.Add(bytes.Repeat([]byte("é"), 10_000))
	f.Fuzz(func(t *testing.T, data []byte) {
		var tl tail
		tl.write(data)
		tl.write(data)
		if len(tl.buf) > 2*tailSize {
			t.Fatalf("%d bytes are kept", len(tl.buf))
		}
		for _, line := range tl.lines(3) {
			if n := len([]rune(line)); n > 160 || n == 0 {
				t.Fatalf("a line of %d characters", n)
			}
			for _, r := range line {
				if !unicode.IsPrint(r) {
					t.Fatalf("%q has %U", line, r)
				}
			}
		}
	})
}

func TestWhatTheVMMSaysIsBounded(t *testing.T) {
	var logged bytes.Buffer
	l := &vmmLog{log: slog.New(slog.NewTextHandler(&logged, nil))}
	io.WriteString(l, "fake: war")
	io.WriteString(l, "ning\n\n")
	if got := logged.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"fake: warning"`) {
		t.Errorf("log %q", got)
	}
	for range 3 * maxLogLines {
		io.WriteString(l, strings.Repeat("guest error ", 200)+"\n")
	}
	if got := strings.Count(logged.String(), "\n"); got != maxLogLines+1 {
		t.Errorf("%d lines in the log", got)
	}
}
