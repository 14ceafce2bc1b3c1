// Package test drives the whole program as its users do: scripts/*.txtar run the command line against a real daemon
// and real supervisors whose machines are processes on the host (package fakevmm), so that a VM takes milliseconds.
//
// The test binary plays banger itself. Every script has a BANGER_HOME of its own, with a short path because sockets
// are in it. At the end of every script the VMs are removed and the daemon is stopped, and whatever of them is left
// then fails the script: a process, a socket, a directory, a row.
package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"banger/internal/hypervisor/fakevmm"
	"banger/internal/program"
)

// raceOptions keep the race detector from sleeping a second at the end of every process that a script starts.
const raceOptions = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	fakevmm.Main()
	if err := os.Setenv("GORACE", raceOptions); err != nil {
		panic(err)
	}
	testscript.Main(suite{m}, map[string]func(){
		"banger": func() { os.Exit(program.Main(os.Args[1:], fakeParts())) },
	})
}

// suite is all tests.
type suite struct{ *testing.M }

// Run implements testscript.TestingM. Under nohup a hangup is ignored, by children as well; here some are to get one.
func (s suite) Run() int {
	if signal.Ignored(syscall.SIGHUP) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // children begin with what is usual
	}
	return s.M.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "scripts",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    cmdCode,
			"post":    cmdPost,
			"await":   cmdAwait,
			"killpid": cmdKillPID,
			"repeat":  cmdRepeat,
			"schema":  cmdSchema,
		},
	})
}

// setup gives the script a home of its own, and looks at the end that nothing is left.
func setup(env *testscript.Env) error {
	home, err := newHome()
	if err != nil {
		return err
	}
	env.Setenv("BANGER_HOME", home)
	env.Setenv("HOME", home)
	env.Setenv("SHELL", "/bin/sh")
	env.Setenv("GORACE", raceOptions)
	env.Defer(func() {
		if err := tearDown(home, env.Vars); err != nil {
			env.T().Log("left behind: ", err)
			dump(env, home)
			env.T().FailNow()
		}
	})
	return nil
}

// newHome makes a directory with the configuration that chooses the fake VMM.
func newHome() (string, error) {
	home, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		return "", err
	}
	config := filepath.Join(home, "config")
	if err := os.Mkdir(config, 0o700); err != nil {
		return "", err
	}
	text := "[vmm]\ndriver = \"fake\"\n[defaults]\ncpus = 1\n"
	return home, os.WriteFile(filepath.Join(config, "config.toml"), []byte(text), 0o600)
}

// bangerFor is the program that a test with these variables drives: the built one if they name it, else this test binary.
func bangerFor(vars []string) string {
	for _, kv := range vars {
		if path, ok := strings.CutPrefix(kv, driveVar+"="); ok {
			return path
		}
	}
	return "banger"
}

// banger runs a command of the program outside of a script.
func banger(vars []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bangerFor(vars), args...)
	cmd.Env = vars
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// tearDown removes what the script left running and returns an error if that is not the end of it.
func tearDown(home string, vars []string) error {
	defer os.RemoveAll(home)
	if _, err := os.Stat(filepath.Join(home, "data", "banger.db")); errors.Is(err, os.ErrNotExist) {
		return nothingRuns(home) // no daemon has ever been there
	}
	_, err := banger(vars, "daemon", "stop")
	if _, statErr := os.Stat(filepath.Join(home, "no-daemon")); statErr == nil { // a script that breaks the daemon says so
		return errors.Join(err, nothingRuns(home))
	}
	names, listErr := banger(vars, "vm", "list", "-q")
	if vms := strings.Fields(names); listErr == nil && len(vms) > 0 {
		if _, rmErr := banger(vars, append([]string{"vm", "rm", "--force"}, vms...)...); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
	}
	rows, rowsErr := banger(vars, "vm", "list", "--format", "json")
	var left []any
	if jsonErr := json.Unmarshal([]byte(rows), &left); jsonErr == nil && len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("rows: %s", rows))
	}
	_, stopErr := banger(vars, "daemon", "stop")
	return errors.Join(err, listErr, rowsErr, stopErr, nothingLeft(home), nothingRuns(home))
}

// nothingLeft looks for directories and sockets of VMs.
func nothingLeft(home string) error {
	var err error
	for _, pattern := range []string{"data/vms/*", "data/vms/.*", "data/staging/*", "run/*"} {
		found, globErr := filepath.Glob(filepath.Join(home, pattern))
		for _, path := range found {
			if base := filepath.Base(path); base != "start.lock" && base != "." && base != ".." {
				err = errors.Join(err, errors.New(path))
			}
		}
		err = errors.Join(err, globErr)
	}
	return err
}

// nothingRuns looks for processes whose environment names the home. They get a moment to end and are killed then.
func nothingRuns(home string) error {
	var pids []int
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if pids = processesOf(home); len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			break
		}
	}
	var err error
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		err = errors.Join(err, fmt.Errorf("process %d: %q", pid, line), syscall.Kill(pid, syscall.SIGKILL))
	}
	return err
}

func processesOf(home string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && strings.Contains("\x00"+string(env), "\x00BANGER_HOME="+home+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dump shows the logs of a script that left something behind.
func dump(env *testscript.Env, home string) {
	for _, pattern := range []string{"state/*.log", "data/vms/*/*.log"} {
		logs, _ := filepath.Glob(filepath.Join(home, pattern))
		for _, path := range logs {
			text, _ := os.ReadFile(path)
			env.T().Log(path+":\n", string(text))
		}
	}
}
