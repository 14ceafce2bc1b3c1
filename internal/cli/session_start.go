package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// detachOptions are those of exec that make its command a session.
type detachOptions struct {
	detach, stdin bool
	name          string
}

// check refuses what makes no sense for a session, or without one.
func (o *detachOptions) check(cmd *cobra.Command, s session) error {
	switch {
	case !o.detach && (o.name != "" || o.stdin):
		return fault.New(fault.Invalid, "--name and --stdin are for sessions").WithHint("%s --detach --name NAME VM -- COMMAND", cmd.CommandPath())
	case !o.detach:
		return nil
	case len(s.argv) == 0 && !s.tty.force:
		return fault.New(fault.Invalid, "a session without a terminal needs a command").WithHint("%s --detach --tty VM", cmd.CommandPath())
	}
	if o.name == "" {
		return nil
	}
	_, err := vm.ParseSessionName(o.name)
	return err
}

func (o *detachOptions) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.detach, "detach", "d", false, "start the command as a session and return at once")
	cmd.Flags().StringVar(&o.name, "name", "", "with --detach: what to call the session")
	cmd.Flags().BoolVarP(&o.stdin, "stdin", "i", false, "with --detach, without --tty: keep an input open for session attach and send")
	complete(cmd, "name", cobra.NoFileCompletions)
}

// detach starts a session and answers with its name, or its id if it has none.
func (d *Deps) detach(ctx context.Context, o detachOptions, where *bangerv1.EndpointResponse, s session) error {
	start := &bangerv1.ExecStart{Argv: s.argv, User: s.user, Workdir: s.dir, Env: s.env, Tty: s.tty.force, Stdin: o.stdin}
	if start.GetTty() {
		d.addTerminal(start)
	}
	p := place{vm: where.GetVm(), socket: where.GetSocket()}
	sup := vmclient.New(p.socket)
	defer sup.Close()
	started, err := sup.StartSession(ctx, o.name, start)
	if err != nil {
		return sessionError(p.fault(err))
	}
	if err := d.answerSession(p, started, nil); err != nil {
		return err
	}
	if d.Term.StdoutTTY() {
		d.Term.Hint("banger session attach %s %s", p.name(), sessionLabel(started))
	}
	return nil
}
