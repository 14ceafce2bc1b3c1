package test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// home gives a test a BANGER_HOME like those of the scripts, and the environment for it.
func home(t *testing.T) (vars []string) {
	t.Helper()
	dir, err := newHome()
	if err != nil {
		t.Fatal(err)
	}
	vars = append(os.Environ(), "BANGER_HOME="+dir, "HOME="+dir, "SHELL=/bin/sh", "TERM=xterm", "ENV=", "PS1=ready$ ")
	t.Cleanup(func() {
		if err := tearDown(dir, vars); err != nil {
			t.Error("left behind:", err)
		}
	})
	return vars
}

// screen is a terminal with banger in it.
type screen struct {
	t    *testing.T
	tty  *os.File // the user's end
	cmd  *exec.Cmd
	done chan struct{} // closed when nothing more comes

	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// open runs banger in a terminal of 40 rows and 100 columns.
func open(t *testing.T, vars []string, args ...string) *screen {
	t.Helper()
	cmd := exec.Command(bangerFor(vars), args...)
	cmd.Env = vars
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, tty: tty, cmd: cmd, done: make(chan struct{})}
	go func() { // ends when the terminal is closed at either end
		defer close(s.done)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		tty.Close()
		<-s.done
	})
	return s
}

func (s *screen) send(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.tty, keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) contents() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// see waits until the terminal shows want after what an earlier see has found.
func (s *screen) see(want string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		i := bytes.Index(s.text.Bytes(), []byte(want))
		if i >= 0 {
			s.text.Next(i + len(want))
		}
		s.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no %q in %q", want, s.contents())
		}
	}
}

// sees types the keys again and again until the terminal shows want: signals and keys take ways of their own.
func (s *screen) sees(want, keys string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(s.contents(), want); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no %q in %q", want, s.contents())
		}
		s.send(keys)
	}
	s.see(want)
}

// rest waits until nothing more comes and returns what no see has found.
func (s *screen) rest() string {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Fatalf("the terminal is still open, it shows %q", s.contents())
	}
	return s.contents()
}

// exit waits for the end and returns the exit code.
func (s *screen) exit() int {
	s.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	select {
	case err := <-ended:
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode()
		} else if err != nil {
			s.t.Fatal(err)
		}
		return 0
	case <-time.After(patience):
		s.t.Fatalf("banger does not end; the terminal shows %q", s.contents())
		return -1
	}
}

func TestInteractiveShell(t *testing.T) {
	vars := home(t)
	s := open(t, vars, "vm", "run", "--rm", "--name", "dev")
	s.send("tty; stty size; echo $TERM\r")
	s.see("/dev/pts/")
	s.see("40 100")
	s.see("xterm")
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 25, Cols: 81}); err != nil {
		t.Fatal(err)
	}
	s.sees("25 81", "stty size\r")
	s.send("sh -c 'echo on$((1+1)); exec sleep 100'\r")
	s.see("on2")
	s.send("\x03")
	s.send("echo interrupted=$?\r")
	s.see("interrupted=130")
	s.send("exit 7\r")
	if code := s.exit(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if names, err := banger(vars, "vm", "list", "-q"); err != nil || names != "" {
		t.Errorf("left: %q, %v", names, err)
	}
}

// The modes of the terminal are the same after a session as before, however it ended.
func TestTerminalIsRestored(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(*screen){
		"exit": func(s *screen) { s.send("exit\r") },
		"eof": func(s *screen) { // again and again: the shell drops what was typed before it reads the line
			for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
				_, _ = io.WriteString(s.tty, "\x04")
				select {
				case <-s.done:
					return
				case <-time.After(200 * time.Millisecond):
				}
			}
		},
		"SIGTERM": func(s *screen) { _ = s.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(s *screen) { _ = s.cmd.Process.Signal(syscall.SIGHUP) },
		"vm gone": func(*screen) { _, _ = banger(vars, "vm", "kill", "dev") },
		"SIGINT":  func(s *screen) { _ = s.cmd.Process.Signal(syscall.SIGINT) },
	} {
		t.Run(name, func(t *testing.T) {
			_, _ = banger(vars, "vm", "start", "dev") // runs already but for once
			s := open(t, vars, "exec", "dev")
			before := termios(t, s.tty)
			s.send("echo up$((1+1))\r")
			s.see("up2")
			if termios(t, s.tty) == before {
				t.Error("not in raw mode")
			}
			end(s)
			s.exit()
			if after := termios(t, s.tty); after != before {
				t.Errorf("before %+v\nafter  %+v", before, after)
			}
		})
	}
}

