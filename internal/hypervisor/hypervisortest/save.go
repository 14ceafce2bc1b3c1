package hypervisortest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
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
	disk := m.ownDisk(t)
	spotted(t, disk.Path)
	saved := savedIn(t)
	copied := saved.Memory + ".disk"
	report, err := h.saver(t, m).Save(bounded(t, time.Minute), saved, hypervisor.SaveOptions{Copies: map[string]string{disk.Serial: copied}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("saved: %+v", report)
	if sum(t, copied) != sum(t, disk.Path) {
		t.Error("the copy of the disk is another")
	}
	if got, most := allocated(t, copied), allocated(t, disk.Path); got > most {
		t.Errorf("the copy of the disk takes %d bytes, the disk %d", got, most)
	}
	spotless(t, m.runDir)
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
	saved, serial := savedIn(t), m.ownDisk(t).Serial
	taken := filepath.Join(t.TempDir(), "taken")
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, copies := range map[string]map[string]string{
		"no such disk": {"nonesuch": saved.Memory + ".disk"},
		"file exists":  {serial: taken},
		"no directory": {serial: "/nonexistent/disk"},
	} {
		if _, err := s.Save(bounded(t, time.Minute), saved, hypervisor.SaveOptions{Copies: copies}); err == nil {
			t.Errorf("%s: saved", name)
		}
		for _, file := range []string{saved.Memory, saved.State, saved.Memory + ".disk"} {
			if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s is left: %v", name, file, err)
			}
		}
	}
	if text, err := os.ReadFile(taken); err != nil || string(text) != "mine" {
		t.Errorf("a file that was there: %q, %v", text, err)
	}
	missing := hypervisor.Saved{Memory: "/nonexistent/memory", State: "/nonexistent/state"}
	disk := saved.Memory + ".disk"
	if _, err := s.Save(bounded(t, time.Minute), missing, hypervisor.SaveOptions{Copies: map[string]string{serial: disk}}); err == nil {
		t.Error("saved to a directory that does not exist")
	}
	if _, err := os.Lstat(disk); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy of the disk is left: %v", err)
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
	for _, damage := range []struct {
		name string
		do   func() error
	}{
		{"state cut short", func() error { return os.Truncate(good.State, 1000) }},
		{"state is missing", func() error { return os.Remove(good.State) }},
	} {
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		spec, _ := h.spec(t)
		spec.Restore = &good
		if m, err := h.Driver.Start(bounded(t, time.Minute), spec); err == nil {
			_ = m.Signal(int(syscall.SIGKILL))
			t.Errorf("%s: restored", damage.name)
		} else if fault.Is(err, fault.Timeout) || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v", damage.name, err)
		}
		nothingLeft(t, spec.RunDir)
	}
}

// ownDisk is the disk that the machine can write to.
func (m *machine) ownDisk(t *testing.T) hypervisor.Disk {
	t.Helper()
	i := slices.IndexFunc(m.disks, func(d hypervisor.Disk) bool { return !d.ReadOnly })
	if i < 0 {
		t.Fatal("the harness has no disk that can be written to")
	}
	return m.disks[i]
}

// spotted makes a disk have data and holes, behind the back of a guest that does not use it.
func spotted(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 70 << 10, 1<<20 - 512} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(at) | 1}, 512), at); err != nil {
			t.Fatal(err)
		}
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// spotless checks that a save has left nothing in the run directory of a machine that goes on.
func spotless(t *testing.T, runDir string) {
	t.Helper()
	entries, err := os.ReadDir(runDir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "copy") || strings.HasPrefix(e.Name(), "save") || strings.HasPrefix(e.Name(), "state") {
			t.Errorf("%s is left in the run directory", e.Name())
		}
	}
}

func (m *machine) kill(t *testing.T) {
	t.Helper()
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		t.Error(err)
	}
	m.ended(t)
}
