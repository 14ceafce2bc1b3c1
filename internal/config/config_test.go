package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestLoadWithoutFileGivesTheDefaults(t *testing.T) {
	got, err := Load(filepath.Join(t.TempDir(), "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Error(diff)
	}
	if got.Defaults.Memory != 1<<30 || got.Defaults.Disk != 10<<30 || got.Defaults.CPUs < 1 || got.Defaults.CPUs > 2 {
		t.Errorf("defaults %+v", got.Defaults)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	text := `
# mine
[defaults]
image = "debian-trixie"
cpus = 3
memory = "512M"
disk = "20GiB"
[mirror]
debian = "file:///srv/mirror"
[vmm]
driver = "firecracker"
accelerator = "tcg"
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Defaults: Defaults{Image: "debian-trixie", CPUs: 3, Memory: 512 << 20, Disk: 20 << 30, IdleAction: IdleStop},
		Limits:   Limits{Events: 10_000, Templates: 4 << 30},
		Mirror:   Mirror{Debian: "file:///srv/mirror"},
		VMM:      VMM{Driver: "firecracker", Accelerator: "tcg", Templates: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unknown key":      {"[defaults]\nimage = \"x\"\nmemroy = \"1G\"\n", `c line 3: unknown key "defaults.memroy", did you mean defaults.memory?`},
		"wrong table":      {"[vmm]\n\nmemory = \"1G\"\n", `c line 3: unknown key "vmm.memory", did you mean defaults.memory?`},
		"unknown table":    {"[mirrors]\ndebian = \"x\"\n", `c line 1: unknown key "mirrors", did you mean mirror?`},
		"nothing near":     {"zebra = 1\n", `c line 1: unknown key "zebra"`},
		"syntax":           {"[defaults]\nimage = \n", "c line 2: expected value but found '\\n' instead"},
		"size":             {"[defaults]\n\ndisk = \"big\"\n", `c line 3: defaults.disk: size "big" is not a number with K, M, G or T behind it, such as 512M or 10G`},
		"memory too small": {"[defaults]\nmemory = \"1M\"", "c line 2: defaults.memory: 1M is less than the least that works, 128M"},
		"cpus":             {"[defaults]\ncpus = 0\n", "c line 2: defaults.cpus: a vm needs at least 1 cpu"},
		"image":            {"[defaults]\nimage = \"\"\n", "c line 2: defaults.image: is empty"},
		"accelerator":      {"[vmm]\naccelerator = \"fast\"\n", `c line 2: vmm.accelerator: "fast" is not auto, kvm or tcg`},
		"type":             {"[defaults]\nmemory = 5\n", `c: line 2 (last key "defaults.memory"): incompatible types: TOML value has type int64; destination has type string`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse("c", tt.text)
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("err = %v", err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
