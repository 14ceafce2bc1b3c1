package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// dialerFunc is a Dialer.
type dialerFunc func(context.Context) (net.Conn, error)

func (f dialerFunc) Dial(ctx context.Context) (net.Conn, error) { return f(ctx) }

// scripted returns a client whose every stream is answered by the agent given.
func scripted(t *testing.T, agent func(net.Conn)) *Client {
	t.Helper()
	return NewClient(dialerFunc(func(context.Context) (net.Conn, error) {
		host, inside := net.Pipe()
		go func() {
			defer func() { _ = inside.Close() }()
			if _, _, err := agentwire.NewReader(inside).Next(); err == nil {
				agent(inside)
			}
		}()
		return host, nil
	}))
}

// started answers an Exec and then sends what frames writes.
func started(frames func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		_ = agentwire.WriteResult(c, agentwire.ExecStarted{PID: 7})
		frames(c)
	}
}

func TestHostileAnswers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		agent func(net.Conn)
	}{
		{"nothing", func(net.Conn) {}},
		{"another frame", func(c net.Conn) { _ = agentwire.WriteFrame(c, agentwire.FrameStdout, []byte("x")) }},
		{"no frame", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n") }},
		{"no json", func(c net.Conn) { _ = agentwire.WriteFrame(c, agentwire.FrameResponse, []byte("{")) }},
		{"wrong json", func(c net.Conn) { _ = agentwire.WriteResult(c, []int{1}) }},
		{"no result", func(c net.Conn) { _ = agentwire.WriteResult(c, nil) }},
		{"too long", func(c net.Conn) { _, _ = c.Write([]byte{2, 0xff, 0xff, 0xff, 0xff}) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := scripted(t, tc.agent).Hello(t.Context()); !fault.Is(err, fault.Unavailable) {
				t.Errorf("err = %v (%s), want unavailable", err, fault.ClassOf(err))
			}
		})
	}
}

func TestHostileStatsAndPorts(t *testing.T) {
	stats, err := scripted(t, func(c net.Conn) {
		_ = agentwire.WriteResult(c, agentwire.Stats{
			CPUMillis: math.MaxUint64, MemoryTotal: 5, MemoryAvailable: 9, DataTotal: 5, DataUsed: 9, Load1: -1, Processes: -1,
		})
	}).Stats(t.Context())
	want := agentwire.Stats{CPUMillis: maxCounter, MemoryTotal: 5, MemoryAvailable: 5, DataTotal: 5, DataUsed: 5}
	if err != nil || stats != want {
		t.Errorf("%+v, %v", stats, err)
	}
	many := make([]agentwire.Port, 3*agentwire.MaxPorts)
	for i := range many {
		many[i] = agentwire.Port{Protocol: "tcp", Address: "::1", Port: uint16(i + 1), Process: "p"}
	}
	many[0].Protocol, many[1].Address, many[2].Port, many[3].Address = "tcp\x1b", "x", 0, "fe80::1%eth0\n"
	many[4].PID, many[4].Process = -1, "\x1b]0;title\x07 \n"+strings.Repeat("x", 200)
	ports, err := scripted(t, func(c net.Conn) { _ = agentwire.WriteResult(c, agentwire.Ports{Ports: many}) }).Ports(t.Context())
	if err != nil || len(ports) != agentwire.MaxPorts-4 {
		t.Fatalf("%d ports, %v", len(ports), err)
	}
	p := ports[0]
	if p.PID != 0 || !strings.HasPrefix(p.Process, "]0;title xxx") || len(p.Process) > agentwire.MaxProcessName {
		t.Errorf("%+v", p)
	}
}

