package cli

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// newImage is the group of the commands about images.
func newImage(d *Deps) *cobra.Command {
	cmd := group("image", "Root file systems that vms are made from",
		`Images are the root file systems that VMs are made from. They come from a catalog, from registries, from files, from a
Dockerfile or a script (see docs/images.md), and are shared by all VMs that use them.`)
	cmd.Example = "  banger image pull alpine\n  banger image build -t app .\n  banger image list"
	cmd.AddCommand(newImageList(d), newImageShow(d), newImagePull(d), newImageCatalog(d), newImageRegister(d), newImagePromote(d),
		newImageBuild(d), newImageTag(d), newImageExport(d), newImagePush(d), newImageRemove(d), newImagePrune(d))
	return cmd
}

func newImageList(d *Deps) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List images",
		Long: `List the images that are on this host. SIZE is what an image takes on the disk for itself, SHARED what it has in common
with others.`,
		Example:           "  banger image list\n  banger image list -q\n  banger image list --format json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), quiet, d) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return cmd
}

func runImageList(ctx context.Context, quiet bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{})))
	if err != nil {
		return err
	}
	images := resp.GetImages()
	slices.SortStableFunc(images, func(a, b *bangerv1.Image) int { return compareNames(a.GetName(), b.GetName()) })
	switch {
	case d.Term.JSON():
		return d.Term.WriteJSON(views(images, viewImage))
	case quiet:
		return d.answerLines(views(byName(images), imageRef))
	}
	if err := d.Term.Table(imageTable(byName(images))); err != nil {
		return err
	}
	if d.Term.Width() > 0 {
		if err := d.Term.Answer("%s", diskUse(resp)); err != nil {
			return err
		}
	}
	for _, m := range images {
		if m.GetProblem() != "" {
			d.Term.Note("image %s cannot be used: %s", imageRef(m), strings.TrimPrefix(m.GetProblem(), "image "+imageRef(m)+": "))
		}
	}
	return nil
}

// byName has an image once for each of its names, in the order of the names.
func byName(images []*bangerv1.Image) (out []*bangerv1.Image) {
	seen := map[string]bool{}
	for _, m := range images {
		for _, name := range append([]string{m.GetName()}, m.GetNames()...) {
			if name != "" && seen[name] {
				continue
			}
			seen[name] = true
			row := proto.CloneOf(m)
			row.Name = name
			out = append(out, row)
		}
	}
	slices.SortStableFunc(out, func(a, b *bangerv1.Image) int { return compareNames(a.GetName(), b.GetName()) })
	return out
}

// imageRef is what the user can call an image: its name or, without one, its digest.
func imageRef(m *bangerv1.Image) string {
	if m.GetName() != "" {
		return m.GetName()
	}
	return m.GetDigest()
}

// widestName is how much of a name is kept when columns compete: references are long, and their ends differ.
const widestName = 40

// nameColumn is the column of names, which are there to be typed again.
func nameColumn[T interface{ GetName() string }](all []T) term.Column {
	longest := 0
	for _, m := range all {
		longest = max(longest, utf8.RuneCountInString(m.GetName()))
	}
	return term.Column{Title: "NAME", Least: min(longest, widestName)}
}

func imageTable(images []*bangerv1.Image) term.Table {
	table := term.Table{Columns: []term.Column{
		nameColumn(images), {Title: "DIGEST", Fixed: true, Rank: 3}, {Title: "SIZE", Right: true, Fixed: true},
		{Title: "SHARED", Right: true, Fixed: true, Rank: 4}, {Title: "CREATED", Fixed: true, Rank: 2}, {Title: "SOURCE", Least: 12, Rank: 5},
		{Title: "USED BY", Least: 10, Rank: 1}, {Title: "ARCH", Fixed: true, Rank: 6, Extra: true}, {Title: "KERNEL", Rank: 7, Extra: true},
	}}
	for _, m := range images {
		table.Rows = append(table.Rows, []string{
			orNone(m.GetName()), shortDigest(m.GetDigest()), vm.FormatSize(own(m.GetUsedBytes(), m.GetSharedBytes())), vm.FormatSize(m.GetSharedBytes()),
			day(m.GetCreatedAtMs()), m.GetSource(), strings.Join(m.GetUsedBy(), ", "), m.GetArch(), m.GetKernel(),
		})
	}
	return table
}

