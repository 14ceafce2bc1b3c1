package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	bangerv1 "banger/proto/banger/v1"
)

type removeOptions struct {
	which whichVMs
	force bool
}

func newRemove(d *Deps) *cobra.Command {
	var opts removeOptions
	cmd := &cobra.Command{
		Use:     "rm [flags] NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove vms and their disks",
		Long:    "Remove VMs, their disks and their snapshots. A VM that runs, or that has snapshots which were not taken by themselves, is\nrefused without --force.",
		Example: "  banger vm rm dev\n  banger vm rm --force dev test\n  banger vm rm --all --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.which.refs = args
			return runRemove(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeVMs(d),
	}
	opts.which.add(cmd)
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "end it first if it runs, and remove its snapshots")
	return cmd
}

func runRemove(ctx context.Context, opts removeOptions, d *Deps) error {
	return d.each(ctx, opts.which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		gone, err := message(c.VMs.Remove(ctx, connect.NewRequest(&bangerv1.RemoveVMRequest{Ref: ref, Force: opts.force})))
		return &bangerv1.VM{Id: gone.GetId(), Spec: &bangerv1.VMSpec{Name: gone.GetName()}}, err
	})
}
