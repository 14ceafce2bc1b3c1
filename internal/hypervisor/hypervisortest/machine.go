package hypervisortest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/hypervisor"
)

// machine is a Machine with what its test wants to know of it.
type machine struct {
	hypervisor.Machine
	runDir  string
	disks   []hypervisor.Disk
	console *buffer
}

// spec returns the harness's Spec with a run directory and a console of its own.
func (h Harness) spec(t *testing.T) (hypervisor.Spec, *buffer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	spec, console := h.Spec, &buffer{}
	spec.Disks = slices.Clone(h.Spec.Disks)
	for i, disk := range spec.Disks {
		if !disk.ReadOnly { // a machine's own
			spec.Disks[i].Path = filepath.Join(dir, fmt.Sprintf("disk%d", i))
			copyFile(t, disk.Path, spec.Disks[i].Path)
		}
	}
	spec.RunDir = filepath.Join(dir, "run")
	if err := os.Mkdir(spec.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec.Console, spec.Log = console, &buffer{}
	return spec, console
}

// start starts a machine that is killed at the end of the test, if it still runs.
func (h Harness) start(t *testing.T) *machine {
	t.Helper()
	spec, console := h.spec(t)
	started, err := h.Driver.Start(bounded(t, time.Minute), spec)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Machine: started, runDir: spec.RunDir, disks: spec.Disks, console: console}
	t.Cleanup(func() {
		_ = m.Signal(int(syscall.SIGKILL))
		<-m.Done()
	})
	if m.PID() <= 0 || syscall.Kill(m.PID(), 0) != nil {
		t.Fatalf("pid %d is no process", m.PID())
	}
	return m
}

// boot starts a machine and waits until its agent answers. A guest that does not come up gets one more chance, as a
// supervisor gives it.
func (h Harness) boot(t *testing.T) (*machine, *guest.Client) {
	t.Helper()
	for try := 1; ; try++ {
		m := h.start(t)
		client, err := h.connect(t, m)
		if err == nil {
			return m, client
		}
		t.Logf("boot %d: %v; console:\n%s", try, err, m.console)
		_ = m.Signal(int(syscall.SIGKILL))
		<-m.Done()
		if try == 2 {
			t.Fatal("the guest's agent does not answer")
		}
	}
}

func (h Harness) connect(t *testing.T, m *machine) (*guest.Client, error) {
	ctx := bounded(t, h.BootTimeout)
	dialer := guest.Dialer(dialFunc(m.ConnectAgent))
	if h.Driver.Features().MuxedAgent {
		conn, err := m.ConnectAgent(ctx)
		if err != nil {
			return nil, err
		}
		mux, err := guest.ConnectMux(ctx, conn)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { mux.Close() })
		dialer = mux
	}
	client := guest.NewClient(dialer)
	_, err := client.Hello(ctx)
	return client, err
}

// dialFunc makes a guest.Dialer of ConnectAgent.
type dialFunc func(ctx context.Context) (net.Conn, error)

func (f dialFunc) Dial(ctx context.Context) (net.Conn, error) { return f(ctx) }

// ended waits for the end, looks for remains and returns how it ended.
func (m *machine) ended(t *testing.T) hypervisor.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(endTimeout):
		t.Fatalf("still runs; console:\n%s", m.console)
	}
	if err := syscall.Kill(m.PID(), 0); err != syscall.ESRCH {
		t.Errorf("process %d is still there: %v", m.PID(), err)
	}
	nothingLeft(t, m.runDir)
	return m.Exit()
}

// nothingLeft checks that the run directory is empty.
func nothingLeft(t *testing.T, runDir string) {
	t.Helper()
	entries, err := os.ReadDir(runDir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in the run directory", e.Name())
	}
}

// count returns the number of entries of a directory in /proc/self.
func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/" + dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sum is a checksum of a file.
func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

func bounded(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu  sync.Mutex // mu guards the field below
	buf bytes.Buffer
}

// Write appends.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Len returns how much was written.
func (b *buffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Len()
}

// String returns what was written.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
