package cli

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

// atOnce is how many VMs a command works on at the same time.
const atOnce = 16

// result is what became of one VM of a command that takes several. It is an element of the JSON answer.
type result struct {
	Name  string  `json:"name"`
	OK    bool    `json:"ok"`
	VM    *vmView `json:"vm,omitempty"`
	Error any     `json:"error,omitempty"`
	err   error
}

// whichVMs says which VMs a command is about: those that are named or, with --all, every one that it fits.
type whichVMs struct {
	refs   []string
	all    bool
	states []string // that --all means; empty: any
}

func (w *whichVMs) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.all, "all", false, "all of them")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if !w.all {
			return someVMs(cmd, args)
		}
		if len(args) > 0 {
			return fault.New(fault.Invalid, "%s: --all and the name of a vm exclude each other", cmd.CommandPath()).
				WithHint("%s %s", cmd.CommandPath(), args[0])
		}
		return nil
	}
}

// list returns the names.
func (w *whichVMs) list(ctx context.Context, c *client.Client) ([]string, error) {
	if !w.all {
		return unique(w.refs), nil
	}
	resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: w.states})))
	if err != nil {
		return nil, err
	}
	names := views(resp.GetVms(), func(m *bangerv1.VM) string { return m.GetSpec().GetName() })
	slices.SortFunc(names, compareNames)
	return names, nil
}

// each does verb to every VM that is meant, several at a time, and answers with the names of those that it was done to.
// Failures are told one by one; the exit code is the first one's.
func (d *Deps) each(ctx context.Context, which whichVMs, verb func(context.Context, *client.Client, string) (*bangerv1.VM, error)) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	refs, err := which.list(ctx, c)
	if err != nil {
		return err
	}
	results := make([]result, len(refs))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, ref := range refs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			m, err := verb(ctx, c, ref)
			results[i] = resultOf(ref, m, err)
		})
	}
	wg.Wait()
	return d.answerEach(ctx, results)
}

func resultOf(ref string, m *bangerv1.VM, err error) result {
	if err != nil {
		return result{Name: ref, Error: term.FailureJSON(err), err: err}
	}
	r := result{Name: ref, OK: true}
	if name := m.GetSpec().GetName(); name != "" {
		r.Name = name
	}
	if m.GetState() != "" {
		view := viewVM(m, time.Now())
		r.VM = &view
	}
	return r
}

func (d *Deps) answerEach(ctx context.Context, results []result) error {
	var first error
	for _, r := range results {
		switch {
		case r.err != nil && first == nil:
			first = r.err
		case r.err == nil && !d.Term.JSON():
			if err := d.Term.Answer("%s", r.Name); err != nil {
				return err
			}
		}
	}
	if d.Term.JSON() {
		if err := d.Term.WriteJSON(results); err != nil {
			return err
		}
		return first
	}
	if len(results) == 1 || first == nil || interruptOf(ctx, first) != nil {
		return first
	}
	for _, r := range results {
		if r.err != nil {
			d.Term.Failure(r.err)
		}
	}
	return &exitError{code: codeOf(ctx, first)}
}

// unique returns refs without repetitions, in order.
func unique(refs []string) []string {
	var out []string
	for _, ref := range refs {
		if !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	return out
}

// message unwraps the answer to a call.
func message[T any](resp *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// several is the error of a command with these failures: all are told, one of them in JSON, and the first is the exit
// code.
func (d *Deps) several(failures []error) error {
	if len(failures) == 0 {
		return nil
	}
	first, last := failures[0], len(failures)-1
	if d.Term.JSON() || last == 0 {
		return first
	}
	for _, err := range failures[:last] {
		d.Term.Failure(err)
	}
	return &exitError{code: codeOf(context.Background(), first), err: failures[last]} // which Main tells
}
