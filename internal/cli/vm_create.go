package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	bangerv1 "banger/proto/banger/v1"
)

// callTimeout bounds a call that must not be cut off half way by an interrupt, and is over in milliseconds.
const callTimeout = 30 * time.Second

type createOptions struct {
	spec    *bangerv1.VMSpec
	fetch   fetchFlags
	noStart bool
	cold    bool
	async   bool
}

func newCreate(d *Deps) *cobra.Command {
	var flags specFlags
	var opts createOptions
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Create a vm and start it",
		Long: `Create a VM, start it and wait until it is ready. The answer is its name.

An image and a kernel that are not there yet are pulled. An interrupt (^C) takes everything back.`,
		Example: "  banger vm create --name dev\n  banger vm create --name big --cpus 4 --memory 4G --disk 50G",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.spec, err = flags.spec(cmd, d); err != nil {
				return err
			}
			if err := opts.fetch.check(cmd, opts.spec.GetImage()); err != nil {
				return err
			}
			return runCreate(cmd.Context(), opts, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags.add(cmd, d)
	opts.fetch.add(cmd)
	cmd.Flags().BoolVar(&opts.noStart, "no-start", false, "do not start it")
	addCold(cmd, &opts.cold)
	cmd.Flags().BoolVar(&opts.async, "async", false, "do not wait: print the id of the operation that makes it (see banger op)")
	return cmd
}

func (o *createOptions) request() *bangerv1.CreateVMRequest {
	return &bangerv1.CreateVMRequest{Spec: o.spec, Start: !o.noStart, Cold: o.cold}
}

// addCold adds the flag of commands that start a VM.
func addCold(cmd *cobra.Command, cold *bool) {
	cmd.Flags().BoolVar(cold, "cold", false, "boot it, although there may be a template (see banger template)")
}

func runCreate(ctx context.Context, opts createOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := opts.fetch.prepare(ctx, c, opts.spec, d); err != nil {
		return err
	}
	if opts.async {
		id, err := beginCreate(ctx, c, opts.request())
		if err != nil {
			return err
		}
		return d.answerBegun(ctx, c, id)
	}
	m, err := d.create(ctx, c, opts.request())
	if err != nil {
		return err
	}
	return d.answerVM(m)
}

// answerVM prints the name of a VM, or all of it as JSON.
func (d *Deps) answerVM(m *bangerv1.VM) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewVM(m, time.Now()))
	}
	return d.Term.Answer("%s", m.GetSpec().GetName())
}

// beginCreate starts the operation that makes a VM and returns its id.
func beginCreate(ctx context.Context, c *client.Client, req *bangerv1.CreateVMRequest) (string, error) {
	return begun(ctx, func(ctx context.Context) (string, error) {
		resp, err := message(c.VMs.Create(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
}

// create makes a VM and returns it when it is there and, if it is to be started, ready. When ctx ends first, nothing is left of it.
func (d *Deps) create(ctx context.Context, c *client.Client, req *bangerv1.CreateVMRequest) (*bangerv1.VM, error) {
	id, err := beginCreate(ctx, c, req)
	if err != nil {
		return nil, err
	}
	op, err := d.follow(ctx, c, id)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // the interrupt came too late to cancel the operation
		d.remove(ctx, c, op.GetResultId(), op.GetTarget())
		return nil, context.Cause(ctx)
	}
	m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: op.GetResultId()})))
	if err == nil {
		d.noteTemplate(m)
	}
	return m, err
}
