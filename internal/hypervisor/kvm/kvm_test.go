package kvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLook(t *testing.T) {
	answers := func(version int, err error) func(string) (int, error) {
		return func(string) (int, error) { return version, err }
	}
	for _, tc := range []struct {
		name    string
		arch    string
		flags   string
		modules []string
		version func(string) (int, error)
		usable  bool
		reason  string
		hint    string
	}{
		{"intel", "amd64", "fpu vmx sse4_2", []string{"kvm", "kvm_intel"}, answers(12, nil), true, "(kvm_intel)", ""},
		{"amd", "amd64", "fpu svm sse4_2", []string{"kvm", "kvm_amd"}, answers(12, nil), true, "(kvm_amd)", ""},
		{"no /sys in a container", "amd64", "fpu svm", nil, answers(12, nil), true, "usable", ""},
		{
			"kvm_pvm", "amd64", "fpu hypervisor", []string{"kvm", "kvm_pvm"}, answers(12, nil), false,
			"driven by kvm_pvm", "",
		},
		{
			"kvm_pvm beside the flag", "amd64", "vmx", []string{"kvm", "kvm_pvm", "kvm_intel"}, answers(12, nil), false,
			"driven by kvm_pvm", "",
		},
		{"no flag", "amd64", "fpu vmxnet", []string{"kvm"}, answers(12, nil), false, "neither VT-x", ""},
		{"flag without its module", "amd64", "vmx", []string{"kvm"}, answers(12, nil), false, "neither kvm_intel", ""},
		{"old interface", "amd64", "vmx", []string{"kvm_intel"}, answers(11, nil), false, "version 11", ""},
		{"no permission", "amd64", "vmx", []string{"kvm_intel"}, answers(0, unix.EACCES), false, "no permission", "usermod"},
		{"no permission for a trap", "amd64", "fpu", []string{"kvm_pvm"}, answers(0, unix.EACCES), false, "driven by kvm_pvm", ""},
		{"no module, Intel", "amd64", "vmx", nil, answers(0, unix.ENOENT), false, "VT-x", "sudo modprobe kvm_intel"},
		{"no module, AMD", "amd64", "svm", nil, answers(0, unix.ENOENT), false, "AMD-V", "sudo modprobe kvm_amd"},
		{"node without driver", "amd64", "svm", nil, answers(0, unix.ENXIO), false, "AMD-V", "sudo modprobe kvm_amd"},
		{"no virtualisation", "amd64", "fpu", nil, answers(0, unix.ENOENT), false, "does not offer", ""},
		{"broken", "amd64", "vmx", nil, answers(0, unix.EIO), false, "does not work: input/output error", ""},
		{"arm", "arm64", "", nil, answers(12, nil), true, "usable", ""},
		{"arm without", "arm64", "", nil, answers(0, unix.ENOENT), false, "no /dev/kvm", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, filepath.Join(root, "proc/cpuinfo"), "processor\t: 0\nflags\t\t: "+tc.flags+"\nbugs\t\t:\n")
			for _, m := range tc.modules {
				write(t, filepath.Join(root, "sys/module", m, "refcnt"), "0\n")
			}
			got := Host{Root: root, Arch: tc.arch, Version: tc.version}.Look()
			if got.Usable != tc.usable || !strings.Contains(got.Reason, tc.reason) {
				t.Errorf("Look() = %+v, want usable %v with %q", got, tc.usable, tc.reason)
			}
			if (tc.hint == "") != (got.Hint == "") || !strings.Contains(got.Hint, tc.hint) {
				t.Errorf("hint = %q, want %q", got.Hint, tc.hint)
			}
		})
	}
}

func TestVersionOfAFileThatIsNoDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kvm")
	write(t, path, "")
	if _, err := version(path); err != unix.ENOTTY {
		t.Errorf("error = %v, want ENOTTY", err)
	}
}

func TestLookIsFastOnThisHost(t *testing.T) {
	start := time.Now()
	got := Host{}.Look()
	took := time.Since(start)
	t.Logf("%+v in %s", got, took)
	if got.Reason == "" {
		t.Error("no reason")
	}
	if took > 5*time.Second { // usually under a millisecond: a loaded machine is no reason to fail
		t.Errorf("took %s", took)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
