package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newRename(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use:     "rename NAME NEW-NAME",
		Short:   "Give a vm another name",
		Long:    "Give a VM another name. The guest of one that runs keeps its host name until the next start.",
		Example: "  banger vm rename dev old-dev",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fault.New(fault.Invalid, "%s takes the name of a vm and a new one", cmd.CommandPath()).
					WithHint("%s --help", cmd.CommandPath())
			}
			if args[0] == "" {
				return noEmpty(cmd, args)
			}
			return checkName(args[1], "banger vm rename %s %s", args[0], vm.Suggest(args[1]))
		},
		RunE:              func(cmd *cobra.Command, args []string) error { return runRename(cmd.Context(), args[0], args[1], d) },
		ValidArgsFunction: completeOneVM(d),
	}
}

func runRename(ctx context.Context, ref, name string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.VMs.Rename(ctx, connect.NewRequest(&bangerv1.RenameVMRequest{Ref: ref, Name: name})))
	if err != nil {
		return err
	}
	return d.answerVM(m)
}

// checkName refuses what cannot be the name of a VM, with a hint of one that can be.
func checkName(name, hint string, args ...any) error {
	if _, err := vm.ParseName(name); err != nil {
		return fault.New(fault.ClassOf(err), "%v", err).WithHint(hint, args...)
	}
	return nil
}
