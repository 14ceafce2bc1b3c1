// Package userunit makes the daemon a systemd user service: it starts with the user's session, or at boot for users who
// linger, and is started again when it fails. banger works without it; what it adds is that VMs whose restart policy is
// "always" come up by themselves after the host has booted.
//
// The unit's KillMode is "process": supervisors are started by the daemon and are in its control group, and a stop or
// an upgrade of the daemon must leave them alone.
package userunit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// Name of the unit.
const Name = "banger.service"

// Config says where things are. Executable is required; the rest has good values when it is empty and is set by tests.
type Config struct {
	Executable string   // the banger binary, absolute
	Env        []string // NAME=VALUE that the daemon needs to find the same directories: see Environment

	Dir string // of user units
	// Systemctl runs systemctl --user with these arguments and returns what it printed.
	Systemctl func(ctx context.Context, args ...string) (string, error)
	// Lingers reports whether the user's services run without a session. known is false when nobody can say.
	Lingers func() (lingers, known bool)
	// StopDaemon ends a daemon that was not started by systemd: it would stand in the way of the service. May be nil.
	StopDaemon func(context.Context) error
}

// Status is what there is.
type Status struct {
	Path      string `json:"path"`      // of the unit file
	Installed bool   `json:"installed"` // the file is there
	Current   bool   `json:"current"`   // and is what Install would write
	Enabled   bool   `json:"enabled"`   // it starts with the session
	Active    bool   `json:"active"`    // it runs now
	Lingers   bool   `json:"lingers"`   // it also runs without a session, from boot on
	// Hint is a command that makes it better, or empty.
	Hint string `json:"hint,omitempty"`
}

// Environment picks from environ (as os.Environ) what decides where banger's files are.
func Environment(environ []string) []string {
	var picked []string
	for _, kv := range environ {
		switch name, value, _ := strings.Cut(kv, "="); name {
		case "BANGER_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME":
			if value != "" {
				picked = append(picked, kv)
			}
		}
	}
	return picked
}

// Unit is the text of the unit file.
func Unit(c Config) string {
	var b strings.Builder
	b.WriteString(`# Written by "banger daemon install", removed by "banger daemon uninstall".
[Unit]
Description=banger: virtual machines of this user

[Service]
Type=exec
ExecStart=` + strings.ReplaceAll(quote(c.Executable), "$", "$$") + ` daemon run
`)
	for _, kv := range c.Env {
		b.WriteString("Environment=" + quote(kv) + "\n")
	}
	b.WriteString(`# The supervisors of running VMs stay.
KillMode=process
Restart=on-failure
RestartSec=2
# Another daemon runs already.
RestartPreventExitStatus=` + strconv.Itoa(fault.ExitCode(fault.Conflict)) + `

[Install]
WantedBy=default.target
`)
	return b.String()
}

