package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// newImage is the group of the commands about images.
func newImage(d *Deps) *cobra.Command {
	cmd := group("image", "Root file systems that vms are made from", "Pull and list the root file systems that VMs are made from.")
	cmd.Example = "  banger image catalog\n  banger image pull debian-bookworm\n  banger image list"
	cmd.AddCommand(newImageList(d), newImagePull(d), newImageCatalog(d))
	return cmd
}

func newImageList(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Long: "List the images that are on this host.",
		Example: "  banger image list\n  banger image list --format json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), d) },
	}
}

func runImageList(ctx context.Context, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(views(resp.GetImages(), viewImage))
	}
	table := term.Table{Columns: []term.Column{
		{Title: "NAME", Fixed: true}, {Title: "DIGEST", Fixed: true}, {Title: "USED", Right: true, Fixed: true},
		{Title: "CREATED", Fixed: true}, {Title: "SOURCE"}, {Title: "USED BY"},
	}}
	for _, m := range resp.GetImages() {
		table.Rows = append(table.Rows, []string{
			m.GetName(), shortDigest(m.GetDigest()), vm.FormatSize(m.GetUsedBytes()), day(m.GetCreatedAtMs()), m.GetSource(),
			strings.Join(m.GetUsedBy(), ", "),
		})
	}
	return d.Term.Table(table)
}

// pullOptions are the same for images and kernels.
type pullOptions struct {
	ref   string
	force bool
}

// pullArgs wants one reference.
func pullArgs(noun string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fault.New(fault.Invalid, "%s takes the name of one %s", cmd.CommandPath(), noun).WithHint("banger %s catalog", noun)
		}
		return noEmpty(cmd, args)
	}
}

func newImagePull(d *Deps) *cobra.Command {
	var opts pullOptions
	cmd := &cobra.Command{
		Use: "pull [flags] NAME", Short: "Get an image",
		Long: `Get an image and wait until it is there. One that is being pulled already is waited for; one that is there
is not fetched again unless --force says so.`,
		Example: "  banger image pull debian-bookworm",
		Args:    pullArgs("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			return runImagePull(cmd.Context(), opts, d)
		},
		ValidArgsFunction: firstOnly(completeImages(d)),
	}
	cmd.Flags().BoolVar(&opts.force, "force", false, "make it anew although it is there")
	return cmd
}

func runImagePull(ctx context.Context, opts pullOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	begun, err := message(c.Images.Pull(callCtx, connect.NewRequest(&bangerv1.PullImageRequest{Reference: opts.ref, Force: opts.force})))
	if err != nil {
		return err
	}
	op, err := d.follow(ctx, c, begun.GetOperationId())
	if err != nil {
		return err
	}
	if !d.Term.JSON() {
		return d.Term.Answer("%s", op.GetResultId())
	}
	resp, err := message(c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{})))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(resp.GetImages(), func(m *bangerv1.Image) bool { return m.GetName() == op.GetResultId() })
	if i < 0 {
		return fault.New(fault.NotFound, "image %s is gone again", op.GetResultId())
	}
	return d.Term.WriteJSON(viewImage(resp.GetImages()[i]))
}

func newImageCatalog(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "catalog", Short: "List images that can be pulled", Long: "List the images that can be pulled by name.",
		Example: "  banger image catalog",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.Connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			resp, err := message(c.Images.Catalog(cmd.Context(), connect.NewRequest(&bangerv1.ImageCatalogRequest{})))
			return d.answerCatalog(resp.GetEntries(), err)
		},
	}
}

// answerCatalog prints a catalog of images or kernels.
func (d *Deps) answerCatalog(entries []*bangerv1.CatalogEntry, err error) error {
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewCatalog(entries))
	}
	table := term.Table{Columns: []term.Column{
		{Title: "NAME", Fixed: true}, {Title: "PRESENT", Fixed: true}, {Title: "DEFAULT", Fixed: true}, {Title: "SOURCE"}, {Title: "DESCRIPTION"},
	}}
	for _, e := range entries {
		table.Rows = append(table.Rows, []string{e.GetName(), yesOrNo(e.GetPresent()), yesOrNo(e.GetIsDefault()), e.GetSource(), e.GetDescription()})
	}
	return d.Term.Table(table)
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// shortDigest is enough of a digest to tell images apart.
func shortDigest(digest string) string {
	_, hexadecimal, ok := strings.Cut(digest, ":")
	if !ok || len(hexadecimal) < 12 {
		return digest
	}
	return hexadecimal[:12]
}

func day(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).Format("2006-01-02")
}

// firstOnly completes the first argument and nothing after it.
func firstOnly(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return fn(cmd, args, word)
	}
}
