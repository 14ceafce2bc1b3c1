package client

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/rpc"
	"banger/internal/sock"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// envDaemon makes the test binary play the daemon; its value says how.
const envDaemon = "BANGER_TEST_DAEMON"

func TestMain(m *testing.M) {
	if how := os.Getenv(envDaemon); how != "" {
		os.Exit(playDaemon(how))
	}
	os.Exit(m.Run())
}

// newPaths returns directories with a socket path that is short enough.
func newPaths(t *testing.T) paths.Paths {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return paths.Under(dir)
}

// config starts fake daemons that behave as how says: space-separated key=value.
func config(t *testing.T, p paths.Paths, how string) Config {
	t.Helper()
	cfg := Config{
		Paths: p, Build: "b1", Command: []string{os.Args[0]},
		Env: append(os.Environ(), "BANGER_HOME="+filepath.Dir(p.Run), envDaemon+"=fake "+how),
	}
	t.Cleanup(func() {
		for _, pid := range pids(t, p) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return cfg
}

// pids of the daemons that were started: each has left a file.
func pids(t *testing.T, p paths.Paths) (all []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.State, "started-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(file), "started-"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pid)
	}
	return all
}

// playDaemon is a daemon that only knows how to start, greet and stop.
func playDaemon(how string) int {
	words := map[string]string{"build": "b1", "generation": "1"}
	for _, word := range strings.Fields(how) {
		key, value, _ := strings.Cut(word, "=")
		words[key] = value
	}
	p, err := paths.FromEnv()
	if err != nil {
		return 3
	}
	ready := os.NewFile(ReadyFD, "ready")
	if err := os.WriteFile(filepath.Join(p.State, fmt.Sprintf("started-%d", os.Getpid())), nil, 0o600); err != nil {
		return 4
	}
	switch words["start"] {
	case "fault":
		fmt.Fprintln(ready, `{"class":"failed_precondition","message":"too new","hint":"banger version"}`)
		return 1
	case "die":
		return 1
	}
	lock, err := os.OpenFile(p.DaemonLock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Fprintln(ready, `{"class":"failed_precondition","message":"a daemon already runs"}`)
		return 1
	}
	ln, err := sock.Listen(p.DaemonSocket())
	if err != nil {
		return 5
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	time.Sleep(50 * time.Millisecond) // time for others to find the socket missing
	fmt.Fprintln(ready, "ok")
	ready.Close()
	generation, _ := strconv.Atoi(words["generation"])
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(&fakeDaemon{
		stop: stop, build: words["build"], generation: int32(generation), busy: words["busy"] != "",
	}, connect.WithInterceptors(rpc.Faults(slog.New(slog.DiscardHandler)))))
	if rpc.Serve(ctx, ln, mux, time.Second) != nil {
		return 6
	}
	if linger, err := time.ParseDuration(words["linger"]); err == nil { // on its way out: no socket, but the lock
		time.Sleep(linger)
	}
	return 0
}

type fakeDaemon struct {
	bangerv1connect.UnimplementedDaemonServiceHandler
	stop       func()
	build      string
	generation int32
	busy       bool
}

func (f *fakeDaemon) Hello(context.Context, *connect.Request[bangerv1.HelloRequest]) (*connect.Response[bangerv1.HelloResponse], error) {
	return connect.NewResponse(&bangerv1.HelloResponse{Build: f.build, Generation: f.generation, Pid: int32(os.Getpid())}), nil
}

func (f *fakeDaemon) Shutdown(_ context.Context, req *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	if f.busy && req.Msg.GetIfIdle() {
		return nil, fault.New(fault.Conflict, "1 operation runs")
	}
	f.stop()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}
