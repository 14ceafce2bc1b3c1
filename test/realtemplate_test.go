package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// origin is what a VM was started from.
type origin struct {
	Template string `json:"from_template"`
	Fault    string `json:"template_fault"`
}

func originOf(t *testing.T, vars []string, name string) (o origin) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, vars, "vm", "show", "--format", "json", name)), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// inGuest runs a line of shell.
func inGuest(t *testing.T, vars []string, name, line string) string {
	t.Helper()
	return must(t, vars, "exec", name, "--", "sh", "-c", line)
}

// Two VMs that are started from one template at the same moment have nothing in common that they should not, and a
// template that is damaged is made anew.
func TestRealTemplate(t *testing.T) {
	dir, vars := realHome(t)
	kind := []string{"--cpus", "1", "--memory", "256M", "--disk", "1G"}
	must(t, vars, "template", "warm", "--cpus", "1", "--memory", "256M")
	var both errgroup.Group
	for _, name := range []string{"one", "two"} {
		both.Go(func() error {
			_, err := banger(vars, append([]string{"vm", "run", "--detach", "--name", name}, kind...)...)
			return err
		})
	}
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
	one, two := originOf(t, vars, "one"), originOf(t, vars, "two")
	if one.Template == "" || one != two || one.Fault != "" {
		t.Fatalf("one from %+v, two from %+v", one, two)
	}
	cold := append([]string{"vm", "run", "--cold", "--detach", "--name", "cold"}, kind...)
	must(t, vars, cold...)
	if o := originOf(t, vars, "cold"); o.Template != "" || o.Fault != "" {
		t.Errorf("cold from %+v", o)
	}
	for _, line := range []string{
		"cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id", "cat /proc/sys/kernel/random/uuid", "hostname", "cat /sys/class/net/e*/address",
		"head -c 16 /dev/urandom | od -An -tx1",
	} {
		a, b, c := inGuest(t, vars, "one", line), inGuest(t, vars, "two", line), inGuest(t, vars, "cold", line)
		if a == "" || a == b || a == c || b == c {
			t.Errorf("%s: %q, %q and %q", line, a, b, c)
		}
	}
	for _, name := range []string{"one", "two"} {
		if got := inGuest(t, vars, name, "hostname"); got != name {
			t.Errorf("%s calls itself %q", name, got)
		}
		clockIsRight(t, vars, name)
	}
	if said := must(t, vars, "doctor", "--vm", "one"); !strings.Contains(said, "1 other running vms are, too") {
		t.Errorf("doctor: %s", said)
	}

	must(t, vars, "vm", "stop", "one")
	state := filepath.Join(dir, "cache", "templates", one.Template, "state")
	data, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(state, data, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, vars, "vm", "start", "one")
	if o := originOf(t, vars, "one"); o.Template != one.Template || !strings.Contains(o.Fault, "its file state was changed; it was made anew") {
		t.Errorf("after the bit flip from %+v", o)
	}
	if got := inGuest(t, vars, "one", "echo works"); got != "works" {
		t.Errorf("%q", got)
	}
}

func clockIsRight(t *testing.T, vars []string, name string) {
	t.Helper()
	before := time.Now().Unix()
	got, err := strconv.ParseInt(inGuest(t, vars, name, "date +%s"), 10, 64)
	if after := time.Now().Unix(); err != nil || got < before-2 || got > after+2 {
		t.Errorf("%s: it is %d there, %d to %d here; %v", name, got, before, after, err)
	}
}

// A process in a VM that is suspended and resumed has not noticed.
func TestRealSuspend(t *testing.T) {
	dir, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	inGuest(t, vars, "dev", ticking)
	inGuest(t, vars, "dev", "echo kept >/root/f; head -c 20M /dev/urandom >/dev/shm/big; sha256sum /dev/shm/big >/root/sum")
	for range 2 {
		before, boot := numberIn(t, vars, "dev", "/dev/shm/n"), inGuest(t, vars, "dev", "cat /proc/sys/kernel/random/boot_id")
		must(t, vars, "vm", "suspend", "dev")
		if s := show(t, vars, "dev"); s.State != "suspended" || s.VMMPid != 0 || s.SupPid != 0 {
			t.Fatalf("%+v", s)
		}
		// The supervisor lives on for a moment, to answer those who asked. The daemon stays.
		pids := processesOf(dir)
		for end := time.Now().Add(patience); len(pids) > 1 && time.Now().Before(end); pids = processesOf(dir) {
			time.Sleep(20 * time.Millisecond)
		}
		if len(pids) > 1 {
			t.Errorf("processes %v are left", pids)
		}
		time.Sleep(3200 * time.Millisecond) // so that a clock that stood still is noticed
		must(t, vars, "vm", "resume", "dev")
		if again := inGuest(t, vars, "dev", "cat /proc/sys/kernel/random/boot_id"); again != boot {
			t.Errorf("boot id %s, was %s", again, boot)
		}
		inGuest(t, vars, "dev", "sha256sum -c /root/sum")
		clockIsRight(t, vars, "dev")
		ticksFrom(t, vars, "dev", before)
	}
	must(t, vars, "vm", "suspend", "dev")
	if got := inGuest(t, vars, "dev", "cat /root/f"); got != "kept" { // exec resumes it
		t.Errorf("%q", got)
	}
	must(t, vars, "vm", "suspend", "dev")
	if out, err := banger(vars, "vm", "set", "--disk", "2G", "dev"); err == nil || !strings.Contains(err.Error(), "banger vm resume dev") {
		t.Errorf("vm set --disk of a suspended vm: %q, %v", out, err)
	}
	must(t, vars, "vm", "start", "--cold", "dev")
	if got := inGuest(t, vars, "dev", "cat /root/f; ls /dev/shm"); got != "kept" {
		t.Errorf("after a cold start: %q", got)
	}
}
