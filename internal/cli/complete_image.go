package cli

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	bangerv1 "banger/proto/banger/v1"
)

// completeImages completes images that are there or can be pulled.
func completeImages(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(cmd, d, func(ctx context.Context, c *client.Client) []string {
			names := localImages(ctx, c, func(*bangerv1.Image) bool { return true })
			if resp, err := c.Images.Catalog(ctx, connect.NewRequest(&bangerv1.ImageCatalogRequest{})); err == nil {
				names = append(names, entryNames(resp.Msg.GetEntries())...)
			}
			slices.Sort(names)
			return slices.Compact(names)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeReferences completes what can be pulled: names, and files once a path is begun.
func completeReferences(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if strings.ContainsAny(word, "/.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return completeImages(d)(cmd, args, word)
	}
}

// completeLocalImages completes the names of the images that are there.
func completeLocalImages(d *Deps) cobra.CompletionFunc {
	return completeImagesThat(d, func(*bangerv1.Image) bool { return true })
}

// completeRegistered completes the names of images whose files are the user's own.
func completeRegistered(d *Deps) cobra.CompletionFunc {
	return completeImagesThat(d, (*bangerv1.Image).GetUnmanaged)
}

func completeImagesThat(d *Deps, fit func(*bangerv1.Image) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(cmd, d, func(ctx context.Context, c *client.Client) []string { return localImages(ctx, c, fit) }),
			cobra.ShellCompDirectiveNoFileComp
	}
}

// localImages are all names of the images that are there and fit; the digest of one without a name.
func localImages(ctx context.Context, c *client.Client, fit func(*bangerv1.Image) bool) (names []string) {
	resp, err := message(c.Images.List(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{})))
	if err != nil {
		return nil
	}
	for _, m := range resp.GetImages() {
		if fit(m) {
			names = append(append(names, imageRef(m)), m.GetNames()...)
		}
	}
	slices.SortFunc(names, compareNames)
	return slices.Compact(names)
}

// completeKernels completes kernels that can be pulled.
func completeKernels(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(cmd, d, func(ctx context.Context, c *client.Client) []string {
			resp, err := message(c.Kernels.Catalog(ctx, connect.NewRequest(&bangerv1.KernelCatalogRequest{})))
			if err != nil {
				return nil
			}
			return entryNames(resp.GetEntries())
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeLocalKernels completes the names of the kernels that are there.
func completeLocalKernels(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(cmd, d, localKernels), cobra.ShellCompDirectiveNoFileComp
	}
}

func localKernels(ctx context.Context, c *client.Client) (names []string) {
	resp, err := message(c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{})))
	if err != nil {
		return nil
	}
	for _, m := range resp.GetKernels() {
		names = append(append(names, m.GetName()), m.GetNames()...)
	}
	slices.SortFunc(names, compareNames)
	return slices.Compact(names)
}

// completeKernelOrFile completes names of kernels, and files once a path is begun.
func completeKernelOrFile(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		if strings.Contains(word, "/") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return ask(cmd, d, localKernels), cobra.ShellCompDirectiveDefault
	}
}

func entryNames(entries []*bangerv1.CatalogEntry) []string {
	return views(entries, func(e *bangerv1.CatalogEntry) string { return e.GetName() })
}

// completeFiles leaves the completion to the shell.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// completeDirs completes directories.
func completeDirs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func completePlatforms(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"linux/amd64", "linux/arm64"}, cobra.ShellCompDirectiveNoFileComp
}
