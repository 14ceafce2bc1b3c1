package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/userunit"
)

func newDaemonInstall(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "install", Short: "Make the daemon a service of this user",
		Long: `Make the daemon a systemd service of this user and start it. It then starts with the user's session, or at boot for a
user who lingers, and with it the VMs whose restart policy is always. Done again, it brings the service up to date.
VMs that run go on.`,
		Example: "  banger daemon install",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDaemonUnit(cmd.Context(), userunit.Install, d) },
	}
}

func newDaemonUninstall(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "uninstall", Short: "Remove the service again",
		Long:    "Stop the service and remove it. VMs go on, and the next command starts a daemon as without the service.",
		Example: "  banger daemon uninstall",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDaemonUnit(cmd.Context(), userunit.Uninstall, d) },
	}
}

func runDaemonUnit(ctx context.Context, do func(context.Context, userunit.Config) (userunit.Status, error), d *Deps) error {
	cfg, err := d.Unit()
	if err != nil {
		return err
	}
	cfg.StopDaemon = d.stopDaemon
	status, err := do(ctx, cfg)
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(status)
	}
	if !status.Installed {
		return d.Term.Answer("the service is not installed; the daemon starts with the first command")
	}
	pairs := [][2]string{{"unit", status.Path}, {"enabled", yesNo(status.Enabled)}, {"running", yesNo(status.Active)}, {"from boot on", yesNo(status.Lingers)}}
	if err := d.Term.Pairs(pairs); err != nil || status.Hint == "" {
		return err
	}
	d.Term.Hint("%s", status.Hint)
	return nil
}

// stopDaemon ends the daemon if one runs.
func (d *Deps) stopDaemon(ctx context.Context) error {
	c, err := d.Attach(ctx)
	if errors.Is(err, client.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return d.Stop(ctx, c)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
