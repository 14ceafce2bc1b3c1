package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestSetKeepsWhatItDoesNotChange(t *testing.T) {
	const head = "# mine, since 2026\n\n"
	const catalog = "name = \"a\"\nurl = \"http://h/c.json\"\nkey = \"RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW\"\n"
	for name, tt := range map[string]struct{ before, key, value, after string }{
		"no file":          {"", "defaults.memory", "2G", "[defaults]\nmemory = \"2G\"\n"},
		"in place":         {head + "[defaults]\n  memory   =  \"1G\"  # enough\ncpus = 1\n", "defaults.memory", "2G", head + "[defaults]\n  memory   =  \"2G\"  # enough\ncpus = 1\n"},
		"single quotes":    {"[mirror]\ndebian = 'http://a/#b'# here\n", "mirror.debian", "file:///x", "[mirror]\ndebian = \"file:///x\"# here\n"},
		"number":           {"[defaults]\ncpus=1", "defaults.cpus", "3", "[defaults]\ncpus=3"},
		"end of its table": {"[defaults]\ncpus = 1\n\n# the mirror\n[mirror]\ndebian = \"\"\n", "defaults.disk", "20G", "[defaults]\ncpus = 1\n\n# the mirror\ndisk = \"20G\"\n[mirror]\ndebian = \"\"\n"},
		"commented line":   {"[defaults]\n# memory\n#memory = \"1G\"\n# disk\n#disk = \"10G\"\n", "defaults.memory", "2G", "[defaults]\n# memory\n#memory = \"1G\"\nmemory = \"2G\"\n# disk\n#disk = \"10G\"\n"},
		"new table":        {"[defaults]\ncpus = 1", "vmm.accelerator", "tcg", "[defaults]\ncpus = 1\n\n[vmm]\naccelerator = \"tcg\"\n"},
		"dotted":           {"defaults.cpus = 1\nvmm.driver = \"qemu\"\n", "defaults.cpus", "2", "defaults.cpus = 2\nvmm.driver = \"qemu\"\n"},
		"duration":         {"", "defaults.auto_stop", "30m", "[defaults]\nauto_stop = \"30m\"\n"},
		"list":             {"[trust]\nkeys = [] # none\n", "registry.insecure", "box:5000, [::1]", "[trust]\nkeys = [] # none\n\n[registry]\ninsecure = [\"box:5000\", \"[::1]\"]\n"},
		"list in place":    {"[registry]\ninsecure = [\"[::1]\", 'b'] # two\n", "registry.insecure", "box", "[registry]\ninsecure = [\"box\"] # two\n"},
		"before catalogs":  {"[trust]\nkeys = []\n[[catalog]]\n" + catalog, "registry.insecure", "box", "[trust]\nkeys = []\n[[catalog]]\n" + catalog + "\n[registry]\ninsecure = [\"box\"]\n"},
		"above catalogs":   {"[limits]\nevents = 500\n[[catalog]]\n" + catalog, "limits.image_size", "1G", "[limits]\nevents = 500\nimage_size = \"1G\"\n[[catalog]]\n" + catalog},
		"special letters":  {"", "mirror.debian", "file:///a\"b\\c\x01", "[mirror]\ndebian = \"file:///a\\\"b\\\\c\\u0001\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "config.toml")
			if tt.before != "" {
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(tt.before), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			if err := Set(path, tt.key, tt.value); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.after, string(got)); diff != "" {
				t.Error(diff)
			}
			all, err := Show(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range all {
				if s.Key == tt.key && (s.Value != tt.value || s.Line == 0) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

func TestSetRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ before, key, value, want string }{
		"unknown key":   {"", "defaults.memroy", "1G", `unknown key "defaults.memroy", did you mean defaults.memory?`},
		"without table": {"", "accelerator", "kvm", `unknown key "accelerator", did you mean vmm.accelerator?`},
		"a table":       {"", "defaults", "1", `unknown key "defaults"`},
		"not a number":  {"", "defaults.cpus", "many", `defaults.cpus: "many" is not a whole number`},
		"injection":     {"", "defaults.cpus", "1\nmemory = \"1G\"", "defaults.cpus: \"1\\nmemory = \\\"1G\\\"\" is not a whole number"},
		"size":          {"", "defaults.memory", "lots", `defaults.memory: size "lots" is not a number with K, M, G or T behind it, such as 512M or 10G`},
		"too small":     {"", "defaults.disk", "1M", `defaults.disk: 1M is less than the least that works, 256M`},
		"duration":      {"", "defaults.auto_stop", "soon", `defaults.auto_stop: "soon" is not a duration such as 30m or 2h, or 0 for never`},
		"events":        {"", "limits.events", "5", `limits.events: 5 is not between 100 and 1000000`},
		"broken file":   {"[defaults]\nq = 1\n", "defaults.cpus", "1", `FILE line 2: unknown key "defaults.q", did you mean defaults?`},
		"a catalog":     {"", "catalog.acme", "x", `catalog.acme: catalogs are tables of their own, which only a person can edit`},
		"a bad key":     {"", "trust.keys", "RW", `trust.keys: "RW" is not a minisign public key: 56 characters that begin with RW`},
		"long list":     {"[registry]\ninsecure = [\n\"a\",\n]\n", "registry.insecure", "b", `FILE sets registry.insecure in a way that only a person can edit`},
		"inline table":  {"defaults = { cpus = 1 }\n", "defaults.cpus", "2", `FILE sets defaults.cpus in a way that only a person can edit`},
		"long string":   {"[defaults]\nimage = \"\"\"\na\"\"\"\n", "defaults.image", "b", `FILE sets defaults.image in a way that only a person can edit`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if tt.before != "" {
				if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := Set(path, tt.key, tt.value)
			if !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
				t.Fatalf("err = %v, hint %q", err, fault.HintOf(err))
			}
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, "FILE", path), err.Error()); diff != "" {
				t.Error(diff)
			}
			if now, _ := os.ReadFile(path); string(now) != tt.before {
				t.Errorf("the file is %q now", now)
			}
		})
	}
}

