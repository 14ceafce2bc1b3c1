package fakevmm_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/hypervisor/hypervisortest"
)

func TestMain(m *testing.M) {
	fakevmm.Main()
	hypervisortest.Main(fakevmm.New(fakevmm.Options{}))
	os.Exit(m.Run())
}

func spec(t *testing.T) hypervisor.Spec {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"vmlinux", "disk"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run, err := os.MkdirTemp("", "fv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	return hypervisor.Spec{
		ID: "0123456789ab", Name: "dev", CPUs: 1, Memory: 256 << 20, Kernel: filepath.Join(dir, "vmlinux"),
		Disks: []hypervisor.Disk{{Path: filepath.Join(dir, "disk"), Serial: "data"}}, RunDir: run,
	}
}

func TestConformance(t *testing.T) {
	hypervisortest.Run(t, hypervisortest.Harness{
		Driver: fakevmm.New(fakevmm.Options{}), Spec: spec(t), BootTimeout: time.Minute, Cycles: 20,
	})
}

func TestFaultsAtStart(t *testing.T) {
	for _, tc := range []struct {
		faults string
		class  fault.Class
		want   string
	}{
		{"start-error", fault.Unavailable, "start error was asked for"},
		{"dev/start-error", fault.Unavailable, "start error was asked for"},
		{"die-at-start", fault.Internal, "death at the start was asked for"},
		{"explode", fault.Invalid, `unknown fault "explode"`},
		{"die-after=soon", fault.Invalid, "die-after"},
	} {
		_, err := fakevmm.New(fakevmm.Options{Faults: tc.faults}).Start(t.Context(), spec(t))
		if !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Start() = %v, want class %s with %q", tc.faults, err, tc.class, tc.want)
		}
	}
}

func TestFaultsOfARunningMachine(t *testing.T) {
	quit := func(m hypervisor.Machine) error { return m.Quit(t.Context()) }
	term := func(m hypervisor.Machine) error { return m.Signal(int(syscall.SIGTERM)) }
	nothing := func(hypervisor.Machine) error { return nil }
	for _, tc := range []struct {
		faults string
		act    func(hypervisor.Machine) error
		ends   bool
		want   hypervisor.Exit
	}{
		{"other/ignore-quit", quit, true, hypervisor.Exit{Reason: hypervisor.ReasonQuit}},
		{"ignore-quit", quit, false, hypervisor.Exit{}},
		{"ignore-quit", term, true, hypervisor.Exit{Reason: hypervisor.ReasonSignal}},
		{"ignore-term", term, false, hypervisor.Exit{}},
		{"die-after=10ms", nothing, true, hypervisor.Exit{Code: -1, Signal: "killed"}},
		{"panic-after=10ms", nothing, true, hypervisor.Exit{Reason: hypervisor.ReasonGuestReset}},
	} {
		t.Run(tc.faults, func(t *testing.T) {
			m, err := fakevmm.New(fakevmm.Options{Faults: tc.faults}).Start(t.Context(), spec(t))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = m.Signal(int(syscall.SIGKILL)); <-m.Done() }()
			if err := tc.act(m); err != nil {
				t.Fatal(err)
			}
			select {
			case <-m.Done():
				if !tc.ends {
					t.Fatalf("ended: %+v", m.Exit())
				}
				if diff := cmp.Diff(tc.want, m.Exit()); diff != "" {
					t.Errorf("exit (-want +got):\n%s", diff)
				}
			case <-time.After(map[bool]time.Duration{true: time.Minute, false: 100 * time.Millisecond}[tc.ends]):
				if tc.ends {
					t.Fatal("still runs")
				}
			}
		})
	}
}

func TestHaltIsTold(t *testing.T) {
	s := spec(t)
	told := make(chan string, 1)
	s.Halted = func(reason string) { told <- reason }
	m, err := fakevmm.New(fakevmm.Options{Faults: "halt-after=10ms"}).Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Signal(int(syscall.SIGKILL)); <-m.Done() }()
	select {
	case reason := <-told:
		if !strings.Contains(reason, "no space left") {
			t.Errorf("reason %q", reason)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is told")
	}
	if err := m.(hypervisor.Pauser).Resume(t.Context()); err != nil {
		t.Error(err)
	}
}
