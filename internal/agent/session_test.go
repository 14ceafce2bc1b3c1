package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/agent"
	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
)

// begin starts a session of a shell.
func begin(t *testing.T, c *guest.Client, script string, change ...func(*agentwire.SessionStart)) agentwire.Session {
	t.Helper()
	start := agentwire.SessionStart{ExecStart: agentwire.ExecStart{Argv: []string{"sh", "-c", script}}}
	for _, f := range change {
		f(&start)
	}
	s, err := c.StartSession(t.Context(), start)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func withTTY(s *agentwire.SessionStart)   { s.TTY = true }
func withStdin(s *agentwire.SessionStart) { s.Stdin = true }
func named(name string) func(*agentwire.SessionStart) {
	return func(s *agentwire.SessionStart) { s.Name = name }
}

// everything follows a session from its beginning.
func everything(id string) agentwire.SessionAttach {
	return agentwire.SessionAttach{ID: id, Bytes: -1, Lines: -1, Follow: true, Stdin: true}
}

func attach(t *testing.T, c *guest.Client, a agentwire.SessionAttach) *guest.Process {
	t.Helper()
	p, s, err := c.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != a.ID {
		t.Errorf("attached to session %s, wanted %s", s.ID, a.ID)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// seen reads until want has come.
func seen(t *testing.T, p *guest.Process, want string) string {
	t.Helper()
	got := ""
	for !strings.Contains(got, want) {
		ev, err := p.Next()
		if err != nil || ev.Exited != nil || ev.Over != "" {
			t.Fatalf("no %q in %q: %+v, %v", want, got, ev, err)
		}
		got += string(ev.Stdout) + string(ev.Stderr)
		got = got[max(0, len(got)-10_000):]
	}
	return got
}

func sessionOf(t *testing.T, c *guest.Client, id string) agentwire.Session {
	t.Helper()
	all, err := c.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("no session %s in %+v", id, all)
	return agentwire.Session{}
}

// ended waits for the end of a session.
func ended(t *testing.T, c *guest.Client, id string) agentwire.Session {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if s := sessionOf(t, c, id); s.Exited != nil {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("session %s does not end", id)
		}
	}
}

// A session goes on when the connection that started it ends, and can be found by the next one.
func TestSessionOutlivesItsClient(t *testing.T) {
	server := agent.NewServer(agent.Config{System: fakeSystem{}, Configured: &agentwire.Config{Workdir: "/"}, Log: func(s string) { t.Log(s) }})
	t.Cleanup(server.Close)
	dial := func() (*guest.Client, func()) {
		host, inside := socketPair(t)
		served := make(chan error, 1)
		go func() { served <- server.Serve(context.Background(), inside) }()
		mux, err := guest.ConnectMux(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		return guest.NewClient(mux), func() { _ = mux.Close(); <-served }
	}
	for _, kind := range []func(*agentwire.SessionStart){withTTY, withStdin} {
		c, hangUp := dial()
		s := begin(t, c, `n=0; while read x; do n=$((n+1)); echo "n is $n"; done; exit 7`, kind, named("counter"))
		p, _, err := c.Attach(t.Context(), everything(s.ID))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WriteStdin([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		seen(t, p, "n is 1")
		if got := sessionOf(t, c, s.ID); got.Attached != 1 || got.Name != "counter" || got.PID != s.PID || got.StartedUnix == 0 || got.Output == 0 {
			t.Errorf("%+v", got)
		}
		hangUp()

		c, hangUp = dial()
		p = attach(t, c, everything(s.ID))
		seen(t, p, "n is 1") // of before
		if err := c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, Data: []byte("\n")}); err != nil {
			t.Fatal(err)
		}
		seen(t, p, "n is 2")
		if err := c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, EOF: true}); err != nil {
			t.Fatal(err)
		}
		if got := collect(t, p); got.Code != 7 {
			t.Errorf("%+v", got)
		}
		if got := ended(t, c, s.ID); got.Exited.Code != 7 || got.EndedUnix < got.StartedUnix {
			t.Errorf("%+v", got)
		}
		if err := c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, Data: []byte("x")}); !fault.Is(err, fault.Conflict) {
			t.Errorf("input after the end: %v", err)
		}
		hangUp()
	}
}

