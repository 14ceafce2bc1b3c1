package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/progress"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type restartOptions struct {
	which whichVMs
	grace time.Duration
	cold  bool
}

func newRestart(d *Deps) *cobra.Command {
	opts := restartOptions{which: whichVMs{states: []string{string(vm.Running), string(vm.Paused)}}}
	cmd := &cobra.Command{
		Use:   "restart [flags] NAME...",
		Short: "Stop vms and start them again",
		Long: `Shut VMs down in order and start them again; one that does not run is started. Settings that wait for the next start
take effect. --all means those that run.`,
		Example: "  banger vm restart dev\n  banger vm restart --grace 30s dev test\n  banger vm restart --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.which.refs = args
			if err := checkGrace(cmd, opts.grace); err != nil {
				return err
			}
			return runRestart(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeVMs(d),
	}
	opts.which.add(cmd)
	addGrace(cmd, &opts.grace)
	addCold(cmd, &opts.cold)
	return cmd
}

func runRestart(ctx context.Context, opts restartOptions, d *Deps) error {
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "restart", Message: "waiting for the guest"})
	return d.each(ctx, opts.which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		req := &bangerv1.RestartVMRequest{Ref: ref, GraceMs: opts.grace.Milliseconds(), Cold: opts.cold}
		return d.started(message(c.VMs.Restart(ctx, connect.NewRequest(req))))
	})
}
