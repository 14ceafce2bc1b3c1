package machine_test

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// refused checks that a command cannot be started, and why.
func (v *vm) refused(t *testing.T, start agentwire.ExecStart, class fault.Class, text string) {
	t.Helper()
	got, err := v.exec(t, start)
	if !fault.Is(err, class) || !strings.Contains(err.Error(), text) {
		t.Errorf("%q: %+v, %v (%s), want %s: %s", start.Argv, got, err, fault.ClassOf(err), class, text)
	}
}

// answers checks what a command says.
func (v *vm) answers(t *testing.T, start agentwire.ExecStart, want string) {
	t.Helper()
	if got := strings.TrimSpace(v.must(t, start)); got != want {
		t.Errorf("%q as %q: %q, want %q", start.Argv, start.User, got, want)
	}
}

func command(argv ...string) agentwire.ExecStart { return agentwire.ExecStart{Argv: argv} }

// TestVMNothingButAProgram is the smallest image: what the agent does not provide is not there.
func TestVMNothingButAProgram(t *testing.T) {
	l := newLab(t)
	probe := l.program(t, "probe")
	image := (&tree{}).program("hello", probe).program("script", "echo no interpreter\n").
		program("interpreted", "#!/bin/python\n").program("arm", "\x7fELF\x02\x01\x01"+strings.Repeat("\x00", 11)+"\xb7\x00").image(t)
	t.Run("guest", func(t *testing.T) {
		v := l.boot(t, image, func(c *agentwire.Config) { c.Workdir = "srv/app" })
		v.answers(t, command("/hello", "id"), "0:0 [0] /srv/app HOME=/root "+defaultPath)
		v.answers(t, command("/hello", "ls", "/"), "arm dev etc hello home interpreted lib proc root run script srv sys tmp var workspace")
		v.answers(t, command("/hello", "cat", "/etc/resolv.conf"), "nameserver 10.90.0.3")
		v.answers(t, command("/hello", "cat", "/etc/passwd"), "root:x:0:0:root:/root:/bin/sh")
		v.answers(t, command("/hello", "ls", "/proc/self/fd"), "0 1 2 3")
		for user, want := range map[string]string{
			"1000": "1000:0 [0] / HOME=/", "1000:50": "1000:50 [50] / HOME=/", "0:7": "0:7 [7] /root HOME=/root",
		} {
			v.answers(t, agentwire.ExecStart{Argv: []string{"/hello", "id"}, User: user, Workdir: strings.Fields(want)[2]}, want+" "+defaultPath)
		}
		if got, err := v.exec(t, command("/hello", "exit", "42")); err != nil || got.Code != 42 {
			t.Errorf("%+v, %v", got, err)
		}
		v.refused(t, agentwire.ExecStart{}, fault.NotFound, "the image has no shell: say which program to run")
		v.refused(t, command("/script"), fault.NotFound, "names no interpreter, and the image has no shell")
		v.refused(t, command("/interpreted"), fault.NotFound, "its interpreter or loader does not exist")
		v.refused(t, command("/arm"), fault.Denied, "another kind of processor")
		v.refused(t, agentwire.ExecStart{Argv: []string{"/hello", "id"}, User: "nobody"}, fault.Invalid, `user "nobody" does not exist`)
		v.refused(t, agentwire.ExecStart{Argv: []string{"/hello", "id"}, Workdir: "/no"}, fault.Invalid, "does not exist")
	})
	t.Run("build", func(t *testing.T) {
		v := l.boot(t, image, func(c *agentwire.Config) { c.Build = true })
		v.answers(t, command("/hello", "id"), "0:0 [0] / HOME=/ "+defaultPath)
		v.answers(t, command("/hello", "ls", "/"), "arm dev etc hello interpreted proc script sys")
		v.answers(t, command("/hello", "ls", "/etc"), "hostname hosts resolv.conf")
		v.answers(t, command("/hello", "cat", "/etc/resolv.conf"), "nameserver 10.90.0.3")
		for _, argv := range [][]string{
			{"/hello", "mkdir", "/tmp"}, {"/hello", "mkdir", "/run"}, {"/hello", "mkdir", "/lib"}, {"/hello", "put", "/etc/mine", "m"},
			{"/hello", "put", "/etc/passwd", "p"}, {"/hello", "put", "/etc/machine-id", "i"}, {"/hello", "rm", "/etc/machine-id"},
		} {
			v.must(t, agentwire.ExecStart{Argv: argv, Workdir: "/made/here"})
		}
		got, _ := readArchive(t, v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges}), false)
		dir := `5 0755 0:0 "" ""`
		compare(t, map[string]string{
			"tmp/": dir, "run/": dir, "lib/": dir, "etc/": dir, "etc/mine": `0 0644 0:0 "" "m"`, "etc/passwd": `0 0644 0:0 "" "p"`,
			"made/": dir, "made/here/": dir,
		}, got)
		// A boot that failed halfway is tried again on the same disk.
		v.kill()
		again := l.bootDisk(t, image, v.disk, func(c *agentwire.Config) { c.Build = true })
		again.answers(t, command("/hello", "id"), "0:0 [0] / HOME=/ "+defaultPath)
	})
}

