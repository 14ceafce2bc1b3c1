package kernel

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/ext4"
)

// needMirror skips a test that downloads kernels from the mirror that this host uses.
func needMirror(t *testing.T) {
	t.Helper()
	if os.Getenv("BANGER_TEST_VM") != "1" {
		t.Skip("downloads kernels: set BANGER_TEST_VM=1")
	}
}

// large reports whether time and traffic do not matter: then the kernels of backports are tried, too.
func large() bool { return os.Getenv("BANGER_TEST_LARGE") != "" }

// Every kernel of the catalog that is for another architecture is what banger needs. Those for this one are booted, too:
// see TestBootEveryKernelOfTheCatalog.
func TestPullEveryOtherKernelOfTheCatalog(t *testing.T) {
	needMirror(t)
	for _, e := range Catalog() {
		if e.Arch == "" || e.Backports && !large() {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			dir, m := PullByCommand(t, e.Name)
			t.Logf("%s %s from %s: %v; missing %q, unknown %q", m.Version, m.Digest, m.Source, m.BootModules, m.Missing, m.Unknown)
			checkReal(t, dir, m)
			if m.Arch != e.Arch || len(m.Missing) > 0 || len(m.Unknown) > 0 {
				t.Errorf("it is for %s, missing %q, unknown %q", m.Arch, m.Missing, m.Unknown)
			}
		})
	}
}

// checkReal looks at the directory of a real kernel.
func checkReal(t *testing.T, dir string, m Manifest) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, ImageFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if facts, err := inspectFile(f); err != nil || facts.release != m.Version || facts.arch != m.Arch {
		t.Errorf("kernel %q for %s, %v", facts.release, facts.arch, err)
	}
	for _, module := range m.BootModules {
		data, err := os.ReadFile(filepath.Join(dir, BootDir, module+".ko"))
		if err != nil || !bytes.HasPrefix(data, []byte("\x7fELF")) {
			t.Errorf("module %s has %d bytes, %v", module, len(data), err)
		}
	}
	for _, module := range []string{"virtio_mmio", "virtio_blk", "virtio_net", "overlay", "virtio_rng"} {
		if !slices.Contains(m.BootModules, module) {
			t.Errorf("no module %s", module)
		}
	}
	if used, err := ext4.Usage(filepath.Join(dir, ModulesFile)); err != nil || used < 10<<20 {
		t.Errorf("modules image takes %d bytes, %v", used, err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); err != nil || len(left) != 1 {
		t.Errorf("in the staging directory: %v, %v", left, err)
	}
	if !strings.HasPrefix(m.Digest, "sha256:") || len(m.Digest) != len("sha256:")+64 {
		t.Errorf("digest %q", m.Digest)
	}
}

// PullByCommand pulls a kernel with the built banger into a home of its own and returns its directory there. The other
// tests pull in this process; a whole kernel is not for them, since the race detector makes XZ ten times slower.
func PullByCommand(t *testing.T, name string) (dir string, m Manifest) {
	t.Helper()
	binary := os.Getenv("BANGER_TEST_BINARY")
	if binary == "" {
		t.Skip("pulls kernels with the built banger: set BANGER_TEST_BINARY to its path")
	}
	home, err := os.MkdirTemp("/tmp", "bk") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	banger := func(ctx context.Context, args ...string) error {
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Env = append(os.Environ(), "BANGER_HOME="+home)
		out, err := cmd.CombinedOutput()
		t.Logf("banger %q: %v\n%s", args, err, out)
		return err
	}
	t.Cleanup(func() {
		if err := banger(context.Background(), "daemon", "stop"); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	if err := banger(t.Context(), "kernel", "pull", name); err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(home, "data", "kernels", "sha256*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("kernels: %v, %v", dirs, err)
	}
	if m, err = Load(dirs[0]); err != nil {
		t.Fatal(err)
	}
	return dirs[0], m
}
