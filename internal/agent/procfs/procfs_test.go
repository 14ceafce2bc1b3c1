package procfs

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentwire"
)

// tree makes a /proc of files, and of symbolic links where the content begins with "->".
func tree(t *testing.T, files map[string]string) Root {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(content, "->")
		var err error
		if link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Root(root)
}

const netHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

var guestProc = map[string]string{
	"stat":    "cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3\nintr 5\n",
	"meminfo": "MemTotal:         500000 kB\nMemFree:          100000 kB\nMemAvailable:     300000 kB\nBuffers: 1 kB\n",
	"loadavg": "0.42 0.10 0.01 1/70 812\n",
	"diskstats": " 254 0 vda 10 0 200 5 0 0 0 0 0 5 5 0 0 0 0\n 254 16 vdb 10 0 100 5 20 0 300 5 0 5 5\n" +
		" 254 17 vdb1 10 0 100 5 20 0 300 5 0 5 5\n 7 0 loop0 10 0 100 5 20 0 300 5 0 5 5\n short\n",
	"net/dev": "Inter-|   Receive\n face |bytes\n    lo: 99 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0\n  eth0: 5000 1 0 0 0 0 0 0 7000 1 0 0 0 0 0 0\n",
	"net/tcp": netHead +
		"   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4321 1 0 100 0 0 10 0\n" +
		"   1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4322 1 0 100 0 0 10 0\n" +
		"   2: 0F02000A:1F90 0202000A:C001 01 00000000:00000000 00:00000000 00000000  1000        0 4323 1 0 100 0 0 10 0\n" +
		"   3: rubbish\n   4: zz:1 0:0 0A 0 0 0 0 0 1 1\n",
	"net/tcp6": netHead +
		"   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4324 1\n" +
		"   1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4325 1\n",
	"net/udp": netHead + "   0: 00000000:0044 00000000:0000 07 0:0 0:0 0 0 0 4326 1\n" +
		"   1: 0F02000A:9999 0302000A:0035 01 0:0 0:0 0 0 0 4327 1\n",
	"1/exe": "->/init", "1/comm": "banger-agent\n", "1/fd/0": "->/dev/console",
	"2/comm": "kthreadd\n", // no exe: the kernel's
	"77/exe": "->/usr/bin/python3", "77/comm": "python3\n", "77/fd/3": "->socket:[4321]", "77/fd/4": "->socket:[4322]",
	"78/exe": "->/usr/bin/python3", "78/comm": "child\n", "78/fd/3": "->socket:[4321]",
	"90/exe": "->/usr/sbin/sshd (deleted)", "90/comm": "ss\x1bhd\n", "90/fd/3": "->socket:[4324]", "90/fd/4": "->socket:[4325]",
	"90/fd/5": "->socket:[", "self/comm": "x",
}

func TestStats(t *testing.T) {
	// Dangling links are links: exe is only read.
	got, err := tree(t, guestProc).Stats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := agentwire.Stats{
		CPUMillis: 1710, MemoryTotal: 500000 << 10, MemoryAvailable: 300000 << 10, Load1: 0.42, Processes: 4,
		DiskRead: 300 * 512, DiskWritten: 300 * 512, NetReceived: 5000, NetSent: 7000,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := Root(t.TempDir()).Stats(""); err == nil {
		t.Error("an empty /proc is no error")
	}
}

func TestPorts(t *testing.T) {
	got, err := tree(t, guestProc).Ports()
	if err != nil {
		t.Fatal(err)
	}
	// 78 has inherited the socket of 77; the two sockets of 90 are one port.
	want := []agentwire.Port{
		{Protocol: "tcp", Address: "0.0.0.0", Port: 8080, PID: 77, Process: "python3"},
		{Protocol: "tcp", Address: "127.0.0.1", Port: 53, PID: 77, Process: "python3"},
		{Protocol: "tcp", Address: "::", Port: 22, PID: 90, Process: "ss\x1bhd"},
		{Protocol: "udp", Address: "0.0.0.0", Port: 68},
	}
	if diff := cmp.Diff(want, got.Ports); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPortsAreBounded(t *testing.T) {
	line := "   0: 00000000:1F90 00000000:0000 0A 0:0 0:0 0 0 0 4321 1\n"
	files := map[string]string{"net/tcp": strings.Repeat(line, 3*maxFile/len(line))}
	got, err := tree(t, files).Ports()
	if err != nil || len(got.Ports) != 1 {
		t.Errorf("%d ports, %v", len(got.Ports), err)
	}
	if n := len(parseSockets(files["net/tcp"], "tcp", stateListen)); n != agentwire.MaxPorts {
		t.Errorf("%d sockets", n)
	}
}

func TestThisMachine(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	packets, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Log("no IPv6 here:", err)
	} else {
		defer packets.Close()
	}
	stats, err := Root("/proc").Stats("lo")
	if err != nil || stats.CPUMillis == 0 || stats.MemoryAvailable == 0 || stats.MemoryAvailable > stats.MemoryTotal || stats.Processes < 1 {
		t.Errorf("%+v, %v", stats, err)
	}
	ports, err := Root("/proc").Ports()
	if err != nil {
		t.Fatal(err)
	}
	has := func(protocol, address string) bool {
		want := netip.MustParseAddrPort(address)
		return slices.ContainsFunc(ports.Ports, func(p agentwire.Port) bool {
			return p.Protocol == protocol && p.Address == want.Addr().String() && p.Port == want.Port() && p.PID == os.Getpid() &&
				strings.HasPrefix(p.Process, "procfs")
		})
	}
	if !has("tcp", listener.Addr().String()) || packets != nil && !has("udp", packets.LocalAddr().String()) {
		t.Errorf("%v is not in %+v", listener.Addr(), ports.Ports)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range guestProc {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parseCPU(text)
		parseMemory(text)
		parseDisks(text)
		parseNet(text, "eth0")
		if load := parseLoad(text); load < 0 || load != load {
			t.Errorf("load %v", load)
		}
		for _, s := range parseSockets(text, "tcp", stateListen) {
			if s.address.Port() == 0 || !s.address.Addr().IsValid() {
				t.Errorf("%v", s)
			}
		}
	})
}

func BenchmarkStats(b *testing.B) {
	for b.Loop() {
		if _, err := Root("/proc").Stats("eth0"); err != nil {
			b.Fatal(err)
		}
	}
}