// TestVMDistroless is an image with accounts and no shell, whose links lead to nowhere.
func TestVMDistroless(t *testing.T) {
	l := newLab(t)
	probe := l.program(t, "probe")
	tr := (&tree{}).add(tar.Header{Name: "./", Mode: 0o555}, "").
		dirs("usr", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc", "home").
		link("bin", "usr/bin").link("sbin", "usr/sbin").link("lib", "usr/lib").link("lib64", "usr/lib64").
		program("usr/bin/app", probe).program("usr/sbin/modprobe", probe).
		add(tar.Header{Name: "home/nonroot/", Mode: 0o700, Uid: 65532, Gid: 65532}, "").
		file("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\nshort:x:77:78\n").
		file("etc/group", "root:x:0:\nnonroot:x:65532:\nshort:x:78\nlog:x:4:nonroot\n").
		link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf").link("etc/hostname", "/no/where").
		link("tmp", "var/tmp").link("var", "/data/var")
	for _, build := range []bool{false, true} {
		t.Run(fmt.Sprintf("build %v", build), func(t *testing.T) {
			v := l.boot(t, tr.image(t), func(c *agentwire.Config) { c.Build, c.User = build, "nonroot" })
			home := "/home/nonroot"
			if build {
				home = "/"
			}
			v.answers(t, command("app", "id"), "65532:65532 [4 65532] "+home+" HOME=/home/nonroot "+defaultPath)
			v.answers(t, agentwire.ExecStart{Argv: []string{"app", "id"}, User: "nonroot:log"}, "65532:4 [4] "+home+" HOME=/home/nonroot "+defaultPath)
			v.answers(t, agentwire.ExecStart{Argv: []string{"app", "id"}, User: "short"}, "77:78 [78] / HOME=/ "+defaultPath)
			v.answers(t, command("app", "cat", "/etc/resolv.conf"), "nameserver 10.90.0.3")
			v.answers(t, command("app", "cat", "/etc/hostname"), "lab")
			v.answers(t, command("app", "write", "/dev/stdout", "logged"), "logged")
			if got := v.run(t, "app", "ls", "/usr/lib/modules/"+v.release(t)+"/kernel/fs/overlayfs"); !strings.HasPrefix(got, "overlay.ko") {
				t.Errorf("modules: %q", got)
			}
			if build {
				changes, _ := readArchive(t, v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges}), false)
				compare(t, map[string]string{}, changes)
				return
			}
			v.answers(t, agentwire.ExecStart{Argv: []string{"app", "put", "/tmp/x", "y"}}, "")
			v.answers(t, command("app", "cat", "/data/var/tmp/x"), "y")
			v.refused(t, agentwire.ExecStart{User: "root"}, fault.NotFound, "the image has no shell")
		})
	}
}

// release is the name of the kernel's modules.
func (v *vm) release(t *testing.T) string {
	t.Helper()
	hello, err := v.Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return hello.Kernel
}

// TestVMBusybox is a small distribution: its login shell is a name of one program.
func TestVMBusybox(t *testing.T) {
	l := newLab(t)
	v := l.boot(t, l.busybox(t).image(t), nil)
	v.answers(t, command("sh", "-c", "id -u; echo $HOME; pwd; cat /etc/hostname"), "0\n/root\n/root\nlab")
	v.answers(t, agentwire.ExecStart{Argv: []string{"id"}, User: "dev"}, "uid=1000(dev) gid=1000(dev) groups=50(extra),1000(dev)")
	v.answers(t, agentwire.ExecStart{Argv: []string{"sh", "-c", "exit 0"}, TTY: true}, "")
	shell := login(t, v)
	if !strings.Contains(shell, "-sh /dev/pts/") {
		t.Errorf("login shell: %q", shell)
	}
	v.answers(t, command("ls", "-A", "/"), "bin\ndev\netc\nhome\nlib\nproc\nroot\nrun\nsbin\nsys\ntmp\nvar\nworkspace")
}

// login asks a login shell who it is.
func login(t *testing.T, v *vm) string {
	t.Helper()
	p, err := v.Exec(t.Context(), agentwire.ExecStart{TTY: true, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := p.WriteStdin([]byte("echo $0 $(tty); exit 7\n")); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		event, err := p.Next()
		if err != nil {
			t.Fatalf("%v after %q", err, out.String())
		}
		out.Write(event.Stdout)
		if event.Exited != nil {
			if event.Exited.Code != 7 {
				t.Errorf("code %d", event.Exited.Code)
			}
			return out.String()
		}
	}
}

// TestVMOddImage has a file wherever a directory is of use, and directories for files.
func TestVMOddImage(t *testing.T) {
	l := newLab(t)
	tr := (&tree{}).program("hello", l.program(t, "probe")).file("lib", "").file("home", "").file("workspace", "").
		dirs("etc", "etc/hosts", "etc/hostname").add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo}, "").
		add(tar.Header{Name: "etc/machine-id", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}, "").
		link("etc/group", "group").add(tar.Header{Name: "root/", Mode: 0o1}, "").link("tmp", "/tmp2").
		add(tar.Header{Name: "dev/", Mode: 0o1}, "").link("dev/stdin", "/nowhere").link("run", "/var/run").link("var", "v/a/r")
	for _, build := range []bool{false, true} {
		t.Run(fmt.Sprintf("build %v", build), func(t *testing.T) {
			v := l.boot(t, tr.image(t), func(c *agentwire.Config) { c.Build, c.Workdir = build, "/hello/there" })
			v.refused(t, command("/hello", "id"), fault.Invalid, "working directory /hello/there")
			v.answers(t, agentwire.ExecStart{Argv: []string{"/hello", "ls", "/etc"}, Workdir: "/"},
				"group hostname hosts machine-id passwd resolv.conf")
		})
	}
	// Without a place for one of the kernel's own file systems nothing runs.
	bad := (&tree{}).program("hello", "").link("sys", "/hello")
	v, err := l.start(t, bad.image(t), l.disk(t), nil)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "in the image /sys is no directory") {
		t.Errorf("a link for /sys: %v", err)
	}
	v.kill()
}