func TestGrowIsNotBelievedBlindly(t *testing.T) {
	for _, answer := range []agentwire.Grown{{Device: 101, FileSystem: 50}, {Device: 100, FileSystem: 101}} {
		c := scripted(t, func(c net.Conn) { _ = agentwire.WriteResult(c, answer) })
		if got, err := c.Grow(t.Context(), agentwire.Grow{Bytes: 100}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

func TestMuxOfAHungGuestHoldsOneGoroutine(t *testing.T) {
	host, inside := net.Pipe()
	go func() {
		session, err := agentwire.Accept(inside)
		if err != nil {
			t.Error(err)
			return
		}
		_ = session // nobody accepts streams, and soon nobody reads
	}()
	mux, err := ConnectMux(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		defer cancel()
		if conn, err := mux.Dial(ctx); err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
	for range 5 {
		dial()
	}
	before := runtime.NumGoroutine()
	for range 50 {
		dial()
	}
	if n := runtime.NumGoroutine(); n > before+10 {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	_ = mux.Close()
	_ = inside.Close()
}

func TestSilentAgentIsATimeout(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := scripted(t, func(net.Conn) { <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Hello(ctx); !fault.Is(err, fault.Timeout) {
		t.Errorf("err = %v (%s), want a timeout", err, fault.ClassOf(err))
	}
	ctx, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	if _, err := c.Exec(ctx, agentwire.ExecStart{}); !fault.Is(err, fault.Cancelled) {
		t.Errorf("err = %v (%s), want cancelled", err, fault.ClassOf(err))
	}
}

func TestRequestThatIsTooLarge(t *testing.T) {
	c := scripted(t, func(net.Conn) {})
	_, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{strings.Repeat("x", agentwire.MaxJSON)}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("err = %v (%s), want invalid", err, fault.ClassOf(err))
	}
}

func TestHostileFrames(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frames func(net.Conn)
	}{
		{"stream broken", func(net.Conn) {}},
		{"unknown frame", func(c net.Conn) { _, _ = c.Write([]byte{77, 0, 0, 0, 0}) }},
		{"frame of the host", func(c net.Conn) { _ = agentwire.WriteFrame(c, agentwire.FrameStdin, nil) }},
		{"credit that was not used", func(c net.Conn) { _ = agentwire.WriteCredit(c, 1) }},
		{"short credit", func(c net.Conn) { _ = agentwire.WriteFrame(c, agentwire.FrameCredit, []byte{1}) }},
		{"exit code out of range", func(c net.Conn) {
			_ = agentwire.WriteJSON(c, agentwire.FrameExited, agentwire.ExecExited{Code: 256})
		}},
		{"no exit code", func(c net.Conn) { _ = agentwire.WriteFrame(c, agentwire.FrameExited, []byte("x")) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := scripted(t, started(tc.frames)).Exec(t.Context(), agentwire.ExecStart{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p.Close() }()
			if ev, err := p.Next(); !fault.Is(err, fault.Unavailable) {
				t.Errorf("got %+v, %v; want unavailable", ev, err)
			}
			if err := p.WriteStdin([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("write afterwards: %v", err)
			}
		})
	}
}

func TestSignalNameOfTheGuestIsNotBelieved(t *testing.T) {
	p, err := scripted(t, started(func(c net.Conn) {
		_ = agentwire.WriteJSON(c, agentwire.FrameExited, agentwire.ExecExited{Code: 165, Signal: "\x1b[2J"})
	})).Exec(t.Context(), agentwire.ExecStart{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	ev, err := p.Next()
	if err != nil || ev.Exited == nil || ev.Exited.Signal != "37" {
		t.Errorf("got %+v, %v", ev.Exited, err)
	}
}

func TestSignalIsCheckedHere(t *testing.T) {
	p, err := scripted(t, started(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })).Exec(t.Context(), agentwire.ExecStart{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := p.Signal("BOGUS"); !fault.Is(err, fault.Invalid) {
		t.Errorf("err = %v", err)
	}
	if err := p.Signal("INT"); err != nil {
		t.Errorf("err = %v", err)
	}
}

// FuzzProcess feeds a Process with whatever a guest may send.
func FuzzProcess(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x00\x02hi\x07\x00\x00\x00\x0a{\"code\":0}"))
	f.Add([]byte("\x0a\x00\x00\x00\x04\x00\x00\x00\x01"))
	f.Add([]byte("\x0b\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x05\x0c\x00\x00\x00\x04read"))
	f.Fuzz(func(t *testing.T, in []byte) {
		feedProcess(t, in, false)
		feedProcess(t, in, true)
	})
}

func feedProcess(t *testing.T, in []byte, attached bool) {
	host, inside := net.Pipe()
	go func() { _, _ = inside.Write(in); _ = inside.Close() }()
	p := newProcess(host, agentwire.NewReader(host), agentwire.ExecStarted{})
	p.attached = attached
	defer func() { _ = p.Close() }()
	for {
		ev, err := p.Next()
		if err != nil {
			return
		}
		if !attached && (ev.Dropped > 0 || ev.Over != "") {
			t.Errorf("a command that is no session: %+v", ev)
		}
		if ev.Exited != nil {
			if _, err := json.Marshal(ev.Exited); err != nil || ev.Exited.Code < 0 || ev.Exited.Code > 255 {
				t.Errorf("exited %+v, %v", ev.Exited, err)
			}
			return
		}
	}
}
