package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type stopOptions struct {
	which whichVMs
	grace time.Duration
}

func newStop(d *Deps) *cobra.Command {
	opts := stopOptions{which: whichVMs{states: liveStates()}}
	cmd := &cobra.Command{
		Use:     "stop [flags] NAME...",
		Short:   "Shut vms down",
		Long:    "Shut VMs down in order: the guest ends its processes and writes its disk. One that does not is ended by force.",
		Example: "  banger vm stop dev\n  banger vm stop --grace 30s dev test\n  banger vm stop --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.which.refs = args
			if err := checkGrace(cmd, opts.grace); err != nil {
				return err
			}
			return runStop(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeVMs(d, "running", "starting", "paused"),
	}
	opts.which.add(cmd)
	addGrace(cmd, &opts.grace)
	return cmd
}

func addGrace(cmd *cobra.Command, grace *time.Duration) {
	cmd.Flags().DurationVar(grace, "grace", 0, "how long the guest may take, such as 30s (default: the daemon's)")
	complete(cmd, "grace", cobra.NoFileCompletions)
}

func checkGrace(cmd *cobra.Command, grace time.Duration) error {
	if grace < 0 {
		return fault.New(fault.Invalid, "a grace of %s is not possible", grace).WithHint("%s --help", cmd.CommandPath())
	}
	return nil
}

func runStop(ctx context.Context, opts stopOptions, d *Deps) error {
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "stop", Message: "waiting for the guest to shut down"})
	return d.each(ctx, opts.which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return message(c.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopVMRequest{Ref: ref, GraceMs: opts.grace.Milliseconds()})))
	})
}

func newKill(d *Deps) *cobra.Command {
	which := whichVMs{states: liveStates()}
	cmd := &cobra.Command{
		Use:     "kill NAME...",
		Short:   "End vms at once",
		Long:    "End VMs at once, as if the power had failed. What the guest had not written to its disk is lost.",
		Example: "  banger vm kill dev\n  banger vm kill --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			which.refs = args
			return runKill(cmd.Context(), which, d)
		},
		ValidArgsFunction: completeVMs(d, liveStates()...),
	}
	which.add(cmd)
	return cmd
}

// liveStates are those in which a VM has processes.
func liveStates() []string {
	return []string{string(vm.Starting), string(vm.Running), string(vm.Paused), string(vm.Stopping)}
}

func runKill(ctx context.Context, which whichVMs, d *Deps) error {
	return d.each(ctx, which, func(ctx context.Context, c *client.Client, ref string) (*bangerv1.VM, error) {
		return message(c.VMs.Kill(ctx, connect.NewRequest(&bangerv1.KillVMRequest{Ref: ref})))
	})
}
