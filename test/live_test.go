package test

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// stats --watch takes the terminal over, follows its size and the VMs that there are, and gives it back as it was.
func TestStatsScreen(t *testing.T) {
	vars := append(home(t), "LC_ALL=C.UTF-8")
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	s := open(t, vars, "vm", "stats", "--watch", "--interval", "200ms")
	before := termios(t, s.tty)
	s.see("\x1b[?1049h")
	s.see("1 vm")
	s.see("LOAD\r")
	s.see("dev ")
	s.see("▁")
	if strings.Contains(s.contents(), "MEMORY HISTORY") {
		t.Error("too much for 100 columns")
	}
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 25, Cols: 200}); err != nil {
		t.Fatal(err)
	}
	s.see("MEMORY HISTORY")
	if _, err := banger(vars, "vm", "create", "--name", "two"); err != nil {
		t.Fatal(err)
	}
	s.see("2 vms")
	s.see("two ")
	if _, err := banger(vars, "daemon", "stop"); err != nil {
		t.Fatal(err)
	}
	s.see("the daemon does not answer")
	if _, err := banger(vars, "vm", "stop", "--all"); err != nil { // starts the next daemon
		t.Fatal(err)
	}
	s.see("no vm runs")
	s.send("\x03")
	if code := s.exit(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	s.see("\x1b[?25h\x1b[?1049l")
	if rest := strings.TrimSpace(s.rest()); rest != "" {
		t.Errorf("after the screen: %q", rest)
	}
	if after := termios(t, s.tty); after != before {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// The screen is given back while banger is stopped, and taken again when it goes on.
func TestStatsScreenStopped(t *testing.T) {
	vars := append(home(t), "LC_ALL=C")
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	s := open(t, vars, "vm", "stats", "--watch")
	s.see("dev ")
	s.see("_") // ASCII, as the locale says
	_ = s.cmd.Process.Signal(syscall.SIGTSTP)
	s.see("\x1b[?1049l")
	_ = s.cmd.Process.Signal(syscall.SIGCONT)
	s.see("\x1b[?1049h")
	s.see("dev ")
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.exit(); code != 143 {
		t.Errorf("exit code %d", code)
	}
}

// A signal reaches a command that does not read an input without end; a second one is for banger.
func TestSignalPastUnreadInput(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		script string
		code   int
	}{
		"taken":   {`trap "exit 9" INT; echo up; sleep 60 & wait; wait`, 9},
		"ignored": {`trap "" INT; echo up; sleep 60`, 130},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("banger", "exec", "dev", "--", "sh", "-c", tc.script)
			cmd.Env = vars
			cmd.Stdin = repeating(bytes.Repeat([]byte("y\n"), 32<<10))
			cmd.WaitDelay = time.Second
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // until the input is held up
			began := time.Now()
			_ = cmd.Process.Signal(syscall.SIGINT)
			ended := make(chan struct{})
			if tc.code == 130 {
				go func() { // more than one: two that are pending at the same time are one
					for {
						select {
						case <-ended:
							return
						case <-time.After(100 * time.Millisecond):
							_ = cmd.Process.Signal(syscall.SIGINT)
						}
					}
				}()
			}
			err = cmd.Wait()
			close(ended)
			var exit *exec.ExitError
			if took := time.Since(began); !errors.As(err, &exit) || exit.ExitCode() != tc.code || took > 30*time.Second {
				t.Errorf("ended after %s with %v, want %d", took, err, tc.code)
			}
		})
	}
}
