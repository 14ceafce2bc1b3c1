package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

type fakeSnapshots struct {
	bangerv1connect.UnimplementedSnapshotServiceHandler
	f *fakeDaemon
}

func (s fakeSnapshots) List(_ context.Context, req *connect.Request[bangerv1.ListSnapshotsRequest]) (*connect.Response[bangerv1.ListSnapshotsResponse], error) {
	return connect.NewResponse(&bangerv1.ListSnapshotsResponse{Snapshots: s.f.snapshots}), nil
}

func (s fakeSnapshots) Get(_ context.Context, req *connect.Request[bangerv1.GetSnapshotRequest]) (*connect.Response[bangerv1.Snapshot], error) {
	for _, snap := range s.f.snapshots {
		if snap.GetName() == req.Msg.GetName() {
			return connect.NewResponse(snap), nil
		}
	}
	return nil, fault.New(fault.NotFound, "vm %s has no snapshot %q", req.Msg.GetRef(), req.Msg.GetName()).WithHint("banger snapshot list dev")
}

func (s fakeSnapshots) Remove(_ context.Context, req *connect.Request[bangerv1.RemoveSnapshotRequest]) (*connect.Response[bangerv1.RemoveSnapshotResponse], error) {
	if req.Msg.GetName() == "none" {
		return nil, fault.New(fault.NotFound, "vm %s has no snapshot %q", req.Msg.GetRef(), req.Msg.GetName())
	}
	return connect.NewResponse(&bangerv1.RemoveSnapshotResponse{Vm: "dev", Name: req.Msg.GetName(), FreedBytes: 1 << 20}), nil
}

// snapshotsForTest is one by hand, one that is damaged and a checkpoint.
func snapshotsForTest() []*bangerv1.Snapshot {
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).UnixMilli() }
	return []*bangerv1.Snapshot{
		{VmId: "0123", Vm: "dev", Name: "green", Kind: "memory", CreatedAtMs: ago(3 * time.Second), UsedBytes: 100 << 20, SharedBytes: 30 << 20, StillUs: 12300,
			MemoryBytes: 90 << 20, DiskBytes: 10 << 20, Description: "tests pass", Spec: &bangerv1.VMSpec{Cpus: 2, MemoryBytes: 1 << 30, DiskBytes: 10 << 30},
			MemoryProblem: "the VMM is another one"},
		{VmId: "0123", Vm: "dev", Name: "bad", Parent: "green", Problem: "its file state is gone", UsedBytes: 1 << 20},
		{VmId: "0123", Vm: "dev", Name: "auto-7", Parent: "bad", Kind: "memory", Auto: true, Back: 1, Current: true, UsedBytes: 50 << 20},
	}
}

func TestSnapshotCommands(t *testing.T) {
	home := shortDir(t)
	fake := &fakeDaemon{snapshots: snapshotsForTest()}
	fake.start(t, home)
	for _, tc := range []struct {
		line string
		code int
		out  []string // each is part of stdout
		err  string   // part of stderr
	}{
		{"snapshot list", 0, []string{"VM   NAME", "dev  green   -       memory     -  3s ago  100M     30M       tests pass", "its file state is gone", "auto-7  bad"},
			"3 snapshots, 151M, up to 30M of it shared"},
		{"snapshot list dev --format json", 0, []string{`"name": "green"`, `"automatic": true`, `"back": 1`, `"current": true`, `"paused_ms": 12.3`, `"problem": "its file state is gone"`}, ""},
		{"snapshot show dev green", 0, []string{"memory           90M of 1G", "disk             10M of 10G", "guest paused     12.3 ms", "its disk only: the VMM is another one"}, ""},
		{"snapshot show dev bad", 0, []string{"can be restored  no: its file state is gone"}, ""},
		{"snapshot show dev", fault.ExitCode(fault.Invalid), nil, "banger snapshot list dev"},
		{"snapshot show dev nonesuch", fault.ExitCode(fault.NotFound), nil, `no snapshot "nonesuch"`},
		{"snapshot rm dev green none", fault.ExitCode(fault.NotFound), []string{"green"}, `no snapshot "none"`},
		{"snapshot rm --all dev --format json", 0, []string{`"name": "auto-7"`, `"freed_bytes": 1048576`}, ""},
		{"snapshot rm dev", fault.ExitCode(fault.Invalid), nil, "needs the name of a snapshot"},
		{"vm snapshot dev a b", fault.ExitCode(fault.Invalid), nil, "takes a vm and a snapshot, not 3 names"},
		{"vm snapshot dev A", fault.ExitCode(fault.Invalid), nil, "banger vm snapshot dev a"},
		{"vm restore dev green", fault.ExitCode(fault.Invalid), nil, "banger vm restore --yes dev green"},
		{"vm rewind dev", fault.ExitCode(fault.Invalid), nil, "banger vm rewind --yes --to 1 dev"},
		{"vm rewind --to -1 dev", fault.ExitCode(fault.Invalid), nil, "--to -1 is no checkpoint"},
	} {
		d, out, errOut := online(t, home)
		code := Main(t.Context(), strings.Fields(tc.line), d)
		for _, want := range tc.out {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q lacks %q", tc.line, out, want)
			}
		}
		if code != tc.code || !strings.Contains(errOut.String(), tc.err) {
			t.Errorf("%s: code %d, stderr %q", tc.line, code, errOut)
		}
	}
}
