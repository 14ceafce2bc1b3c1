package supervisor

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/hypervisor"
	bangerv1 "banger/proto/banger/v1"
)

// What fakeMachine can do besides running: as a VMM, and as the system that its agent asks.

func (m *fakeMachine) Pause(context.Context) error {
	m.called("pause")
	if m.onPause != nil {
		return m.onPause()
	}
	return nil
}

func (m *fakeMachine) Resume(context.Context) error {
	m.called("resume")
	if m.onResume != nil {
		return m.onResume()
	}
	return nil
}

func (m *fakeMachine) ResizeDisk(_ context.Context, serial string, bytes uint64) error {
	m.called(fmt.Sprintf("resize %s %d", serial, bytes))
	if m.onResize != nil {
		return m.onResize(serial, bytes)
	}
	return nil
}

func (m *fakeMachine) Stats() (agentwire.Stats, error) {
	if m.stats != nil {
		return m.stats(), nil
	}
	return agentwire.Stats{MemoryTotal: 100, MemoryAvailable: 60, CPUMillis: 5}, nil
}

func (m *fakeMachine) Ports() (agentwire.Ports, error) { return agentwire.Ports{Ports: m.ports}, nil }

func (m *fakeMachine) Grow(_ context.Context, g agentwire.Grow) (agentwire.Grown, error) {
	if m.grow != nil {
		return m.grow(g)
	}
	return agentwire.Grown{Device: g.Bytes, FileSystem: g.Bytes}, nil
}

func (m *fakeMachine) Sync() error {
	if m.sync != nil {
		return m.sync()
	}
	return nil
}

func (m *fakeMachine) SetClock(c agentwire.Clock) error {
	if m.clock != nil {
		m.clock(c)
	}
	return nil
}

// with is a VM that is ready, of a machine made by change.
func with(t *testing.T, change func(*fakeMachine)) *rig {
	t.Helper()
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) { change(m) })})
	r.start()
	r.ready()
	return r
}

// withDisk gives the VM a disk of 64 KiB. It is called before start.
func (r *rig) withDisk() string {
	r.t.Helper()
	path := r.dir.Path("disk.ext4")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.launch.Machine.Disks = []hypervisor.Disk{{Path: path, Serial: "data"}}
	r.launch.Guest.Disks.Data = "data"
	return path
}

// The RPCs.

func (r *rig) pause() (*bangerv1.SupervisorStatus, error) {
	resp, err := r.client.Pause(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorPauseRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (r *rig) unpause() (*bangerv1.SupervisorStatus, error) {
	resp, err := r.client.Unpause(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorUnpauseRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (r *rig) grow() (*bangerv1.SupervisorGrowDiskResponse, error) {
	resp, err := r.client.GrowDisk(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorGrowDiskRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (r *rig) stats(n int32) ([]*bangerv1.Sample, error) {
	resp, err := r.client.Stats(r.t.Context(), connect.NewRequest(&bangerv1.SupervisorStatsRequest{Samples: n}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetSamples(), nil
}

func (r *rig) ports() ([]*bangerv1.Port, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	resp, err := r.client.Ports(ctx, connect.NewRequest(&bangerv1.SupervisorPortsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetPorts(), nil
}

func (m *fakeMachine) Wake(_ context.Context, w agentwire.Wake) error {
	if m.wake != nil {
		m.wake(w)
	}
	return nil
}
