package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// newDaemon is the group of the commands about the daemon.
func newDaemon(d *Deps) *cobra.Command {
	cmd := group("daemon", "The background process that looks after vms",
		"The daemon looks after VMs, images and kernels. It starts by itself with the first command that needs it, and VMs go\non when it ends.")
	cmd.Example = "  banger daemon status\n  banger daemon stop"
	cmd.AddCommand(newDaemonRun(d), newDaemonStatus(d), newDaemonStop(d), newDaemonLogs(d), newDaemonInstall(d), newDaemonUninstall(d))
	return cmd
}

func newDaemonRun(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Run the daemon in the foreground",
		Long:    "Run the daemon in the foreground, for service managers and to look for faults. It is not needed otherwise.",
		Example: "  banger daemon run",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.Daemon(cmd.Context()); err != nil && cmd.Context().Err() == nil {
				return err
			}
			return nil
		},
	}
}

// daemonView is the JSON form of daemon status.
type daemonView struct {
	Running           bool       `json:"running"`
	PID               int32      `json:"pid,omitempty"`
	Build             string     `json:"build,omitempty"`
	StartedAt         *time.Time `json:"started_at,omitempty"`
	RunningVMs        int32      `json:"running_vms"`
	RunningOperations int32      `json:"running_operations"`
	PoolReady         int32      `json:"pool_ready"`
	PoolSize          int32      `json:"pool_size"`
	Socket            string     `json:"socket"`
	DataDir           string     `json:"data_dir"`
	Log               string     `json:"log"`
}

func newDaemonStatus(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say whether the daemon runs",
		Long:    "Say whether the daemon runs and what it does. This starts none.",
		Example: "  banger daemon status\n  banger daemon status --format json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDaemonStatus(cmd.Context(), d) },
	}
}

func runDaemonStatus(ctx context.Context, d *Deps) error {
	view := daemonView{Socket: d.Paths.DaemonSocket(), DataDir: d.Paths.Data, Log: d.Paths.DaemonLog()}
	c, err := d.Attach(ctx)
	if err != nil && !errors.Is(err, client.ErrNotRunning) {
		return err
	}
	if err == nil {
		defer c.Close()
		s, err := message(c.Daemon.Status(ctx, connect.NewRequest(&bangerv1.StatusRequest{})))
		if err != nil {
			return fault.Context(err, "ask the daemon")
		}
		view = daemonView{
			Running: true, PID: s.GetPid(), Build: s.GetBuild(), StartedAt: at(s.GetStartedAtMs()), RunningVMs: s.GetRunningVms(),
			RunningOperations: s.GetRunningOperations(), PoolReady: s.GetPoolReady(), PoolSize: s.GetPoolSize(),
			Socket: s.GetSocket(), DataDir: s.GetDataDir(), Log: s.GetLog(),
		}
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(view)
	}
	return d.Term.Pairs(daemonPairs(view, time.Now()))
}

func daemonPairs(v daemonView, now time.Time) [][2]string {
	where := [][2]string{{"socket", v.Socket}, {"data", v.DataDir}, {"log", v.Log}}
	if !v.Running {
		return append([][2]string{{"state", "not running"}}, where...)
	}
	pairs := [][2]string{{"state", "running"}, {"pid", strconv.Itoa(int(v.PID))}, {"build", v.Build}}
	if v.StartedAt != nil {
		pairs = append(pairs, [2]string{"uptime", age(now.Sub(*v.StartedAt))})
	}
	pairs = append(pairs, [2]string{"running vms", strconv.Itoa(int(v.RunningVMs))},
		[2]string{"running operations", strconv.Itoa(int(v.RunningOperations))})
	if v.PoolSize > 0 {
		pairs = append(pairs, [2]string{"warm vms", fmt.Sprintf("%d ready (%d of each kind wanted)", v.PoolReady, v.PoolSize)})
	}
	return append(pairs, where...)
}

func newDaemonStop(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "End the daemon",
		Long:    "End the daemon and wait until it is gone. VMs go on; the next command starts a daemon that finds them again.",
		Example: "  banger daemon stop",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDaemonStop(cmd.Context(), d) },
	}
}

func runDaemonStop(ctx context.Context, d *Deps) error {
	c, err := d.Attach(ctx)
	stopped := err == nil
	switch {
	case stopped:
		defer c.Close()
		if err := d.Stop(ctx, c); err != nil {
			return fault.Context(err, "stop the daemon")
		}
	case !errors.Is(err, client.ErrNotRunning):
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(map[string]bool{"stopped": stopped})
	}
	if !stopped {
		return d.Term.Answer("the daemon is not running")
	}
	return d.Term.Answer("the daemon has ended; vms go on")
}

func newDaemonLogs(d *Deps) *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use: "logs [flags]", Short: "Print the daemon's log",
		Long:    "Print the last lines of the daemon's log. The daemon need not run.",
		Example: "  banger daemon logs\n  banger daemon logs -f",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := logFile{path: d.Paths.DaemonLog(), lines: opts.tail, follow: opts.follow, out: d.logOutput()}
			if _, err := os.Stat(log.path); err != nil && !opts.follow {
				d.Term.Note("there is no log yet: %s", log.path)
				return nil
			}
			return endOfLog(cmd.Context(), log.show(cmd.Context()))
		},
	}
	opts.add(cmd, 100, "how many of the last lines; -1 for all")
	return cmd
}
