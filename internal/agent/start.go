package agent

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/agent/tool"
	"banger/internal/agentwire"
	"banger/internal/fault"
)

// DefaultPath is root's and everybody's: a development machine's user has sudo, and expects to find its tools.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	defaultTerm  = "xterm"
	defaultShell = "/bin/sh"

	hintProgram = "banger vm run --image IMAGE -- /PATH/OF/PROGRAM"
)

// shells are tried for a user whose own is missing.
var shells = []string{defaultShell, "/bin/bash", "/bin/ash", "/busybox/sh"}

// plan is a command that was looked up and can be started.
type plan struct {
	file string // what is executed
	argv []string
	dir  string
	env  []string
	cred *syscall.Credential
	uid  uint32
	tool tool.Program // whose files the command gets
	// death is what the command gets when this process dies; 0: nothing.
	death syscall.Signal
}

// prepare works out what start means in this guest.
func (s *Server) prepare(config agentwire.Config, start agentwire.ExecStart) (plan, error) {
	if start.Tool != "" {
		return s.prepareTool(start)
	}
	user := cmp.Or(start.User, config.User)
	if user == "" {
		user = uint32Text(uint32(os.Geteuid()))
	}
	acc, err := s.accounts.lookUp("/etc", user)
	if err != nil {
		return plan{}, err
	}
	cred, err := acc.credential()
	if err != nil {
		return plan{}, err
	}
	env, err := environment(acc, config.Env, start)
	if err != nil {
		return plan{}, err
	}
	p := plan{argv: start.Argv, env: env.list(), cred: cred, uid: acc.uid}
	if p.dir, err = workdir(acc, config, start); err != nil {
		return plan{}, err
	}
	if len(p.argv) == 0 {
		return p.loginShell(acc)
	}
	if p.argv[0] == "" {
		return plan{}, fault.New(fault.Invalid, "the command is empty")
	}
	p.file, err = findCommand(cred, p.argv[0], p.dir, env.get("PATH"))
	return p, err
}

// prepareTool has the system make one of the agent's own programs ready.
func (s *Server) prepareTool(start agentwire.ExecStart) (plan, error) {
	box, ok := s.system.(Toolbox)
	if !ok {
		return plan{}, fault.New(fault.Unavailable, "the agent has no tools here")
	}
	if start.TTY || start.Stdin {
		return plan{}, fault.New(fault.Invalid, "tool %s has neither a terminal nor an input", start.Tool)
	}
	program, err := box.Tool(start.Tool)
	if err != nil {
		return plan{}, err
	}
	p := plan{file: program.File, argv: slices.Concat(program.Args, start.Argv), dir: "/", tool: program}
	p.env = []string{"PATH=" + DefaultPath}
	return p, nil
}

// workdir is where a command starts. What the request names has to be there, but in a build, where it is made as by a
// Dockerfile's WORKDIR. What the configuration names was made when the guest was configured.
func workdir(acc account, config agentwire.Config, start agentwire.ExecStart) (string, error) {
	switch {
	case start.Workdir != "":
		if !filepath.IsAbs(start.Workdir) {
			return "", fault.New(fault.Invalid, "working directory %q is not an absolute path", start.Workdir)
		}
		if config.Build {
			_ = os.MkdirAll(start.Workdir, 0o755) // a failure shows when the command is to start there
		}
		return start.Workdir, nil
	case config.Workdir != "":
		return filepath.Join("/", config.Workdir), nil
	case config.Build || checkDir(acc.home) != nil:
		return "/", nil // a user whose home is missing or closed still gets a shell
	}
	return acc.home, nil
}

