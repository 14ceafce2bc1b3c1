package archtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

func TestTreeKeepsTheRules(t *testing.T) {
	pkgs, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 10 {
		t.Fatalf("found only %d packages", len(pkgs))
	}
	for _, problem := range Check(pkgs) {
		t.Error(problem)
	}
}

// A rule that finds nothing proves nothing: each kind of breach is found in a made-up tree.
func TestBreachesAreFound(t *testing.T) {
	dir := t.TempDir()
	write := func(path, src string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("internal/vm/a.go", "package vm\nimport _ \"banger/internal/daemon\"\n")
	write("internal/util/a.go", "// Package util.\npackage util\nimport \"os\"\nfunc init() {}\nfunc f() { os.Exit(1) }\n"+
		"func g() {\n"+strings.Repeat("\n", maxFuncLines)+"}\n")
	write("internal/util/b.go", "// Package util again.\npackage util\n"+strings.Repeat("\n", maxFileLines))
	pkgs, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(Check(pkgs), "\n")
	for _, want := range []string{
		"vm: 0 files with a package comment", "util: 2 files with a package comment", `"util" says nothing`, "an init function",
		"uses os.Exit", "func g has 102 lines", "b.go has 802 lines", "banger/internal/vm (a.go) imports banger/internal/daemon: imports go down",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("not found: %s\nin:\n%s", want, all)
		}
	}
}

// Mirrors come from the host's configuration: no archive's or registry's host name is in the tree.
func TestNoArchiveHostNames(t *testing.T) {
	banned := regexp.MustCompile(`(?i)\b(deb|ftp|security|archive|snapshot|ports|proxy|registry|index|repo1?|cdn)\.(debian|ubuntu|golang|npmjs|docker|maven|kernel|fedoraproject|alpinelinux)\.(org|com|io)\b|\bpypi\.org\b|\bcrates\.io\b`)
	out, err := exec.Command("git", "-C", root, "ls-files", "-co", "--exclude-standard").Output()
	if err != nil {
		t.Skip("not a git checkout")
	}
	for _, name := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			if os.IsNotExist(err) { // removed in the work tree, not in the index yet
				continue
			}
			t.Fatal(err)
		}
		if m := banned.Find(data); m != nil {
			t.Errorf("%s names the archive host %s", name, m)
		}
	}
}

// Every command of the repository is executable and starts with a shebang.
func TestScriptsAreExecutable(t *testing.T) {
	for _, path := range []string{"scripts", ".ci"} {
		err := filepath.WalkDir(filepath.Join(root, path), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if data, err := os.ReadFile(path); err != nil || info.Mode()&0o111 == 0 || !strings.HasPrefix(string(data), "#!") {
				t.Errorf("%s is not an executable script (%v)", path, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
