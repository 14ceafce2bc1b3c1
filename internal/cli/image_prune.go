package cli

import (
	"context"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type pruneOptions struct {
	all, dryRun, yes bool
}

func newImagePrune(d *Deps) *cobra.Command {
	var opts pruneOptions
	cmd := &cobra.Command{
		Use: "prune [flags]", Short: "Remove what no vm and no name needs",
		Long: `Remove images that have no name and no VM, layers that were downloaded for images that are gone, and what earlier builds
left for later ones. It shows what it would free, and asks. With --all, images that no VM uses go even if they have a name.

Nothing is removed that cannot be fetched or made again, but the files of a local build are only here.`,
		Example: "  banger image prune --dry-run\n  banger image prune --all --yes",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.dryRun && opts.yes {
				return fault.New(fault.Invalid, "--dry-run and --yes exclude each other").WithHint("%s --dry-run", cmd.CommandPath())
			}
			if !opts.dryRun && !opts.yes && !d.Term.CanAsk() {
				return fault.New(fault.Invalid, "nobody is there to be asked whether to remove images").
					WithHint("%s%s --yes   # or --dry-run", cmd.CommandPath(), map[bool]string{true: " --all"}[opts.all])
			}
			return runImagePrune(cmd.Context(), opts, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&opts.all, "all", "a", false, "also images that have a name, but no vm")
	cmd.Flags().BoolVar(&opts.dryRun, "dry-run", false, "only show what would be removed")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	return cmd
}

func runImagePrune(ctx context.Context, opts pruneOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	req := &bangerv1.PruneImagesRequest{All: opts.all}
	if !opts.yes {
		would, err := prune(ctx, c, &bangerv1.PruneImagesRequest{All: opts.all, DryRun: true})
		if err != nil {
			return err
		}
		if opts.dryRun || len(would.GetPruned()) == 0 {
			return d.answerPrune(would, true)
		}
		if err := d.Term.Table(pruneTable(would.GetPruned())); err != nil {
			return err
		}
		yes, err := d.Term.Confirm(ctx, "remove this and free "+vm.FormatSize(would.GetFreedBytes())+"?")
		if err != nil {
			return err
		}
		if !yes {
			d.Term.Note("nothing was removed")
			return nil
		}
		req.Only = true // an image that has come meanwhile was not agreed to
		for _, p := range would.GetPruned() {
			if p.GetDigest() != "" {
				req.Digests = append(req.Digests, p.GetDigest())
			}
		}
	}
	done, err := prune(ctx, c, req)
	if err != nil {
		return err
	}
	if !opts.yes { // the table has been shown
		return d.Term.Answer("freed %s", vm.FormatSize(done.GetFreedBytes()))
	}
	return d.answerPrune(done, false)
}

func prune(ctx context.Context, c *client.Client, req *bangerv1.PruneImagesRequest) (*bangerv1.PruneImagesResponse, error) {
	return message(c.Images.Prune(ctx, connect.NewRequest(req)))
}

// answerPrune tells what was or would be removed.
func (d *Deps) answerPrune(resp *bangerv1.PruneImagesResponse, dryRun bool) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewPrune(resp, dryRun))
	}
	if len(resp.GetPruned()) == 0 {
		return d.Term.Answer("there is nothing to remove")
	}
	if err := d.Term.Table(pruneTable(resp.GetPruned())); err != nil {
		return err
	}
	if dryRun {
		return d.Term.Answer("would free %s", vm.FormatSize(resp.GetFreedBytes()))
	}
	return d.Term.Answer("freed %s", vm.FormatSize(resp.GetFreedBytes()))
}

// pruneTable has a row for each image and one for all that is of another kind: nobody knows layers by their digests.
func pruneTable(pruned []*bangerv1.Pruned) term.Table {
	table := term.Table{Columns: []term.Column{{Title: "KIND", Fixed: true}, {Title: "NAME"}, {Title: "SIZE", Right: true, Fixed: true}}}
	type sum struct{ count, bytes uint64 }
	var kinds []string
	sums := map[string]*sum{}
	for _, p := range pruned {
		if p.GetKind() == "image" {
			table.Rows = append(table.Rows, []string{p.GetKind(), orNone(shortDigest(p.GetName())), vm.FormatSize(p.GetBytes())})
			continue
		}
		s := sums[p.GetKind()]
		if s == nil {
			s = new(sum)
			sums[p.GetKind()] = s
			kinds = append(kinds, p.GetKind())
		}
		s.count, s.bytes = s.count+1, s.bytes+p.GetBytes()
	}
	for _, kind := range kinds {
		table.Rows = append(table.Rows, []string{kind, strconv.FormatUint(sums[kind].count, 10) + " of them", vm.FormatSize(sums[kind].bytes)})
	}
	return table
}
