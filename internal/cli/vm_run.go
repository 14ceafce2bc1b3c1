package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// removeTimeout bounds the removal at the end of run --rm. The VM's disk is lost anyway, so it is stopped the hard way.
const removeTimeout = 30 * time.Second

// How long the daemon may take to hear of the end of a VM, and how often it is asked.
const (
	goneTimeout = 2 * time.Second
	gonePoll    = 50 * time.Millisecond
)

type runOptions struct {
	spec   *bangerv1.VMSpec
	fetch  fetchFlags
	what   guestCommand
	tty    ttyFlags
	rm     bool
	detach bool
	cold   bool
}

func newRun(d *Deps) *cobra.Command {
	var flags specFlags
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] [-- COMMAND [ARG...]]",
		Short: "Create a vm and run a command or a shell in it",
		Long: `Create a VM, start it, wait until it is ready, and run a command in it: what the image runs by itself if none is given,
or a login shell if that is nothing.

An image that comes from a container may have an entrypoint: it is run with the COMMAND, or the image's own one, as its
arguments. --entrypoint PROGRAM takes its place and that of the image's command; --entrypoint "" runs the COMMAND alone. The
image's environment, user and working directory hold unless flags say otherwise.

With a terminal the command gets one too. Without, stdin is piped to the command or the shell, and stdout and stderr
stay apart. The exit code is the command's. --detach runs neither a command nor the entrypoint.

An image and a kernel that are not there yet are pulled first. Without --rm the VM stays when the command ends.`,
		Example: `  banger vm run
  banger vm run --rm -- uname -a
  banger vm run --name dev --cpus 2 --memory 2G --disk 20G
  banger vm run --rm --image alpine -- cat /etc/alpine-release
  banger vm run --rm --image app --entrypoint sh
  echo 'cat /etc/os-release' | banger vm run --rm
  banger vm run --detach --name server`,
		Args: func(cmd *cobra.Command, args []string) error {
			_, err := commandOf(cmd, args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.what.args, err = commandOf(cmd, args); err != nil {
				return err
			}
			opts.what.given = cmd.Flags().Changed("entrypoint")
			if opts.spec, err = flags.spec(cmd, d); err != nil {
				return err
			}
			opts.spec.RemoveOnExit = opts.rm
			if err := opts.check(cmd); err != nil {
				return err
			}
			return runRun(cmd.Context(), opts, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags.add(cmd, d)
	opts.fetch.add(cmd)
	opts.tty.add(cmd)
	cmd.Flags().StringVar(&opts.what.entrypoint, "entrypoint", "", "program to run instead of the image's entrypoint and command; \"\" for none")
	complete(cmd, "entrypoint", cobra.NoFileCompletions)
	cmd.Flags().BoolVar(&opts.rm, "rm", false, "remove the vm when the command ends")
	addCold(cmd, &opts.cold)
	cmd.Flags().BoolVarP(&opts.detach, "detach", "d", false, "run no command: print the name of the vm and leave it running")
	return cmd
}

// commandOf returns what stands behind "--". What stands before it is refused: that place is kept for a directory.
func commandOf(cmd *cobra.Command, args []string) ([]string, error) {
	dash := cmd.ArgsLenAtDash()
	if len(args) == 0 || dash == 0 {
		return args, nil
	}
	f := fault.New(fault.Invalid, "argument %q: this place is reserved for a directory to bring in, which is not possible yet; "+
		"an image goes to --image, a command behind --", args[0])
	if len(args) == 1 {
		return nil, f.WithHint("%s --image %s", cmd.CommandPath(), args[0])
	}
	if dash > 0 {
		return nil, f.WithHint("%s --image %s -- %s", cmd.CommandPath(), args[0], strings.Join(args[dash:], " "))
	}
	return nil, f.WithHint("%s -- %s", cmd.CommandPath(), strings.Join(args, " "))
}

func (o *runOptions) check(cmd *cobra.Command) error {
	if o.detach && len(o.what.args) > 0 {
		return fault.New(fault.Invalid, "--detach runs no command, but there is one: %q", o.what.args[0]).WithHint("banger vm run --detach")
	}
	if o.detach && o.what.given {
		return fault.New(fault.Invalid, "--detach runs no entrypoint").WithHint("banger vm run --detach")
	}
	if err := o.fetch.check(cmd, o.spec.GetImage()); err != nil {
		return err
	}
	return o.tty.check()
}

func runRun(ctx context.Context, opts runOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := opts.fetch.prepare(ctx, c, opts.spec, d); err != nil {
		return err
	}
	m, err := d.create(ctx, c, &bangerv1.CreateVMRequest{Spec: opts.spec, Start: true, Cold: opts.cold})
	if err != nil {
		return err
	}
	name := m.GetSpec().GetName()
	if opts.detach {
		return d.answerVM(m)
	}
	if opts.rm {
		defer d.remove(ctx, c, m.GetId(), name)
	}
	code, err := d.runIn(ctx, c, m, opts)
	if opts.rm {
		return exitWith(code, err)
	}
	if err != nil { // said here and not by Main, so that the hints come last
		d.Term.Failure(err)
		code, err = codeOf(ctx, err), nil
	}
	d.Term.Note("vm %s goes on", name)
	d.Term.Hint("banger ssh %s             # get back in", name)
	d.Term.Hint("banger vm rm --force %s   # remove it", name)
	return exitWith(code, err)
}

// exitWith is the error that makes banger end with a guest command's code.
func exitWith(code int, err error) error {
	if err == nil && code != 0 {
		return &exitError{code: code}
	}
	return err
}

// runIn runs what there is to run in a VM that is ready. When the VM ends meanwhile, the failure says so.
func (d *Deps) runIn(ctx context.Context, c *client.Client, m *bangerv1.VM, opts runOptions) (int, error) {
	where, err := endpoint(ctx, c, m.GetId())
	if err != nil {
		return 0, err
	}
	s := session{socket: where.GetSocket(), argv: opts.what.argv(where.GetConfig()), tty: opts.tty, endsVM: opts.rm}
	code, err := d.attach(ctx, s)
	switch {
	case fault.Is(err, fault.Unavailable) && ctx.Err() == nil:
		return 0, d.whyGone(ctx, c, m, err)
	case len(s.argv) == 0 && notFoundInGuest(err):
		return 0, nothingToRun(m.GetSpec().GetImage())
	}
	return code, err
}

// whyGone finds out whether a session was cut off because its VM ended. cause is what the session says.
func (d *Deps) whyGone(ctx context.Context, c *client.Client, m *bangerv1.VM, cause error) error {
	name := m.GetSpec().GetName()
	resp, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: m.GetId()}))
	// The daemon hears of it at the same time, and may be the slower one.
	for began := time.Now(); err == nil && resp.Msg.GetState() == "running" && time.Since(began) < goneTimeout && ctx.Err() == nil; {
		time.Sleep(gonePoll)
		resp, err = c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: m.GetId()}))
	}
	switch {
	case fault.Is(err, fault.NotFound), err == nil && resp.Msg.GetState() == "deleting":
		return fault.New(fault.Unavailable, "vm %s ended while the command ran and is removed", name)
	case err != nil || resp.Msg.GetState() == "running":
		return cause
	}
	why := resp.Msg.GetState()
	if reason := resp.Msg.GetReason(); reason != "" {
		why += ": " + reason
	}
	return fault.New(fault.Unavailable, "vm %s ended while the command ran (%s)", name, why).WithHint("banger vm logs %s", name)
}

// remove removes a VM whatever ended the command. It is gone already when it ended by itself. A failure is said and
// does not change the exit code.
func (d *Deps) remove(ctx context.Context, c *client.Client, id, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	req := &bangerv1.RemoveVMRequest{Ref: id, Force: true}
	_, err := c.VMs.Remove(ctx, connect.NewRequest(req))
	if fault.Is(err, fault.Unavailable) { // the daemon went away while the command ran; the next one knows the VM
		var again *client.Client
		if again, err = d.Connect(ctx); err == nil {
			defer again.Close()
			_, err = again.VMs.Remove(ctx, connect.NewRequest(req))
		}
	}
	if err == nil || fault.Is(err, fault.NotFound) {
		return
	}
	d.Term.Restore()
	d.Term.Note("vm %s is not removed: %s", name, err)
	d.Term.Hint("banger vm rm --force %s", name)
}
