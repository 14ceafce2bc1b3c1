package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newSuspend(d *Deps) *cobra.Command {
	which := whichVMs{states: []string{string(vm.Running), string(vm.Paused)}}
	cmd := &cobra.Command{
		Use:   "suspend NAME...",
		Short: "Write the memory of vms to the disk and end them",
		Long: `Write the memory of running VMs to the disk and end them. They take no memory and no CPU then, and go on where they
were with the next start, resume, exec or ssh: the processes in them have not noticed.`,
		Example: "  banger vm suspend dev\n  banger vm resume dev\n  banger vm suspend --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return d.each(cmd.Context(), which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
				return message(c.VMs.Suspend(ctx, connect.NewRequest(&bangerv1.SuspendVMRequest{Ref: ref})))
			})
		},
		ValidArgsFunction: completeVMs(d, which.states...),
	}
	which.add(cmd)
	return cmd
}

func newResume(d *Deps) *cobra.Command {
	which := whichVMs{states: []string{string(vm.Suspended)}}
	cmd := &cobra.Command{
		Use:     "resume NAME...",
		Short:   "Let suspended vms go on",
		Long:    "Let VMs that were suspended go on where they were. Their clocks are set to the host's time.",
		Example: "  banger vm resume dev\n  banger vm resume --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return d.each(cmd.Context(), which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
				return message(c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref})))
			})
		},
		ValidArgsFunction: completeVMs(d, which.states...),
	}
	which.add(cmd)
	return cmd
}
