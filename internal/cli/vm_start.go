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
	cmd := &cobra.Command{
		Use:     "start NAME...",
		Short:   "Start stopped vms",
		Long:    "Start VMs that do not run and wait until they are ready.",
		Example: "  banger vm start dev\n  banger vm start dev test\n  banger vm start --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return runStart(cmd.Context(), which, d)
		},
		ValidArgsFunction: completeVMs(d, startable...),
	}
	which.add(cmd)
	return cmd
}

func runStart(ctx context.Context, which whichVMs, d *Deps) error {
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "start", Message: "waiting for the guest"})
	return d.each(ctx, which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return message(c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref})))
	})
}
