package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

func newSessionStop(d *Deps) *cobra.Command {
	var signal string
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop [flags] [VM] SESSION",
		Short: "End a session",
		Long: `End a session: its command gets a signal (TERM, or HUP if it has a terminal, which is what shells heed) and, if it has not
ended within the grace, KILL. What it wrote and how it ended is kept.`,
		Example: "  banger session stop dev counter\n  banger session stop --signal INT --grace 1m dev counter",
		Args:    oneSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkGrace(cmd, grace); err != nil {
				return err
			}
			if cmd.Flags().Changed("grace") && grace < time.Millisecond {
				grace = -time.Millisecond // none at all, not the supervisor's own
			}
			return d.withSession(cmd.Context(), args, func(ctx context.Context, p place, sup *vmclient.Client) error {
				s, err := sup.StopSession(ctx, p.session, signal, grace)
				return d.answerSession(p, s, err)
			})
		},
		ValidArgsFunction: completeSessions(d),
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "the signal, such as INT (default: TERM, or HUP with a terminal)")
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long it may take to end, such as 30s (default: 10s)")
	complete(cmd, "signal", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "KILL"}, cobra.ShellCompDirectiveNoFileComp
	})
	complete(cmd, "grace", cobra.NoFileCompletions)
	return cmd
}

func newSessionRemove(d *Deps) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm [flags] [VM] SESSION",
		Short:   "Forget a session that has ended",
		Long:    "Forget a session that has ended, and what it wrote. With --force one that runs is killed first.",
		Example: "  banger session rm dev counter\n  banger session rm --force dev 3",
		Args:    oneSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.withSession(cmd.Context(), args, func(ctx context.Context, p place, sup *vmclient.Client) error {
				s, err := sup.RemoveSession(ctx, p.session, force)
				return d.answerSession(p, s, err)
			})
		},
		ValidArgsFunction: completeSessions(d),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it if it runs")
	return cmd
}

// answerSession answers with the session that something was done to.
func (d *Deps) answerSession(p place, s *bangerv1.Session, err error) error {
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewSession(p.name(), s))
	}
	return d.Term.Answer("%s", sessionLabel(s))
}

func newSessionWait(d *Deps) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait [flags] [VM] SESSION",
		Short: "Wait until a session has ended",
		Long: `Wait until a session has ended. The answer is the exit code of its command, and so is banger's own. If the VM is suspended
meanwhile the exit code is 248, at the end of --timeout 247.`,
		Example: "  banger session wait dev build\n  banger session wait --timeout 10m dev build",
		Args:    oneSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return fault.New(fault.Invalid, "a timeout of %s is not possible", timeout).WithHint("%s --timeout 30s SESSION", cmd.CommandPath())
			}
			return runSessionWait(cmd.Context(), args, timeout, d)
		},
		ValidArgsFunction: completeSessions(d),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait, such as 30s (default: for ever)")
	complete(cmd, "timeout", cobra.NoFileCompletions)
	return cmd
}

func runSessionWait(ctx context.Context, args []string, timeout time.Duration, d *Deps) error {
	return d.withSession(ctx, args, func(ctx context.Context, p place, sup *vmclient.Client) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		if timeout > 0 {
			late := fault.New(fault.Timeout, "session %s of vm %s did not end within %s", p.session, p.name(), timeout).
				WithHint("banger session list %s", p.name())
			defer time.AfterFunc(timeout, func() { cancel(late) }).Stop()
		}
		label := p.session
		code, err := sup.Exec(ctx, vmclient.Exec{
			Attach:   &bangerv1.SessionAttach{Session: p.session, Quiet: true},
			Attached: func(s *bangerv1.Session) { label = sessionLabel(s) },
		})
		if err != nil {
			return sessionOver(p, label, "wait", err)
		}
		if d.Term.JSON() {
			err = d.Term.WriteJSON(map[string]any{"vm": p.name(), "session": label, "exit_code": code})
		} else {
			err = d.Term.Answer("%d", code)
		}
		return exitWith(code, err)
	})
}
