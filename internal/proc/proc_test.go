package proc

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestIdentityOutlivesOnlyItsProcess(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("this process does not count as alive")
	}
	for name, other := range map[string]Identity{
		"zero":          {},
		"earlier start": {PID: self.PID, Start: self.Start - 1, BootID: self.BootID},
		"earlier boot":  {PID: self.PID, Start: self.Start, BootID: "x"},
	} {
		if other.Alive() {
			t.Errorf("%s counts as alive", name)
		}
		if err := other.Kill(syscall.SIGKILL); err != nil { // must not hit this process
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSpawnDetachesAndLogs(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// A name with ')' and a space in it is the trap of /proc/PID/stat.
	script := filepath.Join(t.TempDir(), "a) b")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho hello; echo ready >&3; sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	id, ended, err := Spawn([]string{script}, os.Environ(), log, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	if sid, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(id.PID), 0, 0); int(sid) != id.PID {
		t.Errorf("session %d, want its own %d", sid, id.PID)
	}
	if got, err := Of(id.PID); err != nil || got != id || !id.Alive() {
		t.Errorf("identity %v, %v; want %v alive", got, err, id)
	}
	if err := id.Kill(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("not reaped")
	}
	if id.Alive() {
		t.Error("alive after its end")
	}
	if data, err := os.ReadFile(log); err != nil || string(data) != "hello\n" {
		t.Errorf("log %q, %v", data, err)
	}
}
