package qemu

import (
	"context"
	"errors"
	"os"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor/qmp"
)

// States of QEMU's machine (RunState) that matter here.
const (
	stateRunning  = "running"
	statePaused   = "paused"
	stateMigrated = "postmigrate" // it stands still because it was saved
	stateIOError  = "io-error"    // QEMU stopped it: a write failed, mostly for want of space on the host
)

// statusPause is the time between two questions for a state that QEMU is about to reach.
const statusPause = 5 * time.Millisecond

// Pause stops the virtual CPUs. QEMU lets requests to the disks finish first.
func (m *Machine) Pause(ctx context.Context) error {
	err := m.qmp.Execute(ctx, "stop", nil, nil)
	if err == nil {
		err = m.reach(ctx, statePaused)
	}
	return m.explain(err, "pause")
}

// Resume lets them go on.
func (m *Machine) Resume(ctx context.Context) error {
	err := m.qmp.Execute(ctx, "cont", nil, nil)
	if err == nil {
		err = m.reach(ctx, stateRunning)
	}
	return m.explain(err, "resume")
}

// reach waits until the machine is in the state.
func (m *Machine) reach(ctx context.Context, state string) error {
	for {
		var status struct {
			Status string `json:"status"`
		}
		if err := m.qmp.Execute(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		switch status.Status {
		case state:
			return nil
		case stateMigrated:
			if state == statePaused {
				return nil
			}
		case stateIOError:
			if state == statePaused {
				return nil // it stands still, for a reason of its own
			}
			return fault.New(fault.Exhausted, "a disk of the vm cannot be written to on the host").WithHint("df -h")
		case stateRunning, statePaused:
		default:
			return fault.New(fault.Unavailable, "QEMU says that the machine is %q", text(status.Status))
		}
		select {
		case <-time.After(statusPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ResizeDisk makes a disk larger. It is done in the raw node, not in the file below it, which sets the file's length.
func (m *Machine) ResizeDisk(ctx context.Context, serial string, bytes uint64) error {
	i, err := m.spec.GrowableDisk(serial, bytes)
	if err != nil {
		return err
	}
	err = m.qmp.Execute(ctx, "block_resize", map[string]any{"node-name": nodeName(i), "size": bytes}, nil)
	return m.explain(err, "resize disk "+serial)
}

// explain puts an error of the control channel into words.
func (m *Machine) explain(err error, what string) error {
	switch refused := (*qmp.Error)(nil); {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded): // of the write; comes together with ErrClosed
		return fault.New(fault.Timeout, "%s vm %s: QEMU does not take the command", what, m.spec.Name)
	case errors.Is(err, qmp.ErrClosed):
		return fault.New(fault.Conflict, "%s vm %s: QEMU has ended", what, m.spec.Name)
	case errors.As(err, &refused):
		return fault.New(fault.Internal, "%s vm %s: QEMU refuses: %s", what, m.spec.Name, text(refused.Desc))
	}
	return fault.Context(err, "%s vm %s", what, m.spec.Name)
}

// maxText is how much of QEMU's words gets into a message.
const maxText = 200

// text cuts QEMU's words to a bearable length.
func text(s string) string { return s[:min(len(s), maxText)] }