// own is the part of used that is not shared.
func own(used, shared uint64) uint64 { return used - min(used, shared) }

// diskUse sums the images up, each once whatever it is called.
func diskUse(resp *bangerv1.ListImagesResponse) string {
	seen := map[string]bool{}
	for _, m := range resp.GetImages() {
		seen[m.GetDigest()] = true
	}
	return plural(len(seen), "image") + ", " + vm.FormatSize(resp.GetUsedBytes()) + "; cache " + vm.FormatSize(resp.GetCacheBytes())
}

func newImageCatalog(d *Deps) *cobra.Command {
	var refresh bool
	cmd := &cobra.Command{
		Use: "catalog [flags]", Short: "List images that can be pulled by name",
		Long: `List the images that can be pulled by name: those that banger knows, and those of the catalogs in the configuration
([[catalog]] entries, see docs/images.md). Images of registries and files need no catalog.`,
		Example: "  banger image catalog\n  banger image catalog --refresh",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImageCatalog(cmd.Context(), refresh, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&refresh, "refresh", false, "ask the configured catalogs anew")
	return cmd
}

func runImageCatalog(ctx context.Context, refresh bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Images.Catalog(ctx, connect.NewRequest(&bangerv1.ImageCatalogRequest{Refresh: refresh})))
	if err != nil {
		return err
	}
	if err := d.answerCatalog(resp.GetEntries()); err != nil {
		return err
	}
	for _, warning := range resp.GetWarnings() {
		d.Term.Note("warning: %s", warning)
	}
	return nil
}

// answerCatalog prints a catalog of images or kernels.
func (d *Deps) answerCatalog(entries []*bangerv1.CatalogEntry) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewCatalog(entries))
	}
	table := term.Table{Columns: []term.Column{
		nameColumn(entries), {Title: "PRESENT", Fixed: true, Rank: 1}, {Title: "DEFAULT", Fixed: true, Rank: 3}, {Title: "SOURCE", Least: 12, Rank: 4},
		{Title: "DESCRIPTION", Rank: 2}, {Title: "CATALOG", Extra: true, Rank: 5},
	}}
	for _, e := range entries {
		table.Rows = append(table.Rows, []string{
			e.GetName(), yesOrNo(e.GetPresent()), yesOrNo(e.GetIsDefault()), e.GetSource(), e.GetDescription(), orDash(e.GetCatalog()),
		})
	}
	return d.Term.Table(table)
}

// answerImage prints the name of an image that was made, or all about it as JSON. ref is the result of an operation.
func (d *Deps) answerImage(ctx context.Context, c *client.Client, ref string) error {
	if !d.Term.JSON() {
		return d.Term.Answer("%s", ref)
	}
	m, err := message(c.Images.Get(ctx, connect.NewRequest(&bangerv1.GetImageRequest{Ref: ref})))
	if err != nil {
		return err
	}
	return d.Term.WriteJSON(viewImage(m))
}

// answerLines prints lines.
func (d *Deps) answerLines(lines []string) error {
	for _, line := range lines {
		if err := d.Term.Answer("%s", line); err != nil {
			return err
		}
	}
	return nil
}

// oneOf wants one name of something: "image", "kernel".
func oneOf(noun string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return fault.New(fault.Invalid, "%s needs the name of %s", cmd.CommandPath(), withArticle(noun)).WithHint("banger %s list", noun)
		case 1:
			return noEmpty(cmd, args)
		}
		return fault.New(fault.Invalid, "%s takes one %s, not %d", cmd.CommandPath(), noun, len(args)).WithHint("%s --help", cmd.CommandPath())
	}
}

// someOf wants the names of one or more.
func someOf(noun string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fault.New(fault.Invalid, "%s needs the name of %s", cmd.CommandPath(), withArticle(noun)).WithHint("banger %s list", noun)
		}
		return noEmpty(cmd, args)
	}
}

func withArticle(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// shortDigest is enough of a digest to tell images apart. What is none is returned as it is.
func shortDigest(digest string) string {
	hexadecimal, ok := strings.CutPrefix(digest, "sha256:")
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
