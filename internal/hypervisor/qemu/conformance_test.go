package qemu_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/hypervisor/qemu"
	"banger/internal/kernel"
	"banger/internal/kernel/initramfs"
)

func TestMain(m *testing.M) {
	hypervisortest.Main(qemu.New(qemu.Options{}))
	os.Exit(m.Run())
}

// TestConformance boots real machines: BANGER_TEST_VM=1 asks for it. BANGER_TEST_KERNEL names the directory of a kernel
// (package kernel makes them); without it one is pulled.
func TestConformance(t *testing.T) {
	if os.Getenv("BANGER_TEST_VM") != "1" {
		t.Skip("boots virtual machines: set BANGER_TEST_VM=1")
	}
	dir := t.TempDir()
	kernelDir := os.Getenv("BANGER_TEST_KERNEL")
	if kernelDir == "" {
		kernelDir = pullKernel(t, dir)
	}
	manifest, err := kernel.Load(kernelDir)
	if err != nil {
		t.Fatal(err)
	}
	image, err := initramfs.Ensure(dir, kernelDir, manifest, buildAgent(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	hypervisortest.Run(t, hypervisortest.Harness{
		Driver: qemu.New(qemu.Options{CacheDir: dir}),
		Spec: hypervisor.Spec{
			ID: "0123456789ab", Name: "conformance", CPUs: 1, Memory: 512 << 20,
			Kernel: filepath.Join(kernelDir, kernel.ImageFile), Initramfs: image,
			Disks: []hypervisor.Disk{
				{Path: filepath.Join(kernelDir, kernel.ModulesFile), ReadOnly: true, Serial: "modules"},
				{Path: disk, Serial: "data"},
			},
			Network: hypervisor.Network{Kind: hypervisor.NetworkUser, MAC: "02:00:00:00:00:01"},
		},
		BootTimeout: time.Minute,
		Cycles:      20,
		BadKernel:   true,
	})
}

func pullKernel(t *testing.T, staging string) string {
	entry, err := kernel.Find(kernel.Default)
	if err != nil {
		t.Fatal(err)
	}
	dir, _, err := kernel.Pull(t.Context(), entry, kernel.PullOptions{Staging: staging})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func buildAgent(t *testing.T, dir string) []byte {
	path := filepath.Join(dir, "agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "banger/cmd/banger-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