func TestSeveralAreAttached(t *testing.T) {
	c, _ := configured(t)
	s := begin(t, c, `stty -echo; while read x; do echo "got $x of $(stty size)"; done`, withTTY)
	a, b := attach(t, c, everything(s.ID)), attach(t, c, everything(s.ID))
	for i, from := range []*guest.Process{a, b, a} {
		if err := from.Resize(uint16(30+i), 90); err != nil {
			t.Fatal(err)
		}
		// Signals and sizes are not ordered with other streams; this one's input comes after its size.
		line := "line" + strconv.Itoa(i)
		if err := from.WriteStdin([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("got %s of %d 90", line, 30+i)
		seen(t, a, want)
		seen(t, b, want)
	}
	// The end of one's input is not the end of the session's, nor is the end of its stream.
	if err := a.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	if err := b.WriteStdin([]byte("still\n")); err != nil {
		t.Fatal(err)
	}
	seen(t, b, "got still")
	if _, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: s.ID, GraceMillis: 60_000}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, b); got.Signal != "SIGHUP" {
		t.Errorf("%+v", got)
	}
}

// A client that does not read holds up neither the session nor another client, and is told what it missed.
func TestClientThatDoesNotRead(t *testing.T) {
	c, _ := configured(t)
	done := filepath.Join(t.TempDir(), "done")
	s := begin(t, c, `read go; yes 0123456789abcdef | head -c 20000000; echo; echo the end; touch `+done+`; read end`, withStdin)
	hung := attach(t, c, everything(s.ID)) // is not read from until the end
	reader := attach(t, c, everything(s.ID))
	if err := c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, Data: []byte("\n")}); err != nil {
		t.Fatal(err)
	}
	seen(t, reader, "the end")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(done); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the session was held up")
		}
	}
	var got, dropped uint64
	var tail []byte
	for !bytes.Contains(tail, []byte("the end")) {
		ev, err := hung.Next()
		if err != nil || ev.Exited != nil {
			t.Fatalf("%+v, %v", ev, err)
		}
		got += uint64(len(ev.Stdout))
		dropped += ev.Dropped
		tail = append(tail, ev.Stdout...)
		tail = tail[max(0, len(tail)-100):]
	}
	if total := sessionOf(t, c, s.ID).Output; got+dropped != total || total < 20_000_000 || dropped == 0 {
		t.Errorf("%d bytes came and %d were dropped of %d", got, dropped, total)
	}
}

// A command that does not read its input holds up nobody.
func TestSessionThatDoesNotRead(t *testing.T) {
	c, _ := configured(t)
	s := begin(t, c, `echo started; sleep 100`, withStdin)
	p := attach(t, c, everything(s.ID))
	seen(t, p, "started")
	wrote := make(chan error, 1)
	go func() { wrote <- p.WriteStdin(make([]byte, 2*agentwire.StdinWindow)) }()
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	_ = p.Close()
	if err := <-wrote; err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	var err error
	for range 8 { // there is room for some
		if err = c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, Data: make([]byte, agentwire.MaxSessionWrite)}); err != nil {
			break
		}
	}
	if !fault.Is(err, fault.Timeout) {
		t.Errorf("%v", err)
	}
	if got, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: s.ID, GraceMillis: 60_000}); err != nil || got.Exited.Signal != "SIGTERM" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestStopSession(t *testing.T) {
	c, _ := configured(t)
	stubborn := begin(t, c, `trap "echo no" TERM INT; echo ready; while :; do sleep 0.05; done`)
	seen(t, attach(t, c, everything(stubborn.ID)), "ready")
	began := time.Now()
	got, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: stubborn.ID, GraceMillis: 300})
	if err != nil || got.Exited == nil || got.Exited.Signal != "SIGKILL" || time.Since(began) < 300*time.Millisecond {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: stubborn.ID}); err != nil || got.Exited.Code != 137 {
		t.Errorf("stopped again: %+v, %v", got, err)
	}
	chosen := begin(t, c, `trap "exit 3" USR1; echo ready; while :; do :; done`)
	seen(t, attach(t, c, everything(chosen.ID)), "ready")
	if got, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: chosen.ID, Signal: "USR1", GraceMillis: 60_000}); err != nil || got.Exited.Code != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: chosen.ID, Signal: "NOPE"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	shell := begin(t, c, `exec sh -i`, withTTY)
	if got, err := c.StopSession(t.Context(), agentwire.SessionStop{ID: shell.ID, GraceMillis: 60_000}); err != nil || got.Exited == nil || got.Exited.Signal == "SIGKILL" {
		t.Errorf("an interactive shell: %+v, %v", got, err)
	}
}

func TestRemoveSession(t *testing.T) {
	c, _ := configured(t)
	s := begin(t, c, `echo ready; sleep 100`)
	p := attach(t, c, everything(s.ID))
	seen(t, p, "ready")
	if err := c.RemoveSession(t.Context(), agentwire.SessionRemove{ID: s.ID}); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	if err := c.RemoveSession(t.Context(), agentwire.SessionRemove{ID: s.ID, Force: true}); err != nil {
		t.Error(err)
	}
	if ev, err := p.Next(); err != nil || (ev.Over != agentwire.OverRemoved && ev.Exited == nil) {
		t.Errorf("%+v, %v", ev, err)
	}
	if err := syscall.Kill(s.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process: %v", err)
	}
	for _, err := range []error{
		c.RemoveSession(t.Context(), agentwire.SessionRemove{ID: s.ID}), c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID}),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%v", err)
		}
	}
}

