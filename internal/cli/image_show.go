package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newImageShow(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Aliases: []string{"inspect"}, Short: "Show all about an image",
		Long: `Show what an image is, where it came from, who uses it, what it runs by itself, and its layers. NAME is a name, a
digest, or the beginning of a digest.`,
		Example:           "  banger image show debian-bookworm\n  banger image show debian-bookworm --format json",
		Args:              oneOf("image"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImageShow(cmd.Context(), args[0], d) },
		ValidArgsFunction: firstOnly(completeLocalImages(d)),
	}
}

func runImageShow(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.Images.Get(ctx, connect.NewRequest(&bangerv1.GetImageRequest{Ref: ref})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewImage(m))
	}
	if err := d.Term.Pairs(imagePairs(m)); err != nil || len(m.GetLayers()) == 0 {
		return err
	}
	if err := d.Term.Answer(""); err != nil {
		return err
	}
	return d.Term.Table(layerTable(m, layersOfOthers(ctx, c, m.GetDigest())))
}

// imagePairs is what show prints above the layers; what is empty is left out.
func imagePairs(m *bangerv1.Image) [][2]string {
	c := m.GetConfig()
	managed := ""
	if m.GetUnmanaged() {
		managed = "no: its files are yours (banger image promote " + imageRef(m) + " makes a copy)"
	}
	return nonEmpty([][2]string{
		{"name", orNone(m.GetName())},
		{"also called", strings.Join(without(slices.Clone(m.GetNames()), []string{m.GetName()}), ", ")},
		{"digest", m.GetDigest()},
		{"problem", m.GetProblem()},
		{"source", m.GetSource()},
		{"origin", m.GetOrigin()},
		{"managed", managed},
		{"created", localTime(m.GetCreatedAtMs())},
		{"architecture", m.GetArch()},
		{"kernel", m.GetKernel()},
		{"size", sizes(m.GetUsedBytes(), m.GetSharedBytes()) + "; " + vm.FormatSize(m.GetSizeBytes()) + " as a disk"},
		{"rootfs", m.GetRootfs()},
		{"used by", strings.Join(m.GetUsedBy(), ", ")},
		{"entrypoint", shellWords(c.GetEntrypoint())},
		{"command", shellWords(c.GetCmd())},
		{"shell", c.GetShell()},
		{"user", c.GetUser()},
		{"workdir", c.GetWorkdir()},
		{"environment", shellWords(c.GetEnv())},
		{"ports", strings.Join(c.GetExposedPorts(), ", ")},
		{"stop signal", c.GetStopSignal()},
		{"labels", labelText(c.GetLabels())},
	})
}

// sizes tells what of a size is shared.
func sizes(used, shared uint64) string {
	if shared == 0 {
		return vm.FormatSize(used)
	}
	return vm.FormatSize(used) + " (" + vm.FormatSize(own(used, shared)) + " its own, " + vm.FormatSize(shared) + " shared)"
}

// layersOfOthers is the set of layers that other images have. What cannot be asked is shared with nobody.
func layersOfOthers(ctx context.Context, c *client.Client, digest string) map[string]bool {
	resp, err := message(c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{})))
	if err != nil {
		return nil
	}
	set := map[string]bool{}
	for _, m := range resp.GetImages() {
		if m.GetDigest() == digest {
			continue
		}
		for _, l := range m.GetLayers() {
			set[l.GetDigest()] = true
		}
	}
	return set
}

func layerTable(m *bangerv1.Image, others map[string]bool) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "LAYER", Right: true, Fixed: true}, {Title: "DIGEST", Fixed: true}, {Title: "SIZE", Right: true, Fixed: true},
		{Title: "SHARED", Fixed: true}, {Title: "CACHED", Fixed: true}, {Title: "TYPE", Rank: 1},
	}}
	for i, l := range m.GetLayers() {
		table.Rows = append(table.Rows, []string{
			strconv.Itoa(i + 1), shortDigest(l.GetDigest()), vm.FormatSize(l.GetSizeBytes()), yesOrNo(others[l.GetDigest()]), yesOrNo(l.GetPresent()),
			l.GetMediaType(),
		})
	}
	return table
}

// shellWords joins words so that they can be read, and pasted, one by one.
func shellWords(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = word
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\$`!*?[](){}<>|&;#~") {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// nonEmpty drops the pairs without a value.
func nonEmpty(pairs [][2]string) [][2]string {
	return slices.DeleteFunc(pairs, func(p [2]string) bool { return p[1] == "" })
}
