package machine_test

import (
	"archive/tar"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// An access control list as the kernel gives it: owner rw, user 1000 r, group r, mask r, others none.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// capability is cap_net_raw, permitted and effective.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func xattr(name, value string) map[string]string {
	return map[string]string{"SCHILY.xattr." + name: value}
}

func TestVMArchiveIsTheTarThatTheImageWasMadeOf(t *testing.T) {
	l := newLab(t)
	deep := strings.Repeat("d/", 120)
	var tr tree
	tr.add(tar.Header{Name: "./", Mode: 0o555, ModTime: time.Unix(1_500_000_000, 0)}, "").
		dirs("etc", "long", "lost").
		add(tar.Header{Name: "bin/", Mode: 0o3775, Uid: 7, Gid: 1 << 22}, "").
		add(tar.Header{Name: "bin/ping", Mode: 0o4755, Uid: 1000, Gid: 1000, PAXRecords: xattr("security.capability", capability)}, "ping").
		add(tar.Header{Name: "bin/pong", Typeflag: tar.TypeLink, Linkname: "bin/ping", Mode: 0o4755, Uid: 1000, Gid: 1000}, "").
		add(tar.Header{Name: "etc/secret", Mode: 0o640, PAXRecords: xattr("system.posix_acl_access", acl)}, "s").
		add(tar.Header{Name: "etc/user", PAXRecords: xattr("user.note", "a=b\nc\x00d")}, "").
		add(tar.Header{Name: "etc/old", ModTime: time.Unix(1, 0)}, "old").
		link("etc/resolv.conf", "../run/nowhere/resolv.conf").
		add(tar.Header{Name: "etc/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, "").
		add(tar.Header{Name: "etc/loop", Typeflag: tar.TypeBlock, Devmajor: 7, Devminor: 300}, "").
		add(tar.Header{Name: "etc/fifo", Typeflag: tar.TypeFifo}, "").
		add(tar.Header{Name: "etc/ö \n'\\", Uid: 1<<32 - 2}, "odd").
		file("long/"+strings.Repeat("n", 255), "long").
		file("lost/found", "").
		file("sparse", strings.Repeat("\x00", 8<<20)+"end").
		file("random", strings.Repeat("0123456789abcdef", 200_000))
	for i := 2; i <= len(deep); i += 2 {
		tr.dirs(strings.TrimSuffix(deep[:i], "/"))
	}
	tr.file(deep+"leaf", "leaf")
	image := tr.image(t)
	for name, edit := range map[string]func(*agentwire.Config){"guest": nil, "build": func(c *agentwire.Config) { c.Build = true }} {
		t.Run(name, func(t *testing.T) {
			v := l.boot(t, image, edit)
			began := time.Now()
			stream := v.must(t, agentwire.ExecStart{Tool: agentwire.ToolArchive})
			t.Logf("%d bytes in %v", len(stream), time.Since(began))
			got, order := readArchive(t, stream, true)
			compare(t, tr.lines(), got)
			if !slices.IsSortedFunc(order, byPath) {
				t.Errorf("the order is not that of the names: %q", order)
			}
			if name == "guest" {
				return
			}
			changes, _ := readArchive(t, v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges}), true)
			compare(t, map[string]string{}, changes)
		})
	}
}

// byPath is the order of a walk.
func byPath(a, b string) int {
	return slices.Compare(strings.Split(strings.TrimSuffix(a, "/"), "/"), strings.Split(strings.TrimSuffix(b, "/"), "/"))
}

func TestVMToolsRefuse(t *testing.T) {
	l := newLab(t)
	v := l.boot(t, l.busybox(t).image(t), nil)
	for _, tc := range []struct {
		name  string
		start agentwire.ExecStart
		class fault.Class
		text  string
	}{
		{"changes of an ordinary guest", agentwire.ExecStart{Tool: agentwire.ToolChanges}, fault.Conflict, "not started for a build"},
		{"unknown", agentwire.ExecStart{Tool: "x"}, fault.Invalid, `no tool "x"`},
		{"terminal", agentwire.ExecStart{Tool: agentwire.ToolArchive, TTY: true}, fault.Invalid, "terminal"},
	} {
		_, err := v.exec(t, tc.start)
		if !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v (%s)", tc.name, err, fault.ClassOf(err))
		}
	}
	got, err := v.exec(t, agentwire.ExecStart{Tool: agentwire.ToolArchive, Argv: []string{"/etc"}})
	if err != nil || got.Code != 1 || got.Stdout != "" || !strings.Contains(got.Stderr, "takes no arguments") {
		t.Errorf("with an argument: %+v, %v", got, err)
	}
}

