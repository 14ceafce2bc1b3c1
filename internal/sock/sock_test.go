package sock

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/fault"
)

func TestListenReplacesOnlyAStaleSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	ln.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there after Close")
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !fault.Is(err, fault.Conflict) {
		t.Errorf("a file in the way: %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Error("the file was touched")
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 108))); !fault.Is(err, fault.Invalid) {
		t.Errorf("long path: %v", err)
	}
}

func TestPeersOfAnotherUserAreRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	dir, err := os.MkdirTemp("", "sock") // not t.TempDir: its parents are closed to other users
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	os.Chmod(path, 0o666) // the file mode is one lock, the check of the peer the other: test that one alone
	go func() {           // ends with ln
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "welcome")
			conn.Close()
		}
	}()
	// A copy of this test binary connects: the original is in a directory that only its owner may enter.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	helper := filepath.Join(dir, "helper")
	if err := os.WriteFile(helper, self, 0o755); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{0: "heard: welcome", 65534: "heard: "} {
		cmd := exec.Command(helper)
		cmd.Env = []string{connectVar + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("uid %d: %q, %v; want %q", uid, out, err, want)
		}
	}
}

// connectVar makes the test binary a peer: it connects to the socket that is its value and prints what it hears.
const connectVar = "BANGER_TEST_CONNECT"

func TestMain(m *testing.M) {
	path := os.Getenv(connectVar)
	if path == "" {
		os.Exit(m.Run())
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		os.Exit(1)
	}
	heard, _ := io.ReadAll(conn) // a peer that is refused may be reset
	os.Stdout.WriteString("heard: " + string(heard))
}
