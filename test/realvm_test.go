package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/proc"
)

// The tests of this file run real VMs with the built binary. scripts/test.sh sets what they need:
//
//	BANGER_TEST_VM=1          they are wanted
//	BANGER_TEST_BINARY=PATH   the built banger
//	BANGER_TEST_SEED=DIR      a BANGER_HOME whose image and kernel they use
const (
	binaryVar = "BANGER_TEST_BINARY"
	seedVar   = "BANGER_TEST_SEED"
	driveVar  = "BANGER_TEST_DRIVE" // in the environment of a real home only: see bangerFor
)

// realHome makes a BANGER_HOME with the seed's image and kernel, and the environment for it.
func realHome(t *testing.T) (dir string, vars []string) {
	t.Helper()
	wantReal(t)
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	return dir, furnish(t, dir)
}

// wantReal skips a test of real VMs where they are not wanted.
func wantReal(t *testing.T) {
	t.Helper()
	if os.Getenv("BANGER_TEST_VM") == "" {
		t.Skip("runs virtual machines: `make test` asks for it")
	}
	seed, path := os.Getenv(seedVar), os.Getenv(binaryVar)
	if seed == "" || path == "" {
		t.Fatalf("BANGER_TEST_VM is set, %s and %s are not", seedVar, binaryVar)
	}
}

// furnish makes a BANGER_HOME of an empty directory, and returns the environment for it.
func furnish(t *testing.T, dir string) (vars []string) {
	t.Helper()
	seed, path := os.Getenv(seedVar), os.Getenv(binaryVar)
	for _, kind := range []string{"images", "kernels"} {
		if err := linkTree(filepath.Join(seed, "data", kind), filepath.Join(dir, "data", kind)); err != nil {
			t.Fatal(err)
		}
	}
	vars = append(os.Environ(), "BANGER_HOME="+dir, "TERM=xterm", driveVar+"="+path)
	t.Cleanup(func() {
		if err := tearDown(dir, vars); err != nil {
			t.Error("left behind:", err)
		}
	})
	return vars
}

// linkTree makes hard links, where they can be: what is published never changes.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		err = os.Link(path, filepath.Join(to, rel))
		if errors.Is(err, unix.EXDEV) {
			_, err = diskcopy.Copy(context.Background(), path, filepath.Join(to, rel))
		}
		return err
	})
}

// must runs banger and returns its output.
func must(t *testing.T, vars []string, args ...string) string {
	t.Helper()
	out, err := banger(vars, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

type shown struct {
	State  string
	Reason string
	VMMPid int `json:"vmm_pid"`
	SupPid int `json:"supervisor_pid"`
}

func show(t *testing.T, vars []string, name string) (s shown) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, vars, "vm", "show", "--format", "json", name)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func awaitState(t *testing.T, vars []string, name, state string) shown {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		s := show(t, vars, name)
		if s.State == state {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %s (%s), want %s", name, s.State, s.Reason, state)
		}
	}
}

func TestRealTerminal(t *testing.T) {
	_, vars := realHome(t)
	s := openPatiently(t, vars, "vm", "run", "--rm", "--name", "term")
	s.send("tty; stty size; id -u\r")
	s.see("/dev/pts/")
	s.see("40 100")
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 25, Cols: 81}); err != nil {
		t.Fatal(err)
	}
	s.sees("25 81", "stty size\r")
	s.send("sh -c 'echo on$((1+1)); exec sleep 1000'; echo ended\r")
	s.see("on2")
	s.send("\x03")
	s.send("echo interrupted=$?\r")
	s.see("interrupted=130")
	s.send("sleep 1000 &\r")
	s.see("[1]")
	s.send("jobs; kill %1\r")
	s.see("Running")
	s.send("exit 7\r")
	if code := s.exit(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if names := must(t, vars, "vm", "list", "-q"); names != "" {
		t.Errorf("left: %q", names)
	}
}

