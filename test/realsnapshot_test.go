package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ticking starts a process in a VM that counts, and a file in /root.
const ticking = `nohup sh -c 'i=0; while sleep 0.1; do i=$((i+1)); echo $i >/dev/shm/n; done' >/dev/null 2>&1 &
	echo $! >/dev/shm/pid; mkdir -p /root/d; echo kept >/root/d/f; until [ -s /dev/shm/n ]; do sleep 0.1; done`

// numberIn reads a number from a file of a VM. Whoever writes it there makes the file empty first.
func numberIn(t *testing.T, vars []string, name, file string) int {
	t.Helper()
	n, err := strconv.Atoi(inGuest(t, vars, name, "n=; until [ -n \"$n\" ]; do read n <"+file+"; done; echo $n"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ticks checks that the process of ticking is there and goes on.
func ticks(t *testing.T, vars []string, name string) {
	t.Helper()
	ticksFrom(t, vars, name, numberIn(t, vars, name, "/dev/shm/n"))
}

// ticksFrom checks that the process of ticking is there and goes on from a number that it had.
func ticksFrom(t *testing.T, vars []string, name string, before int) {
	t.Helper()
	inGuest(t, vars, name, "kill -0 $(cat /dev/shm/pid)")
	for deadline := time.Now().Add(patience); numberIn(t, vars, name, "/dev/shm/n") <= before; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the counter stands at %d", before)
		}
	}
}

// After everything in /root was deleted and the processes were killed, a restore brings all of it back, as often as wanted.
func TestRealSnapshot(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	inGuest(t, vars, "dev", ticking)
	must(t, vars, "vm", "snapshot", "dev", "good")
	ticks(t, vars, "dev") // it has gone on
	for range 2 {
		inGuest(t, vars, "dev", "kill -9 $(cat /dev/shm/pid); rm -rf /root/d /dev/shm/*; echo other >/root/other; sync")
		must(t, vars, "vm", "restore", "--yes", "dev", "good")
		if got := inGuest(t, vars, "dev", "ls /root; cat /root/d/f; hostname"); got != "d\nkept\ndev" {
			t.Errorf("%q", got)
		}
		ticks(t, vars, "dev")
		clockIsRight(t, vars, "dev")
	}
	// A snapshot that goes while a VM runs with its memory takes nothing from it.
	must(t, vars, "snapshot", "rm", "dev", "good")
	ticks(t, vars, "dev")

	// A disk that has grown stays grown, and its file system with it.
	must(t, vars, "vm", "snapshot", "dev", "small")
	must(t, vars, "vm", "set", "--disk", "2G", "dev")
	must(t, vars, "vm", "restore", "--yes", "dev", "small")
	if mib, err := strconv.Atoi(inGuest(t, vars, "dev", "df -m --output=size /root | tail -1 | tr -d ' '")); err != nil || mib < 1800 {
		t.Errorf("%d MiB, %v", mib, err)
	}
	ticks(t, vars, "dev")
	inGuest(t, vars, "dev", "test -z \"$(dmesg --level err,crit,alert,emerg | grep -i ext4)\"")

	// A suspended VM, and one that is stopped.
	must(t, vars, "vm", "suspend", "dev")
	must(t, vars, "vm", "snapshot", "dev", "asleep")
	must(t, vars, "vm", "start", "--cold", "dev")
	must(t, vars, "vm", "stop", "dev")
	must(t, vars, "vm", "snapshot", "dev", "down")
	must(t, vars, "vm", "restore", "--yes", "dev", "asleep")
	ticks(t, vars, "dev")
	// What a command has written is in the disk's copy, however soon that is made.
	inGuest(t, vars, "dev", "for i in $(seq 50); do echo $i >/root/late$i; done")
	must(t, vars, "vm", "snapshot", "--disk-only", "dev", "late")
	must(t, vars, "vm", "restore", "--yes", "--start", "dev", "late")
	if got := inGuest(t, vars, "dev", "cat /root/late* | sort -n | tail -1; ls /dev/shm"); got != "50" {
		t.Errorf("%q", got)
	}
	must(t, vars, "vm", "restore", "--yes", "--start", "dev", "down")
	if got := inGuest(t, vars, "dev", "cat /root/d/f; ls /dev/shm"); got != "kept" {
		t.Errorf("%q", got)
	}
}

// Checkpoints before commands, and the way back.
func TestRealRewind(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	for i := range 3 {
		must(t, vars, "exec", "--checkpoint", "dev", "--", "sh", "-c", "echo "+strconv.Itoa(i)+" >/root/step")
	}
	for back, want := range map[string]string{"1": "1", "2": "0"} {
		must(t, vars, "vm", "rewind", "--yes", "--to", back, "dev")
		if got := inGuest(t, vars, "dev", "cat /root/step"); got != want {
			t.Errorf("%s back: %q", back, got)
		}
	}
}

// Whoever is killed during a restore, and when: the VM has what it had or what the snapshot has, and its file system is
// whole.
func TestRealRestoreKilled(t *testing.T) {
	dir, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	inGuest(t, vars, "dev", ticking)
	must(t, vars, "vm", "snapshot", "dev", "good")
	for i, wait := range []time.Duration{20 * time.Millisecond, 80 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 700 * time.Millisecond} {
		inGuest(t, vars, "dev", "echo now >/root/state; sync")
		done := make(chan error, 1)
		go func() {
			_, err := banger(vars, "vm", "restore", "--yes", "dev", "good")
			done <- err
		}()
		time.Sleep(wait)
		for _, pid := range processesOf(dir) { // the daemon, and sometimes all that runs of the VM
			line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
			if isDaemon := strings.Contains(string(line), "daemon\x00run"); isDaemon || i%2 == 1 && strings.Contains(string(line), "supervisor\x00run") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		<-done
		var v struct {
			State string `json:"state"`
		}
		if err := json.Unmarshal([]byte(must(t, vars, "vm", "show", "--format", "json", "dev")), &v); err != nil {
			t.Fatal(err)
		}
		if v.State != "running" {
			must(t, vars, "vm", "start", "dev")
		}
		switch got := inGuest(t, vars, "dev", "cat /root/d/f; cat /root/state 2>/dev/null || echo restored"); got {
		case "kept\nnow":
		case "kept\nrestored":
		default:
			t.Errorf("killed after %v: %q", wait, got)
		}
		t.Logf("killed after %v: it was %s", wait, v.State)
		inGuest(t, vars, "dev", "test -z \"$(dmesg --level err,crit,alert,emerg | grep -i ext4)\"")
		if said := must(t, vars, "fsck"); !strings.Contains(said, "everything fits together") {
			t.Errorf("%s", said)
		}
		must(t, vars, "vm", "restore", "--yes", "dev", "good")
		ticks(t, vars, "dev")
	}
}
