package sock

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	connect := `import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(100).decode())`
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Skip("no python3 to connect with")
	}
	for uid, want := range map[string]string{"0": "welcome", "65534": ""} {
		out, err := exec.Command("setpriv", "--reuid", uid, "--clear-groups", python, "-c", connect, path).Output()
		if got := strings.TrimSpace(string(out)); err == nil && got != want {
			t.Errorf("uid %s got %q, want %q", uid, got, want)
		} else if err != nil && want != "" {
			t.Errorf("uid %s: %v", uid, err)
		}
	}
}
