package userunit

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestUnit(t *testing.T) {
	got := Unit(Config{Executable: `/opt/my tools/100%/$x/"banger"`, Env: []string{`BANGER_HOME=/srv/a\b $y`}})
	want := `# Written by "banger daemon install", removed by "banger daemon uninstall".
[Unit]
Description=banger: virtual machines of this user

[Service]
Type=exec
ExecStart="/opt/my tools/100%%/$$x/\"banger\"" daemon run
Environment="BANGER_HOME=/srv/a\\b $y"
# The supervisors of running VMs stay.
KillMode=process
Restart=on-failure
RestartSec=2
# Another daemon runs already.
RestartPreventExitStatus=243

[Install]
WantedBy=default.target
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironment(t *testing.T) {
	got := Environment([]string{"PATH=/bin", "BANGER_HOME=/x", "XDG_DATA_HOME=", "XDG_STATE_HOME=/s"})
	if diff := cmp.Diff([]string{"BANGER_HOME=/x", "XDG_STATE_HOME=/s"}, got); diff != "" {
		t.Error(diff)
	}
}

// manager is a systemd that knows one unit.
type manager struct {
	calls           []string
	enabled, active bool
	fail            map[string]error // by the first argument
}

func (m *manager) run(_ context.Context, args ...string) (string, error) {
	m.calls = append(m.calls, strings.Join(args, " "))
	if err := m.fail[args[0]]; err != nil {
		return "it said\nno\n", err
	}
	no := errors.New("exit status 1")
	switch args[0] {
	case "is-active":
		if !m.active {
			return "", no
		}
	case "is-enabled":
		if !m.enabled {
			return "", no
		}
	case "enable":
		m.enabled = true
	case "restart":
		m.active = true
	case "disable":
		m.enabled, m.active = false, false
	}
	return "", nil
}

func config(t *testing.T, m *manager) Config {
	return Config{
		Executable: "/usr/bin/banger", Dir: filepath.Join(t.TempDir(), "systemd", "user"), Systemctl: m.run,
		Lingers: func() (bool, bool) { return true, true },
	}
}

func TestInstallAndUninstall(t *testing.T) {
	m := &manager{}
	c := config(t, m)
	stopped := 0
	c.StopDaemon = func(context.Context) error { stopped++; return nil }
	for range 2 {
		got, err := Install(t.Context(), c)
		want := Status{Path: filepath.Join(c.Dir, Name), Installed: true, Current: true, Enabled: true, Active: true, Lingers: true}
		if err != nil || got != want {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if stopped != 1 {
		t.Errorf("the daemon was stopped %d times", stopped)
	}
	c.Lingers = func() (bool, bool) { return false, true }
	if got, err := Look(t.Context(), c); err != nil || got.Hint != "loginctl enable-linger" {
		t.Errorf("%+v, %v", got, err)
	}
	moved := c
	moved.Executable = "/opt/banger"
	if got, err := Look(t.Context(), moved); err != nil || got.Current || got.Hint != "banger daemon install" {
		t.Errorf("%+v, %v", got, err)
	}
	for range 2 {
		got, err := Uninstall(t.Context(), c)
		if err != nil || got.Installed || got.Active || m.enabled {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(c.Dir, Name)); !os.IsNotExist(err) {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		fail       map[string]error
		want, hint string
	}{
		"no systemd":  {map[string]error{"show": &exec.Error{Name: "systemctl", Err: exec.ErrNotFound}}, "this host has no systemd", "banger daemon status"},
		"no session":  {map[string]error{"show": errors.New("exit status 1")}, "systemd does not answer for this user (it said no)", "loginctl enable-linger"},
		"not enabled": {map[string]error{"enable": errors.New("exit status 1")}, "systemctl --user enable banger.service: it said no", "journalctl --user -u banger.service"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manager{fail: tt.fail}
			c := config(t, m)
			_, err := Install(t.Context(), c)
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), tt.want) || fault.HintOf(err) != tt.hint {
				t.Errorf("%v (hint %q)", err, fault.HintOf(err))
			}
			if tt.fail["show"] != nil {
				if _, err := os.Stat(filepath.Join(c.Dir, Name)); !os.IsNotExist(err) {
					t.Errorf("a unit was written: %v", err)
				}
			}
		})
	}
	if _, err := Install(t.Context(), Config{Executable: "banger", Dir: t.TempDir()}); !fault.Is(err, fault.Invalid) {
		t.Errorf("relative path: %v", err)
	}
	if _, err := Uninstall(t.Context(), config(t, &manager{fail: map[string]error{"show": exec.ErrNotFound}})); err != nil {
		t.Errorf("uninstall of what is not there: %v", err)
	}
}