// Install writes the unit, enables it and starts it. It may be done again: an old unit is replaced.
func Install(ctx context.Context, c Config) (Status, error) {
	if err := c.fill(); err != nil {
		return Status{}, err
	}
	if !filepath.IsAbs(c.Executable) {
		return Status{}, fault.New(fault.Invalid, "the path of the banger binary is not absolute: %q", c.Executable)
	}
	if err := c.reachable(ctx); err != nil {
		return Status{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return Status{}, fault.Wrap(classOf(err), err, "install the service")
	}
	if err := atomicfile.Write(c.path(), []byte(Unit(c)), 0o644); err != nil {
		return Status{}, fault.Wrap(classOf(err), err, "install the service")
	}
	if err := c.systemctl(ctx, "daemon-reload"); err != nil {
		return Status{}, err
	}
	active := c.is(ctx, "is-active")
	if !active && c.StopDaemon != nil {
		if err := c.StopDaemon(ctx); err != nil {
			return Status{}, fault.Context(err, "stop the daemon that runs without the service")
		}
	}
	if err := c.systemctl(ctx, "enable", Name); err != nil {
		return Status{}, err
	}
	if err := c.systemctl(ctx, "restart", Name); err != nil { // also after an upgrade of the unit
		return Status{}, err
	}
	return c.status(ctx), nil
}

// Uninstall stops and disables the service and removes the unit. VMs go on; the next command starts a daemon again.
// One that is not installed is no error.
func Uninstall(ctx context.Context, c Config) (Status, error) {
	if err := c.fill(); err != nil {
		return Status{}, err
	}
	if _, err := os.Lstat(c.path()); errors.Is(err, fs.ErrNotExist) {
		return c.status(ctx), nil
	}
	if err := c.reachable(ctx); err != nil {
		return Status{}, err
	}
	if err := c.systemctl(ctx, "disable", "--now", Name); err != nil {
		return Status{}, err
	}
	if err := os.Remove(c.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Status{}, fault.Wrap(classOf(err), err, "remove the service")
	}
	if err := c.systemctl(ctx, "daemon-reload"); err != nil {
		return Status{}, err
	}
	return c.status(ctx), nil
}

// Look says what there is. On a host without systemd nothing is installed.
func Look(ctx context.Context, c Config) (Status, error) {
	if err := c.fill(); err != nil {
		return Status{}, err
	}
	return c.status(ctx), nil
}

func (c *Config) status(ctx context.Context) Status {
	s := Status{Path: c.path()}
	text, err := os.ReadFile(s.Path)
	if err != nil {
		return s
	}
	s.Installed, s.Current = true, string(text) == Unit(*c)
	s.Enabled, s.Active = c.is(ctx, "is-enabled"), c.is(ctx, "is-active")
	lingers, known := c.Lingers()
	s.Lingers = lingers
	switch {
	case !s.Current || !s.Enabled:
		s.Hint = "banger daemon install"
	case known && !lingers:
		s.Hint = "loginctl enable-linger"
	case !s.Active:
		s.Hint = "systemctl --user start " + Name
	}
	return s
}

// fill sets what is empty.
func (c *Config) fill() error {
	if c.Dir == "" {
		base := os.Getenv("XDG_CONFIG_HOME")
		if !filepath.IsAbs(base) {
			home, err := os.UserHomeDir()
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "no home directory")
			}
			base = filepath.Join(home, ".config")
		}
		c.Dir = filepath.Join(base, "systemd", "user")
	}
	if c.Systemctl == nil {
		c.Systemctl = systemctl
	}
	if c.Lingers == nil {
		c.Lingers = lingers
	}
	return nil
}

func (c *Config) path() string { return filepath.Join(c.Dir, Name) }

// reachable checks that there is a service manager for this user.
func (c *Config) reachable(ctx context.Context) error {
	out, err := c.Systemctl(ctx, "show", "--property=Version")
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return fault.New(fault.Unavailable, "this host has no systemd: the daemon starts with the first command instead").
			WithHint("banger daemon status")
	}
	return fault.New(fault.Unavailable, "systemd does not answer for this user (%s): it does so in a login session",
		oneLine(out, err)).WithHint("loginctl enable-linger")
}

// systemctl carries out one command.
func (c *Config) systemctl(ctx context.Context, args ...string) error {
	out, err := c.Systemctl(ctx, args...)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fault.New(fault.Unavailable, "systemctl --user %s: %s", strings.Join(args, " "), oneLine(out, err)).
		WithHint("journalctl --user -u %s", Name)
}

// is asks a question that systemctl answers with its exit code.
func (c *Config) is(ctx context.Context, question string) bool {
	_, err := c.Systemctl(ctx, question, "--quiet", Name)
	return err == nil
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", append([]string{"--user", "--no-pager"}, args...)...).CombinedOutput()
	return string(out), err
}

// lingers looks where systemd-logind notes it.
func lingers() (bool, bool) {
	me, err := user.Current()
	if err != nil {
		return false, false
	}
	const notes = "/var/lib/systemd/linger"
	if _, err := os.Stat(filepath.Join(notes, me.Username)); err == nil {
		return true, true
	}
	return false, true
}

// quote is a word as systemd reads it (systemd.syntax(7); systemd.unit(5) on specifiers).
func quote(word string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "%", "%%").Replace(word) + `"`
}

// oneLine is what a program said, or the error if it said nothing.
func oneLine(out string, err error) string {
	if text := strings.Join(strings.Fields(out), " "); text != "" {
		return text[:min(len(text), 300)]
	}
	return err.Error()
}

func classOf(err error) fault.Class {
	if errors.Is(err, fs.ErrPermission) {
		return fault.Denied
	}
	return fault.Internal
}
