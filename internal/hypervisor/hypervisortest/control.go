package hypervisortest

import (
	"context"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// still is how long a paused machine is watched.
const still = 300 * time.Millisecond

// pauser returns the machine's Pauser. Features and interface must say the same.
func (h Harness) pauser(t *testing.T, m *machine) hypervisor.Pauser {
	t.Helper()
	p, ok := m.Machine.(hypervisor.Pauser)
	if ok != h.Driver.Features().Pause {
		t.Fatalf("features say %v, the machine %v", h.Driver.Features().Pause, ok)
	}
	if !ok {
		t.Skip("this VMM cannot pause its machines")
	}
	return p
}

func (h Harness) pause(t *testing.T) {
	m, client := h.boot(t)
	p := h.pauser(t, m)
	ctx := bounded(t, time.Minute)
	for range 2 { // pausing what is paused is no error, nor is resuming what runs
		if err := p.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, still)
	defer cancel()
	if _, err := client.Hello(short); !fault.Is(err, fault.Timeout) {
		t.Errorf("the agent of a paused machine: %v", err)
	}
	answered := make(chan error, 1)
	go func() { _, err := client.Hello(ctx); answered <- err }()
	select {
	case err := <-answered:
		t.Fatalf("the agent of a paused machine answers: %v", err)
	case <-time.After(still):
	}
	for range 2 {
		if err := p.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-answered; err != nil { // nothing is lost
		t.Errorf("what was asked during the pause: %v", err)
	}
	if _, err := client.Hello(ctx); err != nil {
		t.Errorf("the agent afterwards: %v", err)
	}
	if err := m.Quit(ctx); err != nil {
		t.Error(err)
	}
	m.ended(t)
	if err := p.Pause(ctx); err == nil {
		t.Error("a machine that is gone can be paused")
	}
	if err := p.Resume(ctx); err == nil {
		t.Error("a machine that is gone can be resumed")
	}
}

func (h Harness) endPaused(t *testing.T) {
	for name, end := range map[string]func(*machine) error{
		"quit":      func(m *machine) error { return m.Quit(bounded(t, endTimeout)) },
		"terminate": func(m *machine) error { return m.Signal(int(syscall.SIGTERM)) },
		"kill":      func(m *machine) error { return m.Signal(int(syscall.SIGKILL)) },
	} {
		t.Run(name, func(t *testing.T) {
			m := h.start(t)
			if err := h.pauser(t, m).Pause(bounded(t, endTimeout)); err != nil {
				t.Fatal(err)
			}
			if err := end(m); err != nil {
				t.Error(err)
			}
			m.ended(t)
		})
	}
}

// resizeDisk checks the host's side: what a guest makes of it is up to its agent.
func (h Harness) resizeDisk(t *testing.T) {
	m := h.start(t)
	r, ok := m.Machine.(hypervisor.DiskResizer)
	if ok != h.Driver.Features().ResizeDisk {
		t.Fatalf("features say %v, the machine %v", h.Driver.Features().ResizeDisk, ok)
	}
	if !ok {
		t.Skip("this VMM cannot resize disks")
	}
	ctx := bounded(t, endTimeout)
	for _, disk := range m.disks {
		info, err := os.Stat(disk.Path)
		if err != nil {
			t.Fatal(err)
		}
		size := uint64(info.Size())
		if disk.ReadOnly {
			if err := r.ResizeDisk(ctx, disk.Serial, size+1<<20); !fault.Is(err, fault.Invalid) {
				t.Errorf("read-only disk %s: %v", disk.Serial, err)
			}
			continue
		}
		for _, bytes := range []uint64{size, size + 1<<20, size + 1<<20} {
			if err := r.ResizeDisk(ctx, disk.Serial, bytes); err != nil {
				t.Errorf("disk %s to %d bytes: %v", disk.Serial, bytes, err)
			}
			if info, err := os.Stat(disk.Path); err != nil || uint64(info.Size()) != bytes {
				t.Errorf("disk %s: %v, %v", disk.Serial, info, err)
			}
		}
		if err := r.ResizeDisk(ctx, disk.Serial, size); !fault.Is(err, fault.Invalid) {
			t.Errorf("disk %s may shrink: %v", disk.Serial, err)
		}
	}
	if !slices.ContainsFunc(m.disks, func(d hypervisor.Disk) bool { return !d.ReadOnly }) {
		t.Error("the harness has no disk that can be resized")
	}
	if err := r.ResizeDisk(ctx, "no such disk", 1<<20); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown disk: %v", err)
	}
	if err := m.Quit(ctx); err != nil {
		t.Error(err)
	}
	m.ended(t)
}
