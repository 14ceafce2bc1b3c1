package cli

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// newKernel is the group of the commands about kernels.
func newKernel(d *Deps) *cobra.Command {
	cmd := group("kernel", "Kernels that vms boot",
		"Kernels are what VMs boot. They come from a distribution's signed archive or from a file. An image says which one it wants.")
	cmd.Example = "  banger kernel catalog\n  banger kernel pull debian-bookworm\n  banger kernel list"
	cmd.AddCommand(newKernelList(d), newKernelShow(d), newKernelPull(d), newKernelImport(d), newKernelRemove(d), newKernelCatalog(d))
	return cmd
}

func newKernelList(d *Deps) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List kernels", Long: "List the kernels that are on this host.",
		Example:           "  banger kernel list\n  banger kernel list --format json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKernelList(cmd.Context(), quiet, d) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return cmd
}

func runKernelList(ctx context.Context, quiet bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{})))
	if err != nil {
		return err
	}
	kernels := resp.GetKernels()
	slices.SortStableFunc(kernels, func(a, b *bangerv1.Kernel) int { return compareNames(a.GetName(), b.GetName()) })
	switch {
	case d.Term.JSON():
		return d.Term.WriteJSON(views(kernels, viewKernel))
	case quiet:
		return d.answerLines(views(kernels, (*bangerv1.Kernel).GetName))
	}
	if err := d.Term.Table(kernelTable(kernels)); err != nil {
		return err
	}
	for _, m := range kernels {
		if m.GetProblem() != "" {
			d.Term.Note("kernel %s cannot be used: %s", m.GetName(), strings.TrimPrefix(m.GetProblem(), "kernel "+m.GetName()+": "))
		}
	}
	return nil
}

func kernelTable(kernels []*bangerv1.Kernel) term.Table {
	table := term.Table{Columns: []term.Column{
		nameColumn(kernels), {Title: "VERSION", Least: 12}, {Title: "DIGEST", Fixed: true, Rank: 3}, {Title: "SIZE", Right: true, Fixed: true},
		{Title: "SHARED", Right: true, Fixed: true, Rank: 4}, {Title: "CREATED", Fixed: true, Rank: 2}, {Title: "SOURCE", Least: 12, Rank: 5},
		{Title: "USED BY", Least: 10, Rank: 1}, {Title: "ARCH", Fixed: true, Rank: 6, Extra: true},
	}}
	for _, m := range kernels {
		table.Rows = append(table.Rows, []string{
			m.GetName(), m.GetVersion(), shortDigest(m.GetDigest()), vm.FormatSize(own(m.GetUsedBytes(), m.GetSharedBytes())),
			vm.FormatSize(m.GetSharedBytes()), day(m.GetCreatedAtMs()), m.GetSource(), strings.Join(m.GetUsedBy(), ", "), m.GetArch(),
		})
	}
	return table
}

func newKernelShow(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Aliases: []string{"inspect"}, Short: "Show all about a kernel",
		Long:              "Show what a kernel is, where it came from, who uses it, and what it lacks for banger.",
		Example:           "  banger kernel show debian-bookworm\n  banger kernel show debian-bookworm --format json",
		Args:              oneOf("kernel"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runKernelShow(cmd.Context(), args[0], d) },
		ValidArgsFunction: firstOnly(completeLocalKernels(d)),
	}
}

func runKernelShow(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.Kernels.Get(ctx, connect.NewRequest(&bangerv1.GetKernelRequest{Ref: ref})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewKernel(m))
	}
	return d.Term.Pairs(kernelPairs(m))
}

// kernelPairs is what show prints; what is empty is left out.
func kernelPairs(m *bangerv1.Kernel) [][2]string {
	pairs := [][2]string{
		{"name", m.GetName()},
		{"also called", strings.Join(without(slices.Clone(m.GetNames()), []string{m.GetName()}), ", ")},
		{"version", m.GetVersion()},
		{"digest", m.GetDigest()},
		{"problem", m.GetProblem()},
		{"source", m.GetSource()},
		{"package", m.GetPackage()},
		{"created", localTime(m.GetCreatedAtMs())},
		{"architecture", m.GetArch()},
		{"size", sizes(m.GetUsedBytes(), m.GetSharedBytes())},
		{"used by", strings.Join(m.GetUsedBy(), ", ")},
	}
	for _, option := range m.GetMissing() {
		pairs = append(pairs, [2]string{"lacks", option})
	}
	return nonEmpty(pairs)
}

