package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the tests of images share. The images are made by other people's tools (umoci, buildah, skopeo) and kept by other
// people's registry (distribution's server), all from the distribution's packages: scripts/setup.sh --test has them.

// pullHome is realHome for tests that pull. The credentials of whoever runs them are none of the tests' business.
func pullHome(t *testing.T) (dir string, vars []string) {
	t.Helper()
	dir, vars = realHome(t)
	return dir, append(vars, "HOME="+dir, "DOCKER_CONFIG="+dir, "REGISTRY_AUTH_FILE=", "XDG_RUNTIME_DIR=")
}

// emptyHome is a home without images and kernels. It costs nothing where no VM is started.
func emptyHome(t *testing.T) (dir string, vars []string) {
	t.Helper()
	dir, vars = pullHome(t)
	for _, kind := range []string{"images", "kernels"} {
		if err := os.RemoveAll(filepath.Join(dir, "data", kind)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, vars
}

// writeConfig gives a home its configuration, before its daemon starts.
func writeConfig(t *testing.T, home, text string) {
	t.Helper()
	path := filepath.Join(home, "config", "config.toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tool runs a program that makes images. The test is skipped where there is none, or nobody whom the tools would obey.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: files of other users and devices are put into images")
	}
	path, err := exec.LookPath(name)
	if err != nil && name == "setcap" {
		path, err = exec.LookPath("/usr/sbin/setcap")
	}
	if err != nil {
		t.Skipf("needs %s: scripts/setup.sh --test", name)
	}
	cmd := exec.Command(path, args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &complaints)
	}
	return strings.TrimSpace(out.String())
}

// buildStatic builds a program of testdata so that it runs in any image.
func buildStatic(t *testing.T, name, to string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "./testdata/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", name, err, out)
	}
}

// listening is what the registry's server says when it is ready.
var listening = regexp.MustCompile(`listening on [^ "]*:(\d+)`)

// startRegistry runs distribution's server on a port of this host until the test ends, and returns its address.
func startRegistry(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry: scripts/setup.sh --test")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: '127.0.0.1:0'}\n",
		filepath.Join(dir, "data"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(path, "serve", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should the test be killed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		said, _ := os.ReadFile(log.Name())
		if port := listening.FindSubmatch(said); port != nil {
			return "localhost:" + string(port[1])
		}
	}
	said, _ := os.ReadFile(log.Name())
	t.Fatalf("the registry does not start: %s", said)
	return ""
}

// result is how a command of banger ended.
type result struct {
	code           int
	stdout, stderr string
}

// runBanger runs the program and returns what it said and its exit code, whatever that is.
func runBanger(t *testing.T, vars []string, args ...string) result {
	t.Helper()
	limit := 4 * time.Minute
	if os.Getenv(largeVar) != "" {
		limit = time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bangerFor(vars), args...)
	var out, complaints bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = vars, &out, &complaints
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("banger %s: %v", strings.Join(args, " "), err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: complaints.String()}
}

// answers fails the test unless the command succeeds with these words on stdout.
func answers(t *testing.T, vars []string, want string, args ...string) {
	t.Helper()
	got := runBanger(t, vars, args...)
	if got.code != 0 || got.stdout != want {
		t.Errorf("banger %s: exit code %d\n%s%s", strings.Join(args, " "), got.code, cmp.Diff(want, got.stdout), got.stderr)
	}
}

type listedImage struct {
	Name      string
	Names     []string
	Digest    string
	UsedBytes uint64 `json:"used_bytes"`
}

func listImages(t *testing.T, vars []string) (all []listedImage) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, vars, "image", "list", "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// undisturbed fails the test unless the images are those of before, nothing is in staging, and fsck finds nothing.
func undisturbed(t *testing.T, home string, vars []string, before []listedImage) {
	t.Helper()
	if diff := cmp.Diff(before, listImages(t, vars)); diff != "" {
		t.Errorf("the images have changed (-before +after):\n%s", diff)
	}
	nothingHalfMade(t, home, vars)
}

// nothingHalfMade fails the test if something is in staging, or anything does not fit together.
func nothingHalfMade(t *testing.T, home string, vars []string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(home, "data", "staging", "*"))
	hidden, hiddenErr := filepath.Glob(filepath.Join(home, "data", "staging", ".?*"))
	if left = append(left, hidden...); len(left) > 0 || errors.Join(err, hiddenErr) != nil {
		t.Errorf("in staging: %v, %v", left, errors.Join(err, hiddenErr))
	}
	if got := runBanger(t, vars, "fsck"); got.code != 0 {
		t.Errorf("fsck: exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

// daemonPID is the process of the daemon that runs.
func daemonPID(t *testing.T, vars []string) int {
	t.Helper()
	var status struct{ PID int }
	if err := json.Unmarshal([]byte(must(t, vars, "daemon", "status", "--format", "json")), &status); err != nil || status.PID == 0 {
		t.Fatalf("daemon status: %+v, %v", status, err)
	}
	return status.PID
}