func TestLogsOfSession(t *testing.T) {
	c, _ := configured(t)
	// Two pipes have no order between them: what comes on one is seen before anything is written to the other.
	s := begin(t, c, `echo one; read x; echo two >&2; read x; echo three; echo ready; read x`, withStdin)
	p := attach(t, c, everything(s.ID))
	for _, want := range []string{"one", "two"} {
		seen(t, p, want)
		if err := c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, Data: []byte("\n")}); err != nil {
			t.Fatal(err)
		}
	}
	seen(t, p, "ready")
	read := func(lines int) (stdout, stderr string) {
		t.Helper()
		p := attach(t, c, agentwire.SessionAttach{ID: s.ID, Bytes: -1, Lines: lines})
		for {
			ev, err := p.Next()
			if err != nil || ev.Exited != nil {
				t.Fatalf("%+v, %v", ev, err)
			}
			if ev.Over != "" {
				return stdout, stderr
			}
			stdout, stderr = stdout+string(ev.Stdout), stderr+string(ev.Stderr)
		}
	}
	for range 2 { // of one that runs and of one that has ended
		if stdout, stderr := read(-1); stdout != "one\nthree\nready\n" || stderr != "two\n" {
			t.Errorf("%q, %q", stdout, stderr)
		}
		if stdout, stderr := read(2); stdout != "three\nready\n" || stderr != "" {
			t.Errorf("%q, %q", stdout, stderr)
		}
		_ = c.WriteSession(t.Context(), agentwire.SessionWrite{ID: s.ID, EOF: true})
		ended(t, c, s.ID)
	}
}

func TestLimitsOfSessions(t *testing.T) {
	c, _ := configured(t)
	var first agentwire.Session
	for i := range agentwire.MaxSessions {
		if s := begin(t, c, "read x", withStdin, named("s"+strconv.Itoa(i))); i == 0 {
			first = s
		}
	}
	start := agentwire.SessionStart{ExecStart: agentwire.ExecStart{Argv: []string{"true"}}}
	if _, err := c.StartSession(t.Context(), start); !fault.Is(err, fault.Exhausted) {
		t.Errorf("one more: %v", err)
	}
	start.Name = "s5"
	if _, err := c.StartSession(t.Context(), start); !fault.Is(err, fault.Exists) {
		t.Errorf("the same name: %v", err)
	}
	_ = c.WriteSession(t.Context(), agentwire.SessionWrite{ID: first.ID, EOF: true})
	ended(t, c, first.ID)
	for i := range agentwire.MaxFinished + 3 {
		s := begin(t, c, "exit "+strconv.Itoa(i%3), named("s0")) // the name of one that has ended
		if got := ended(t, c, s.ID); got.Exited.Code != i%3 {
			t.Errorf("%+v", got)
		}
	}
	all, err := c.Sessions(t.Context())
	if err != nil || len(all) != agentwire.MaxSessions-1+agentwire.MaxFinished || all[0].ID == first.ID {
		t.Errorf("%d sessions, the first %+v, %v", len(all), all[0], err)
	}
	if stats, err := c.Stats(t.Context()); err != nil || stats.Sessions != agentwire.MaxSessions-1 {
		t.Errorf("%+v, %v", stats, err)
	}
	if _, err := c.StartSession(t.Context(), agentwire.SessionStart{ExecStart: agentwire.ExecStart{Argv: []string{"/no/such"}}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if again, err := c.Sessions(t.Context()); err != nil || len(again) != len(all) {
		t.Errorf("one that did not start is listed: %+v, %v", again, err)
	}
}

// A background process that keeps the output open delays the end of a session no more than that of a command.
func TestSessionWithBackgroundProcess(t *testing.T) {
	c, _ := configured(t)
	s := begin(t, c, `sleep 100 & echo $!; exit 4`)
	got := collect(t, attach(t, c, everything(s.ID)))
	pid, err := strconv.Atoi(strings.TrimSpace(got.Stdout))
	if err != nil || got.Code != 4 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the background process is gone: %v", err)
	}
}

func TestSessionBeforeConfigure(t *testing.T) {
	c, _ := connect(t, fakeSystem{})
	if _, err := c.Sessions(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	if _, _, err := c.Attach(t.Context(), everything("1")); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}
