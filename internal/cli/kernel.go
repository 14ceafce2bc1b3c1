package cli

import (
	"context"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// newKernel is the group of the commands about kernels.
func newKernel(d *Deps) *cobra.Command {
	cmd := group("kernel", "Kernels that vms boot", "Pull and list the kernels that VMs boot.")
	cmd.Example = "  banger kernel catalog\n  banger kernel list"
	cmd.AddCommand(newKernelList(d), newKernelPull(d), newKernelCatalog(d))
	return cmd
}

func newKernelList(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List kernels", Long: "List the kernels that are on this host.",
		Example: "  banger kernel list\n  banger kernel list --format json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runKernelList(cmd.Context(), d) },
	}
}

func runKernelList(ctx context.Context, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(views(resp.GetKernels(), viewKernel))
	}
	table := term.Table{Columns: []term.Column{
		{Title: "NAME", Fixed: true}, {Title: "VERSION", Fixed: true}, {Title: "DIGEST", Fixed: true}, {Title: "USED", Right: true, Fixed: true},
		{Title: "CREATED", Fixed: true}, {Title: "SOURCE"},
	}}
	for _, m := range resp.GetKernels() {
		table.Rows = append(table.Rows, []string{
			m.GetName(), m.GetVersion(), shortDigest(m.GetDigest()), vm.FormatSize(m.GetUsedBytes()), day(m.GetCreatedAtMs()), m.GetSource(),
		})
	}
	return d.Term.Table(table)
}

func newKernelPull(d *Deps) *cobra.Command {
	var opts pullOptions
	cmd := &cobra.Command{
		Use: "pull [flags] NAME", Short: "Get a kernel",
		Long: `Get a kernel from the distribution's signed archive and wait until it is there. One that is being pulled already
is waited for; one that is there is not fetched again unless --force says so.`,
		Example: "  banger kernel catalog\n  banger kernel pull debian-bookworm",
		Args:    pullArgs("kernel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			return runKernelPull(cmd.Context(), opts, d)
		},
		ValidArgsFunction: firstOnly(completeKernels(d)),
	}
	cmd.Flags().BoolVar(&opts.force, "force", false, "fetch it anew although it is there")
	return cmd
}

func runKernelPull(ctx context.Context, opts pullOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	begun, err := message(c.Kernels.Pull(callCtx, connect.NewRequest(&bangerv1.PullKernelRequest{Reference: opts.ref, Force: opts.force})))
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
	resp, err := message(c.Kernels.List(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{})))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(resp.GetKernels(), func(m *bangerv1.Kernel) bool {
		return m.GetName() == op.GetResultId() || m.GetDigest() == op.GetResultId()
	})
	if i < 0 {
		return fault.New(fault.NotFound, "kernel %s is gone again", op.GetResultId())
	}
	return d.Term.WriteJSON(viewKernel(resp.GetKernels()[i]))
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
			return d.answerCatalog(resp.GetEntries(), err)
		},
	}
}
