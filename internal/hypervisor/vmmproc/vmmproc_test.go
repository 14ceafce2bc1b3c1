package vmmproc

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// run runs a shell script to its end and returns what it printed.
func run(t *testing.T, c Config, script string) (*Process, string) {
	t.Helper()
	var out bytes.Buffer
	c.Path, c.Args, c.Console = "/bin/sh", []string{"-c", script}, &out
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited():
	case <-time.After(time.Minute):
		_ = p.Signal(syscall.SIGKILL)
		t.Fatal("still runs")
	}
	return p, out.String()
}

func TestConfinement(t *testing.T) {
	field := func(text, name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `:\s*(\S+)`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %q", name, text)
		}
		return m[1]
	}
	// The parent sets the limit right after the fork.
	const script = `until grep -q 'core file size *0 *0 ' /proc/self/limits; do sleep 0.05; done; cat /proc/self/status; grep 'core file' /proc/self/limits; pwd; env; wc -c`
	_, out := run(t, Config{Env: []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}}, script)
	if got := field(out, "NoNewPrivs"); got != "1" {
		t.Errorf("NoNewPrivs = %s", got)
	}
	if !regexp.MustCompile(`Max core file size\s+0\s+0\s`).MatchString(out) {
		t.Error("core dumps are possible")
	}
	if os.Geteuid() == 0 {
		bits, err := strconv.ParseUint(field(out, "CapEff"), 16, 64)
		if err != nil || bits&^(1<<unix.CAP_DAC_OVERRIDE) != 0 {
			t.Errorf("effective capabilities %#x, %v", bits, err)
		}
	}
	if strings.Contains(out, "HOME=") || !strings.Contains(out, "\n/\n") {
		t.Errorf("environment or directory are inherited:\n%s", out)
	}
	if !strings.HasSuffix(out, "\n0\n") {
		t.Error("the standard input is not empty")
	}
	_, out = run(t, Config{Env: []string{"PATH=/usr/bin:/bin"}, Unconfined: true}, "cat /proc/self/status")
	if got := field(out, "NoNewPrivs"); got != "0" {
		t.Errorf("unconfined: NoNewPrivs = %s", got)
	}
	// What the child's thread gave up is not given up by this process.
	if got, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || got != 0 {
		t.Errorf("NoNewPrivs of this thread = %d, %v", got, err)
	}
}

func TestExit(t *testing.T) {
	p, _ := run(t, Config{}, `echo "one" >&2; printf 'two\033[31m\377\n' >&2; exit 3`)
	if exit := p.Exit(); exit.Code != 3 || exit.Signal != "" || exit.Detail != "one\ntwo[31m?" {
		t.Errorf("exit = %+v", exit)
	}
	p, _ = run(t, Config{}, `kill -9 $$`)
	if exit := p.Exit(); exit.Code != -1 || exit.Signal != "killed" {
		t.Errorf("exit = %+v", exit)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("Signal after the end: %v", err)
	}
}

func TestStartOfNothing(t *testing.T) {
	if _, err := Start(Config{Path: "/nonexistent/vmm"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error = %v", err)
	}
}

// failing is a writer on a full disk.
type failing struct{ writes int }

func (f *failing) Write([]byte) (int, error) { f.writes++; return 0, syscall.ENOSPC }

func TestAWriterThatFailsDoesNotStopTheProcess(t *testing.T) {
	w := &failing{}
	p, err := Start(Config{Path: "/bin/sh", Args: []string{"-c", "head -c 1000000 /dev/zero; exit 7"}, Console: w})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
	if p.Exit().Code != 7 || w.writes != 1 {
		t.Errorf("exit %+v after %d writes", p.Exit(), w.writes)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var all bytes.Buffer
	tail := &tail{next: &all}
	for range 1000 {
		_, _ = tail.Write([]byte("0123456789\n"))
	}
	_, _ = tail.Write([]byte("the end"))
	got := tail.String()
	if len(got) > maxTail || !strings.HasSuffix(got, "0123456789\nthe end") {
		t.Errorf("tail of %d bytes ends with %q", len(got), got[max(0, len(got)-30):])
	}
	if all.Len() != 11007 {
		t.Errorf("%d bytes passed on", all.Len())
	}
}

func TestChannel(t *testing.T) {
	dir, err := os.MkdirTemp("", "vp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	gone := make(chan struct{})
	c := &Channel{Path: filepath.Join(dir, "s"), Gone: gone}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var listener net.Listener
	listening := make(chan error, 1)
	time.AfterFunc(20*time.Millisecond, func() { // the socket appears after the first look for it
		var err error
		listener, err = net.Listen("unix", c.Path)
		listening <- err
	})
	conn, err := c.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Connect(ctx); !fault.Is(err, fault.Conflict) {
		t.Errorf("second connection: %v", err)
	}
	conn.Close()
	again, err := c.Connect(ctx)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	conn.Close() // a second time: does not free what is not its own
	if _, err := c.Connect(ctx); !fault.Is(err, fault.Conflict) {
		t.Errorf("after a second Close: %v", err)
	}
	again.Close()
	listener.Close()
	close(gone)
	if _, err := c.Connect(ctx); !fault.Is(err, fault.Unavailable) {
		t.Errorf("after the end: %v", err)
	}
	cancel()
	if _, err := (&Channel{Path: c.Path, Gone: make(chan struct{})}).Connect(ctx); !fault.Is(err, fault.Cancelled) {
		t.Errorf("cancelled: %v", err)
	}
}
