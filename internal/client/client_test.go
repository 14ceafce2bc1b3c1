package client

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/proc"
)

func connectOrFail(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestManyAtOnceStartOneDaemon(t *testing.T) {
	p := newPaths(t)
	cfg := config(t, p, "")
	var wg sync.WaitGroup
	got := make([]int, 8)
	for i := range got {
		wg.Go(func() {
			c, err := Connect(t.Context(), cfg)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			got[i] = c.PID
		})
	}
	wg.Wait()
	if started := pids(t, p); len(started) != 1 {
		t.Errorf("%d daemons were started", len(started))
	}
	for _, pid := range got {
		if pid != got[0] || pid == 0 {
			t.Fatalf("different daemons: %v", got)
		}
	}
}

func TestAttachStartsNothing(t *testing.T) {
	p := newPaths(t)
	if _, err := Attach(t.Context(), config(t, p, "")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat(p.Run); !os.IsNotExist(err) {
		t.Error("a directory was made")
	}
}

func TestStaleSocket(t *testing.T) {
	p := newPaths(t)
	if err := p.Ensure(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.DaemonSocket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	connectOrFail(t, config(t, p, ""))
}

func TestDaemonThatCannotStart(t *testing.T) {
	for _, tc := range []struct {
		how, message, hint string
		class              fault.Class
	}{
		{"start=fault", "too new", "banger version", fault.Conflict},
		{"start=die", "the daemon ended before it was ready", "banger daemon logs", fault.Unavailable},
	} {
		t.Run(tc.how, func(t *testing.T) {
			_, err := Connect(t.Context(), config(t, newPaths(t), tc.how))
			if err == nil || !strings.HasPrefix(err.Error(), tc.message) || fault.HintOf(err) != tc.hint || !fault.Is(err, tc.class) {
				t.Errorf("err = %v, hint %q, class %s", err, fault.HintOf(err), fault.ClassOf(err))
			}
		})
	}
	t.Run("no such program", func(t *testing.T) {
		cfg := config(t, newPaths(t), "")
		cfg.Command = []string{"/nonexistent/banger"}
		if _, err := Connect(t.Context(), cfg); !fault.Is(err, fault.Unavailable) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestSocketPathTooLong(t *testing.T) {
	p := paths.Under("/tmp/" + strings.Repeat("x", 100))
	_, err := Connect(t.Context(), config(t, p, ""))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "107") {
		t.Errorf("err = %v", err)
	}
}

func TestOtherBuild(t *testing.T) {
	for _, tc := range []struct {
		name, old string
		replaced  bool
		fault     fault.Class
	}{
		{"idle", "build=b0", true, ""},
		{"busy, same generation", "build=b0 busy=1", false, ""},
		{"idle, other generation", "build=b0 generation=2", true, ""},
		{"busy, other generation", "build=b0 generation=2 busy=1", false, fault.Conflict},
		{"same build", "", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPaths(t)
			old := config(t, p, tc.old)
			if err := start(t.Context(), old); err != nil {
				t.Fatal(err)
			}
			was := pids(t, p)[0]
			c, err := Connect(t.Context(), config(t, p, ""))
			if fault.ClassOf(err) != tc.fault && (err != nil || tc.fault != "") {
				t.Fatalf("err = %v", err)
			}
			if err != nil {
				if fault.HintOf(err) != "banger daemon stop" {
					t.Errorf("hint = %q", fault.HintOf(err))
				}
				return
			}
			defer c.Close()
			if replaced := c.PID != was; replaced != tc.replaced {
				t.Errorf("replaced = %v", replaced)
			}
		})
	}
}

// A daemon that has closed its socket and still holds its lock is waited for.
func TestDaemonOnItsWayOut(t *testing.T) {
	p := newPaths(t)
	c := connectOrFail(t, config(t, p, "linger=300ms"))
	if err := syscall.Kill(c.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for { // until the socket is gone
		other, err := Attach(t.Context(), config(t, p, ""))
		if errors.Is(err, ErrNotRunning) {
			break
		}
		other.Close()
		time.Sleep(time.Millisecond)
	}
	again := connectOrFail(t, config(t, p, ""))
	if again.PID == c.PID {
		t.Error("the same daemon")
	}
}

func TestStop(t *testing.T) {
	p := newPaths(t)
	cfg := config(t, p, "linger=100ms")
	c := connectOrFail(t, cfg)
	id, err := proc.Of(c.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), cfg, false); err != nil {
		t.Fatal(err)
	}
	if id.Alive() {
		t.Error("the daemon is still there")
	}
}

// A client that gives up does not wait for the lock that another one holds.
func TestStartLockCanBeGivenUp(t *testing.T) {
	p := newPaths(t)
	if err := p.Ensure(); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockFile(t.Context(), p.StartLock())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, config(t, p, "")); !fault.Is(err, fault.Timeout) {
		t.Errorf("err = %v", err)
	}
}
