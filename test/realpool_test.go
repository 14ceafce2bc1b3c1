package test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// eventually waits for what the daemon does in the background.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !done(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 3 minutes", what)
		}
	}
}

// ownThings are what no two VMs may have in common.
var ownThings = []string{
	"cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id", "cat /proc/sys/kernel/random/uuid", "hostname", "cat /etc/hostname",
	"cat /sys/class/net/e*/address", "head -c 16 /dev/urandom | od -An -tx1",
	"until grep -q ^fe80 /proc/net/if_inet6; do sleep 0.1; done; grep ^fe80 /proc/net/if_inet6",
}

func differ(t *testing.T, vars []string, names ...string) {
	t.Helper()
	for _, line := range ownThings {
		seen := map[string]string{}
		for _, name := range names {
			got := inGuest(t, vars, name, line)
			if other := seen[got]; other != "" || got == "" {
				t.Errorf("%s: %s and %s both have %q", line, other, name, got)
			}
			seen[got] = name
		}
	}
	for _, name := range names {
		if got := inGuest(t, vars, name, "cat /etc/hostname; getent hosts $(hostname) | wc -l"); got != name+"\n1" {
			t.Errorf("%s calls itself %q", name, got)
		}
		clockIsRight(t, vars, name)
	}
}

// VMs from a prepared template and from the pool have nothing in common that they should not, and their disks are their own.
func TestRealPreparedAndPool(t *testing.T) {
	_, vars := realHome(t)
	start := func(name string, more ...string) {
		t.Helper()
		kind := []string{"vm", "run", "--detach", "--name", name, "--cpus", "1", "--memory", "256M", "--disk", "1G"}
		must(t, vars, append(kind, more...)...)
	}
	start("first")
	prepared := ""
	eventually(t, "a prepared template", func() bool {
		var all []struct{ Key, Image string }
		if err := json.Unmarshal([]byte(must(t, vars, "template", "list", "--format", "json")), &all); err != nil {
			t.Fatal(err)
		}
		for _, one := range all {
			if one.Image != "" {
				prepared = one.Key
			}
		}
		return prepared != ""
	})
	start("a", "--env", "WHO=a", "--workdir", "/srv/a")
	start("b")
	for _, name := range []string{"a", "b"} {
		if o := originOf(t, vars, name); o.Template != prepared || o.Fault != "" {
			t.Errorf("%s from %+v, not %s", name, o, prepared)
		}
	}
	differ(t, vars, "first", "a", "b")
	if got := inGuest(t, vars, "a", "echo $WHO in $PWD"); got != "a in /srv/a" {
		t.Errorf("settings: %q", got)
	}
	must(t, vars, "doctor", "--vm", "a")

	// What is written stays, over a boot that does not begin from there, and nobody else has it.
	inGuest(t, vars, "a", "echo mine > /root/mine; echo changed > /etc/issue")
	must(t, vars, "vm", "restart", "a")
	if o := originOf(t, vars, "a"); o.Template == prepared {
		t.Error("a second start from a prepared template")
	}
	if got := inGuest(t, vars, "a", "cat /root/mine /etc/issue /etc/hostname"); got != "mine\nchanged\na" {
		t.Errorf("after a restart: %q", got)
	}
	start("c")
	if got := inGuest(t, vars, "c", "cat /root/mine 2>/dev/null; grep -c changed /etc/issue || true"); got != "0" {
		t.Errorf("another vm has %q", got)
	}

	must(t, vars, "config", "set", "vmm.warm_pool", "1")
	must(t, vars, "config", "set", "defaults.cpus", "1")
	must(t, vars, "config", "set", "defaults.memory", "256M")
	must(t, vars, "config", "set", "defaults.disk", "1G")
	must(t, vars, "daemon", "stop")
	must(t, vars, "vm", "list")
	eventually(t, "a vm in the pool", func() bool {
		var status struct {
			Ready int `json:"pool_ready"`
		}
		if err := json.Unmarshal([]byte(must(t, vars, "daemon", "status", "--format", "json")), &status); err != nil {
			t.Fatal(err)
		}
		return status.Ready > 0
	})
	began := time.Now()
	start("pooled", "--env", "WHO=pooled")
	if up := inGuest(t, vars, "pooled", "cut -d. -f1 /proc/uptime"); up == "" {
		t.Error("no uptime")
	}
	var shown struct {
		Started time.Time `json:"started_at"`
	}
	if err := json.Unmarshal([]byte(must(t, vars, "vm", "show", "--format", "json", "pooled")), &shown); err != nil || !shown.Started.Before(began) {
		t.Errorf("it was started at %s, after %s: not in the pool (%v)", shown.Started, began, err)
	}
	differ(t, vars, "a", "b", "pooled")
	if got := inGuest(t, vars, "pooled", "echo $WHO"); got != "pooled" {
		t.Errorf("settings: %q", got)
	}
	must(t, vars, "vm", "suspend", "pooled")
	must(t, vars, "vm", "resume", "pooled")
	must(t, vars, "vm", "restart", "pooled")
	if got := inGuest(t, vars, "pooled", "echo $WHO; hostname"); got != "pooled\npooled" {
		t.Errorf("after suspend and restart: %q", got)
	}
	must(t, vars, "daemon", "stop") // it takes the pool with it
	fmt.Fprintln(t.Output(), must(t, vars, "fsck"))
}
