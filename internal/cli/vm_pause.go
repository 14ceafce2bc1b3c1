package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newPause(d *Deps) *cobra.Command {
	which := whichVMs{states: []string{string(vm.Running)}}
	cmd := &cobra.Command{
		Use:     "pause NAME...",
		Short:   "Make vms stand still",
		Long:    "Stop the CPUs of running VMs. Their memory is kept, and nothing in them goes on until they are unpaused.",
		Example: "  banger vm pause dev\n  banger vm pause --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return runPause(cmd.Context(), which, d)
		},
		ValidArgsFunction: completeVMs(d, which.states...),
	}
	which.add(cmd)
	return cmd
}

func runPause(ctx context.Context, which whichVMs, d *Deps) error {
	return d.each(ctx, which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return message(c.VMs.Pause(ctx, connect.NewRequest(&bangerv1.PauseVMRequest{Ref: ref})))
	})
}

func newUnpause(d *Deps) *cobra.Command {
	which := whichVMs{states: []string{string(vm.Paused)}}
	cmd := &cobra.Command{
		Use:     "unpause NAME...",
		Short:   "Let paused vms go on",
		Long:    "Let VMs that were paused go on. Their clocks are set to the host's time.",
		Example: "  banger vm unpause dev\n  banger vm unpause --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return runUnpause(cmd.Context(), which, d)
		},
		ValidArgsFunction: completeVMs(d, which.states...),
	}
	which.add(cmd)
	return cmd
}

func runUnpause(ctx context.Context, which whichVMs, d *Deps) error {
	return d.each(ctx, which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return message(c.VMs.Unpause(ctx, connect.NewRequest(&bangerv1.UnpauseVMRequest{Ref: ref})))
	})
}
