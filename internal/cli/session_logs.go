package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"banger/internal/term"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

func newSessionLogs(d *Deps) *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use:   "logs [flags] [VM] SESSION",
		Short: "Print what a session has written",
		Long: `Print what is kept of what a session has written, the last MiB, also of one that has ended. stdout and stderr stay apart. On
a terminal, control sequences are left out.`,
		Example: "  banger session logs dev build\n  banger session logs -f --tail 20 dev build",
		Args:    oneSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.withSession(cmd.Context(), args, func(ctx context.Context, p place, sup *vmclient.Client) error {
				return endOfLog(ctx, runSessionLogs(ctx, p, opts, sup, d))
			})
		},
		ValidArgsFunction: completeSessions(d),
	}
	opts.add(cmd, -1, "only the last lines (default: all)")
	cmd.Flags().Lookup("tail").DefValue = ""
	return cmd
}

func runSessionLogs(ctx context.Context, p place, opts logsOptions, sup *vmclient.Client, d *Deps) error {
	label, stderr := p.session, d.Term.Stderr()
	if d.Term.StdoutTTY() {
		stderr = term.NewSanitizer(stderr)
	}
	_, err := sup.Exec(ctx, vmclient.Exec{
		Attach:   &bangerv1.SessionAttach{Session: p.session, Bytes: -1, Lines: int32(min(opts.tail, maxTail)), Follow: opts.follow}, //nolint:gosec // bounded
		Attached: func(s *bangerv1.Session) { label = sessionLabel(s) },
		Dropped:  func(n uint64) { d.Term.Note("%s of output are not kept", vm.FormatSize(n)) },
		Stdout:   d.logOutput(), Stderr: stderr,
	})
	if output, ok := errors.AsType[*vmclient.OutputError](err); ok {
		return output.Err
	}
	return sessionOver(p, label, "logs", err)
}

// maxTail is more lines than a session keeps.
const maxTail = 1 << 24
