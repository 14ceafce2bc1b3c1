package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/ext4"
	"banger/internal/progress"
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
			dir, m, err := Pull(t.Context(), e, PullOptions{Staging: t.TempDir(), Progress: timed(t)})
			if err != nil {
				t.Fatal(err)
			}
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

// timed logs when each step began.
func timed(t *testing.T) progress.Func {
	start, last := time.Now(), ""
	return func(u progress.Update) {
		if u.Message != last {
			last = u.Message
			t.Logf("%5d ms: %s", time.Since(start).Milliseconds(), u.Message)
		}
	}
}
