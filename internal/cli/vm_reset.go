package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/progress"
	bangerv1 "banger/proto/banger/v1"
)

type resetOptions struct {
	ref   string
	force bool
}

func newReset(d *Deps) *cobra.Command {
	var opts resetOptions
	cmd := &cobra.Command{
		Use:   "reset [flags] NAME",
		Short: "Put a vm's system back to its image",
		Long: `Drop whatever was installed or changed in the image's part of a VM's root file system: its system is as new.
The home directories and /workspace are kept. A VM that runs is refused unless --force stops it first.`,
		Example: "  banger vm reset dev\n  banger vm reset --force dev",
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			return runReset(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "stop it first if it runs")
	return cmd
}

func runReset(ctx context.Context, opts resetOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "reset", Message: "dropping what was changed"})
	m, err := message(c.VMs.Reset(ctx, connect.NewRequest(&bangerv1.ResetVMRequest{Ref: opts.ref, Force: opts.force})))
	show.Close()
	if err != nil {
		return err
	}
	return d.answerVM(m)
}
