package cli

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

type restoreOptions struct {
	req *bangerv1.RestoreSnapshotRequest
	yes bool
	// again is the command line, but for --yes.
	again string
}

func newRestore(d *Deps) *cobra.Command {
	opts := restoreOptions{req: &bangerv1.RestoreSnapshotRequest{}}
	cmd := &cobra.Command{
		Use:   "restore [flags] NAME SNAPSHOT",
		Short: "Bring a vm back to a snapshot",
		Long: `Bring a VM back to the instant of a snapshot: its disk and, if the snapshot has it, its memory, so that its processes go
on where they were. What the VM has now is lost, so it asks; where nobody can be asked it wants --yes. The snapshot stays.

Everything about the snapshot is checked before the VM is touched, and its present disk is kept until the restored VM runs.
After a restore without memory the VM is stopped unless --start starts it. A disk that has grown since stays as large as it
is; CPUs and memory are those of the snapshot until the next boot.`,
		Example: "  banger vm restore dev green\n  banger vm restore --yes dev green\n  banger vm restore --disk-only --start --yes dev green",
		Args:    vmAndSnapshot(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.req.Ref, opts.req.Name = args[0], args[1]
			opts.again = "banger vm restore --yes"
			for _, flag := range []string{"disk-only", "start"} {
				if cmd.Flags().Changed(flag) {
					opts.again += " --" + flag
				}
			}
			opts.again += " " + args[0] + " " + args[1]
			return runRestore(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeVMThenSnapshots(d, 1),
	}
	cmd.Flags().BoolVar(&opts.req.DiskOnly, "disk-only", false, "the disk alone, also of a snapshot with memory")
	cmd.Flags().BoolVar(&opts.req.Start, "start", false, "start the vm after a restore of the disk alone")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	return cmd
}

func newRewind(d *Deps) *cobra.Command {
	opts := restoreOptions{req: &bangerv1.RestoreSnapshotRequest{}}
	var to int
	cmd := &cobra.Command{
		Use:   "rewind [flags] NAME",
		Short: "Bring a vm back to before a command",
		Long: `Bring a VM back to the last of its checkpoints: the snapshots that "exec --checkpoint" takes, or every exec and ssh with
the setting defaults.checkpoint = "each-exec". --to goes further back; "snapshot list" shows how far each is. What the VM has
now is lost, so it asks; where nobody can be asked it wants --yes. The checkpoints stay.`,
		Example: "  banger vm exec --checkpoint dev -- rm -rf /srv\n  banger vm rewind dev\n  banger vm rewind --to 3 --yes dev",
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to < 1 {
				return fault.New(fault.Invalid, "--to %d is no checkpoint: 1 is the newest", to).WithHint("banger vm rewind --to 1 %s", args[0])
			}
			opts.req.Ref, opts.req.Back = args[0], int32(min(to, 1<<30)) //nolint:gosec // bounded
			opts.again = fmt.Sprintf("banger vm rewind --yes --to %d %s", to, args[0])
			return runRestore(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	cmd.Flags().IntVar(&to, "to", 1, "how many checkpoints back")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	complete(cmd, "to", completeCheckpoints(d))
	return cmd
}

func runRestore(ctx context.Context, opts restoreOptions, d *Deps) error {
	if !opts.yes && !d.Term.CanAsk() {
		return fault.New(fault.Invalid, "nobody is there to be asked whether to lose what vm %s has now", opts.req.GetRef()).WithHint("%s", opts.again)
	}
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if !opts.yes {
		yes, err := d.confirmRestore(ctx, c, opts.req)
		if err != nil {
			return err
		}
		if !yes {
			d.Term.Note("nothing was changed")
			return nil
		}
	}
	opts.req.Force = true // somebody has agreed
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Snapshots.Restore(ctx, connect.NewRequest(opts.req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: op.GetResultId()})))
	if err != nil {
		return err
	}
	return d.answerVM(m)
}

// confirmRestore asks whether a VM is to lose what it has. What is agreed to is then restored, and no newer checkpoint.
func (d *Deps) confirmRestore(ctx context.Context, c *client.Client, req *bangerv1.RestoreSnapshotRequest) (bool, error) {
	resp, err := message(c.Snapshots.List(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: req.GetRef()})))
	if err != nil {
		return false, err
	}
	for _, s := range resp.GetSnapshots() {
		if req.GetBack() > 0 && s.GetBack() == req.GetBack() || req.GetBack() == 0 && s.GetName() == req.GetName() {
			req.Name, req.Back = s.GetName(), 0
			return d.Term.Confirm(ctx, fmt.Sprintf("restore vm %s to %s, taken %s ago? what it has now is lost", s.GetVm(), s.GetName(),
				age(max(time.Since(time.UnixMilli(s.GetCreatedAtMs())), 0))))
		}
	}
	return true, nil // there is none: the daemon says so
}
