package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

type execOptions struct {
	ref        string
	session    session
	checkpoint checkpoint
	detach     detachOptions
}

func newExec(d *Deps) *cobra.Command {
	var opts execOptions
	var env []string
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] [COMMAND [ARG...]]",
		Short: "Run a command in a running vm",
		Long: `Run a command in a running VM: a login shell if none is given. The exit code is the command's.

Flags for banger stand before the NAME; everything behind it belongs to the command. The command gets a terminal when
banger has one; see --tty and --no-tty. A command that is not found is exit code 127, one that cannot be executed 126.

With --detach the command is a session: it goes on by itself, and the answer is what it is called. It has a terminal only
with --tty. See banger session --help.

With --checkpoint a snapshot of the VM is taken first, to which "vm rewind" goes back; the oldest of them are removed when there
are more than limits.checkpoints.`,
		Example: `  banger vm exec dev -- make test
  banger vm exec --user root --workdir /etc dev -- ls -l
  banger vm exec dev -- tar c src | tar x
  banger vm exec --checkpoint dev -- apt-get -y upgrade
  banger vm exec --detach --name build dev -- make
  banger vm exec dev`,
		Args: func(cmd *cobra.Command, args []string) error {
			return oneVM(cmd, args[:min(len(args), 1)])
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.ref, opts.session.argv = args[0], behindDash(args[1:])
			opts.checkpoint.read(cmd)
			if opts.session.env, err = expandEnv(env, d.LookupEnv); err != nil {
				return err
			}
			if err := checkWorkdir(opts.session.dir); err != nil {
				return err
			}
			if err := opts.session.tty.check(); err != nil {
				return err
			}
			if err := opts.detach.check(cmd, opts.session); err != nil {
				return err
			}
			return runExec(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d, "running"),
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // flags behind NAME are the command's
	flags.StringVarP(&opts.session.user, "user", "u", "", "user to run it as (default: the vm's)")
	flags.StringVarP(&opts.session.dir, "workdir", "w", "", "directory to start it in (default: the vm's)")
	flags.StringArrayVarP(&env, "env", "e", nil, "environment: NAME=VALUE, or NAME to pass the host's value on")
	opts.session.tty.add(cmd)
	opts.checkpoint.add(cmd)
	opts.detach.add(cmd)
	for _, flag := range []string{"user", "workdir", "env"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
	return cmd
}

// behindDash drops the "--" between NAME and the command.
func behindDash(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func newSSH(d *Deps) *cobra.Command {
	var opts execOptions
	cmd := &cobra.Command{
		Use:   "ssh [flags] NAME [--] [COMMAND [ARG...]]",
		Short: "Open a shell in a running vm",
		Long: `Open a login shell in a running VM, or run a command there. The exit code is the shell's or the command's.

It goes through the agent in the guest: the guest needs neither an SSH server nor a key.`,
		Example: "  banger ssh dev\n  banger ssh dev -- git status",
		Args: func(cmd *cobra.Command, args []string) error {
			return oneVM(cmd, args[:min(len(args), 1)])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref, opts.session.argv = args[0], behindDash(args[1:])
			if err := opts.session.tty.check(); err != nil {
				return err
			}
			return runExec(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d, "running"),
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&opts.session.user, "user", "u", "", "user to log in as (default: the vm's)")
	complete(cmd, "user", cobra.NoFileCompletions)
	opts.session.tty.add(cmd)
	return cmd
}

func runExec(ctx context.Context, opts execOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	where, err := endpoint(ctx, c, opts.ref)
	if err != nil {
		return err
	}
	if err := opts.checkpoint.take(ctx, c, where, d); err != nil {
		return err
	}
	if opts.detach.detach {
		return d.detach(ctx, opts.detach, where, opts.session)
	}
	opts.session.socket = where.GetSocket()
	code, err := d.attach(ctx, opts.session)
	if fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
		err = d.whyGone(ctx, c, &bangerv1.VM{Id: where.GetVm().GetId(), Spec: where.GetVm().GetSpec()}, err)
	}
	return exitWith(code, err)
}
