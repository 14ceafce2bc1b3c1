package agent_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"banger/internal/agent"
	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
)

func TestConfigureOnce(t *testing.T) {
	calls := 0
	c, _ := connect(t, fakeSystem{configure: func(agentwire.Config) (agentwire.Configured, error) {
		calls++
		return agentwire.Configured{Millis: map[string]int64{"mount": 3}}, nil
	}})
	if _, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{"true"}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec before configure: %v", err)
	}
	got, err := c.Configure(t.Context(), agentwire.Config{})
	if err != nil || got.Millis["mount"] != 3 {
		t.Fatalf("configure: %v, %v", got, err)
	}
	if _, err := c.Configure(t.Context(), agentwire.Config{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("configure again: %v", err)
	}
	hello, err := c.Hello(t.Context())
	if err != nil || !hello.Configured || hello.Generation != agentwire.Generation || hello.Build != "test" || hello.Kernel == "" {
		t.Errorf("hello = %+v, %v", hello, err)
	}
	if calls != 1 {
		t.Errorf("the system was configured %d times", calls)
	}
}

func TestConfigureFailureKeepsClassAndHint(t *testing.T) {
	c, _ := connect(t, fakeSystem{configure: func(agentwire.Config) (agentwire.Configured, error) {
		return agentwire.Configured{}, fault.New(fault.Unavailable, "no disk\x1b[31m").WithHint("plug it in")
	}})
	_, err := c.Configure(t.Context(), agentwire.Config{})
	if !fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "plug it in" || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("err = %q, hint %q", err, fault.HintOf(err))
	}
	if _, err := c.Configure(t.Context(), agentwire.Config{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("configure again: %v", err)
	}
}

func TestShutdownIsAnsweredFirstAndDoneOnce(t *testing.T) {
	down := make(chan agentwire.Shutdown, 2)
	c, _ := connect(t, fakeSystem{shutdown: func(s agentwire.Shutdown) { down <- s }})
	for range 2 {
		if err := c.Shutdown(t.Context(), agentwire.Shutdown{GraceMillis: 5}); err != nil {
			t.Fatal(err)
		}
	}
	if s := <-down; s.GraceMillis != 5 {
		t.Errorf("got %+v", s)
	}
	if _, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{"true"}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec while going down: %v", err)
	}
	select {
	case <-down:
		t.Error("shut down twice")
	default:
	}
}

func TestQuestionsNeedAConfiguredGuest(t *testing.T) {
	var set agentwire.Clock
	c, _ := connect(t, fakeSystem{
		ports: []agentwire.Port{{Protocol: "tcp", Address: "::", Port: 22, PID: 3, Process: "sshd"}},
		grow: func(g agentwire.Grow) (agentwire.Grown, error) {
			if g.Bytes == 1 {
				return agentwire.Grown{}, fault.New(fault.Timeout, "no such size")
			}
			return agentwire.Grown{Device: g.Bytes, FileSystem: g.Bytes - 1}, nil
		},
		clock: func(c agentwire.Clock) { set = c },
	})
	full, _ := connect(t, fakeSystem{sync: fault.New(fault.Exhausted, "no space")})
	if _, err := full.Configure(t.Context(), agentwire.Config{}); err != nil {
		t.Fatal(err)
	}
	if err := full.Sync(t.Context()); !fault.Is(err, fault.Exhausted) {
		t.Errorf("sync: %v", err)
	}
	now := time.Unix(1_700_000_000, 5)
	ask := map[string]func() error{
		"stats": func() error { _, err := c.Stats(t.Context()); return err },
		"ports": func() error { _, err := c.Ports(t.Context()); return err },
		"grow":  func() error { _, err := c.Grow(t.Context(), agentwire.Grow{Bytes: 100}); return err },
		"clock": func() error { return c.SetClock(t.Context(), now) },
		"sync":  func() error { return c.Sync(t.Context()) },
	}
	for name, f := range ask {
		if err := f(); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s before configure: %v", name, err)
		}
	}
	if _, err := c.Configure(t.Context(), agentwire.Config{}); err != nil {
		t.Fatal(err)
	}
	for name, f := range ask {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if set.UnixNano != now.UnixNano() {
		t.Errorf("clock %+v", set)
	}
	if _, err := c.Grow(t.Context(), agentwire.Grow{Bytes: 1}); !fault.Is(err, fault.Timeout) {
		t.Errorf("grow: %v", err)
	}
	if err := c.SetClock(t.Context(), time.Time{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("clock of year 1: %v", err)
	}
	if err := c.Shutdown(t.Context(), agentwire.Shutdown{}); err != nil {
		t.Fatal(err)
	}
	if err := ask["stats"](); !fault.Is(err, fault.Conflict) {
		t.Errorf("stats while going down: %v", err)
	}
}

func TestCallsEndWithTheirContext(t *testing.T) {
	release := make(chan struct{})
	c, _ := connect(t, fakeSystem{configure: func(agentwire.Config) (agentwire.Configured, error) {
		<-release
		return agentwire.Configured{}, nil
	}})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Configure(ctx, agentwire.Config{}); !fault.Is(err, fault.Timeout) {
		t.Errorf("err = %v (%s), want timeout", err, fault.ClassOf(err))
	}
}

func TestServerServesAnotherSession(t *testing.T) {
	server := agent.NewServer(agent.Config{System: fakeSystem{}})
	defer server.Close()
	for range 3 {
		host, inside := socketPair(t)
		served := make(chan error, 1)
		go func() { served <- server.Serve(t.Context(), inside) }()
		mux, err := guest.ConnectMux(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guest.NewClient(mux).Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = mux.Close()
		<-mux.Done()
		select {
		case <-served:
		case <-time.After(time.Minute):
			t.Fatal("the session goes on without a host")
		}
	}
}

func BenchmarkExecTrue(b *testing.B) {
	server := agent.NewServer(agent.Config{System: fakeSystem{}})
	defer server.Close()
	host, inside := net.Pipe()
	go func() { _ = server.Serve(context.Background(), inside) }()
	mux, err := guest.ConnectMux(b.Context(), host)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = mux.Close() }()
	c := guest.NewClient(mux)
	if _, err := c.Configure(b.Context(), agentwire.Config{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p, err := c.Exec(b.Context(), agentwire.ExecStart{Argv: []string{"true"}})
		if err != nil {
			b.Fatal(err)
		}
		for {
			ev, err := p.Next()
			if err != nil {
				b.Fatal(err)
			}
			if ev.Exited != nil {
				break
			}
		}
		_ = p.Close()
	}
}
