package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// busyboxRoot fills a directory with what a small distribution is made of: busybox and its links, two accounts.
func busyboxRoot(t *testing.T, dir string) plant {
	t.Helper()
	p := plant{t, dir}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox: scripts/setup.sh --test")
	}
	program, err := os.ReadFile(busybox)
	p.must(err)
	p.file("bin/busybox", string(program), 0o755)
	for _, name := range []string{"sh", "cat", "echo", "id", "pwd", "ls", "env", "mkdir", "touch", "true", "tty"} {
		p.symlink("bin/"+name, "busybox")
	}
	p.file("etc/alpine-release", "3.20.3\n", 0o644)
	p.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
	p.file("etc/group", "root:x:0:\napp:x:1000:\n", 0o644)
	return p
}

// buildah makes images with its own storage below a directory of the test.
type buildah struct {
	t     *testing.T
	flags []string
}

func newBuildah(t *testing.T, work string) buildah {
	return buildah{t, []string{
		"--root", filepath.Join(work, "storage"), "--runroot", filepath.Join(work, "run"), "--storage-driver", "vfs",
	}}
}

func (b buildah) do(command string, args ...string) string {
	b.t.Helper()
	return tool(b.t, "buildah", append(append(append([]string{}, b.flags...), command), args...)...)
}

// push makes an image of a directory and puts it into a registry.
func (b buildah) push(dir, ref string, config ...string) {
	b.t.Helper()
	container := b.do("from", "scratch")
	b.do("add", container, dir, "/")
	b.do("config", append(config, container)...)
	b.do("push", "--quiet", "--tls-verify=false", b.do("commit", "--quiet", "--rm", container), "docker://"+ref)
}

// Images made by buildah run as people know it from containers, whatever they lack.
func TestImageRun(t *testing.T) {
	home, vars := pullHome(t)
	registry := startRegistry(t)
	work := t.TempDir()
	b := newBuildah(t, work)

	alpine := registry + "/alpine:test"
	busyboxRoot(t, filepath.Join(work, "alpine"))
	b.push(filepath.Join(work, "alpine"), alpine, "--cmd", "/bin/sh")
	answers(t, vars, "3.20.3\n", "vm", "run", "--rm", "--image", alpine, "--", "cat", "/etc/alpine-release")

	// The image's command is a shell: with a terminal that is what one gets.
	s := openPatiently(t, vars, "vm", "run", "--rm", "--image", alpine)
	s.send("tty && id -un && echo $((40+2))\r")
	s.see("/dev/")
	s.see("root")
	s.see("42")
	s.send("exit 9\r")
	if code := s.exit(); code != 9 {
		t.Errorf("the image's shell ended with %d", code)
	}

	// Nothing but one program, which says how it was called.
	bare := registry + "/bare:test"
	p := plant{t, filepath.Join(work, "bare")}
	p.dir(".", 0o755)
	buildStatic(t, "entry", p.at("entry"))
	b.push(p.root, bare, "--entrypoint", `["/entry", "first"]`, "--cmd", "second third", "--env", "EXIT=7", "--workingdir", "/srv/app")
	for _, test := range []struct {
		name string
		args []string
		want result
	}{
		{"entrypoint and command", nil, result{code: 7, stdout: "first|second|third in /srv/app as 0\n"}},
		{"another command", []string{"-e", "EXIT=0", "--", "other", "a b"}, result{stdout: "first|other|a b in /srv/app as 0\n"}},
		{"another entrypoint", []string{"--entrypoint", "/entry", "--user", "1234:5", "--workdir", "/", "-e", "EXIT=3", "--", "x"},
			result{code: 3, stdout: "x in / as 1234\n"}},
	} {
		got := runBanger(t, vars, append([]string{"vm", "run", "--rm", "--image", bare}, test.args...)...)
		if got.code != test.want.code || got.stdout != test.want.stdout {
			t.Errorf("%s: exit code %d, %q; want %d, %q\n%s", test.name, got.code, got.stdout, test.want.code, test.want.stdout, got.stderr)
		}
	}

	// The user and the environment of an image hold for everything in the VM.
	user := registry + "/user:test"
	b.push(filepath.Join(work, "alpine"), user, "--user", "app", "--env", "COLOUR=blue", "--workingdir", "/home/app", "--cmd", "/bin/sh")
	const script = "id -un; pwd; echo $COLOUR"
	answers(t, vars, "app\n/home/app\nblue\n", "vm", "run", "--rm", "--image", user, "--", "sh", "-c", script)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--image", user)
	answers(t, vars, "app\n/home/app\nblue\n", "exec", "dev", "--", "sh", "-c", script)
	answers(t, vars, "root\n/etc\nred\n", "exec", "--user", "root", "--workdir", "/etc", "-e", "COLOUR=red", "dev", "--", "sh", "-c", script)
	if got := runBanger(t, vars, "exec", "dev", "--", "bash"); got.code != 127 {
		t.Errorf("no bash in the image: exit code %d: %s", got.code, strings.TrimSpace(got.stderr))
	}
	must(t, vars, "vm", "rm", "--force", "dev")
	nothingHalfMade(t, home, vars)
}
