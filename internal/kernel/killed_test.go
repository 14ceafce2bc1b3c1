package kernel

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/proc"
	"banger/internal/progress"
)

// What the test binary does when it plays a banger that is killed.
const (
	envStaging = "KERNEL_INTO"     // pull into that directory
	envMirror  = "KERNEL_MIRROR"   // from that mirror
	envKeyring = "KERNEL_KEYRING"  // with these keys
	envImage   = "KERNEL_IMAGE"    // import that kernel instead
	envModules = "KERNEL_MODULES"  // with these modules
	envStop    = "KERNEL_STOPS_AT" // stand still in the step whose message begins like that
)

// TestMain lets the test binary play a banger that is killed while it makes a kernel.
func TestMain(m *testing.M) {
	if staging := os.Getenv(envStaging); staging != "" {
		fmt.Println("ended:", play(staging))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// play pulls or imports as it is told.
func play(staging string) error {
	report := func(u progress.Update) {
		if strings.HasPrefix(u.Message, os.Getenv(envStop)) {
			fmt.Println("at:", u.Message)
			if !strings.HasPrefix(u.Message, "indexing") { // there depmod takes its time
				select {}
			}
		}
	}
	if image := os.Getenv(envImage); image != "" {
		_, _, err := Import(context.Background(), ImportOptions{
			Name: "mine", Image: image, Modules: os.Getenv(envModules), Staging: staging, Progress: report,
		})
		return err
	}
	e, err := Find(Default)
	if err == nil {
		_, _, err = Pull(context.Background(), e, PullOptions{
			Staging: staging, Arch: "amd64", Mirror: os.Getenv(envMirror), Keyring: os.Getenv(envKeyring), Progress: report,
		})
	}
	return err
}

// A kill leaves one directory and no process that writes to it: it can be removed at once, and the next pull or import
// works.
func TestKilledAtEachStep(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	fakeDepmod(t, "case \"$"+envStop+"\" in indexing*) echo $$ > "+pidFile+"; exec sleep 60;; esac\n"+goodDepmod)
	m := publish(t, fakeFiles(t))
	files := ownModules(t)
	files["vmlinux"] = string(withConfig(t, fakeKernel(pvhNote, 1), fakeConfig()))
	own := write(t, files)
	for _, tc := range []struct {
		step     string
		imported bool
	}{
		{step: "reading the index"}, {step: "downloading"}, {step: "unpacking"}, {step: "indexing the modules"},
		{step: "building the modules image"},
		{step: "copying " + own + "/vmlinux", imported: true}, {step: "copying " + own, imported: true},
		{step: "building the modules image", imported: true},
	} {
		t.Run(fmt.Sprintf("%s, import %v", filepath.Base(tc.step), tc.imported), func(t *testing.T) {
			staging := t.TempDir()
			env := []string{envStaging + "=" + staging, envStop + "=" + tc.step, envMirror + "=" + m.URI(), envKeyring + "=" + m.Keyring}
			if tc.imported {
				env = append(env, envImage+"="+own+"/vmlinux", envModules+"="+own)
			}
			killAt(t, env, func() {
				if strings.HasPrefix(tc.step, "indexing") {
					waitDepmod(t, pidFile)
				}
			})
			if left := names(t, staging); len(left) != 1 || !strings.HasPrefix(left[0], "kernel-") {
				t.Errorf("left behind: %v", left)
			}
			if strings.HasPrefix(tc.step, "indexing") {
				waitGone(t, pidFile)
			}
			if err := os.RemoveAll(filepath.Join(staging, names(t, staging)[0])); err != nil {
				t.Error(err)
			}
			_, _, err := Pull(t.Context(), entry(t), PullOptions{Staging: staging, Arch: "amd64", Mirror: m.URI(), Keyring: m.Keyring})
			if left := names(t, staging); err != nil || len(left) != 1 {
				t.Errorf("the next pull: %v, in the staging directory %v", err, left)
			}
		})
	}
}

// killAt runs the test binary with env, calls then when it stands where it is to be killed, and kills it.
func killAt(t *testing.T, env []string, then func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil && strings.HasPrefix(line, "at:") {
		then()
	} else {
		t.Errorf("it said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// waitDepmod waits until depmod has said who it is.
func waitDepmod(t *testing.T, pidFile string) {
	t.Helper()
	for range 6000 {
		if data, err := os.ReadFile(pidFile); err == nil && strings.HasSuffix(string(data), "\n") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("depmod does not begin")
}

// waitGone waits until depmod has ended.
func waitGone(t *testing.T, pidFile string) {
	t.Helper()
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for range 6000 {
		if id, err := proc.Of(pid); err != nil || !id.Alive() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("depmod (%d) goes on", pid)
}
