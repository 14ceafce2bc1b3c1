package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type forkOptions struct {
	count    int
	names    []string
	diskOnly bool
	noStart  bool
	remove   bool
	async    bool
}

func newFork(d *Deps) *cobra.Command {
	var opts forkOptions
	cmd := &cobra.Command{
		Use:   "fork [flags] NAME",
		Short: "Make more vms of a running one",
		Long: `Make more VMs of one that runs: each goes on where it is now, with the same processes, memory and disk, and with a name,
machine-id, hardware address, address and random numbers of its own. The VM itself goes on, too; it stands still for some
milliseconds. The answer is the names of the new VMs, all of which are there, or none.

With --disk-only they boot from a copy of the disk: of a VM that does not run, or of one that runs as after a power cut.`,
		Example: "  banger vm fork dev\n  banger vm fork -n 4 dev\n  banger vm fork --names red,green dev\n  banger vm fork --disk-only dev",
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := opts.request(cmd, args[0])
			if err != nil {
				return err
			}
			return runFork(cmd.Context(), opts, req, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	flags := cmd.Flags()
	flags.IntVarP(&opts.count, "count", "n", 1, "how many VMs to make, 64 at most")
	flags.StringSliceVar(&opts.names, "names", nil, "their names, with commas between (default: the VM's own with -1, -2, ...)")
	flags.BoolVar(&opts.diskOnly, "disk-only", false, "copy the disk alone, not the memory")
	flags.BoolVar(&opts.noStart, "no-start", false, "do not start them: with memory they are suspended")
	flags.BoolVar(&opts.remove, "rm", false, "remove them when they have stopped")
	flags.BoolVar(&opts.async, "async", false, "do not wait: print the id of the operation that makes them (see banger op)")
	complete(cmd, "count", cobra.NoFileCompletions)
	complete(cmd, "names", cobra.NoFileCompletions)
	return cmd
}

// request checks the flags and returns what they ask for.
func (o *forkOptions) request(cmd *cobra.Command, ref string) (*bangerv1.ForkVMRequest, error) {
	req := &bangerv1.ForkVMRequest{
		Ref: ref, Names: o.names, DiskOnly: o.diskOnly, NoStart: o.noStart, RemoveOnExit: o.remove,
	}
	if cmd.Flags().Changed("count") {
		if o.count < 1 || o.count > 64 {
			return nil, fault.New(fault.Invalid, "%d clones are not possible: 1 to 64", o.count).WithHint("banger vm fork -n 4 %s", ref)
		}
		req.Count = uint32(o.count) //nolint:gosec // checked above
	}
	for i, name := range o.names {
		names := slices.Clone(o.names)
		names[i] = vm.Suggest(name)
		if err := checkName(name, "banger vm fork --names %s %s", strings.Join(names, ","), ref); err != nil {
			return nil, err
		}
	}
	return req, nil
}

type forkView struct {
	VMs     []vmView `json:"vms"`
	StillUS int64    `json:"still_us,omitempty"` // for how long the source stood still
}

func runFork(ctx context.Context, opts forkOptions, req *bangerv1.ForkVMRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	id, err := begun(ctx, func(ctx context.Context) (string, error) {
		resp, err := message(c.VMs.Fork(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	if opts.async {
		return d.answerBegun(ctx, c, id)
	}
	op, err := d.follow(ctx, c, id)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // the interrupt came too late to cancel the operation
		for _, clone := range strings.Split(op.GetResultId(), ",") {
			d.remove(ctx, c, clone, clone)
		}
		return context.Cause(ctx)
	}
	all, err := clonesOf(ctx, c, op)
	if err != nil {
		return err
	}
	still := all[0].GetForkedFrom().GetStillUs()
	if d.Term.JSON() {
		now := time.Now()
		return d.Term.WriteJSON(forkView{VMs: views(all, func(m *bangerv1.VM) vmView { return viewVM(m, now) }), StillUS: still})
	}
	if still > 0 {
		d.Term.Note("%s stood still for %d ms", op.GetTarget(), (still+999)/1000)
	}
	for _, name := range namesOf(all) {
		if err := d.Term.Answer("%s", name); err != nil {
			return err
		}
	}
	return nil
}

// clonesOf returns the VMs that a fork has made, in their order.
func clonesOf(ctx context.Context, c *client.Client, op *bangerv1.Operation) ([]*bangerv1.VM, error) {
	var all []*bangerv1.VM
	for _, id := range strings.Split(op.GetResultId(), ",") {
		m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: id})))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func namesOf(vms []*bangerv1.VM) (names []string) {
	for _, m := range vms {
		names = append(names, m.GetSpec().GetName())
	}
	return names
}
