package cli

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/rpc"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// fakeSupervisor gives samples: each has burnt 100 ms of CPU more than the one before, in a second.
type fakeSupervisor struct {
	bangerv1connect.UnimplementedSupervisorServiceHandler
	given atomic.Int64
	ports []*bangerv1.Port
}

func (s *fakeSupervisor) sample() *bangerv1.Sample {
	n := s.given.Add(1)
	return &bangerv1.Sample{
		AtMs: aMoment().UnixMilli() + 1000*n, GuestCpuMs: uint64(100 * n), HostCpuMs: uint64(200 * n), GuestMemoryTotalBytes: 1 << 30,
		GuestMemoryUsedBytes: 300 << 20, GuestDiskTotalBytes: 10 << 30, GuestDiskUsedBytes: 1 << 30, Load1: 0.5, ReceivedBytes: uint64(2048 * n),
	}
}

func (s *fakeSupervisor) Stats(_ context.Context, req *connect.Request[bangerv1.SupervisorStatsRequest]) (*connect.Response[bangerv1.SupervisorStatsResponse], error) {
	out := &bangerv1.SupervisorStatsResponse{}
	for range min(req.Msg.GetSamples(), 5) {
		out.Samples = append(out.Samples, s.sample())
	}
	return connect.NewResponse(out), nil
}

func (s *fakeSupervisor) WatchStats(ctx context.Context, _ *connect.Request[bangerv1.SupervisorWatchStatsRequest], stream *connect.ServerStream[bangerv1.Sample]) error {
	for range 3 {
		if err := stream.Send(s.sample()); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func (s *fakeSupervisor) Ports(context.Context, *connect.Request[bangerv1.SupervisorPortsRequest]) (*connect.Response[bangerv1.SupervisorPortsResponse], error) {
	return connect.NewResponse(&bangerv1.SupervisorPortsResponse{Ports: s.ports}), nil
}

// oneRunning is a home with a daemon that has a VM dev that runs, and old that does not.
func oneRunning(t *testing.T) (home string, sup *fakeSupervisor) {
	t.Helper()
	home, sup = shortDir(t), &fakeSupervisor{}
	dev := &bangerv1.VM{Id: "0123456789ab", State: "running", Spec: &bangerv1.VMSpec{Name: "dev", Cpus: 2}}
	f := &fakeDaemon{socket: filepath.Join(home, "sup.sock")}
	f.list = func(*bangerv1.ListVMsRequest) []*bangerv1.VM { return []*bangerv1.VM{dev} }
	f.get = func(ref string) (*bangerv1.VM, error) {
		switch ref {
		case "dev", dev.GetId():
			return dev, nil
		case "old":
			return &bangerv1.VM{Id: "old", State: "stopped", Spec: &bangerv1.VMSpec{Name: "old"}}, nil
		}
		return nil, fault.New(fault.NotFound, "no vm %q", ref).WithHint("banger vm list")
	}
	f.start(t, home)
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewSupervisorServiceHandler(sup, connect.WithInterceptors(rpc.Faults(nil))))
	serve(t, f.socket, mux)
	return home, sup
}

func TestStats(t *testing.T) {
	home, _ := oneRunning(t)
	d, out, errOut := online(t, home)
	code := Main(t.Context(), []string{"vm", "stats"}, d)
	want := "NAME            CPU     MEMORY       DISK  NET IN  NET OUT   LOAD\ndev             10%    300M/1G     1G/10G      2K       0B   0.50\n"
	if diff := cmp.Diff(want, out.String()); diff != "" || code != 0 {
		t.Errorf("%d %s\n%s", code, errOut, diff)
	}
	d, out, errOut = online(t, home)
	code = Main(t.Context(), []string{"vm", "stats", "old", "dev", "nobody"}, d)
	wantErr := "banger: error: vm old is stopped\nbanger: hint: banger vm start old\nbanger: error: no vm \"nobody\"\nbanger: hint: banger vm list\n"
	if diff := cmp.Diff(wantErr, errOut.String()); diff != "" || code != 243 || out.String() != want {
		t.Errorf("%d %s\n%s", code, out, diff)
	}
	d, out, _ = online(t, home)
	code = Main(t.Context(), []string{"vm", "stats", "--format", "json"}, d)
	for _, part := range []string{`"name": "dev"`, `"cpu_percent": 10,`, `"host_cpu_percent": 20,`, `"memory_used_bytes": 314572800`, `"received_bytes_per_second": 2048`} {
		if code != 0 || !strings.Contains(out.String(), part) {
			t.Errorf("%d: no %s in %s", code, part, out)
		}
	}
}

// Without a terminal a watch writes plain lines, and JSON in lines.
func TestStatsWatchInAPipe(t *testing.T) {
	for format, want := range map[string]string{
		"table": "TIME      NAME            CPU     MEMORY       DISK  NET IN  NET OUT   LOAD\nHH:MM:SS  dev             10%    300M/1G     1G/10G      2K       0B   0.50\n",
		"json":  `{"id":"0123456789ab","name":"dev","state":"running",`,
	} {
		home, _ := oneRunning(t)
		d, out, errOut := online(t, home)
		ctx, cancel := context.WithCancelCause(t.Context())
		code := make(chan int, 1)
		go func() {
			code <- Main(ctx, []string{"vm", "stats", "--watch", "--interval", "200ms", "--format", format}, d)
		}()
		for deadline := time.Now().Add(time.Minute); !strings.Contains(out.String(), "dev"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s%s", format, out, errOut)
			}
		}
		cancel(&Interrupted{syscall.SIGINT})
		if got := <-code; got != 130 {
			t.Errorf("exit code %d: %s", got, errOut)
		}
		got := out.String()
		if _, rest, ok := strings.Cut(got, "\n"); ok && format == "table" && len(rest) > 8 {
			got = strings.Replace(got, rest[:8], "HH:MM:SS", 1)
		}
		if !strings.HasPrefix(got, want) || strings.Contains(got, "\x1b") {
			t.Errorf("%s:\n%s", format, got)
		}
	}
}