func termios(t *testing.T, tty *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

// When the terminal is closed, run --rm removes its vm.
func TestClosedTerminalRemoves(t *testing.T) {
	vars := home(t)
	cmd := exec.Command("banger", "run", "--rm", "--name", "dev")
	cmd.Env = vars
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tty, "echo up$((1+1))\r"); err != nil {
		t.Fatal(err)
	}
	// Read here and not in a goroutine: a read that waits would keep the terminal open.
	var text []byte
	for buf := make([]byte, 4096); !bytes.Contains(text, []byte("up2")); {
		n, err := tty.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, buf[:n]...)
	}
	tty.Close()
	time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 128+int(syscall.SIGHUP) {
		t.Errorf("ended with %v", err)
	}
	if names, err := banger(vars, "vm", "list", "-q"); err != nil || names != "" {
		t.Errorf("left: %q, %v", names, err)
	}
}

// ^C while the image is pulled cancels and leaves nothing; the cursor is shown again.
func TestInterruptDuringCreate(t *testing.T) {
	vars := home(t)
	s := open(t, vars, "run", "--name", "dev", "--image", "slower-image")
	s.see("fetching slowly")
	s.send("\x03")
	if code := s.exit(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	text := s.rest()
	if !strings.Contains(text, "interrupted") || strings.Count(text, "\x1b[?25l") > strings.Count(text, "\x1b[?25h") {
		t.Errorf("the terminal shows %q", text)
	}
	if names, err := banger(vars, "vm", "list", "-q"); err != nil || names != "" {
		t.Errorf("left: %q, %v", names, err)
	}
}

// A command with a terminal gets one; --no-tty and pipes do not give it one.
func TestWhoGetsATerminal(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	test := "test -t 0 && echo has-tty || echo no-tty"
	s := open(t, vars, "exec", "dev", "--", "sh", "-c", test)
	s.see("has-tty")
	s = open(t, vars, "exec", "--no-tty", "dev", "--", "sh", "-c", test)
	s.see("no-tty")
	for _, tc := range []struct{ flag, want string }{{"--no-tty", "no-tty"}, {"--tty", "has-tty"}} {
		out, err := banger(vars, "exec", tc.flag, "dev", "--", "sh", "-c", test)
		if err != nil || strings.TrimSpace(out) != tc.want {
			t.Errorf("%s in a pipe: %q, %v", tc.flag, out, err)
		}
	}
}

// A job in the background of a terminal runs to its end: it neither reads from the terminal nor changes its modes,
// which would stop it.
func TestBackgroundJob(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-m", "-c", "banger exec dev -- sh -c 'cat; echo job-ran' & wait $!; echo code=$?")
	cmd.Env = vars
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	text, _ := io.ReadAll(tty) // ends with EIO when the terminal is closed
	if err := cmd.Wait(); err != nil || !bytes.Contains(text, []byte("job-ran")) || !bytes.Contains(text, []byte("code=0")) {
		t.Errorf("%v: %q", err, text)
	}
}

// 64 MiB go through a command on stdin and come back unchanged.
func TestBulkRoundTrip(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7 >> 3)
	}
	cmd := exec.Command("banger", "exec", "dev", "--", "cat")
	cmd.Env = vars
	cmd.Stdin = io.LimitReader(repeating(block), size)
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, io.LimitReader(repeating(block), size)); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = got
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("64 MiB both ways in %s", time.Since(began).Round(time.Millisecond))
	if fmt.Sprintf("%x", want.Sum(nil)) != fmt.Sprintf("%x", got.Sum(nil)) {
		t.Error("what came back is something else")
	}
}

type repeating []byte

func (r repeating) Read(p []byte) (int, error) { return copy(p, r), nil }

// When whoever reads our output goes away, the command ends and run --rm removes the vm.
func TestReaderGoesAway(t *testing.T) {
	vars := home(t)
	cmd := exec.Command("sh", "-c", "banger run --rm -- yes | head -n 1")
	cmd.Env = vars
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "y\n" {
		t.Errorf("%q, %v", out, err)
	}
	if names, err := banger(vars, "vm", "list", "-q"); err != nil || names != "" {
		t.Errorf("left: %q, %v", names, err)
	}
}

// A command that does not read its input cannot hold up banger: the signal gives up after a moment.
func TestSignalBehindUnreadInput(t *testing.T) {
	vars := home(t)
	if _, err := banger(vars, "vm", "create", "--name", "dev"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("banger", "exec", "dev", "--", "sleep", "60")
	cmd.Env = vars
	cmd.Stdin = repeating(bytes.Repeat([]byte("y\n"), 32<<10))
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if took := time.Since(began); took > 30*time.Second || cmd.ProcessState.ExitCode() == 0 {
		t.Errorf("ended after %s with %s", took, cmd.ProcessState)
	}
}
