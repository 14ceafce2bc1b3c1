package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/agent/tool"
	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
)

// toolSystem is a machine with one tool.
type toolSystem struct {
	fakeSystem
	program func(name string) (tool.Program, error)
}

func (s toolSystem) Tool(name string) (tool.Program, error) { return s.program(name) }

func configuredWith(t *testing.T, program func(name string) (tool.Program, error)) *guest.Client {
	t.Helper()
	c, _ := connect(t, toolSystem{program: program})
	if _, err := c.Configure(t.Context(), agentwire.Config{User: "nobody knows", Workdir: "/no/such"}); err != nil {
		t.Fatal(err)
	}
	return c
}

// A tool needs nothing of what a command needs: neither the user nor the directory of the configuration has to be there.
func TestToolGetsItsFilesAndArguments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "third")
	if err := os.WriteFile(path, []byte("from the file "), 0o600); err != nil {
		t.Fatal(err)
	}
	var opened *os.File
	c := configuredWith(t, func(name string) (tool.Program, error) {
		f, err := os.Open(path)
		opened = f
		return tool.Program{File: "/bin/sh", Args: []string{"sh", "-c", `cat <&3; echo "$0 $1 $PWD"; echo said >&2; exit 3`, name}, Files: []*os.File{f}}, err
	})
	got := collect(t, start(t, c, agentwire.ExecStart{Tool: "archive", Argv: []string{"argument"}}))
	if want := (outcome{Stdout: "from the file archive argument /\n", Stderr: "said\n", Code: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := opened.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the agent has left the file open: %v", err)
	}
}

func TestToolRefused(t *testing.T) {
	with := configuredWith(t, func(name string) (tool.Program, error) {
		return tool.Program{}, fault.New(fault.Conflict, "no %s now", name)
	})
	without, _ := configured(t)
	for _, tc := range []struct {
		name   string
		client *guest.Client
		start  agentwire.ExecStart
		class  fault.Class
		text   string
	}{
		{"by the system", with, agentwire.ExecStart{Tool: "changes"}, fault.Conflict, "no changes now"},
		{"terminal", with, agentwire.ExecStart{Tool: "changes", TTY: true}, fault.Invalid, "neither a terminal nor an input"},
		{"input", with, agentwire.ExecStart{Tool: "changes", Stdin: true}, fault.Invalid, "neither a terminal nor an input"},
		{"no toolbox", without, agentwire.ExecStart{Tool: "changes"}, fault.Unavailable, "no tools"},
	} {
		if _, err := tc.client.Exec(t.Context(), tc.start); !fault.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v (%s)", tc.name, err, fault.ClassOf(err))
		}
	}
}

// A program that logs to /dev/stdout opens the pipe anew, as the user that it is.
func TestStdoutCanBeOpenedByItsUser(t *testing.T) {
	c, _ := configured(t)
	s := agentwire.ExecStart{Argv: []string{"sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin"}, Stdin: true}
	if os.Geteuid() == 0 {
		s.User = "12345"
	}
	p := start(t, c, s)
	if err := p.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if got, want := collect(t, p), (outcome{Stdout: "out\n", Stderr: "err\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestProgramForAnotherProcessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "foreign")
	if err := os.WriteFile(path, []byte("\x7fELF\x02\x01\x01"+strings.Repeat("\x00", 11)+"\xff\x00"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, _ := configured(t)
	_, err := c.Exec(t.Context(), agentwire.ExecStart{Argv: []string{path}})
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "another kind of processor") {
		t.Errorf("err = %v (%s)", err, fault.ClassOf(err))
	}
}

func TestWorkdirIsMadeInABuild(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c, _ := connect(t, fakeSystem{})
	if _, err := c.Configure(t.Context(), agentwire.Config{Build: true}); err != nil {
		t.Fatal(err)
	}
	for want, workdir := range map[string]string{dir: dir, "/": ""} {
		got := collect(t, start(t, c, agentwire.ExecStart{Argv: []string{"pwd"}, Workdir: workdir}))
		if got.Stdout != want+"\n" {
			t.Errorf("%q: %+v", workdir, got)
		}
	}
}
