package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// How a wait goes on when the daemon goes away meanwhile.
const (
	rejoinEvery = 200 * time.Millisecond
	rejoinTries = 25 // in a row
)

type waitOptions struct {
	ref     string
	states  []string
	timeout time.Duration
}

func newWait(d *Deps) *cobra.Command {
	var opts waitOptions
	cmd := &cobra.Command{
		Use:   "wait [flags] NAME",
		Short: "Wait until a vm is in a state",
		Long: `Wait until a VM is in one of the states given, or, if none is, until it does not run. The answer is its state.

A VM that is removed meanwhile ends the wait with exit code 241, the end of --timeout with 247.`,
		Example: "  banger vm wait dev\n  banger vm wait --state running --timeout 30s dev",
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			if err := checkStates(opts.states); err != nil {
				return err
			}
			if opts.timeout < 0 {
				return fault.New(fault.Invalid, "a timeout of %s is not possible", opts.timeout).WithHint("%s --timeout 30s NAME", cmd.CommandPath())
			}
			return runWait(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	cmd.Flags().StringSliceVar(&opts.states, "state", nil, "a state to wait for; may be given several times")
	cmd.Flags().DurationVar(&opts.timeout, "timeout", 0, "how long to wait, such as 30s (default: for ever)")
	complete(cmd, "state", completeStates)
	complete(cmd, "timeout", cobra.NoFileCompletions)
	return cmd
}

// checkStates refuses what is no state of a VM.
func checkStates(states []string) error {
	for _, state := range states {
		if _, err := vm.ParseState(state); err != nil {
			return err
		}
	}
	return nil
}

func runWait(ctx context.Context, opts waitOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	// By id from here on: the name may be another VM's by the time the daemon is asked again.
	m, err := d.overDaemons(ctx, c, func(ctx context.Context, c *client.Client) (*bangerv1.VM, error) {
		return message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: opts.ref})))
	})
	if err != nil {
		return err
	}
	if opts.timeout > 0 {
		// Not a deadline of the context: it would cross the wire, and the daemon would say its own word first.
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		err := waitTimeout(m, opts)
		defer time.AfterFunc(opts.timeout, func() { cancel(err) }).Stop()
	}
	show := d.Term.Progress()
	defer show.Close()
	show.Update(progress.Update{Stage: "wait", Message: "for vm " + m.GetSpec().GetName()})
	if m, err = d.wait(ctx, c, m.GetId(), opts.states); err != nil {
		return err
	}
	show.Close()
	return d.answerWait(m)
}

// wait waits for the VM, also over the end of the daemon: the next one is asked again.
func (d *Deps) wait(ctx context.Context, c *client.Client, id string, states []string) (*bangerv1.VM, error) {
	return d.overDaemons(ctx, c, func(ctx context.Context, c *client.Client) (*bangerv1.VM, error) {
		return message(c.VMs.Wait(ctx, connect.NewRequest(&bangerv1.WaitVMRequest{Ref: id, States: states})))
	})
}

// overDaemons asks a daemon and, when that one ends meanwhile, the next one.
func (d *Deps) overDaemons(ctx context.Context, c *client.Client, ask func(context.Context, *client.Client) (*bangerv1.VM, error)) (m *bangerv1.VM, err error) {
	var next *client.Client
	defer func() { next.Close() }()
	for tries := 0; tries < rejoinTries; tries++ {
		began := time.Now()
		m, err = ask(ctx, c)
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !fault.Is(err, fault.Unavailable):
			return nil, err
		case time.Since(began) > rejoinEvery:
			tries = 0
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(rejoinEvery):
		}
		again, connectErr := d.Connect(ctx)
		switch {
		case connectErr == nil:
			next.Close()
			next, c = again, again
		case !fault.Is(connectErr, fault.Unavailable): // it may have ended just now
			return nil, connectErr
		}
	}
	return nil, err
}

func waitTimeout(m *bangerv1.VM, opts waitOptions) error {
	name, what := m.GetSpec().GetName(), "not running"
	if len(opts.states) > 0 {
		what = strings.Join(opts.states, " or ")
	}
	return fault.New(fault.Timeout, "vm %s did not come to be %s within %s", name, what, opts.timeout).WithHint("banger vm show %s", name)
}

func (d *Deps) answerWait(m *bangerv1.VM) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewVM(m, time.Now()))
	}
	return d.Term.Answer("%s", m.GetState())
}
