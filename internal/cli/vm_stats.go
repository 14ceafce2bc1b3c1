package cli

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// What makes a rate: two samples that are so far apart, or else another one after a pause.
const (
	apart      = 100 * time.Millisecond
	samplePace = 500 * time.Millisecond
)

// minInterval is the shortest interval of WatchStats.
const minInterval = 200 * time.Millisecond

type statsOptions struct {
	refs     []string
	watch    bool
	interval time.Duration
}

func newStats(d *Deps) *cobra.Command {
	var opts statsOptions
	cmd := &cobra.Command{
		Use:   "stats [flags] [NAME...]",
		Short: "Show what running vms use",
		Long: `Show what running VMs use: CPU (100% is one CPU), memory, disk, network (bytes per second) and load, as the guest counts
them; a wide terminal adds processes, disk traffic and what the VM costs the host. Without names: all that run.

--watch goes on until it is interrupted: on a terminal a screen with the course of the CPU, elsewhere a line for each VM
at every interval.`,
		Example: "  banger vm stats\n  banger vm stats --watch\n  banger vm stats --watch --interval 5s dev\n  banger vm stats --format json",
		Args:    noEmpty,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = unique(args)
			if opts.interval < minInterval {
				return fault.New(fault.Invalid, "an interval of %s is too short: %s at least", opts.interval, minInterval).
					WithHint("%s --watch --interval 1s", cmd.CommandPath())
			}
			if opts.watch {
				return runStatsWatch(cmd.Context(), opts, d)
			}
			return runStats(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeVMs(d, measured()...),
	}
	cmd.Flags().BoolVarP(&opts.watch, "watch", "w", false, "go on")
	cmd.Flags().DurationVar(&opts.interval, "interval", time.Second, "how often, with --watch")
	complete(cmd, "interval", cobra.NoFileCompletions)
	return cmd
}

// measured are the states of VMs that stats is about when none is named.
func measured() []string { return []string{string(vm.Running), string(vm.Paused)} }

func runStats(ctx context.Context, opts statsOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	which := whichVMs{refs: opts.refs, all: len(opts.refs) == 0, states: measured()}
	refs, err := which.list(ctx, c)
	if err != nil {
		return err
	}
	usages, errs := make([]usage, len(refs)), make([]error, len(refs))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, ref := range refs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			usages[i], errs[i] = measure(ctx, c, ref)
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var failures []error
	var known []usage
	for i, u := range usages {
		switch err := errs[i]; {
		case err == nil:
			known = append(known, u)
		case which.all && (fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict)): // it has ended meanwhile
		default:
			failures = append(failures, err)
		}
	}
	return d.answerStats(known, failures)
}

// answerStats prints what is known and tells the failures, of which the first is the exit code.
func (d *Deps) answerStats(usages []usage, failures []error) error {
	switch {
	case d.Term.JSON():
		if err := d.Term.WriteJSON(views(usages, usage.view)); err != nil {
			return err
		}
	case len(usages) > 0 || len(failures) == 0:
		table := term.Table{Columns: usageColumns(), Rows: views(usages, usage.cells)}
		if err := d.Term.Table(table); err != nil {
			return err
		}
	}
	return d.several(failures)
}

// measure asks the VM's supervisor for what it uses at this moment.
func measure(ctx context.Context, c *client.Client, ref string) (usage, error) {
	where, err := endpoint(ctx, c, ref)
	if err != nil {
		return usage{}, err
	}
	sup := vmclient.New(where.GetSocket())
	defer sup.Close()
	samples, err := sup.Stats(ctx, 2)
	if err != nil {
		return usage{}, fault.Context(err, "vm %s", where.GetVm().GetSpec().GetName())
	}
	if n := len(samples); n < 2 || samples[n-1].GetAtMs()-samples[n-2].GetAtMs() < apart.Milliseconds() {
		select {
		case <-ctx.Done():
			return usage{}, context.Cause(ctx)
		case <-time.After(samplePace):
		}
		if more, err := sup.Stats(ctx, 1); err == nil {
			samples = append(samples, more...)
		}
	}
	return usageOf(where.GetVm(), samples), nil
}

// watched returns the VMs that a watch is about, in order. A name that no VM has any more is left out; it is an error
// for strict.
func (o *statsOptions) watched(ctx context.Context, c *client.Client, strict bool) ([]*bangerv1.VM, error) {
	if len(o.refs) == 0 {
		resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: measured()})))
		vms := resp.GetVms()
		slices.SortFunc(vms, func(a, b *bangerv1.VM) int { return compareNames(a.GetSpec().GetName(), b.GetSpec().GetName()) })
		return vms, err
	}
	var vms []*bangerv1.VM
	for _, ref := range o.refs {
		m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: ref})))
		switch {
		case err == nil:
			vms = append(vms, m)
		case strict || !fault.Is(err, fault.NotFound):
			return nil, err
		}
	}
	return vms, nil
}
