package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agent"
	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
)

// fakeSystem is a machine that needs nothing.
type fakeSystem struct {
	configure func(agentwire.Config) (agentwire.Configured, error)
	shutdown  func(agentwire.Shutdown)
	ports     []agentwire.Port
	grow      func(agentwire.Grow) (agentwire.Grown, error)
	clock     func(agentwire.Clock)
	wake      func(agentwire.Wake)
	sync      error
}

func (f fakeSystem) Stats() (agentwire.Stats, error) { return agentwire.Stats{CPUMillis: 7}, nil }
func (f fakeSystem) Ports() (agentwire.Ports, error) { return agentwire.Ports{Ports: f.ports}, nil }

func (f fakeSystem) Grow(_ context.Context, g agentwire.Grow) (agentwire.Grown, error) {
	return f.grow(g)
}

func (f fakeSystem) SetClock(c agentwire.Clock) error { f.clock(c); return nil }
func (f fakeSystem) Sync() error                      { return f.sync }
func (f fakeSystem) Wake(_ context.Context, w agentwire.Wake) error {
	if f.wake != nil {
		f.wake(w)
	}
	return nil
}

func (f fakeSystem) Configure(_ context.Context, c agentwire.Config) (agentwire.Configured, error) {
	if f.configure == nil {
		return agentwire.Configured{}, nil
	}
	return f.configure(c)
}

func (f fakeSystem) Shutdown(s agentwire.Shutdown) {
	if f.shutdown != nil {
		f.shutdown(s)
	}
}

// connect starts a server in this process and returns a client on a mux over a socket pair, and the server's end.
func connect(t *testing.T, system agent.System) (*guest.Client, *guest.Mux) {
	t.Helper()
	server := agent.NewServer(agent.Config{System: system, Build: "test", Log: func(s string) { t.Log(s) }})
	host, inside := socketPair(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), inside) }()
	mux, err := guest.ConnectMux(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = mux.Close()
		<-served
		server.Close()
	})
	return guest.NewClient(mux), mux
}

// configured returns a client of a server that is ready for commands.
func configured(t *testing.T) (*guest.Client, *guest.Mux) {
	t.Helper()
	client, mux := connect(t, fakeSystem{})
	if _, err := client.Configure(t.Context(), agentwire.Config{Workdir: "/", Env: []string{"FROM=config", "A=1"}}); err != nil {
		t.Fatal(err)
	}
	return client, mux
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// outcome is everything that a command did.
type outcome struct {
	Stdout, Stderr string
	Code           int
	Signal         string
}

// collect reads a process to its end.
func collect(t *testing.T, p *guest.Process) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	for {
		ev, err := p.Next()
		if err != nil {
			t.Fatalf("next: %v", err)
		}
		stdout.Write(ev.Stdout)
		stderr.Write(ev.Stderr)
		if ev.Exited != nil {
			return outcome{stdout.String(), stderr.String(), ev.Exited.Code, ev.Exited.Signal}
		}
	}
}

