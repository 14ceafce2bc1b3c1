package qemu

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/kvm"
)

// script writes an executable that plays QEMU and counts its runs in the file it returns.
func script(t *testing.T, version, machines string) (path, runs string) {
	t.Helper()
	dir := t.TempDir()
	path, runs = filepath.Join(dir, "qemu"), filepath.Join(dir, "runs")
	text := fmt.Sprintf("#!/bin/sh\necho run >>%s\ncase $1 in --version) echo '%s';; *) echo '%s';; esac\n", runs, version, machines)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, runs
}

const goodVersion = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"

// noKVM and withKVM are hosts.
func noKVM() kvm.Host {
	return kvm.Host{Root: "/nonexistent", Arch: "amd64"}
}

func withKVM() kvm.Host {
	return kvm.Host{Root: "/nonexistent", Arch: "arm64", Version: func(string) (int, error) { return 12, nil }}
}

func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name        string
		version     string
		machines    string
		accelerator string
		host        kvm.Host
		arch        string
		want        string // accelerator
		class       fault.Class
		text        string
	}{
		{"tcg", goodVersion, "microvm  microvm (i386)", Auto, noKVM(), "amd64", TCG, "", "software emulation is used"},
		{"kvm", goodVersion, "microvm  microvm (i386)", Auto, withKVM(), "amd64", KVM, "", "/dev/kvm is usable"},
		{"tcg forced", goodVersion, "microvm  x", TCG, withKVM(), "amd64", TCG, "", "asked for"},
		{"kvm forced", goodVersion, "microvm  x", KVM, noKVM(), "amd64", "", fault.Unavailable, "kvm was asked for"},
		{"unknown accelerator", goodVersion, "microvm  x", "hvf", noKVM(), "amd64", "", fault.Invalid, `"hvf"`},
		{"oldest", "QEMU emulator version 6.2.0", "microvm  x", Auto, noKVM(), "amd64", TCG, "", ""},
		{"too old", "QEMU emulator version 6.1.1", "microvm  x", Auto, noKVM(), "amd64", "", fault.Unavailable, "6.2 or newer"},
		{"not QEMU", "hello", "microvm  x", Auto, noKVM(), "amd64", "", fault.Unavailable, "does not say"},
		{"no microvm", goodVersion, "pc  Standard PC", Auto, noKVM(), "amd64", "", fault.Unavailable, "no machine type microvm"},
		{"arm", goodVersion, "microvm  x", Auto, noKVM(), "arm64", "", fault.Unavailable, "x86-64 hosts only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, _ := script(t, tc.version, tc.machines)
			d := New(Options{Binary: path, Accelerator: tc.accelerator, host: tc.host, arch: tc.arch})
			host, err := d.Probe(t.Context())
			text := host.Reason
			if err != nil {
				text = err.Error()
			}
			if tc.class != "" && !fault.Is(err, tc.class) || tc.class == "" && err != nil {
				t.Errorf("error = %v, want class %q", err, tc.class)
			}
			if host.Accelerator != tc.want || !strings.Contains(text, tc.text) {
				t.Errorf("accelerator %q, want %q; text %q, want %q", host.Accelerator, tc.want, text, tc.text)
			}
		})
	}
}

func TestProbeOfAMissingBinary(t *testing.T) {
	d := New(Options{Binary: "qemu-that-is-not-there", arch: "amd64"})
	if _, err := d.Probe(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "is not installed") {
		t.Errorf("error = %v", err)
	}
}

func TestProbeSpawnsOncePerBinary(t *testing.T) {
	path, runs := script(t, goodVersion, "microvm  x")
	cache := filepath.Join(t.TempDir(), "cache")
	probe := func(d *Driver) {
		t.Helper()
		if _, err := d.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	spawned := func() int {
		text, err := os.ReadFile(runs)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "run")
	}
	opts := Options{Binary: path, CacheDir: cache, host: noKVM(), arch: "amd64"}
	d := New(opts)
	probe(d)
	probe(d)
	probe(New(opts)) // another process
	if n := spawned(); n != 2 {
		t.Errorf("%d runs, want 2: the version and the machine types", n)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	probe(d)
	if n := spawned(); n != 4 {
		t.Errorf("%d runs after an upgrade, want 4", n)
	}
	if err := os.WriteFile(filepath.Join(cache, binaryFile), []byte("{rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	probe(New(opts))
	if n := spawned(); n != 6 {
		t.Errorf("%d runs after the cache was spoilt, want 6", n)
	}
}

func TestProbeOfAHangingBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	d := New(Options{Binary: path, host: noKVM(), arch: "amd64"})
	if _, err := d.Probe(ctx); !fault.Is(err, fault.Timeout) {
		t.Errorf("error = %v", err)
	}
}

func TestStartFault(t *testing.T) {
	for _, tc := range []struct {
		detail string
		class  fault.Class
		text   string
	}{
		{"qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory", fault.Exhausted, "not enough memory"},
		{"warning: x\nqemu-system-x86_64: -blockdev {}: Could not open '/d': Permission denied", fault.Denied, "could not open '/d'"},
		{`qemu: Failed to get "write" lock`, fault.Conflict, "in use by another process"},
		{"qemu-system-x86_64: unsupported", fault.Internal, "start QEMU: unsupported"},
		{"", fault.Internal, "start QEMU: no answer"},
	} {
		err := startFault(fmt.Errorf("no answer"), true, hypervisor.Exit{Detail: tc.detail})
		if !fault.Is(err, tc.class) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tc.text)) {
			t.Errorf("%q: %v, want class %s with %q", tc.detail, err, tc.class, tc.text)
		}
	}
}

func TestHostTSC(t *testing.T) {
	if rdtsc() == 0 {
		t.Skip("this architecture has no time-stamp counter")
	}
	first, second := float64(measureTSC()), float64(measureTSC())
	if math.Abs(first-second)/first > 1e-3 { // a few parts per million when the machine is idle
		t.Errorf("two measurements differ: %.0f and %.0f kHz", first, second)
	}
	d := New(Options{CacheDir: filepath.Join(t.TempDir(), "cache")})
	if a, b := d.hostTSC(), d.hostTSC(); a != b {
		t.Errorf("the second answer is %d and not the first, %d", b, a)
	}
}
