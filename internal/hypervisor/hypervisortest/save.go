package hypervisortest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/hypervisor"
)

// saver returns the machine's Saver. Features and interface must say the same.
func (h Harness) saver(t *testing.T, m *machine) hypervisor.Saver {
	t.Helper()
	s, ok := m.Machine.(hypervisor.Saver)
	if ok != h.Driver.Features().Save {
		t.Fatalf("features say %v, the machine %v", h.Driver.Features().Save, ok)
	}
	if !ok {
		t.Skip("this VMM cannot save its machines")
	}
	return s
}

// restored starts a machine from what was saved and waits until its agent answers.
func (h Harness) restored(t *testing.T, from hypervisor.Saved) (*machine, *guest.Client) {
	t.Helper()
	restore := h
	restore.Spec.Restore = &from
	began := time.Now()
	m := restore.start(t)
	t.Logf("runs after %v", time.Since(began))
	client, err := restore.connect(t, m)
	if err != nil {
		t.Fatalf("the agent of a restored machine: %v; console:\n%s", err, m.console)
	}
	t.Logf("its agent answers after %v", time.Since(began))
	return m, client
}

// savedIn names two files in a new directory.
func savedIn(t *testing.T) hypervisor.Saved {
	dir := t.TempDir()
	return hypervisor.Saved{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
}

// waiting starts a machine whose agent waits for a host, with somebody at the other end of its channel.
func (h Harness) waiting(t *testing.T) *machine {
	t.Helper()
	if !h.Driver.Features().MuxedAgent {
		m, _ := h.boot(t)
		return m
	}
	for try := 1; ; try++ {
		m := h.start(t)
		conn, err := m.ConnectAgent(bounded(t, endTimeout))
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			err = agentwire.Await(bounded(t, h.BootTimeout), conn)
		}
		if err == nil {
			return m
		}
		m.kill(t)
		if try == 2 {
			t.Fatalf("the guest's agent does not answer: %v", err)
		}
	}
}

// saveTemplate saves a machine that was made to be saved, and starts several from it at the same time.
func (h Harness) saveTemplate(t *testing.T) {
	saved := savedIn(t)
	template := h
	template.Spec.MemoryFile = saved.Memory
	m := template.waiting(t)
	still, err := h.saver(t, m).Save(bounded(t, time.Minute), saved, hypervisor.SaveOptions{Stay: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("saved; stood still for %v", still)
	m.kill(t)
	before := sum(t, saved.Memory)
	for range 2 {
		clone, client := h.restored(t, saved)
		if hello, err := client.Hello(bounded(t, endTimeout)); err != nil || hello.Configured {
			t.Errorf("hello = %+v, %v", hello, err)
		}
		t.Cleanup(func() { clone.kill(t) })
	}
	if sum(t, saved.Memory) != before {
		t.Error("the clones wrote to the memory that they share")
	}
}

// saveRunning saves a machine that goes on, and starts another one from it.
func (h Harness) saveRunning(t *testing.T) {
	m, client := h.boot(t)
	saved, called := savedIn(t), false
	still, err := h.saver(t, m).Save(bounded(t, time.Minute), saved, hypervisor.SaveOptions{Still: func(context.Context) error {
		called = true
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("saved; stood still for %v", still)
	if !called {
		t.Error("Still was not called")
	}
	if _, err := client.Hello(bounded(t, endTimeout)); err != nil {
		t.Errorf("the agent of the machine that was saved: %v", err)
	}
	clone, _ := h.restored(t, saved)
	// A machine that was restored can be saved again.
	again := savedIn(t)
	if _, err := h.saver(t, clone).Save(bounded(t, time.Minute), again, hypervisor.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	clone.kill(t)
	second, _ := h.restored(t, again)
	second.kill(t)
	m.kill(t)
}

// saveFailures checks that a Save that fails leaves nothing and the guest running.
func (h Harness) saveFailures(t *testing.T) {
	m, client := h.boot(t)
	s := h.saver(t, m)
	saved, refuse := savedIn(t), errors.New("no room for the disk")
	_, err := s.Save(bounded(t, time.Minute), saved, hypervisor.SaveOptions{Still: func(context.Context) error { return refuse }})
	if !errors.Is(err, refuse) {
		t.Errorf("err = %v", err)
	}
	for _, file := range []string{saved.Memory, saved.State} {
		if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", file, err)
		}
	}
	missing := hypervisor.Saved{Memory: "/nonexistent/memory", State: "/nonexistent/state"}
	if _, err := s.Save(bounded(t, time.Minute), missing, hypervisor.SaveOptions{}); err == nil {
		t.Error("saved to a directory that does not exist")
	}
	if _, err := client.Hello(bounded(t, endTimeout)); err != nil {
		t.Errorf("the agent after saves that failed: %v", err)
	}
	m.kill(t)

	// What was saved may be damaged.
	good := savedIn(t)
	n, _ := h.boot(t)
	if _, err := h.saver(t, n).Save(bounded(t, time.Minute), good, hypervisor.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	n.kill(t)
	for name, damage := range map[string]func() error{
		"state cut short":  func() error { return os.Truncate(good.State, 1000) },
		"state is missing": func() error { return os.Remove(good.State) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		spec, _ := h.spec(t)
		spec.Restore = &good
		if m, err := h.Driver.Start(bounded(t, time.Minute), spec); err == nil {
			_ = m.Signal(int(syscall.SIGKILL))
			t.Errorf("%s: restored", name)
		} else if fault.Is(err, fault.Timeout) || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v", name, err)
		}
		nothingLeft(t, spec.RunDir)
	}
}

func (m *machine) kill(t *testing.T) {
	t.Helper()
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		t.Error(err)
	}
	m.ended(t)
}
