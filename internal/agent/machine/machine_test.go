package machine

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

func TestHostsKeepsTheUsersLines(t *testing.T) {
	const fresh = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 dev # banger\n"
	for _, tc := range []struct{ name, old, want string }{
		{"none", "", fresh},
		{"ours", fresh, fresh},
		{"renamed", "127.0.0.1 localhost\n127.0.1.1 old # banger\n", "127.0.0.1 localhost\n127.0.1.1 dev # banger\n"},
		{"user's", "127.0.0.1 localhost\n10.0.0.1 build", "127.0.0.1 localhost\n10.0.0.1 build\n127.0.1.1 dev # banger\n"},
	} {
		if got := hosts(tc.old, "dev"); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestWithRoot(t *testing.T) {
	for old, want := range map[string]string{
		"":                          "root:x:0:\n",
		"root:x:0:\n":               "root:x:0:\n",
		"bin:x:1:\nroot:x:0:\n":     "bin:x:1:\nroot:x:0:\n",
		"chroot:x:1:\n":             "root:x:0:\nchroot:x:1:\n",
		"bin:x:1:daemon,root:x:0\n": "root:x:0:\nbin:x:1:daemon,root:x:0\n",
	} {
		if got := withRoot(old, "root:x:0:\n"); got != want {
			t.Errorf("%q: got %q, want %q", old, got, want)
		}
	}
}

func TestRewriteReplacesADanglingLink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.Symlink("../run/nowhere", path); err != nil {
		t.Fatal(err)
	}
	n := &agentwire.Network{DNS: []string{"10.0.2.3"}, Search: []string{"vm", "lan"}}
	for range 2 {
		if err := rewrite(path, func(string) string { return resolvConf(n) }); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
	if got, _ := os.ReadFile(path); string(got) != "nameserver 10.0.2.3\nsearch vm lan\n" {
		t.Errorf("got %q", got)
	}
}

func TestMakeDirFollowsADanglingLink(t *testing.T) {
	top := t.TempDir()
	if err := os.Symlink("var/home", filepath.Join(top, "home")); err != nil {
		t.Fatal(err)
	}
	if err := makeDir(filepath.Join(top, "home"), 0o755); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(top, "var/home")); err != nil || !info.IsDir() {
		t.Error(info, err)
	}
}

func TestMountPoints(t *testing.T) {
	const info = `28 0 0:25 / / rw,noatime - overlay overlay rw
29 28 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw
30 29 0:26 / /dev/pts rw - devpts devpts rw
31 28 0:22 / /run rw - tmpfs tmpfs rw
32 28 254:16 /keep/home /home rw - ext4 /dev/vdb rw
33 32 0:40 / /home/my\040disk\134x rw - tmpfs tmpfs rw
34 28 0:41 / /device rw - tmpfs tmpfs rw
malformed
`
	want := []string{"/run", "/home", `/home/my disk\x`, "/device"}
	if diff := cmp.Diff(want, mountPoints(info)); diff != "" {
		t.Error(diff)
	}
}

func TestParseSuperblock(t *testing.T) {
	super := func(edit func([]byte)) []byte {
		b := make([]byte, superblockLen)
		binary.LittleEndian.PutUint16(b[offMagic:], ext4Magic)
		binary.LittleEndian.PutUint32(b[offBlocksLow:], 1000)
		binary.LittleEndian.PutUint32(b[offLogBlockSize:], 2)
		binary.LittleEndian.PutUint32(b[offBlocksHigh:], 1)
		edit(b)
		return b
	}
	got, err := parseSuperblock(super(func([]byte) {}))
	if err != nil || got != (ext4{blocks: 1000, blockSize: 4096}) {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = parseSuperblock(super(func(b []byte) { b[offIncompat] = incompat64Bit }))
	if err != nil || got.blocks != 1<<32+1000 {
		t.Errorf("64 bit: got %+v, %v", got, err)
	}
	for name, b := range map[string][]byte{
		"short":      make([]byte, 100),
		"no magic":   make([]byte, superblockLen),
		"block size": super(func(b []byte) { b[offLogBlockSize] = 60 }),
	} {
		if _, err := parseSuperblock(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParseSuperblock(f *testing.F) {
	f.Add(make([]byte, superblockLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		if fs, err := parseSuperblock(b); err == nil && (fs.blockSize < 1024 || fs.blockSize > 64<<10) {
			t.Errorf("%+v", fs)
		}
	})
}

func TestHasPowerRegister(t *testing.T) {
	fadt := func(length int, edit func([]byte)) []byte {
		b := make([]byte, length)
		edit(b)
		return b
	}
	reduced := func(b []byte) { binary.LittleEndian.PutUint32(b[112:], 1<<20) }
	for _, tc := range []struct {
		name  string
		table []byte
		want  bool
	}{
		{"none", nil, false},
		{"short", make([]byte, 100), false},
		{"no register", fadt(276, func([]byte) {}), false},
		{"PM1a", fadt(116, func(b []byte) { b[64] = 4 }), true},
		{"PM1a, extended", fadt(276, func(b []byte) { b[176] = 4 }), true},
		{"reduced, no register", fadt(276, func(b []byte) { reduced(b); b[64] = 4 }), false},
		{"reduced, short", fadt(244, reduced), false},
		{"reduced", fadt(276, func(b []byte) { reduced(b); b[249] = 6 }), true},
	} {
		if got := hasPowerRegister(tc.table); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	good := agentwire.Config{
		Hostname: "dev", Disks: agentwire.Disks{Image: "i", Data: "d"},
		Network: &agentwire.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3", "fd00::1"}, MTU: 1500},
	}
	if err := check(good); err != nil {
		t.Errorf("good configuration: %v", err)
	}
	for name, edit := range map[string]func(*agentwire.Config){
		"no hostname":   func(c *agentwire.Config) { c.Hostname = "" },
		"long hostname": func(c *agentwire.Config) { c.Hostname = string(make([]byte, 65)) },
		"no image":      func(c *agentwire.Config) { c.Disks.Image = "" },
		"no data":       func(c *agentwire.Config) { c.Disks.Data = "" },
		"no prefix":     func(c *agentwire.Config) { c.Network.Address = "10.0.2.15" },
		"version 6":     func(c *agentwire.Config) { c.Network.Address = "fd00::1/64" },
		"gateway":       func(c *agentwire.Config) { c.Network.Gateway = "router" },
		"mtu":           func(c *agentwire.Config) { c.Network.MTU = 100 },
		"dns":           func(c *agentwire.Config) { c.Network.DNS = []string{"a\nb"} },
		"environment":   func(c *agentwire.Config) { c.Env = []string{"NOVALUE"} },
	} {
		c := good
		network := *good.Network
		c.Network = &network
		edit(&c)
		if err := check(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCopyTreeKeepsEverything(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	then := time.Unix(1_000_000_000, 5000)
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(
		os.MkdirAll(from+"/dir/deep", 0o755),
		os.WriteFile(from+"/dir/file", []byte("content"), 0o644),
		os.Link(from+"/dir/file", from+"/dir/deep/hard"),
		os.Symlink("/nowhere", from+"/dangling"),
		unix.Mkfifo(from+"/fifo", 0o640),
		os.Chmod(from+"/dir/file", 0o750|os.ModeSetuid),
		os.Chmod(from+"/dir", 0o777|os.ModeSticky),
	)
	xattrs := unix.Lsetxattr(from+"/dir/file", "user.banger", []byte("yes"), 0) == nil
	if os.Geteuid() == 0 {
		must(os.Lchown(from+"/dir/deep", 12, 34), os.Lchown(from+"/dangling", 12, 34))
	}
	must(os.Chtimes(from+"/dir/file", then, then), os.Chtimes(from+"/dir", then, then))

	if err := copyTree(from, to); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "dir", "dir/file", "dir/deep", "dir/deep/hard", "dangling", "fifo"} {
		var a, b unix.Stat_t
		must(unix.Lstat(filepath.Join(from, name), &a), unix.Lstat(filepath.Join(to, name), &b))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim {
			t.Errorf("%s: mode %o %o, owner %d:%d %d:%d, mtime %v %v", name, a.Mode, b.Mode, a.Uid, a.Gid, b.Uid, b.Gid, a.Mtim, b.Mtim)
		}
	}
	var a, b unix.Stat_t
	must(unix.Lstat(to+"/dir/file", &a), unix.Lstat(to+"/dir/deep/hard", &b))
	if a.Ino != b.Ino {
		t.Error("the hard link became a copy")
	}
	value := make([]byte, 10)
	if n, err := unix.Lgetxattr(to+"/dir/file", "user.banger", value); xattrs && (err != nil || string(value[:n]) != "yes") {
		t.Errorf("extended attribute: %q, %v", value, err)
	}
}

// An interrupted seeding leaves a copy under its temporary name; the next one starts over.
func TestKeepCopyReplacesRemains(t *testing.T) {
	base, image := t.TempDir(), filepath.Join(t.TempDir(), "home")
	k := keep{name: "home", path: image}
	remains := filepath.Join(k.temp(base), "half")
	if err := errors.Join(os.MkdirAll(image+"/dev", 0o755), os.MkdirAll(remains, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := k.copyTo(base, false, "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(remains); err == nil {
		t.Error("the remains are still there")
	}
	if _, err := os.Stat(filepath.Join(k.temp(base), "dev")); err != nil {
		t.Error(err)
	}
}
