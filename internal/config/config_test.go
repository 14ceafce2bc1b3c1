package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/webcatalog"
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
	const key = "RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW"
	path := filepath.Join(t.TempDir(), "config.toml")
	text := `
# mine
[defaults]
image = "debian-trixie"
cpus = 3
memory = "512M"
disk = "20GiB"
checkpoint = "each-exec"
[mirror]
debian = "file:///srv/mirror"
[limits]
image_size = "8G"
image_entries = 5
checkpoints = 9
[trust]
keys = [
  "RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW", # the team's
]
[registry]
insecure = ["box:5000", "[fd00::1]:80"]
[vmm]
driver = "firecracker"
accelerator = "tcg"
[[catalog]]
name = "acme"
url = "https://images.example/catalog.json"
key = "RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW"
[[catalog]]
name = "beta"
url = "http://b.example/c.json"
key = "RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW"
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Defaults: Defaults{Image: "debian-trixie", CPUs: 3, Memory: 512 << 20, Disk: 20 << 30, IdleAction: IdleStop, Checkpoint: CheckpointEachExec},
		Limits:   Limits{Events: 10_000, Checkpoints: 9, Templates: 4 << 30, StartMemory: 160 << 20, ImageSize: 8 << 30, ImageEntries: 5, DownloadSize: 32 << 30},
		Mirror:   Mirror{Debian: "file:///srv/mirror"},
		Trust:    Trust{Keys: []string{key}},
		Registry: Registry{Insecure: []string{"box:5000", "[fd00::1]:80"}},
		VMM:      VMM{Driver: "firecracker", Accelerator: "tcg", Templates: true},
		Catalogs: []webcatalog.Config{
			{Name: "acme", URL: "https://images.example/catalog.json", Key: key}, {Name: "beta", URL: "http://b.example/c.json", Key: key},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	const acme = "[[catalog]]\nname=\"acme\"\nurl=\"http://h/c.json\"\nkey=\"RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW\"\n"
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
		"image size":       {"[limits]\nimage_size = \"1K\"", "c line 2: limits.image_size: 1K is less than the least that works, 1M"},
		"huge image":       {"[limits]\n\nimage_size = \"99T\"", "c line 3: limits.image_size: 99T is more than the most that works, 16T"},
		"huge download":    {"[limits]\ndownload_size = \"99T\"", "c line 2: limits.download_size: 99T is more than the most that works, 16T"},
		"entries":          {"[limits]\nimage_entries = 0", "c line 2: limits.image_entries: 0 is not between 1 and 16777216"},
		"trusted key":      {"[trust]\nkeys = [\n\"RWx\"]", `c line 3: trust.keys: "RWx" is not a minisign public key: 56 characters that begin with RW`},
		"registry":         {"[registry]\ninsecure = [\"http://x\"]", `c line 2: registry.insecure: "http://x" is not a host, or a host and a port`},
		"catalog no key":   {"[[catalog]]\nname=\"a\"\nurl=\"http://h/c.json\"", `c line 1: a catalog needs a name, a url and a key: its key is missing`},
		"catalog name":     {acme + "[[catalog]]\nname=\"A/b\"\nurl=\"http://h/c.json\"\nkey=\"x\"", `c line 5: "A/b" is not a catalog's name: lower-case letters and digits, with dashes between them`},
		"catalog url":      {"[[catalog]]\nname=\"a\"\nurl=\"ftp://h/c.json\"\nkey=\"x\"", `c line 1: catalog a: ftp://h/c.json is not an http or https URL`},
		"catalog twice":    {acme + "\n" + acme, `c line 6: there are two catalogs called acme`},
		"catalog unknown":  {acme + "kye = \"x\"\n", `c line 5: unknown key "catalog.kye", did you mean catalog.key?`},
		"catalog is table": {"[catalog]\nname=\"a\"\n", `c: line 1: catalog is a list of tables: write [[catalog]]`},
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
