package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type listOptions struct {
	states, labels, images []string
	quiet                  bool
}

func newList(d *Deps, use string) *cobra.Command {
	var opts listOptions
	cmd := &cobra.Command{
		Use:   use + " [flags]",
		Short: "List vms",
		Long: `List VMs, whatever state they are in; with filters only those that fit all of them. A wide terminal shows more about
each, a narrow one less.`,
		Example: `  banger vm list
  banger vm list --state running
  banger vm list --label team=web --image debian-bookworm
  banger vm list -q
  banger vm list --format json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.check(cmd); err != nil {
				return err
			}
			return runList(cmd.Context(), opts, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	if use == "list" {
		cmd.Aliases = []string{"ls"}
	}
	cmd.Flags().StringSliceVar(&opts.states, "state", nil, "only those in this state; may be given several times")
	cmd.Flags().StringArrayVarP(&opts.labels, "label", "l", nil, "only those with this label: KEY or KEY=VALUE; may be given several times")
	cmd.Flags().StringSliceVar(&opts.images, "image", nil, "only those of this image; may be given several times")
	cmd.Flags().BoolVarP(&opts.quiet, "quiet", "q", false, "print names only")
	complete(cmd, "state", completeStates)
	complete(cmd, "label", completeLabels(d))
	complete(cmd, "image", completeImages(d))
	return cmd
}

// check refuses filters that nothing can fit.
func (o *listOptions) check(cmd *cobra.Command) error {
	for _, label := range o.labels {
		if key, _, _ := strings.Cut(label, "="); key == "" {
			return fault.New(fault.Invalid, "label %q has no name: KEY or KEY=VALUE", label).WithHint("%s --label team=web", cmd.CommandPath())
		}
	}
	if slices.Contains(o.images, "") {
		return fault.New(fault.Invalid, "the name of the image is empty").WithHint("banger image list")
	}
	return checkStates(o.states)
}

func runList(ctx context.Context, opts listOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{
		States: opts.states, Labels: opts.labels, Images: opts.images,
	}))
	if err != nil {
		return err
	}
	vms, now := resp.Msg.GetVms(), time.Now()
	slices.SortStableFunc(vms, func(a, b *bangerv1.VM) int { return compareNames(a.GetSpec().GetName(), b.GetSpec().GetName()) })
	switch {
	case opts.quiet && !d.Term.JSON():
		for _, m := range vms {
			if err := d.Term.Answer("%s", m.GetSpec().GetName()); err != nil {
				return err
			}
		}
		return nil
	case d.Term.JSON():
		return d.Term.WriteJSON(views(vms, func(m *bangerv1.VM) vmView { return viewVM(m, now) }))
	}
	return d.Term.Table(vmTable(vms, now))
}

// paintState colours the states of VMs.
func paintState() func(string) string {
	return term.PaintBy([]string{string(vm.Running)}, []string{string(vm.Starting), string(vm.Paused), string(vm.Stopping), string(vm.Deleting)},
		[]string{string(vm.Failed)})
}

// vmTable is the answer of list. Which columns are there without a terminal does not change.
func vmTable(vms []*bangerv1.VM, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "NAME"},
		{Title: "STATE", Fixed: true, Paint: paintState()},
		{Title: "IMAGE", Rank: 2},
		{Title: "CPUS", Right: true, Fixed: true, Rank: 3},
		{Title: "MEMORY", Right: true, Fixed: true, Rank: 4},
		{Title: "UPTIME", Right: true, Fixed: true, Rank: 1},
		{Title: "PID", Right: true, Fixed: true, Rank: 5},
		{Title: "DISK", Right: true, Fixed: true, Rank: 6, Extra: true},
		{Title: "UNUSED FOR", Right: true, Fixed: true, Rank: 7, Extra: true},
		{Title: "LABELS", Rank: 8, Extra: true},
		{Title: "DESCRIPTION", Rank: 9, Extra: true},
	}}
	for _, m := range vms {
		s := m.GetSpec()
		up, pid := "-", "-"
		if m.GetStartedAtMs() > 0 {
			up = age(uptime(m, now))
		}
		if m.GetVmmPid() > 0 {
			pid = strconv.Itoa(int(m.GetVmmPid()))
		}
		table.Rows = append(table.Rows, []string{
			s.GetName(), m.GetState(), s.GetImage(), strconv.Itoa(int(s.GetCpus())), vm.FormatSize(s.GetMemoryBytes()), up, pid,
			vm.FormatSize(m.GetDiskUsedBytes()) + "/" + vm.FormatSize(s.GetDiskBytes()), unused(m, now), labelText(s.GetLabels()), s.GetDescription(),
		})
	}
	return table
}

// unused is how long nobody has used a VM that runs, "-" while somebody does and for others.
func unused(m *bangerv1.VM, now time.Time) string {
	if !vm.State(m.GetState()).Live() || m.GetOpenSessions() > 0 {
		return "-"
	}
	return orDash(idle(m, now))
}
