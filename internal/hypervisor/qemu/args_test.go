package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files")

func fullSpec() hypervisor.Spec {
	return hypervisor.Spec{
		ID: "0123456789ab", Name: "calm-otter", CPUs: 2, Memory: 2 << 30,
		Kernel: "/k/vmlinux", Initramfs: "/c/initramfs", Cmdline: []string{"banger.test=1"},
		Disks: []hypervisor.Disk{
			{Path: "/i/rootfs.ext4", ReadOnly: true, Serial: "image"},
			{Path: "/v/disk.ext4", Serial: "data"},
			{Path: "/k/modules.ext4", ReadOnly: true, Serial: "modules"},
		},
		Network: hypervisor.Network{Kind: hypervisor.NetworkUser, MAC: "02:00:00:00:00:01"},
		RunDir:  "/run/vm",
	}
}

// restored is a machine that goes on from a saved one.
func restored() hypervisor.Spec {
	spec := fullSpec()
	spec.Restore = &hypervisor.Saved{Memory: "/t/memory", State: "/t/state"}
	return spec
}

func TestArgs(t *testing.T) {
	odd := fullSpec()
	odd.Name, odd.RunDir = "a,b", `/r,un/"dir"`
	odd.Disks = []hypervisor.Disk{{Path: `/v,1/"disk".ext4`, Serial: "da,ta"}}
	for _, tc := range []struct {
		name string
		spec hypervisor.Spec
		host machineHost
	}{
		{"tcg", fullSpec(), machineHost{Accelerator: TCG, TSCKHz: 2596122}},
		{"kvm", fullSpec(), machineHost{Accelerator: KVM}},
		{"small", hypervisor.Spec{Name: "a", CPUs: 1, Memory: 128 << 20, Kernel: "/k", RunDir: "/r"}, machineHost{Accelerator: KVM}},
		{"incoming", restored(), machineHost{Accelerator: TCG, TSCKHz: 2596122, Incoming: true}},
		{"escapes", odd, machineHost{Accelerator: KVM}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := golden(args(tc.spec, tc.host))
			path := filepath.Join("testdata", "args_"+tc.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
		})
	}
}

// golden puts each option on a line.
func golden(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	return b.String() + "\n"
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(*hypervisor.Spec)
		class fault.Class // "" means good
		want  string
	}{
		{"good", func(*hypervisor.Spec) {}, "", ""},
		{"no cpu", func(s *hypervisor.Spec) { s.CPUs = 0 }, fault.Invalid, "0 cpus are not possible"},
		{"too many cpus", func(s *hypervisor.Spec) { s.CPUs = maxCPUs + 1 }, fault.Invalid, "1 to 255"},
		{"no memory", func(s *hypervisor.Spec) { s.Memory = 1000 }, fault.Invalid, "1000 bytes of memory"},
		{"no kernel", func(s *hypervisor.Spec) { s.Kernel = dir + "/none" }, fault.NotFound, "kernel"},
		{"kernel is a directory", func(s *hypervisor.Spec) { s.Kernel = dir }, fault.Invalid, "not a regular file"},
		{"no initramfs", func(s *hypervisor.Spec) { s.Initramfs = dir + "/none" }, fault.NotFound, "initramfs"},
		{"no disk", func(s *hypervisor.Spec) { s.Disks[1].Path = dir + "/none" }, fault.NotFound, "disk data"},
		{"no serial", func(s *hypervisor.Spec) { s.Disks[0].Serial = "" }, fault.Invalid, "1 to 20 bytes"},
		{
			"long serial", func(s *hypervisor.Spec) { s.Disks[0].Serial = strings.Repeat("s", 21) }, fault.Invalid,
			"1 to 20 bytes",
		},
		{
			"too many disks", func(s *hypervisor.Spec) { s.Disks = make([]hypervisor.Disk, 6) }, fault.Invalid,
			"6 disks are too many",
		},
		{"bad mac", func(s *hypervisor.Spec) { s.Network.MAC = "x,y" }, fault.Invalid, "network"},
		{"unknown network", func(s *hypervisor.Spec) { s.Network.Kind = "bridge" }, fault.Invalid, `kind "bridge"`},
		{
			"line break in the command line", func(s *hypervisor.Spec) { s.Cmdline = []string{"a\nb"} }, fault.Invalid,
			"control character",
		},
		{
			"long command line", func(s *hypervisor.Spec) { s.Cmdline = []string{strings.Repeat("x", 2048)} },
			fault.Invalid, "bytes long",
		},
		{
			"long run directory", func(s *hypervisor.Spec) { s.RunDir = "/" + strings.Repeat("x", 120) }, fault.Invalid,
			"socket path",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := fullSpec()
			spec.Kernel, spec.Initramfs = file, file
			for i := range spec.Disks {
				spec.Disks[i].Path = file
			}
			tc.spoil(&spec)
			err := check(spec)
			if tc.class == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("check() = %v, want class %s with %q", err, tc.class, tc.want)
			}
		})
	}
}
