package test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// code runs banger without a terminal and returns its exit code and output.
func code(t *testing.T, vars []string, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(bangerFor(vars), args...)
	cmd.Env = vars
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Two terminals are attached to a shell; one detaches, one is killed, and the shell goes on.
func TestSessionInTerminals(t *testing.T) {
	vars := home(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev")
	if got := must(t, vars, "vm", "exec", "-d", "-t", "--name", "shell", "-e", "PS1=inside: ", "dev", "--", "sh", "-i"); got != "shell" {
		t.Errorf("%q", got)
	}
	a := open(t, vars, "session", "attach", "dev", "shell")
	a.see("ctrl-p ctrl-q detaches")
	a.send("x=5; stty size; tty\r")
	a.see("40 100")
	a.see("/dev/pts/")
	b := open(t, vars, "session", "attach", "shell")
	b.see("/dev/pts/") // of before
	b.send("echo $((x+1))00\r")
	a.see("600")
	b.see("600")
	if err := pty.Setsize(b.tty, &pty.Winsize{Rows: 25, Cols: 81}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		b.send("stty size\r")
		time.Sleep(50 * time.Millisecond)
		if strings.Contains(a.contents(), "25 81") { // the last one wins
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the size does not change: %q", a.contents())
		}
	}
	// A key that could begin to detach goes on with the next one.
	a.send("printf 'mode\\033[?25l'\r")
	a.see("mode\x1b[?25l")
	a.send("echo lo\x10\x15echo long\x11\r")
	a.see("long")
	a.send("\x10\x11")
	a.see("\x1b[?25h")
	a.see("detached; session shell of vm dev goes on")
	a.see("banger session attach dev shell")
	if got := a.exit(); got != 0 {
		t.Errorf("detach is %d", got)
	}
	_ = b.cmd.Process.Kill()
	b.exit()

	c := open(t, vars, "session", "attach", "--detach-keys", "ctrl-b,d", "dev", "shell")
	c.see("ctrl-b d detaches")
	c.send("echo $((x+2))00\r")
	c.see("700")
	c.send("exit 3\r")
	c.see("session shell of vm dev has ended with exit code 3")
	if got := c.exit(); got != 3 {
		t.Errorf("the end of the shell is %d", got)
	}
	if got, out := code(t, vars, "session", "attach", "dev", "shell"); got != 3 || !strings.Contains(out, "700") {
		t.Errorf("attached after the end: %d, %q", got, out)
	}
}

// Of a session without a terminal ^C detaches, and lines are its input.
func TestSessionWithoutTerminal(t *testing.T) {
	vars := home(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev")
	must(t, vars, "exec", "-d", "-i", "--name", "lines", "dev", "--", "sh", "-c", `while read x; do echo "<$x>"; done`)
	s := open(t, vars, "session", "attach", "lines")
	s.see("^C detaches")
	s.send("one\r")
	s.see("<one>")
	s.send("\x03")
	s.see("detached; session lines of vm dev goes on")
	if got := s.exit(); got != 130 {
		t.Errorf("^C is %d", got)
	}
	s = open(t, vars, "session", "attach", "lines")
	s.see("<one>")
	must(t, vars, "vm", "suspend", "dev")
	s.see("vm dev was suspended; its session lines goes on when it is resumed")
	if got := s.exit(); got != 248 {
		t.Errorf("a suspend is %d", got)
	}
}

// number is the last whole number that a session that counts has written.
func number(t *testing.T, vars []string) int {
	t.Helper()
	lines := strings.Fields(must(t, vars, "session", "logs", "--tail", "2", "dev", "counter"))
	if len(lines) == 0 {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimPrefix(lines[0], "n="))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A process that counts in the memory of a terminal's session goes on where it was after a suspend, and the session can be
// attached again.
func TestRealSession(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	must(t, vars, "exec", "-d", "-t", "--name", "counter", "dev", "--", "perl", "-e",
		`$|=1; $SIG{INT}=sub{print "still here\n"}; $n=0; while (1) { print "n=", $n++, "\n"; select(undef, undef, undef, 0.1) }`)
	s := open(t, vars, "session", "attach", "dev", "counter")
	s.see("n=1\r\n")
	s.see("n=5\r\n")
	s.send("\x10\x11")
	s.see("banger session attach dev counter")
	if got := s.exit(); got != 0 {
		t.Errorf("detach is %d", got)
	}
	before := number(t, vars)
	if before < 4 {
		t.Errorf("it has counted to %d", before)
	}
	s = open(t, vars, "session", "attach", "dev", "counter")
	s.see("n=" + strconv.Itoa(before))
	must(t, vars, "vm", "suspend", "dev")
	s.see("vm dev was suspended; its session counter goes on when it is resumed")
	if got := s.exit(); got != 248 {
		t.Errorf("a suspend is %d", got)
	}
	if st := show(t, vars, "dev"); st.State != "suspended" {
		t.Fatalf("%+v", st)
	}
	s = open(t, vars, "session", "attach", "dev", "counter") // resumes it
	after := before + 10
	s.see("n=" + strconv.Itoa(after) + "\r\n")
	if got := number(t, vars); got < after-1 {
		t.Errorf("it counts %d after %d", got, after)
	}
	if text := must(t, vars, "session", "logs", "dev", "counter"); strings.Count(text, "n=0\r\n") > 1 {
		t.Errorf("it began anew: %q", text)
	}
	s.send("\x03") // the terminal is a real one
	s.see("still here")
	if list := must(t, vars, "session", "list", "dev"); !strings.Contains(list, "counter  running") {
		t.Errorf("%s", list)
	}
	must(t, vars, "session", "stop", "dev", "counter")
	s.see("session counter of vm dev has ended")
	if got := s.exit(); got != 129 {
		t.Errorf("the end by SIGHUP is %d", got)
	}
	flood(t, vars)
}

// flood has a session write as fast as it can while its client does not read.
func flood(t *testing.T, vars []string) {
	t.Helper()
	must(t, vars, "exec", "-d", "--name", "flood", "dev", "--", "sh", "-c", "yes 0123456789abcdef | head -c 10000000; exit 6")
	cmd := exec.Command(bangerFor(vars), "session", "attach", "--no-stdin", "dev", "flood")
	cmd.Env = vars
	out, err := cmd.StdoutPipe() // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = out.Close()
		_ = cmd.Wait()
	}()
	if got, text := code(t, vars, "session", "wait", "--timeout", "90s", "dev", "flood"); got != 6 {
		t.Errorf("the session was held up: %d, %s", got, text)
	}
	if got := inGuest(t, vars, "dev", "echo fine"); got != "fine" {
		t.Errorf("%q", got)
	}
}