func TestPorts(t *testing.T) {
	home, sup := oneRunning(t)
	sup.ports = []*bangerv1.Port{
		{Protocol: "tcp", Address: "0.0.0.0", Port: 8080, Pid: 12, Process: "ng\x1b[2Jinx"},
		{Protocol: "udp", Address: "127.0.0.1", Port: 53},
	}
	d, out, errOut := online(t, home)
	code := Main(t.Context(), []string{"vm", "ports", "dev"}, d)
	want := "PORT  PROTOCOL  ADDRESS    PID  PROCESS\n  53  udp       127.0.0.1    -  -\n8080  tcp       0.0.0.0     12  nginx\n"
	if diff := cmp.Diff(want, out.String()); diff != "" || code != 0 {
		t.Errorf("%d %s\n%s", code, errOut, diff)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"vm", "ports", "dev", "--format", "json"}, d); code != 0 || !strings.HasPrefix(out.String(), "[\n  {\n    \"protocol\": \"udp\",\n    \"address\": \"127.0.0.1\",\n    \"port\": 53\n  },") {
		t.Errorf("%d %s", code, out)
	}
	d, _, errOut = online(t, home)
	if code := Main(t.Context(), []string{"vm", "ports", "old"}, d); code != 243 || errOut.String() != "banger: error: vm old is stopped\nbanger: hint: banger vm start old\n" {
		t.Errorf("%d %s", code, errOut)
	}
}

// A guest may say anything.
func TestUsageOfNonsense(t *testing.T) {
	m := &bangerv1.VM{Spec: &bangerv1.VMSpec{Name: "dev"}}
	for _, samples := range [][]*bangerv1.Sample{
		nil,
		{{AtMs: 1}},
		{{AtMs: 2, GuestCpuMs: 5}, {AtMs: 1, GuestCpuMs: 9}},
		{{AtMs: 1, GuestCpuMs: 500}, {AtMs: 1001, GuestCpuMs: 3}},
		{{AtMs: 1}, {AtMs: 2, GuestCpuMs: 1<<64 - 1, ReceivedBytes: 1<<64 - 1, GuestMemoryUsedBytes: 1<<64 - 1, GuestMemoryTotalBytes: 1, Processes: -1}},
	} {
		u := usageOf(m, samples)
		if len(u.cells()) != len(usageColumns()) {
			t.Error("cells and columns differ")
		}
		d, out, _ := newOnline(t, 80)
		if err := d.answerStats([]usage{u}, nil); err != nil {
			t.Error(err)
		}
		fits(t, out.String(), 110)
		d.Term.SetFormat(term.FormatJSON)
		if err := d.answerStats([]usage{u}, nil); err != nil {
			t.Error(err)
		}
	}
}