// changedScript changes buildImage in every way there is. The times are set where they can be.
const changedScript = `set -e
echo new >/new; chown 1000:50 /new
echo more >>/etc/motd
rm /dir/a
rm -r /gone
rm -r /replaced; echo file >/replaced
rm /plain; mkdir /plain; echo in >/plain/in
rm -r /again; mkdir /again; echo x >/again/x
rm /tolink; ln -s dir /tolink
rm /linkdir; mkdir /linkdir; echo y >/linkdir/y
ln /dir/b /dir/b2
chmod 4750 /chmod
chmod 700 /chmoddir
probe setxattr /cap security.capability "$1"
probe setxattr /chmoddir user.note '"hi"'
mv /rename /renamed
mkdir /fresh; mkfifo /fresh/fifo; mknod /fresh/dev b 7 1; mknod /fresh/null c 1 3; ln -s ../new /fresh/link
probe socket /fresh/socket
mkdir /made; echo 1 >/made/1; rm -r /made
mkdir /moved; echo 2 >/moved/2; mv /moved /moved2
echo left >/tmp/left
mkdir /run; echo pid >/run/pid
touch /etc/temporary; rm /etc/temporary
echo 10.0.0.1 other >>/etc/hosts
sleep 1000 &
`

func buildImage(l *lab, t *testing.T) *tree {
	return l.busybox(t).
		dirs("dir", "gone", "gone/deep", "replaced", "again", "chmoddir", "rename", "rename/sub").
		file("etc/motd", "hello\n").file("dir/a", "a").file("dir/b", "b").
		file("gone/x", "x").file("gone/deep/y", "y").file("replaced/z", "z").file("plain", "plain").
		file("again/w", "w").file("tolink", "").link("linkdir", "dir").
		file("chmod", "c").file("chmoddir/in", "").file("cap", "cap").
		file("rename/r1", "1").file("rename/sub/r2", "2").
		link("etc/resolv.conf", "../run/systemd/stub.conf").
		link("sbin/modprobe", "../bin/busybox")
}

func TestVMChangesAreAnOCILayer(t *testing.T) {
	l := newLab(t)
	base := buildImage(l, t)
	// Without a directory /run the mount point of resolv.conf would have to be made, as docker does it.
	base.headers = slices.DeleteFunc(base.headers, func(h *tar.Header) bool { return h.Name == "etc/resolv.conf" })
	v := l.boot(t, base.image(t), func(c *agentwire.Config) { c.Build = true })
	v.run(t, "/bin/sh", "-c", changedScript, "sh", strconv.Quote(capability))
	for path, want := range map[string]string{
		"/etc/hostname": "lab\n", "/etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 lab # banger\n10.0.0.1 other\n",
		"/etc/resolv.conf": "nameserver " + "10.90.0.3" + "\n",
	} {
		if got := v.run(t, "cat", path); got != want {
			t.Errorf("%s is %q", path, got)
		}
	}
	stream := v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges})
	got, order := readArchive(t, stream, false)
	dir := `5 0755 0:0 "" ""`
	file := func(content string) string { return `0 0644 0:0 "" "` + content + `"` }
	gone := `0 0000 0:0 "" ""`
	compare(t, map[string]string{
		"new": `0 0644 1000:50 "" "new\n"`, "etc/": dir, "etc/motd": file(`hello\nmore\n`),
		"dir/": dir, "dir/.wh.a": gone, "dir/b": file("b"), "dir/b2": `1 0644 0:0 "dir/b" ""`,
		".wh.gone": gone, "replaced": file(`file\n`), "plain/": dir, "plain/in": file(`in\n`),
		"again/": dir, "again/.wh..wh..opq": gone, "again/x": file(`x\n`),
		"tolink": `2 0777 0:0 "dir" ""`, "linkdir/": dir, "linkdir/y": file(`y\n`),
		"chmod": `0 4750 0:0 "" "c"`, "chmoddir/": `5 0700 0:0 "" "" user.note="hi"`,
		"cap":          fmt.Sprintf(`0 0644 0:0 "" "cap" security.capability=%q`, capability),
		".wh.rename":   gone,
		"renamed/":     dir,
		"renamed/r1":   file("1"),
		"renamed/sub/": dir, "renamed/sub/r2": file("2"),
		"fresh/": dir, "fresh/fifo": `6 0644 0:0 "" ""`, "fresh/dev": `4 0644 0:0 "" 7,1 ""`,
		"fresh/null": `3 0644 0:0 "" 1,3 ""`, "fresh/link": `2 0777 0:0 "../new" ""`,
		"moved2/": dir, "moved2/2": file(`2\n`),
		"tmp/": dir, "tmp/left": file(`left\n`), "run/": dir, "run/pid": file(`pid\n`),
	}, got)
	seen := map[string]bool{}
	for _, name := range order {
		parent, base := "", name
		if i := strings.LastIndexByte(strings.TrimSuffix(name, "/"), '/'); i >= 0 {
			parent, base = name[:i+1], name[i+1:]
		}
		if strings.HasPrefix(base, ".wh.") && seen[parent] {
			t.Errorf("the whiteout %s comes after what is new: %q", name, order)
		}
		seen[parent] = seen[parent] || !strings.HasPrefix(base, ".wh.")
	}
	// The process that was left behind is gone, and what was fetched once can be fetched again.
	if again := v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges}); again != stream {
		t.Error("the second archive is another one")
	}
	running := v.run(t, "/bin/sh", "-c", "for p in /proc/[0-9]*; do read -r name <$p/comm && echo $name; done 2>/dev/null; true")
	if out := strings.Fields(running); !slices.Contains(out, "sh") || slices.Contains(out, "sleep") {
		t.Errorf("still there: %q", out)
	}
	v.shutDown(t)
}
