package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
)

// TestMain lets the test binary play a banger that is killed while it builds an image.
func TestMain(m *testing.M) {
	if staging := os.Getenv("PULL_INTO"); staging != "" {
		entry, err := Resolve(Default)
		if err == nil {
			_, _, err = Pull(context.Background(), entry, PullOptions{Staging: staging, Progress: func(u progress.Update) {
				fmt.Println(u.Message)
			}})
		}
		fmt.Println("ended:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// needReal skips the test where no real image is built.
func needReal(t *testing.T) {
	t.Helper()
	if os.Getenv("BANGER_TEST_VM") == "" {
		t.Skip("BANGER_TEST_VM is not set: this builds the real image")
	}
}

// scratches returns the scratch directories that the builds in staging have.
func scratches(t *testing.T, staging string) []string {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(staging, "*", "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	for i, link := range links {
		if links[i], err = os.Readlink(link); err != nil {
			t.Fatal(err)
		}
	}
	return links
}

// users returns the processes whose environment names one of the directories. Those of other users cannot be read;
// the build's own shell and perl can.
func users(dirs []string) []string {
	var out []string
	environs, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is well-formed
	for _, file := range environs {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, dir := range dirs {
			if strings.Contains(string(data), "TMPDIR="+dir) {
				out = append(out, filepath.Dir(file))
			}
		}
	}
	return out
}

// expectGone waits until no process of the builds is left, and checks that nothing else is.
func expectGone(t *testing.T, staging string, dirs []string) {
	t.Helper()
	if len(dirs) == 0 {
		t.Error("no scratch directory was seen")
	}
	for range 6000 {
		if len(users(dirs)) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if left := users(dirs); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", dir)
		}
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), staging) {
		t.Errorf("mounts left, err %v", err)
	}
}

// TestPullCancelledForReal cancels mmdebstrap while it installs packages.
func TestPullCancelledForReal(t *testing.T) {
	needReal(t)
	staging := t.TempDir()
	entry, err := Resolve(Default)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex // guards dirs and cancelled: progress comes from several goroutines
	var dirs []string
	var cancelled time.Time
	_, _, err = Pull(ctx, entry, PullOptions{Staging: staging, Progress: func(u progress.Update) {
		mu.Lock()
		defer mu.Unlock()
		if u.Done > 0 && strings.HasPrefix(u.Message, "installing") && cancelled.IsZero() {
			dirs, cancelled = scratches(t, staging), time.Now()
			cancel()
		}
	}})
	if !fault.Is(err, fault.Cancelled) {
		t.Errorf("err = %v", err)
	}
	t.Logf("cancelled within %v", time.Since(cancelled))
	expectGone(t, staging, dirs)
}

// TestKilledPullIsRemoved kills a banger in the middle of a build, and removes what it left as the next one does.
func TestKilledPullIsRemoved(t *testing.T) {
	needReal(t)
	staging := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "PULL_INTO="+staging)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		seen = append(seen, lines.Text())
		if strings.HasPrefix(lines.Text(), "installing") {
			break
		}
	}
	dirs := scratches(t, staging)
	if err := cmd.Process.Kill(); err != nil {
		t.Errorf("%v after %q", err, seen)
	}
	_ = cmd.Wait() // killed
	for range 6000 {
		if len(users(dirs)) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	entries, err := os.ReadDir(staging)
	if err != nil || len(entries) == 0 {
		t.Fatalf("nothing was left: %v", err)
	}
	for _, e := range entries {
		if err := RemoveStaged(t.Context(), filepath.Join(staging, e.Name())); err != nil {
			t.Error(err)
		}
	}
	expectGone(t, staging, dirs)
}
