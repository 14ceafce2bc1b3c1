package cli

import (
	"context"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type listOptions struct {
	states []string
	quiet  bool
}

func newList(d *Deps, use string) *cobra.Command {
	var opts listOptions
	cmd := &cobra.Command{
		Use:     use + " [flags]",
		Short:   "List vms",
		Long:    "List VMs, whatever state they are in.",
		Example: "  banger vm list\n  banger vm list --state running\n  banger vm list -q\n  banger vm list --format json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, state := range opts.states {
				if _, err := vm.ParseState(state); err != nil {
					return err
				}
			}
			return runList(cmd.Context(), opts, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	if use == "list" {
		cmd.Aliases = []string{"ls"}
	}
	cmd.Flags().StringSliceVar(&opts.states, "state", nil, "only those in this state; may be given several times")
	cmd.Flags().BoolVarP(&opts.quiet, "quiet", "q", false, "print names only")
	complete(cmd, "state", completeStates)
	return cmd
}

func runList(ctx context.Context, opts listOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: opts.states}))
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
	return term.PaintBy([]string{string(vm.Running)}, []string{string(vm.Starting), string(vm.Stopping), string(vm.Deleting)},
		[]string{string(vm.Failed)})
}

func vmTable(vms []*bangerv1.VM, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "NAME"},
		{Title: "STATE", Fixed: true, Paint: paintState()},
		{Title: "IMAGE"},
		{Title: "CPUS", Right: true, Fixed: true},
		{Title: "MEMORY", Right: true, Fixed: true},
		{Title: "UPTIME", Right: true, Fixed: true},
		{Title: "PID", Right: true, Fixed: true},
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
		})
	}
	return table
}