func start(t *testing.T, c *guest.Client, s agentwire.ExecStart) *guest.Process {
	t.Helper()
	p, err := c.Exec(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestExecOutcomes(t *testing.T) {
	c, _ := configured(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo no interpreter line $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		exec agentwire.ExecStart
		want outcome
	}{
		{"true", agentwire.ExecStart{Argv: []string{"true"}}, outcome{}},
		{"code", agentwire.ExecStart{Argv: []string{"sh", "-c", "exit 7"}}, outcome{Code: 7}},
		{"signal", agentwire.ExecStart{Argv: []string{"sh", "-c", "kill -9 $$"}}, outcome{Code: 137, Signal: "SIGKILL"}},
		{"streams apart", agentwire.ExecStart{Argv: []string{"sh", "-c", "echo out; echo err >&2"}}, outcome{Stdout: "out\n", Stderr: "err\n"}},
		{"no stdin", agentwire.ExecStart{Argv: []string{"cat"}}, outcome{}},
		{"cwd", agentwire.ExecStart{Argv: []string{"pwd"}, Workdir: "/usr"}, outcome{Stdout: "/usr\n"}},
		{"default cwd", agentwire.ExecStart{Argv: []string{"pwd"}}, outcome{Stdout: "/\n"}},
		{
			"env",
			agentwire.ExecStart{Argv: []string{"sh", "-c", "echo $FROM $A $TERM."}, Env: []string{"FROM=request"}},
			outcome{Stdout: "request 1 .\n"},
		},
		{"path of request", agentwire.ExecStart{Argv: []string{"script", "x"}, Env: []string{"PATH=/nonexistent:" + filepath.Dir(script) + ":/bin"}}, outcome{Stdout: "no interpreter line x\n"}},
		{"relative", agentwire.ExecStart{Argv: []string{"./script"}, Workdir: filepath.Dir(script)}, outcome{Stdout: "no interpreter line\n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, collect(t, start(t, c, tc.exec))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExecRefusals(t *testing.T) {
	c, _ := configured(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "data")
	broken := filepath.Join(dir, "broken")
	for path, content := range map[string]string{file: "x", broken: "#!/nonexistent/interpreter\n"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(broken, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		exec agentwire.ExecStart
		want fault.Class
		text string
	}{
		{"unknown command", agentwire.ExecStart{Argv: []string{"no-such-command"}}, fault.NotFound, "command not found"},
		{"unknown file", agentwire.ExecStart{Argv: []string{"/no/such"}}, fault.NotFound, "no such file"},
		{"no interpreter", agentwire.ExecStart{Argv: []string{broken}}, fault.NotFound, "interpreter"},
		{"not executable", agentwire.ExecStart{Argv: []string{file}}, fault.Denied, "permission denied"},
		{"not executable in path", agentwire.ExecStart{Argv: []string{"data"}, Env: []string{"PATH=" + dir}}, fault.Denied, "permission denied"},
		{"directory", agentwire.ExecStart{Argv: []string{"/usr"}}, fault.Denied, "is a directory"},
		{"directory in path", agentwire.ExecStart{Argv: []string{"usr"}, Env: []string{"PATH=/"}}, fault.NotFound, "command not found"},
		{"empty", agentwire.ExecStart{Argv: []string{""}}, fault.Invalid, "empty"},
		{"nul", agentwire.ExecStart{Argv: []string{"echo", "a\x00b"}}, fault.Invalid, "echo"},
		{"workdir", agentwire.ExecStart{Argv: []string{"true"}, Workdir: "/no/such"}, fault.Invalid, "does not exist"},
		{"workdir a file", agentwire.ExecStart{Argv: []string{"true"}, Workdir: file}, fault.Invalid, "not a directory"},
		{"workdir relative", agentwire.ExecStart{Argv: []string{"true"}, Workdir: "tmp"}, fault.Invalid, "absolute"},
		{"user", agentwire.ExecStart{Argv: []string{"true"}, User: "nobody-knows"}, fault.Invalid, "does not exist"},
		{"group", agentwire.ExecStart{Argv: []string{"true"}, User: "0:nobody-knows"}, fault.Invalid, "does not exist"},
		{"env", agentwire.ExecStart{Argv: []string{"true"}, Env: []string{"X"}}, fault.Invalid, "KEY=VALUE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.Exec(t.Context(), tc.exec)
			if !fault.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("err = %v (%s), want %s with %q", err, fault.ClassOf(err), tc.want, tc.text)
			}
		})
	}
}

func TestExecAsOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: can only be refused")
		c, _ := configured(t)
		if _, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{"id"}, User: "12345"}); !fault.Is(err, fault.Denied) {
			t.Errorf("err = %v, want permission_denied", err)
		}
		return
	}
	c, _ := configured(t)
	got := collect(t, start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", "id -u; id -g; id -G"}, User: "12345:54321"}))
	if want := (outcome{Stdout: "12345\n54321\n54321\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{"true"}, User: "12345", Workdir: closed})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("closed working directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(closed, "tool"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{filepath.Join(closed, "tool")}, User: "12345"})
	if !fault.Is(err, fault.Denied) {
		t.Errorf("tool in a closed directory: %v", err)
	}
}

func TestExecEchoes64MiB(t *testing.T) {
	const size = 64 << 20
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"cat"}, Stdin: true})
	sent := sha256.New()
	wrote := make(chan error, 1)
	go func() {
		rng := rand.NewChaCha8([32]byte{1})
		buf := make([]byte, 100_000)
		for left := size; left > 0; {
			n := min(left, len(buf))
			_, _ = rng.Read(buf[:n])
			sent.Write(buf[:n])
			if err := p.WriteStdin(buf[:n]); err != nil {
				wrote <- err
				return
			}
			left -= n
		}
		wrote <- p.CloseStdin()
	}()
	received, n := sha256.New(), 0
	for {
		ev, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Exited != nil {
			break
		}
		received.Write(ev.Stdout)
		n += len(ev.Stdout)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if n != size || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("received %d bytes, or other ones", n)
	}
}

func TestExecHalfClose(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", "cat >/dev/null; echo after the end"}, Stdin: true})
	if err := p.WriteStdin([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := p.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, p); got.Stdout != "after the end\n" {
		t.Errorf("got %+v", got)
	}
	if err := p.WriteStdin([]byte("late")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing after the end: %v", err)
	}
}

func TestExecThatDoesNotReadStdinStillTakesSignals(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sleep", "60"}, Stdin: true})
	writer := make(chan error, 1)
	go func() { writer <- p.WriteStdin(make([]byte, 4<<20)) }()
	time.Sleep(50 * time.Millisecond)
	if err := p.Signal("TERM"); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, p); got.Signal != "SIGTERM" || got.Code != 143 {
		t.Errorf("got %+v", got)
	}
	if err := <-writer; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writer: %v", err)
	}
}