// openPatiently waits for the guest's prompt: a boot by software emulation on a busy host takes a while.
func openPatiently(t *testing.T, vars []string, args ...string) *screen {
	s := open(t, vars, args...)
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(s.contents(), "# "); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no prompt: %q", s.contents())
		}
	}
	return s
}

// A killed supervisor takes its VMM along, a killed daemon nobody; the disk is there whatever was killed.
func TestRealKills(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev")
	must(t, vars, "exec", "dev", "--", "sh", "-c", "echo kept >/root/f; echo kept >/etc/f; sync")

	before := show(t, vars, "dev")
	vmm, err := proc.Of(before.VMMPid)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(before.SupPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := awaitState(t, vars, "dev", "stopped"); s.Reason == "" {
		t.Error("no reason after kill -9 of the supervisor")
	}
	for deadline := time.Now().Add(patience); vmm.Alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the VMM outlives its supervisor")
		}
	}
	must(t, vars, "vm", "start", "dev")
	if got := must(t, vars, "exec", "dev", "--", "cat", "/root/f", "/etc/f"); got != "kept\nkept" {
		t.Errorf("the disk holds %q", got)
	}

	// A command goes on while the daemon is killed, and so does its stream.
	running := exec.Command(bangerFor(vars), "exec", "dev", "--", "sh", "-c", "echo begun; read x; echo got $x")
	running.Env = vars
	stdin, err := running.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := running.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); err != nil || line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	var status struct{ PID int }
	if err := json.Unmarshal([]byte(must(t, vars, "daemon", "status", "--format", "json")), &status); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := show(t, vars, "dev"); s.State != "running" {
		t.Errorf("after kill -9 of the daemon: %+v", s)
	}
	fmt.Fprintln(stdin, "it")
	stdin.Close()
	rest, _ := io.ReadAll(out)
	if err := running.Wait(); err != nil || string(rest) != "got it\n" {
		t.Errorf("the command that ran meanwhile: %v, %q", err, rest)
	}
}

// The kernel has nothing to complain about, modules load for an ordinary user, and files survive a stop.
func TestRealGuest(t *testing.T) {
	_, vars := realHome(t)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	if got := must(t, vars, "exec", "--user", "1000", "dev", "--", "sh", "-c", "sudo modprobe overlay && sudo modprobe nbd && id -un && pwd"); got != "banger\n/home/banger" {
		t.Errorf("as the ordinary user: %q", got)
	}
	// The machine has no PCI, and the kernel says so at level "fatal"; that is no error of a device of ours.
	complaints := must(t, vars, "exec", "dev", "--", "sh", "-c", "dmesg --level=emerg,alert,crit,err | grep -v 'PCI: Fatal' || true")
	if complaints != "" {
		t.Errorf("dmesg: %s", complaints)
	}
	must(t, vars, "exec", "dev", "--", "sh", "-c", "echo 1 >/root/f; echo 2 >/home/banger/f; echo 3 >/opt/f; mkdir -p /workspace/x")
	must(t, vars, "vm", "stop", "dev")
	must(t, vars, "vm", "start", "dev")
	if got := must(t, vars, "exec", "dev", "--", "sh", "-c", "cat /root/f /home/banger/f /opt/f; ls /workspace"); got != "1\n2\n3\nx" {
		t.Errorf("after stop and start: %q", got)
	}
	if got := must(t, vars, "exec", "dev", "--", "sh", "-c", "df -BM --output=size / | tail -1"); !strings.Contains(got, "M") || strings.TrimSuffix(strings.TrimSpace(got), "M") < "900" {
		t.Errorf("a disk of 1G has %s", got)
	}
}

