package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vmclient"
)

// maxSend bounds what is read from stdin to be sent: it is held in memory until all of it was taken.
const maxSend = 16 << 20

type sendOptions struct {
	args      []string // VM and session
	text      string
	fromStdin bool
	noEnter   bool
	eof       bool
}

func newSessionSend(d *Deps) *cobra.Command {
	var opts sendOptions
	cmd := &cobra.Command{
		Use:   "send [flags] VM SESSION [TEXT...]",
		Short: "Type something into a session",
		Long: `Send text to the input of a session, and the enter key after it. With --stdin what banger reads from its own stdin is sent
as it is. A session without a terminal has an input if it was started with --stdin.`,
		Example: `  banger session send dev shell make test
  banger session send --no-enter dev shell q
  banger session send --eof dev counter`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return fault.New(fault.Invalid, "%s needs the names of a vm and of a session", cmd.CommandPath()).WithHint("banger session list")
			}
			return noEmpty(cmd, args[:2])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.args, opts.text = args[:2], strings.Join(args[2:], " ")
			switch none := len(args) == 2; {
			case opts.fromStdin && !none:
				return fault.New(fault.Invalid, "--stdin and TEXT exclude each other").WithHint("%s --help", cmd.CommandPath())
			case !opts.fromStdin && none && !opts.eof:
				return fault.New(fault.Invalid, "there is nothing to send: TEXT, --stdin or --eof").WithHint("%s --help", cmd.CommandPath())
			}
			opts.noEnter = opts.noEnter || len(args) == 2
			return runSessionSend(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeSessions(d),
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows may begin with a dash
	flags.BoolVar(&opts.fromStdin, "stdin", false, "send what comes from stdin, as it is")
	flags.BoolVarP(&opts.noEnter, "no-enter", "n", false, "do not press the enter key after TEXT")
	flags.BoolVar(&opts.eof, "eof", false, "end the session's input after that; on a terminal, send ^D")
	return cmd
}

func runSessionSend(ctx context.Context, opts sendOptions, d *Deps) error {
	data := []byte(opts.text)
	if opts.fromStdin {
		in, err := d.Term.Input()
		if err != nil {
			return err
		}
		defer in.Close()
		stop := context.AfterFunc(ctx, in.Stop)
		defer stop()
		if data, err = io.ReadAll(io.LimitReader(in, maxSend+1)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "read stdin")
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case len(data) > maxSend:
			return fault.New(fault.Invalid, "stdin has more than the %d MiB that can be sent at once", maxSend>>20).
				WithHint("banger session attach %s", strings.Join(opts.args, " "))
		}
	}
	return d.withSession(ctx, opts.args, func(ctx context.Context, p place, sup *vmclient.Client) error {
		return sup.WriteSession(ctx, p.session, data, !opts.noEnter, opts.eof)
	})
}
