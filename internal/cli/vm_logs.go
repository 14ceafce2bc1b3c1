package cli

import (
	"context"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

type logsOptions struct {
	ref    string
	follow bool
	tail   int
}

func (o *logsOptions) add(cmd *cobra.Command, tail int, tailHelp string) {
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().IntVarP(&o.tail, "tail", "n", tail, tailHelp)
	complete(cmd, "tail", cobra.NoFileCompletions)
}

func newLogs(d *Deps) *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use:   "logs [flags] NAME",
		Short: "Print the console of a vm",
		Long: `Print what the guest's kernel and the agent wrote to the console, also of a VM that does not run any more.
On a terminal, control sequences of the guest are left out.`,
		Example: "  banger vm logs dev\n  banger vm logs -f --tail 20 dev",
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			return runLogs(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	opts.add(cmd, -1, "only the last lines (default: all)")
	cmd.Flags().Lookup("tail").DefValue = ""
	return cmd
}

func runLogs(ctx context.Context, opts logsOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	where, err := message(c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: opts.ref})))
	if err != nil {
		return err
	}
	log := logFile{
		path: where.GetConsoleLog(), lines: opts.tail, follow: opts.follow, out: d.logOutput(),
		ended: func(ctx context.Context) bool { return !alive(ctx, c, where.GetVm().GetId()) },
	}
	return endOfLog(ctx, log.show(ctx))
}

// endOfLog is silent about an interrupt: it is how one stops to follow a log.
func endOfLog(ctx context.Context, err error) error {
	if interrupt := interruptOf(ctx, err); interrupt != nil {
		return &exitError{code: interrupt.code()}
	}
	return err
}

// alive reports whether the VM may still write to its console. A daemon that does not answer leaves that open.
func alive(ctx context.Context, c *client.Client, id string) bool {
	m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: id})))
	return err == nil && vm.State(m.GetState()).Live()
}

// logOutput is stdout; a terminal gets sanitised text.
func (d *Deps) logOutput() io.Writer {
	if d.Term.StdoutTTY() {
		return term.NewSanitizer(d.Term.Stdout())
	}
	return d.Term.Stdout()
}
