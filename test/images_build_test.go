package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The compiler is tcc with what it is linked to: a whole one of a few megabytes.
var compilerFiles = []string{"/usr/bin/tcc", "/usr/lib/x86_64-linux-gnu/tcc", "/lib64/ld-linux-x86-64.so.2"}

const (
	cProgram = `static long call(long n, long a, long b, long c) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return r;
}
void _start(void) {
  static const char text[] = "TEXT from C\n";
  call(1, 1, (long)text, sizeof text - 1);
  call(60, 5, 0, 0);
}
`
	buildFile = `FROM BASE AS compile
RUN mkdir /out && echo made a place
COPY main.c /src/main.c
RUN tcc -nostdlib -static -o /out/hello /src/main.c && echo compiled

FROM scratch
COPY --from=compile /out/hello /hello
ENTRYPOINT ["/hello"]
`
)

// A Dockerfile of two stages: a C program is compiled in a VM, and is all that the image has. What was done before is
// not done again, and what a changed file makes new is.
func TestImageBuildStages(t *testing.T) {
	home, vars := pullHome(t)
	registry := startRegistry(t)
	work := t.TempDir()
	root := busyboxRoot(t, filepath.Join(work, "compiler"))
	addCompiler(t, root)
	base := registry + "/compiler:1"
	newBuildah(t, work).push(root.root, base)

	context := plant{t, filepath.Join(work, "context")}
	context.file("Dockerfile", strings.ReplaceAll(buildFile, "BASE", base), 0o644)
	context.file("main.c", strings.ReplaceAll(cProgram, "TEXT", "hello"), 0o644)
	build := func() string {
		t.Helper()
		got := runBanger(t, vars, "image", "build", "--progress", "plain", "-t", "hello", context.root)
		if got.code != 0 || got.stdout != "hello\n" {
			t.Fatalf("image build: exit code %d: %s%s", got.code, got.stdout, got.stderr)
		}
		return got.stderr
	}
	steps := []string{"RUN mkdir", "COPY main.c", "RUN tcc", "COPY --from=compile"}

	log := build()
	for _, step := range steps {
		if ending(log, step) != "DONE" {
			t.Errorf("the first time, %s is %s", step, ending(log, step))
		}
	}
	for _, line := range []string{"made a place", "compiled"} {
		if !regexp.MustCompile(`(?m)^#\d+ \d+\.\d+ ` + line + `$`).MatchString(log) {
			t.Errorf("%q is not in the log", line)
		}
	}
	runsAs(t, vars, "hello from C\n")

	log = build()
	for _, step := range steps {
		if ending(log, step) != "CACHED" {
			t.Errorf("the second time, %s is %s", step, ending(log, step))
		}
	}

	context.file("main.c", strings.ReplaceAll(cProgram, "TEXT", "greetings"), 0o644)
	log = build()
	for i, want := range []string{"CACHED", "DONE", "DONE", "DONE"} {
		if ending(log, steps[i]) != want {
			t.Errorf("with another source, %s is %s", steps[i], ending(log, steps[i]))
		}
	}
	runsAs(t, vars, "greetings from C\n")
	if t.Failed() {
		t.Log(log)
	}
	nothingHalfMade(t, home, vars)
}

// runsAs runs the image that was built: its program ends with 5.
func runsAs(t *testing.T, vars []string, want string) {
	t.Helper()
	if got := runBanger(t, vars, "vm", "run", "--rm", "--image", "hello"); got.code != 5 || got.stdout != want {
		t.Errorf("the image that was built: exit code %d, %q: %s", got.code, got.stdout, got.stderr)
	}
}

// ending is how a step of a build's log has ended: CACHED or DONE.
func ending(log, step string) string {
	number := ""
	for line := range strings.Lines(log) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if number == "" && strings.HasPrefix(rest, "[") && strings.Contains(rest, "] "+step) {
			number = id
		}
		word, _, _ := strings.Cut(rest, " ")
		if id == number && slices.Contains([]string{"CACHED", "DONE", "ERROR:"}, word) {
			return word
		}
	}
	return "not there"
}

// addCompiler copies tcc and the libraries that it is linked to.
func addCompiler(t *testing.T, p plant) {
	t.Helper()
	tcc, err := exec.LookPath("tcc")
	if err != nil {
		t.Skip("needs tcc: scripts/setup.sh --test")
	}
	files := slices.Clone(compilerFiles)
	for _, path := range regexp.MustCompile(`=> (/\S+)`).FindAllStringSubmatch(tool(t, "ldd", tcc), -1) {
		files = append(files, path[1])
	}
	for _, path := range files {
		p.must(os.MkdirAll(p.at(filepath.Dir(path)), 0o755))
		tool(t, "cp", "-rL", path, p.at(path))
	}
}
