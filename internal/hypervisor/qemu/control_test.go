package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qmp"
)

// scripted is a machine whose QEMU answers as answer says: the return value in JSON, or an error. It gives the
// commands that were sent after the greeting.
func scripted(t *testing.T, answer func(command string) (string, error)) (*Machine, func() []string) {
	t.Helper()
	client, server := net.Pipe()
	var mu sync.Mutex
	var sent []string
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		fmt.Fprintln(server, `{"QMP":{"version":{},"capabilities":[]}}`)
		lines := bufio.NewScanner(server)
		for lines.Scan() {
			var req struct {
				Execute   string          `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
				ID        uint64          `json:"id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
				t.Error(err)
				return
			}
			if req.Execute == "qmp_capabilities" {
				fmt.Fprintf(server, `{"return":{},"id":%d}`+"\n", req.ID)
				continue
			}
			mu.Lock()
			sent = append(sent, strings.TrimSpace(req.Execute+" "+string(req.Arguments)))
			mu.Unlock()
			result, err := answer(req.Execute)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				fmt.Fprintf(server, `{"error":{"class":"GenericError","desc":%q},"id":%d}`+"\n", err.Error(), req.ID)
				continue
			}
			fmt.Fprintf(server, `{"return":%s,"id":%d}`+"\n", result, req.ID)
		}
	})
	c, err := qmp.New(t.Context(), client, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); wg.Wait() })
	dir := t.TempDir()
	spec := hypervisor.Spec{Name: "dev", Disks: []hypervisor.Disk{
		{Path: filepath.Join(dir, "image"), Serial: "image", ReadOnly: true}, {Path: filepath.Join(dir, "disk"), Serial: "data"},
	}}
	for _, disk := range spec.Disks {
		if err := os.WriteFile(disk.Path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Machine{spec: spec, qmp: c}, func() []string { mu.Lock(); defer mu.Unlock(); return sent }
}

// states answers query-status with one state after the other, the last for ever, and anything else with success.
func states(list ...string) func(string) (string, error) {
	return func(command string) (string, error) {
		if command != "query-status" {
			return "{}", nil
		}
		state := list[0]
		if len(list) > 1 {
			list = list[1:]
		}
		return fmt.Sprintf(`{"running":%t,"status":%q}`, state == "running", state), nil
	}
}

func TestPauseAndResume(t *testing.T) {
	pause := func(m *Machine, t *testing.T) error { return m.Pause(t.Context()) }
	resume := func(m *Machine, t *testing.T) error { return m.Resume(t.Context()) }
	const asks = "query-status"
	for _, tc := range []struct {
		name   string
		do     func(*Machine, *testing.T) error
		answer func(string) (string, error)
		want   []string
		class  fault.Class
		text   string
	}{
		{"pause", pause, states("paused"), []string{"stop", asks}, "", ""},
		{"pause takes a while", pause, states("running", "running", "paused"), []string{"stop", asks, asks, asks}, "", ""},
		{"pause of one that a full disk stopped", pause, states("io-error"), []string{"stop", asks}, "", ""},
		{"pause at the end", pause, states("shutdown"), []string{"stop", asks}, fault.Unavailable, `the machine is "shutdown"`},
		{"resume", resume, states("running"), []string{"cont", asks}, "", ""},
		{"resume onto a full disk", resume, states("io-error"), []string{"cont", asks}, fault.Exhausted, "cannot be written to"},
		{"refused", pause, func(string) (string, error) { return "", errors.New("no") }, []string{"stop"}, fault.Internal, "pause vm dev: QEMU refuses: no"},
		{"gone", resume, func(string) (string, error) { return "", net.ErrClosed }, []string{"cont"}, fault.Conflict, "QEMU has ended"},
		{"rubbish", resume, func(string) (string, error) { return "[]", nil }, []string{"cont", asks}, fault.Internal, "unexpected answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, sent := scripted(t, tc.answer)
			err := tc.do(m, t)
			if tc.class == "" && err != nil || tc.class != "" && (!fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("error = %v, want class %q with %q", err, tc.class, tc.text)
			}
			if diff := cmp.Diff(tc.want, sent()); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPauseEndsWithItsContext(t *testing.T) {
	m, _ := scripted(t, states("running"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := m.Pause(ctx); !fault.Is(err, fault.Timeout) {
		t.Errorf("error = %v", err)
	}
}

func TestResizeDisk(t *testing.T) {
	for _, tc := range []struct {
		name   string
		serial string
		bytes  uint64
		refuse string
		want   []string
		class  fault.Class
		text   string
	}{
		{"grows", "data", 8192, "", []string{`block_resize {"node-name":"disk1","size":8192}`}, "", ""},
		{"same size", "data", 4096, "", []string{`block_resize {"node-name":"disk1","size":4096}`}, "", ""},
		{"shrinks", "data", 2048, "", nil, fault.Invalid, "cannot shrink from 4096 to 2048"},
		{"read-only", "image", 8192, "", nil, fault.Invalid, "disk image is read-only"},
		{"unknown", "modules", 8192, "", nil, fault.NotFound, `no disk "modules"`},
		{"half a sector", "data", 8192 + 256, "", nil, fault.Invalid, "cannot have 8448 bytes"},
		{"impossible", "data", 1 << 63, "", nil, fault.Invalid, "cannot have"},
		{
			"refused", "data", 8192, "Image is read-only", []string{`block_resize {"node-name":"disk1","size":8192}`},
			fault.Internal, "resize disk data vm dev: QEMU refuses: Image is read-only",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, sent := scripted(t, func(string) (string, error) {
				if tc.refuse != "" {
					return "", errors.New(tc.refuse)
				}
				return "{}", nil
			})
			err := m.ResizeDisk(t.Context(), tc.serial, tc.bytes)
			if tc.class == "" && err != nil || tc.class != "" && (!fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("error = %v, want class %q with %q", err, tc.class, tc.text)
			}
			if diff := cmp.Diff(tc.want, sent()); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFullDiskIsTold(t *testing.T) {
	var told []string
	m := &Machine{spec: hypervisor.Spec{Halted: func(reason string) { told = append(told, reason) }}}
	for _, data := range []string{
		`{"device":"","node-name":"disk1","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"}`,
		`{"action":"report","reason":"Input/output error"}`, `[]`, `{"action":"stop","reason":"` + strings.Repeat("x", 100) + `"}`,
	} {
		m.event(qmp.Event{Name: "BLOCK_IO_ERROR", Data: json.RawMessage(data)})
		(&Machine{}).event(qmp.Event{Name: "BLOCK_IO_ERROR", Data: json.RawMessage(data)}) // nobody wants to know
	}
	m.event(qmp.Event{Name: "STOP"})
	if diff := cmp.Diff([]string{"the host cannot write to the vm's disk: no space left on device"}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m.event(qmp.Event{Name: "SHUTDOWN", Data: json.RawMessage(`{"guest":true,"reason":"guest-shutdown"}`)})
	if m.reason != hypervisor.ReasonGuestShutdown {
		t.Errorf("reason %q", m.reason)
	}
}

// Whoever gives up while a machine is being stopped for a save leaves a machine that runs.
func TestASaveThatIsGivenUpLeavesAMachineThatRuns(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stopped := false
	m, sent := scripted(t, func(command string) (string, error) {
		switch command {
		case "stop":
			stopped = true
		case "cont":
			stopped = false
		case "query-status":
			if stopped { // the stop has had its effect, and nobody has heard of it
				cancel()
				return `{"status":"finish-migrate"}`, nil
			}
			return `{"status":"running"}`, nil
		}
		return "{}", nil
	})
	if _, err := m.saveShared(ctx, filepath.Join(t.TempDir(), "state"), hypervisor.SaveOptions{Stay: true}, &copies{m: m}); err == nil {
		t.Error("it is saved")
	}
	if all := sent(); !slices.Contains(all, "cont") {
		t.Errorf("sent %v", all)
	}
}

// A QEMU that says that it has sent its state, and never did, holds nobody up.
func TestAStateThatNeverComes(t *testing.T) {
	m, _ := scripted(t, func(command string) (string, error) {
		if command == "query-migrate" {
			return `{"status":"completed"}`, nil
		}
		return "{}", nil
	})
	m.spec.RunDir = t.TempDir()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("too late"))
	defer cancel()
	if err := m.writeState(ctx, filepath.Join(t.TempDir(), "state")); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("err = %v", err)
	}
}