func newKernelPull(d *Deps) *cobra.Command {
	var req bangerv1.PullKernelRequest
	cmd := &cobra.Command{
		Use: "pull [flags] NAME", Short: "Get a kernel",
		Long: `Get a kernel from the distribution's signed archive and wait until it is there. One that is being pulled already
is waited for; one that is there is not fetched again unless --force says so.`,
		Example: "  banger kernel catalog\n  banger kernel pull debian-bookworm",
		Args:    pullArgs("kernel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Reference = args[0]
			return runKernelPull(cmd.Context(), &req, d)
		},
		ValidArgsFunction: firstOnly(completeKernels(d)),
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "fetch it anew although it is there")
	return cmd
}

func runKernelPull(ctx context.Context, req *bangerv1.PullKernelRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Kernels.Pull(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	return d.answerKernel(ctx, c, op.GetResultId())
}

// answerKernel prints the name of a kernel, or all about it as JSON, and tells what it lacks.
func (d *Deps) answerKernel(ctx context.Context, c *client.Client, ref string) error {
	m, err := message(c.Kernels.Get(ctx, connect.NewRequest(&bangerv1.GetKernelRequest{Ref: ref})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewKernel(m))
	}
	if err := d.Term.Answer("%s", m.GetName()); err != nil {
		return err
	}
	if len(m.GetMissing()) > 0 {
		d.Term.Note("kernel %s lacks %s", m.GetName(), enumerate(m.GetMissing()))
	}
	return nil
}

func newKernelImport(d *Deps) *cobra.Command {
	var req bangerv1.ImportKernelRequest
	cmd := &cobra.Command{
		Use: "import [flags] NAME FILE", Short: "Take a kernel of one's own into the store",
		Long: `Copy a kernel (an uncompressed vmlinux, or a bzImage) into banger's store and give it a name, with its modules directory if
it has one. A kernel that lacks what banger's machines need is refused, with a list of the options, unless --force says so;
which options it was built with is read from the kernel itself if it says so (CONFIG_IKCONFIG), else from --config.

--force also takes the name from the kernel that has it.`,
		Example: `  banger kernel import mine ./vmlinux --config ./.config
  banger kernel import mine /boot/vmlinuz-6.1.0 --modules /lib/modules/6.1.0 --config /boot/config-6.1.0`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fault.New(fault.Invalid, "%s takes a name and the file of a kernel", cmd.CommandPath()).WithHint("%s --help", cmd.CommandPath())
			}
			return noEmpty(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.Image = args[0], args[1]
			if err := checkImport(cmd, &req); err != nil {
				return err
			}
			return runKernelImport(cmd.Context(), &req, d)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Modules, "modules", "", "its modules directory (/lib/modules/RELEASE)")
	flags.StringVar(&req.Config, "config", "", "the configuration it was built with")
	flags.BoolVar(&req.Force, "force", false, "although it lacks something, or the name is taken")
	complete(cmd, "modules", completeDirs)
	complete(cmd, "config", completeFiles)
	return cmd
}

// checkImport makes the paths absolute and looks whether the files are there.
func checkImport(cmd *cobra.Command, req *bangerv1.ImportKernelRequest) (err error) {
	if req.Image, err = hostFile("the kernel", req.GetImage()); err != nil {
		return err
	}
	if cmd.Flags().Changed("modules") {
		if req.Modules, err = hostDir("--modules", req.GetModules()); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("config") {
		req.Config, err = hostFile("--config", req.GetConfig())
	}
	return err
}

func runKernelImport(ctx context.Context, req *bangerv1.ImportKernelRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Kernels.Import(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	return d.answerKernel(ctx, c, op.GetResultId())
}

func newKernelRemove(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove kernels",
		Long:    "Remove kernels. One that a VM uses is refused.",
		Example: "  banger kernel rm mine",
		Args:    someOf("kernel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.removeEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, ref string) (removal, error) {
				r, err := message(c.Kernels.Remove(ctx, connect.NewRequest(&bangerv1.RemoveKernelRequest{Ref: ref})))
				return removal{Name: r.GetName(), Digest: r.GetDigest(), FreedBytes: r.GetFreedBytes()}, err
			})
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, directive := completeLocalKernels(d)(cmd, args, word)
			return without(names, args), directive
		},
	}
}

func newKernelCatalog(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "catalog", Short: "List kernels that can be pulled", Long: "List the kernels that can be pulled by name.",
		Example: "  banger kernel catalog",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.Connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			resp, err := message(c.Kernels.Catalog(cmd.Context(), connect.NewRequest(&bangerv1.KernelCatalogRequest{})))
			if err != nil {
				return err
			}
			return d.answerCatalog(resp.GetEntries())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
}
