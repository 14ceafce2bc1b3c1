package vmclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

func TestCredit(t *testing.T) {
	var free credit
	free.begin(0)
	free.spend(1 << 40)
	if room, ok := free.wait(chunk); room != chunk || !ok {
		t.Errorf("unbounded: %d, %v", room, ok)
	}
	var c credit
	c.begin(100)
	if room, ok := c.wait(chunk); room != 100 || !ok {
		t.Errorf("at the beginning: %d, %v", room, ok)
	}
	c.spend(100)
	got := make(chan int)
	go func() {
		room, _ := c.wait(chunk)
		got <- room
	}()
	select {
	case room := <-got:
		t.Errorf("without credit: %d", room)
	case <-time.After(20 * time.Millisecond):
	}
	c.give(-5)
	c.give(30)
	if room := <-got; room != 30 {
		t.Errorf("after more was given: %d", room)
	}
	c.spend(30)
	go func() {
		_, ok := c.wait(chunk)
		if ok {
			got <- 1
		}
		got <- 0
	}()
	c.end()
	if room := <-got; room != 0 {
		t.Error("went on after the end")
	}
}

// fakeExec is a supervisor whose Exec is the test's.
type fakeExec struct {
	bangerv1connect.UnimplementedSupervisorServiceHandler
	exec func(context.Context, *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error
}

func (f *fakeExec) Exec(ctx context.Context, stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
	return f.exec(ctx, stream)
}

// start serves f and returns a client of it.
func (f *fakeExec) start(t *testing.T) *Client {
	t.Helper()
	return New(serve(t, "/", func() http.Handler {
		mux := http.NewServeMux()
		mux.Handle(bangerv1connect.NewSupervisorServiceHandler(f, connect.WithInterceptors(rpc.Faults(slog.New(slog.DiscardHandler)))))
		return mux
	}()))
}

// serve serves h at pattern and returns the socket.
func serve(t *testing.T, pattern string, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bv") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(pattern, h)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_ = rpc.Serve(ctx, ln, mux, time.Millisecond)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return path
}

func started(window int64) *bangerv1.ExecResponse {
	return &bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Started{Started: &bangerv1.ExecStarted{Pid: 1, StdinWindow: window}}}
}

func exited(code int32) *bangerv1.ExecResponse {
	return &bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_Exited{Exited: &bangerv1.ExecExited{Code: code}}}
}

// endless input that counts what was taken of it.
type endless struct{ taken atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

// Although the command reads nothing of an endless input, a signal gets through at once.
func TestSignalPassesInput(t *testing.T) {
	const window = 256 << 10
	in, signals := new(endless), make(chan string, 1)
	full := make(chan struct{})
	f := &fakeExec{exec: func(_ context.Context, stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
		if _, err := stream.Receive(); err != nil {
			return err
		}
		if err := stream.Send(started(window)); err != nil {
			return err
		}
		got := 0
		for {
			msg, err := stream.Receive()
			if err != nil {
				return err
			}
			if got += len(msg.GetStdin()); got == window && len(msg.GetStdin()) > 0 {
				close(full)
			}
			if msg.GetSignal() == "INT" {
				return stream.Send(exited(130))
			}
		}
	}}
	go func() {
		<-full
		time.Sleep(20 * time.Millisecond) // time for a client that would send more
		signals <- "INT"
	}()
	code, err := f.start(t).Exec(t.Context(), Exec{
		Start: &bangerv1.ExecStart{Stdin: true}, Stdin: in, Stdout: io.Discard, Stderr: io.Discard, Signals: signals,
	})
	if code != 130 || err != nil || in.taken.Load() != window {
		t.Errorf("code %d, %v; %d bytes were taken", code, err, in.taken.Load())
	}
}

// All of a long input arrives, in order, whether or not the supervisor speaks of credit.
func TestInputWithAndWithoutCredit(t *testing.T) {
	for _, window := range []int64{0, 1, 100_000} {
		size := 300_000
		if window == 1 {
			size = 300
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 7 >> 3)
		}
		var got bytes.Buffer
		f := &fakeExec{exec: func(_ context.Context, stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
			if _, err := stream.Receive(); err != nil {
				return err
			}
			if err := stream.Send(started(window)); err != nil {
				return err
			}
			for unread := int64(0); ; {
				msg, err := stream.Receive()
				if err != nil {
					return err
				}
				if msg.GetStdinEof() {
					return stream.Send(exited(0))
				}
				got.Write(msg.GetStdin())
				if window == 0 {
					continue
				}
				if unread += int64(len(msg.GetStdin())); unread > window {
					return fault.New(fault.Invalid, "%d bytes for a window of %d", unread, window)
				}
				if err := stream.Send(&bangerv1.ExecResponse{Kind: &bangerv1.ExecResponse_StdinConsumed{StdinConsumed: unread}}); err != nil {
					return err
				}
				unread = 0
			}
		}}
		code, err := f.start(t).Exec(t.Context(), Exec{
			Start: &bangerv1.ExecStart{Stdin: true}, Stdin: bytes.NewReader(data), Stdout: io.Discard, Stderr: io.Discard,
		})
		if code != 0 || err != nil || !bytes.Equal(data, got.Bytes()) {
			t.Errorf("window %d: code %d, %v; %d of %d bytes", window, code, err, got.Len(), len(data))
		}
	}
}

// Ending the context ends an Exec at once, whatever it waits for.
func TestExecIsCut(t *testing.T) {
	gaveUp := errors.New("gave up")
	for name, window := range map[string]int64{"input is held up": 0, "no credit": 1 << 10} {
		t.Run(name, func(t *testing.T) {
			running := make(chan struct{})
			f := &fakeExec{exec: func(ctx context.Context, stream *connect.BidiStream[bangerv1.ExecRequest, bangerv1.ExecResponse]) error {
				if _, err := stream.Receive(); err != nil {
					return err
				}
				if err := stream.Send(started(window)); err != nil {
					return err
				}
				close(running)
				<-ctx.Done() // reads nothing
				return nil
			}}
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				<-running
				time.Sleep(50 * time.Millisecond)
				cancel(gaveUp)
			}()
			began := time.Now()
			_, err := f.start(t).Exec(ctx, Exec{
				Start: &bangerv1.ExecStart{Stdin: true}, Stdin: new(endless), Stdout: io.Discard, Stderr: io.Discard,
			})
			if !errors.Is(err, gaveUp) || time.Since(began) > time.Minute {
				t.Errorf("after %s: %v", time.Since(began), err)
			}
		})
	}
}
