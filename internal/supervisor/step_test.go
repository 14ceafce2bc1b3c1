package supervisor

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// A supervisor process fails at the step that failAtEnv names, or ends there as if it were killed.
const (
	failAtEnv = "BANGER_TEST_FAIL_AT"
	dieAtEnv  = "BANGER_TEST_DIE_AT"
	killAtEnv = "BANGER_TEST_KILL_AT" // its VMM is killed there
	deathCode = 9
)

func stepForTest(name string) error {
	switch name {
	case os.Getenv(dieAtEnv):
		os.Exit(deathCode)
	case os.Getenv(killAtEnv):
		p, _, err := vmdir.Dir(os.Getenv(supervisorEnv)).ReadProcess()
		return errors.Join(err, p.VMM.Kill(syscall.SIGKILL))
	case os.Getenv(failAtEnv):
		return errors.New("failure was asked for")
	}
	return nil
}

// script is how a step is reached in a VM that is ready, and with which faults of the fake VMM. The error is that of
// the call that reaches it.
type script struct {
	faults string
	reach  func(*rig) error
	// Failing there: does the call fail, is there an exit.json.
	fails    bool
	noRecord bool
}

func pausing(r *rig) error   { _, err := r.pause(); return err }
func growing(r *rig) error   { _, err := r.grow(); return err }
func stopping(r *rig) error  { _, err := r.stop(false, 100*time.Millisecond); return err }
func killing(r *rig) error   { _, err := r.stop(true, 0); return err }
func saving(r *rig) error    { return r.suspend() }
func unpausing(r *rig) error { return errors.Join(pausing(r), justUnpausing(r)) }

func justUnpausing(r *rig) error { _, err := r.unpause(); return err }

// scripts of every step after the boot.
var scripts = map[string]script{
	StepPauseVMM:      {reach: pausing, fails: true},
	StepPauseRecord:   {reach: pausing, fails: true},
	StepUnpauseVMM:    {reach: unpausing, fails: true},
	StepUnpauseClock:  {reach: unpausing},
	StepSaveBegin:     {reach: saving, fails: true},
	StepSaveSealed:    {reach: saving, fails: true},
	StepGrowVMM:       {reach: growing, fails: true},
	StepGrowGuest:     {reach: growing, fails: true},
	StepStopResume:    {reach: func(r *rig) error { return errors.Join(pausing(r), stopping(r)) }},
	StepStopAgent:     {reach: stopping},
	StepStopQuit:      {reach: stopping, faults: "ignore-shutdown"},
	StepStopTerminate: {reach: stopping, faults: "ignore-shutdown,ignore-quit"},
	StepStopKill:      {reach: killing},
	StepStopRecord:    {reach: stopping, noRecord: true},
	StepStopClean:     {reach: stopping},
}

// vmms returns the processes of this rig's VMMs.
func (r *rig) vmms() (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		args, _ := os.ReadFile(file)
		if bytes.Contains(args, []byte("vm="+string(r.dir))) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// stepRig is a VM with a disk that has something on it.
func stepRig(t *testing.T) (*rig, func()) {
	r := newRig(t, &fakeDriver{})
	disk := r.withDisk()
	content := bytes.Repeat([]byte("precious"), 8<<10)
	if err := os.WriteFile(disk, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return r, func() {
		t.Helper()
		if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the disk has changed: %d bytes, %v", len(got), err)
		}
	}
}

// works checks that the VM can be started, used and stopped, and leaves nothing.
func (r *rig) works() {
	r.t.Helper()
	r.http.CloseIdleConnections()
	sup := r.spawn()
	if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"echo", "hello"}}); out != "hello\n" || code != 0 {
		r.t.Errorf("exec: %q %d", out, code)
	}
	if _, err := r.stop(false, 0); err != nil {
		r.t.Fatal(err)
	}
	if exit := r.clean(); exit.Reason != "stopped" || !exit.Expected {
		r.t.Errorf("exit %+v", exit)
	}
	sup.wait(r.t)
	if left := r.vmms(); len(left) > 0 {
		r.t.Errorf("VMMs are left: %q", left)
	}
}

func TestEveryStepHasAScript(t *testing.T) {
	for _, step := range Steps() {
		if _, ok := scripts[step]; ok == strings.HasPrefix(step, "boot.") {
			t.Errorf("step %s: script %v", step, ok)
		}
	}
}

func TestFailureAtEveryStep(t *testing.T) {
	for _, step := range Steps() {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r, untouched := stepRig(t)
			if strings.HasPrefix(step, "boot.") {
				r.savedFor(step)
				sup := r.spawnOnly(failAtEnv + "=" + step)
				sup.wait(t)
				if exit := r.clean(); !exit.Failed || exit.Expected || !strings.Contains(exit.Reason, step+": failure was asked for") {
					t.Errorf("exit %+v", exit)
				}
			} else {
				r.failAt(step, scripts[step])
			}
			if left := r.vmms(); len(left) > 0 {
				t.Errorf("VMMs are left: %q", left)
			}
			untouched()
			r.goesOn(step)
			r.works()
			untouched()
		})
	}
}

// failAt lets a running VM fail at a step, checks that it still works if it was not to stop, and stops it.
func (r *rig) failAt(step string, s script) {
	r.t.Helper()
	sup := r.spawn(failAtEnv+"="+step, fakevmm.FaultsEnv+"="+s.faults)
	err := s.reach(r)
	if s.fails && (!fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), step+": failure was asked for")) || !s.fails && err != nil {
		r.t.Errorf("err = %v", err)
	}
	if !strings.HasPrefix(step, "stop.") {
		_, err := r.tryExec()
		if paused := step == StepUnpauseVMM; paused != fault.Is(err, fault.Conflict) || !paused && err != nil {
			r.t.Errorf("exec afterwards: %v", err)
		}
		if _, err := r.stop(false, 0); err != nil {
			r.t.Error(err)
		}
	}
	sup.wait(r.t)
	if s.noRecord {
		if _, ok, err := r.dir.ReadExit(); ok || err != nil {
			r.t.Errorf("exit.json: %v, %v", ok, err)
		}
		r.dir.WriteExit(failedEnding(errors.New("for clean, which wants one")).exit)
		return
	}
	if exit := r.clean(); !exit.Expected || exit.Failed {
		r.t.Errorf("exit %+v", exit)
	}
}

func TestDeathAtEveryStep(t *testing.T) {
	for _, step := range Steps() {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r, untouched := stepRig(t)
			var sup spawned
			if s, ok := scripts[step]; ok {
				sup = r.spawn(dieAtEnv+"="+step, failAtEnv+"=none", fakevmm.FaultsEnv+"="+s.faults)
				if err := s.reach(r); err == nil {
					t.Error("the call succeeded")
				}
			} else {
				r.savedFor(step)
				sup = r.spawnOnly(dieAtEnv + "=" + step)
			}
			sup.wait(t)
			waitFor(t, "the VMM to die too", func() bool { return len(r.vmms()) == 0 })
			untouched()
			r.goesOn(step)
			r.works()
			untouched()
		})
	}
}