func TestSetKeepsALinkAndTheMode(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "dotfiles.toml"), filepath.Join(dir, "config.toml")
	if err := os.WriteFile(real, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := Set(link, "defaults.cpus", "1"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o644 || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestInitWritesTheDefaultsAndRefusesToDoItTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "config.toml")
	if err := Init(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Error(diff)
	}
	if err := Init(path); !fault.Is(err, fault.Exists) || fault.HintOf(err) == "" {
		t.Errorf("again: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// What is commented out is right: with the marks taken away the file sets every key to its default.
	var bare []string
	for line := range strings.Lines(string(text)) {
		if m, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(m, " ") {
			line = m
		}
		bare = append(bare, line)
	}
	got, err = parse("c", strings.Join(bare, ""))
	if err != nil || !cmp.Equal(got, Default()) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, k := range keys() {
		if err := Set(path, k.name, k.value(&got)); err != nil {
			t.Errorf("set %s: %v", k.name, err)
		}
	}
	all, err := Show(path)
	if err != nil || len(all) != len(keys()) {
		t.Fatalf("%v, %v", all, err)
	}
	for _, s := range all {
		if s.Line == 0 || s.Value != s.Default || s.Comment == "" {
			t.Errorf("%+v", s)
		}
	}
}

func TestShowCatalogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	const key = "RWS1E5LUbrIqlNcOTOYJAnxYHS7gu9IvwHgUYxyc5uTrLvMpElJYuqXW"
	text := "# mine\n[[catalog]]\nname = \"acme\"\nurl = \"http://h/c.json\"\nkey = \"" + key + "\"\n[[ catalog ]]\nname = \"b\"\nurl = \"http://h/b.json\"\nkey = \"" + key + "\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Show(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all[len(keys()):] {
		got = append(got, fmt.Sprint(s.Key, " ", s.Value, " ", s.Line))
	}
	want := []string{"catalog.acme http://h/c.json " + key + " 2", "catalog.b http://h/b.json " + key + " 6"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
