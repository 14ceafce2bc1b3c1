package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newSnapshotVM(d *Deps) *cobra.Command {
	req := &bangerv1.CreateSnapshotRequest{}
	cmd := &cobra.Command{
		Use:   "snapshot [flags] NAME [SNAPSHOT]",
		Short: "Keep a vm as it is now",
		Long: `Keep a VM as it is at this instant, under a name: its disk and, if it runs or is suspended, its memory. A VM that runs
goes on. "vm restore" brings it back to that instant, its processes included, as often as wanted.

Without memory (--disk-only, or of a VM that does not run) it is the disk alone; that of a VM that runs is as after a power
cut at that instant. The answer is the snapshot's name: snap-1, snap-2 and so on if none is given.`,
		Example: "  banger vm snapshot dev\n  banger vm snapshot --description tests-pass dev green\n  banger vm snapshot --disk-only dev",
		Args:    vmAndSnapshot(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Ref = args[0]
			if len(args) > 1 {
				req.Name = args[1]
			}
			return runSnapshot(cmd.Context(), req, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	cmd.Flags().StringVar(&req.Description, "description", "", "what it is, for people")
	cmd.Flags().BoolVar(&req.DiskOnly, "disk-only", false, "without the memory")
	complete(cmd, "description", cobra.NoFileCompletions)
	return cmd
}

// vmAndSnapshot wants a VM and a snapshot of it, whose name may be missing if it is optional and is checked then: a new
// one is about to be made.
func vmAndSnapshot(optional bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 2 {
			return fault.New(fault.Invalid, "%s takes a vm and a snapshot, not %d names", cmd.CommandPath(), len(args)).WithHint("%s --help", cmd.CommandPath())
		}
		if err := someVMs(cmd, args); err != nil {
			return err
		}
		if len(args) == 1 && !optional {
			return fault.New(fault.Invalid, "%s needs the name of a snapshot", cmd.CommandPath()).WithHint("banger snapshot list %s", args[0])
		}
		if len(args) == 2 && optional {
			_, err := vm.ParseSnapshotName(args[1], args[0])
			return err
		}
		return nil
	}
}

func runSnapshot(ctx context.Context, req *bangerv1.CreateSnapshotRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	name, err := d.snapshot(ctx, c, req)
	if err != nil {
		return err
	}
	if !d.Term.JSON() {
		return d.Term.Answer("%s", name)
	}
	snap, err := message(c.Snapshots.Get(ctx, connect.NewRequest(&bangerv1.GetSnapshotRequest{Ref: req.GetRef(), Name: name})))
	if err != nil {
		return err
	}
	return d.Term.WriteJSON(viewSnapshot(snap))
}

// snapshot takes a snapshot and returns its name.
func (d *Deps) snapshot(ctx context.Context, c *client.Client, req *bangerv1.CreateSnapshotRequest) (string, error) {
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Snapshots.Create(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	return op.GetResultId(), err
}

// checkpoint is whether a snapshot is taken by itself before a command: as the user says, or else the configuration.
type checkpoint struct{ asked, said bool }

func (o *checkpoint) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.asked, "checkpoint", false, "take a snapshot first, for vm rewind (default: as configured)")
}

func (o *checkpoint) read(cmd *cobra.Command) { o.said = cmd.Flags().Changed("checkpoint") }

// take takes the snapshot. A command that was to have one is not run without.
func (o *checkpoint) take(ctx context.Context, c *client.Client, where *bangerv1.EndpointResponse, d *Deps) error {
	if !o.asked && (o.said || !where.GetCheckpoint()) {
		return nil
	}
	name := where.GetVm().GetSpec().GetName()
	_, err := d.snapshot(ctx, c, &bangerv1.CreateSnapshotRequest{Ref: where.GetVm().GetId(), Auto: true})
	if err != nil && !o.asked && fault.HintOf(err) == "" {
		return fault.Wrap(fault.ClassOf(err), err, "checkpoint").WithHint("banger vm exec --checkpoint=false %s", name)
	}
	return fault.Context(err, "checkpoint")
}
