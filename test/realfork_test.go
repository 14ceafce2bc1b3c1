package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// gaps starts a process in a VM that sleeps for 10 ms again and again and keeps the longest that one of these took, in
// milliseconds.
const gaps = `cat >/root/gaps.pl <<'END'
use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);
my ($last, $most) = (clock_gettime(CLOCK_MONOTONIC), 0);
while (1) {
	sleep 0.01;
	my $now = clock_gettime(CLOCK_MONOTONIC);
	if ($now - $last > $most) { $most = $now - $last; open my $f, ">", "/dev/shm/gap"; print $f int(1000 * $most), "\n"; close $f }
	$last = $now;
}
END
nohup perl /root/gaps.pl >/dev/null 2>&1 &
until [ -s /dev/shm/gap ]; do sleep 0.1; done`

// Clones of a VM have its processes and its files, and nothing by which one could be taken for another.
func TestRealFork(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	inGuest(t, vars, "dev", ticking)
	inGuest(t, vars, "dev", "dd if=/dev/urandom of=/root/data bs=1M count=20 2>/dev/null; md5sum /root/data >/root/sum")
	inGuest(t, vars, "dev", gaps)
	var out struct {
		VMs []struct {
			Name, Address string
		} `json:"vms"`
		StillUS int64 `json:"still_us"`
	}
	if err := json.Unmarshal([]byte(must(t, vars, "vm", "fork", "-n", "4", "dev", "--format", "json")), &out); err != nil {
		t.Fatal(err)
	}
	if len(out.VMs) != 4 || out.StillUS <= 0 {
		t.Fatalf("%+v", out)
	}
	t.Logf("the source stood still for %d us; its ticker noticed %d ms at most", out.StillUS, numberIn(t, vars, "dev", "/dev/shm/gap"))

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "from the host") }))
	server.Listener = listener
	server.Start()
	defer server.Close()
	fetch := fmt.Sprintf("exec 3<>/dev/tcp/10.90.0.1/%d; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -1 <&3", listener.Addr().(*net.TCPAddr).Port)

	names := []string{"dev"}
	for _, c := range out.VMs {
		names = append(names, c.Name)
	}
	seen := map[string]string{}
	for _, name := range names {
		ticks(t, vars, name)
		inGuest(t, vars, name, "md5sum -c --quiet /root/sum")
		clockIsRight(t, vars, name)
		for what, command := range map[string]string{
			"hostname": "hostname", "name in /etc": "cat /etc/hostname", "machine-id": "cat /etc/machine-id",
			"boot id": "cat /proc/sys/kernel/random/boot_id", "random": "head -c 16 /dev/urandom | od -An -tx1",
			"hardware address": "cat /sys/class/net/eth0/address", "address": "hostname -I",
			"hosts": "grep banger /etc/hosts", "link-local address": "grep ^fe80 /proc/net/if_inet6",
		} {
			got := inGuest(t, vars, name, command)
			if other, taken := seen[what+got]; taken || got == "" {
				t.Errorf("%s and %s have the same %s: %q", name, other, what, got)
			}
			seen[what+got] = name
		}
		if got := inGuest(t, vars, name, "bash -c '"+strings.ReplaceAll(fetch, "'", `'\''`)+"'"); got != "from the host" {
			t.Errorf("%s fetches %q", name, got)
		}
	}
	if said := must(t, vars, "doctor", "--vm", names[1]); !strings.Contains(said, "4 other running vms have the same origin") {
		t.Error(said)
	}
	// Each writes to its own disk.
	for _, name := range names {
		inGuest(t, vars, name, "echo "+name+" >/root/mine-"+name+"; sync")
	}
	for _, name := range names {
		if got := inGuest(t, vars, name, "cat /root/mine-*"); got != name {
			t.Errorf("%s has the files of %q", name, got)
		}
	}
	// A clone is a VM like any other.
	clone := out.VMs[0].Name
	must(t, vars, "vm", "suspend", clone)
	must(t, vars, "vm", "resume", clone)
	ticks(t, vars, clone)
	must(t, vars, "vm", "rm", "--force", "dev")
	must(t, vars, "vm", "fork", "--names", "again", clone)
	ticks(t, vars, "again")
	must(t, vars, "vm", "restart", clone)
	if got := inGuest(t, vars, clone, "hostname; cat /root/mine-*"); got != clone+"\n"+clone {
		t.Errorf("after a restart: %q", got)
	}
}
