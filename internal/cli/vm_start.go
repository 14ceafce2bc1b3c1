package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/progress"
	bangerv1 "banger/proto/banger/v1"
)

func newStart(d *Deps) *cobra.Command {
	startable := []string{"created", "stopped", "failed", "suspended"}
	which := whichVMs{states: startable}
	var cold bool
	cmd := &cobra.Command{
		Use:   "start NAME...",
		Short: "Start stopped vms",
		Long: `Start VMs that do not run and wait until they are ready. One that was suspended goes on where it was.

With --cold a VM boots: not from a template, and without the memory of one that was suspended, which is lost then.`,
		Example: "  banger vm start dev\n  banger vm start dev test\n  banger vm start --all\n  banger vm start --cold dev",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return runStart(cmd.Context(), which, cold, d)
		},
		ValidArgsFunction: completeVMs(d, startable...),
	}
	which.add(cmd)
	cmd.Flags().BoolVar(&cold, "cold", false, "boot, although there may be a template or a memory to go on from")
	return cmd
}

func runStart(ctx context.Context, which whichVMs, cold bool, d *Deps) error {
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "start", Message: "waiting for the guest"})
	return d.each(ctx, which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return d.started(message(c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref, Cold: cold}))))
	})
}