func TestExecThatClosesStdinDoesNotStopTheHost(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", "exec <&-; sleep 0.3; exit 4"}, Stdin: true})
	go func() { _ = p.WriteStdin(make([]byte, 4<<20)) }()
	if got := collect(t, p); got.Code != 4 {
		t.Errorf("got %+v", got)
	}
}

func TestExecBackgroundProcessDoesNotHang(t *testing.T) {
	c, _ := configured(t)
	for _, script := range []string{
		"sleep 30 & echo $!",
		"while :; do echo spam; done & echo $!",
		"(while :; do echo drip; sleep 0.05; done) & echo $!",
	} {
		t.Run(script, func(t *testing.T) {
			began := time.Now()
			got := collect(t, start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", script}}))
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			pid := 0
			for line := range strings.Lines(got.Stdout) {
				if n, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
					pid = n
				}
			}
			if pid == 0 {
				t.Fatal("no pid in the output")
			}
			time.Sleep(100 * time.Millisecond)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Errorf("the background process did not survive: %v", err)
			}
		})
	}
}

func TestExecTTY(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", "stty -echo; stty size; tty; read x; stty size; cat >/dev/null; exit 3"}, TTY: true, Rows: 30, Cols: 100, Env: []string{"TERM=dumb"}})
	out := expect(t, p, "/dev/pts/")
	if !strings.HasPrefix(out, "30 100\r\n") {
		t.Errorf("output %q", out)
	}
	if err := p.Resize(40, 120); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteStdin([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	expect(t, p, "40 120\r\n")
	if err := p.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, p); got.Code != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestExecTTYInterrupt(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; while :; do :; done"}, TTY: true})
	expect(t, p, "ready")
	if err := p.WriteStdin([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, p); got.Code != 5 || !strings.Contains(got.Stdout, "caught") {
		t.Errorf("got %+v", got)
	}
}

func TestExecLoginShell(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Stdin: true})
	if err := p.WriteStdin([]byte("echo $0; exit 9\n")); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, p); got.Code != 9 || !strings.HasPrefix(got.Stdout, "-") {
		t.Errorf("got %+v", got)
	}
}

// expect reads until the output contains want.
func expect(t *testing.T, p *guest.Process, want string) string {
	t.Helper()
	var out strings.Builder
	for !strings.Contains(out.String(), want) {
		ev, err := p.Next()
		if err != nil || ev.Exited != nil {
			t.Fatalf("waiting for %q: %v, %+v, got %q", want, err, ev.Exited, out.String())
		}
		out.Write(ev.Stdout)
	}
	return out.String()
}

func TestExecDisconnectKills(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script string
		tty    bool
		hangUp func(*guest.Mux, *guest.Process)
	}{
		{"process closed", "echo $$; sleep 60", false, func(_ *guest.Mux, p *guest.Process) { _ = p.Close() }},
		{"process closed, tty", "echo $$; sleep 60", true, func(_ *guest.Mux, p *guest.Process) { _ = p.Close() }},
		{"session lost", "echo $$; sleep 60", false, func(m *guest.Mux, _ *guest.Process) { _ = m.Close() }},
		{"deaf to SIGTERM", "trap '' TERM; echo $$; while :; do sleep 1; done", false, func(_ *guest.Mux, p *guest.Process) { _ = p.Close() }},
		{"output not read", "echo $$; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", false, func(_ *guest.Mux, p *guest.Process) {
			time.Sleep(300 * time.Millisecond)
			_ = p.Close()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, mux := configured(t)
			p := start(t, c, agentwire.ExecStart{Argv: []string{"sh", "-c", tc.script}, TTY: tc.tty})
			line, _, _ := strings.Cut(expect(t, p, "\n"), "\n")
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			if pid != p.Started.PID {
				t.Errorf("pid %d, want %d", p.Started.PID, pid)
			}
			tc.hangUp(mux, p)
			for deadline := time.Now().Add(40 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					_ = syscall.Kill(-pid, syscall.SIGKILL)
					t.Fatal("it still runs")
				}
			}
		})
	}
}

func TestProcessCloseWakesEverybody(t *testing.T) {
	c, _ := configured(t)
	p := start(t, c, agentwire.ExecStart{Argv: []string{"sleep", "60"}, Stdin: true})
	done := make(chan error, 2)
	go func() { _, err := p.Next(); done <- err }()
	go func() { done <- p.WriteStdin(make([]byte, 4<<20)) }()
	time.Sleep(50 * time.Millisecond)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("err = %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("somebody still waits")
		}
	}
}