// loginShell completes the plan with the user's shell. The dash before its name is how a shell knows that it is one
// for a login.
func (p plan) loginShell(acc account) (plan, error) {
	var denied error
	for _, shell := range append([]string{acc.shell}, shells...) {
		if !filepath.IsAbs(shell) {
			continue
		}
		var err error
		if p.file, err = findCommand(p.cred, shell, p.dir, ""); err == nil {
			p.argv = []string{"-" + filepath.Base(shell)}
			return p, nil
		}
		if denied == nil && !fault.Is(err, fault.NotFound) {
			denied = err
		}
	}
	if denied != nil {
		return plan{}, denied
	}
	return plan{}, fault.New(fault.NotFound, "the image has no shell: say which program to run").WithHint(hintProgram)
}

// environ is an environment in the making: the last of equal keys wins, the order is that of first mention.
type environ struct {
	keys   []string
	values map[string]string
}

func (e *environ) set(key, value string) {
	if _, ok := e.values[key]; !ok {
		e.keys = append(e.keys, key)
	}
	e.values[key] = value
}

func (e *environ) get(key string) string { return e.values[key] }

func (e *environ) list() []string {
	out := make([]string, 0, len(e.keys))
	for _, k := range e.keys {
		out = append(out, k+"="+e.values[k])
	}
	return out
}

// environment is what a login gives, then what the configuration says, then what the request says.
func environment(acc account, configured []string, start agentwire.ExecStart) (*environ, error) {
	e := &environ{values: map[string]string{}}
	name := cmp.Or(acc.name, uint32Text(acc.uid))
	e.set("HOME", acc.home)
	e.set("USER", name)
	e.set("LOGNAME", name)
	e.set("SHELL", cmp.Or(acc.shell, defaultShell))
	e.set("PATH", DefaultPath)
	if start.TTY {
		e.set("TERM", defaultTerm)
	}
	for _, list := range [][]string{configured, start.Env} {
		for _, kv := range list {
			key, value, ok := strings.Cut(kv, "=")
			if !ok || key == "" || strings.ContainsRune(kv, 0) {
				return nil, fault.New(fault.Invalid, "environment %q is not of the form KEY=VALUE", kv)
			}
			e.set(key, value)
		}
	}
	return e, nil
}

// fork starts the plan with the given standard files; tty says that the first is to be its controlling terminal. The
// command leads a session and a process group of its own.
func (p plan) fork(files [3]*os.File, tty bool) (int, error) {
	attr := &syscall.ProcAttr{
		Dir: p.dir,
		Env: p.env,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: tty, Ctty: 0, Credential: p.cred, Pdeathsig: p.death},
	}
	for _, f := range append(files[:], p.tool.Files...) {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err := syscall.ForkExec(p.file, p.argv, attr)
	if errors.Is(err, syscall.ENOEXEC) {
		return p.forkScript(attr)
	}
	return pid, explainFork(err, p.argv[0])
}

// forkScript starts a file that the kernel does not know how to execute: a script without a first line that names its
// interpreter is the shell's, as execvp has it.
func (p plan) forkScript(attr *syscall.ProcAttr) (int, error) {
	if isBinary(p.file) {
		return 0, fault.New(fault.Denied, "%s is a program for another kind of processor", p.argv[0])
	}
	argv := append([]string{defaultShell, p.file}, p.argv[1:]...)
	pid, err := syscall.ForkExec(defaultShell, argv, attr)
	if errors.Is(err, unix.ENOENT) {
		return 0, fault.New(fault.NotFound, "%s is a script that names no interpreter, and the image has no shell", p.argv[0]).
			WithHint(hintProgram)
	}
	return pid, explainFork(err, p.argv[0])
}

// isBinary reports whether the file is in the format of programs.
func isBinary(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == "\x7fELF"
}

// explainFork gives an error of fork or exec its class.
func explainFork(err error, name string) error {
	if err == nil {
		return nil
	}
	class := fault.Internal
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		// The file was there when it was looked up.
		return fault.New(fault.NotFound, "%s: its interpreter or loader does not exist in the guest", name)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOEXEC):
		class = fault.Denied
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.E2BIG):
		class = fault.Invalid
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE):
		class = fault.Exhausted
	}
	return fault.Wrap(class, err, "%s", name)
}