// The guest reaches a server that is not on this host: here, in a network namespace of its own.
func TestRealOutbound(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	_, vars := realHome(t)
	listener := listenElsewhere(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") })}
	go server.Serve(listener) // ends with the listener
	defer server.Close()
	must(t, vars, "template", "warm") // what is made on the way is told, too
	if got := must(t, vars, "vm", "run", "--rm", "--", "curl", "-sS", "--max-time", "20", "http://"+listener.Addr().String()); got != "reached" {
		t.Errorf("got %q", got)
	}
}

// listenElsewhere listens in a new network namespace that is joined to this one by a pair of interfaces. The namespace
// lives as long as the listener: it has no name.
func listenElsewhere(t *testing.T) net.Listener {
	t.Helper()
	suffix := strconv.Itoa(os.Getpid() % 10000)
	here, there := "bt"+suffix+"a", "bt"+suffix+"b"
	thread, linked := make(chan int, 1), make(chan struct{})
	var listener net.Listener
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the other namespace and ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			close(thread)
			failed <- err
			return
		}
		thread <- unix.Gettid()
		<-linked
		err := ip([]string{"addr", "add", "10.213.77.2/30", "dev", there}, []string{"link", "set", there, "up"}) // children of this thread
		if err == nil {
			listener, err = net.Listen("tcp", "10.213.77.2:0")
		}
		failed <- err
	}()
	err := ip([]string{"link", "add", here, "type", "veth", "peer", "name", there},
		[]string{"link", "set", there, "netns", strconv.Itoa(<-thread)},
		[]string{"addr", "add", "10.213.77.1/30", "dev", here}, []string{"link", "set", here, "up"})
	t.Cleanup(func() { _ = ip([]string{"link", "del", here}) })
	close(linked)
	if err := errors.Join(err, <-failed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// ip runs ip(8) commands until one fails.
func ip(commands ...[]string) error {
	for _, args := range commands {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// Ten VMs at once, and nothing is left of them (realHome looks).
func TestRealTenAtOnce(t *testing.T) {
	_, vars := realHome(t)
	const crowd = 10
	var group errgroup.Group
	names := make([]string, crowd)
	for i := range crowd {
		names[i] = fmt.Sprintf("test-%d", i)
		group.Go(func() error {
			_, err := banger(vars, "vm", "create", "--name", names[i], "--memory", "512M")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if s := show(t, vars, name); s.State != "running" {
			t.Errorf("%s is %s", name, s.State)
		}
		if got := must(t, vars, "exec", name, "--", "hostname"); got != name {
			t.Errorf("%s calls itself %q", name, got)
		}
	}
	must(t, vars, append([]string{"vm", "rm", "--force"}, names...)...)
}

// Nothing needs root: the same binary under another uid, with a home of its own.
func TestRealOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	seed, _ := realHome(t)
	const uid = 61234
	home, err := os.MkdirTemp("/tmp", "bu")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	// Copies: the user must be able to read them, and the seed's owner is root.
	if out, err := exec.Command("cp", "-a", "--sparse=always", filepath.Join(seed, "data"), home).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"banger.db", "banger.db-wal", "banger.db-shm", "daemon.lock"} {
		os.Remove(filepath.Join(home, "data", name))
	}
	binaryCopy := filepath.Join(home, "banger")
	if out, err := exec.Command("cp", os.Getenv(binaryVar), binaryCopy).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("chown", "-R", fmt.Sprint(uid), home).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	vars := append(os.Environ(), "BANGER_HOME="+home, "HOME="+home)
	run := func(args ...string) (string, error) {
		cmd := exec.Command(binaryCopy, args...)
		cmd.Env, cmd.Dir = vars, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if got, err := run("template", "warm"); err != nil { // what is made on the way is told, too
		t.Errorf("template warm: %q, %v", got, err)
	}
	if got, err := run("vm", "run", "--rm", "--", "id", "-u"); err != nil || got != "0" {
		t.Errorf("vm run: %q, %v", got, err)
	}
	if got, err := run("daemon", "stop"); err != nil {
		t.Errorf("daemon stop: %q, %v", got, err)
	}
	if err := errors.Join(nothingLeft(home), nothingRuns(home)); err != nil {
		t.Error("left behind:", err)
	}
}
