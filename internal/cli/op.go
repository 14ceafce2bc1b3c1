package cli

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/rpc"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// The states of an operation, as they are on the wire.
const (
	opRunning   = "running"
	opDone      = "done"
	opFailed    = "failed"
	opCancelled = "cancelled"
)

// opBuild is the kind of the operations that write a log.
const opBuild = "image.build"

// newOp is the group of the commands about operations.
func newOp(d *Deps) *cobra.Command {
	cmd := group("op", "Long-running jobs of the daemon",
		"List, watch and cancel the long-running jobs of the daemon: making VMs, pulling and building images, pulling kernels. Those\nthat have ended are remembered for a while.")
	cmd.Example = "  banger op list\n  banger op cancel 0123456789ab"
	cmd.AddCommand(newOpList(d), newOpWatch(d), newOpCancel(d))
	return cmd
}

type opView struct {
	ID        string        `json:"id"`
	Kind      string        `json:"kind"`
	Target    string        `json:"target,omitempty"`
	State     string        `json:"state"`
	Progress  *progressView `json:"progress,omitempty"`
	ResultID  string        `json:"result_id,omitempty"`
	Error     any           `json:"error,omitempty"`
	StartedAt *time.Time    `json:"started_at,omitempty"`
	EndedAt   *time.Time    `json:"ended_at,omitempty"`
}

type progressView struct {
	Stage   string `json:"stage"`
	Message string `json:"message,omitempty"`
	Done    uint64 `json:"done,omitempty"`
	Total   uint64 `json:"total,omitempty"`
	Unit    string `json:"unit,omitempty"`
}

func viewOp(op *bangerv1.Operation) opView {
	v := opView{
		ID: op.GetId(), Kind: op.GetKind(), Target: op.GetTarget(), State: op.GetState(), ResultID: op.GetResultId(),
		StartedAt: at(op.GetStartedAtMs()), EndedAt: at(op.GetEndedAtMs()),
	}
	if p := op.GetProgress(); p.GetStage() != "" {
		v.Progress = &progressView{p.GetStage(), p.GetMessage(), p.GetDone(), p.GetTotal(), p.GetUnit()}
	}
	if err := rpc.FromProto(op.GetFault()); err != nil {
		v.Error = term.FailureJSON(err)
	}
	return v
}

func newOpList(d *Deps) *cobra.Command {
	var quiet, running bool
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List operations", Long: "List operations, those that have ended included.",
		Example: "  banger op list\n  banger op list --running -q",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runOpList(cmd.Context(), quiet, running, d) },
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().BoolVar(&running, "running", false, "only those that have not ended")
	return cmd
}

func runOpList(ctx context.Context, quiet, running bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Operations.List(ctx, connect.NewRequest(&bangerv1.ListOperationsRequest{})))
	if err != nil {
		return err
	}
	var ops []*bangerv1.Operation
	for _, op := range resp.GetOperations() {
		if !running || op.GetState() == opRunning {
			ops = append(ops, op)
		}
	}
	switch {
	case d.Term.JSON():
		return d.Term.WriteJSON(views(ops, viewOp))
	case quiet:
		for _, op := range ops {
			if err := d.Term.Answer("%s", op.GetId()); err != nil {
				return err
			}
		}
		return nil
	}
	return d.Term.Table(opTable(ops, time.Now()))
}

func opTable(ops []*bangerv1.Operation, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "ID", Fixed: true}, {Title: "KIND", Fixed: true}, {Title: "TARGET"},
		{Title: "STATE", Fixed: true, Paint: term.PaintBy([]string{opDone}, []string{opRunning, opCancelled}, []string{opFailed})},
		{Title: "STARTED", Fixed: true, Rank: 1}, {Title: "TOOK", Right: true, Fixed: true}, {Title: "WHAT"},
	}}
	for _, op := range ops {
		end := now
		if op.GetEndedAtMs() > 0 {
			end = time.UnixMilli(op.GetEndedAtMs())
		}
		table.Rows = append(table.Rows, []string{
			op.GetId(), op.GetKind(), orDash(op.GetTarget()), op.GetState(), localTime(op.GetStartedAtMs()),
			term.FormatDuration(end.Sub(time.UnixMilli(op.GetStartedAtMs()))), orDash(opText(op)),
		})
	}
	return table
}

// opText is where an operation is, or how it ended.
func opText(op *bangerv1.Operation) string {
	switch p := op.GetProgress(); {
	case op.GetState() == opFailed:
		return op.GetFault().GetMessage()
	case op.GetState() != opRunning:
		return ""
	case p.GetTotal() > 0:
		return p.GetMessage() + " " + strconv.FormatUint(100*min(p.GetDone(), p.GetTotal())/p.GetTotal(), 10) + "%"
	case p.GetDone() > 0 && p.GetUnit() == "bytes":
		return p.GetMessage() + " " + vm.FormatSize(p.GetDone())
	default:
		return p.GetMessage()
	}
}

// oneOp wants the id of one operation.
func oneOp(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fault.New(fault.Invalid, "%s takes one operation, not %d", cmd.CommandPath(), len(args)).WithHint("%s --help", cmd.CommandPath())
	}
	return someOps(cmd, args)
}

func someOps(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fault.New(fault.Invalid, "%s needs the id of an operation", cmd.CommandPath()).WithHint("banger op list")
	}
	return noEmpty(cmd, args)
}

func newOpWatch(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Show an operation until it has ended",
		Long: `Show how far an operation is until it has ended, and the log of a build. The answer is what it made; the exit code of one
that failed is that of its failure. An interrupt (^C) ends the watching: the operation goes on.`,
		Example:           "  banger op watch 0123456789ab",
		Args:              oneOp,
		RunE:              func(cmd *cobra.Command, args []string) error { return runOpWatch(cmd.Context(), args[0], d) },
		ValidArgsFunction: completeOperations(d, false, false),
	}
}

func runOpWatch(ctx context.Context, id string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.watchOpLog(ctx, c, id)
	if ctx.Err() != nil && op.GetState() == opRunning {
		d.Term.Note("the operation goes on")
		d.Term.Hint("banger op cancel %s", id)
	}
	if op, err = ended(ctx, op, err); err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewOp(op))
	}
	return d.Term.Answer("%s", made(ctx, c, op))
}

// watchOp shows an operation until it has ended or ctx has, and returns the last that was heard of it.
func (d *Deps) watchOp(ctx context.Context, c *client.Client, id string) (op *bangerv1.Operation, err error) {
	show := d.Term.Progress()
	defer show.Close()
	return watchOn(ctx, c, &bangerv1.WatchOperationRequest{Id: id}, show)
}

// watchOpLog is watchOp with the log of an operation that writes one.
func (d *Deps) watchOpLog(ctx context.Context, c *client.Client, id string) (*bangerv1.Operation, error) {
	op, err := message(c.Operations.Get(ctx, connect.NewRequest(&bangerv1.GetOperationRequest{Id: id})))
	if err != nil || op.GetKind() != opBuild {
		return d.watchOp(ctx, c, id) // which tells what is wrong
	}
	show := d.Term.Progress()
	defer show.Close()
	return watchLogged(ctx, c, &bangerv1.WatchOperationRequest{Id: id}, show, newBuildLog(show).take)
}

// made is the name of what an operation has made.
func made(ctx context.Context, c *client.Client, op *bangerv1.Operation) string {
	switch op.GetKind() {
	case "vm.create":
		if m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: op.GetResultId()}))); err == nil {
			return m.GetSpec().GetName()
		}
	case "vm.fork":
		if all, err := clonesOf(ctx, c, op); err == nil {
			return strings.Join(namesOf(all), " ")
		}
	}
	return op.GetResultId()
}

func newOpCancel(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID...", Short: "Cancel operations",
		Long: `Cancel operations and wait until what they had done is taken back. A pull that another operation waits for as well goes
on for that one. An operation that has ended is left as it is, and refused.`,
		Example:           "  banger op cancel 0123456789ab",
		Args:              someOps,
		RunE:              func(cmd *cobra.Command, args []string) error { return runOpCancel(cmd.Context(), unique(args), d) },
		ValidArgsFunction: completeOperations(d, true, true),
	}
}

func runOpCancel(ctx context.Context, ids []string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var ops []*bangerv1.Operation
	var failures []error
	for _, id := range ids {
		op, err := d.cancelOp(ctx, c, id)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		ops = append(ops, op)
		if !d.Term.JSON() {
			if err := d.Term.Answer("%s", id); err != nil {
				return err
			}
		}
	}
	if d.Term.JSON() {
		if err := d.Term.WriteJSON(views(ops, viewOp)); err != nil {
			return err
		}
	}
	return d.several(failures)
}

// cancelOp cancels one operation and waits for its end.
func (d *Deps) cancelOp(ctx context.Context, c *client.Client, id string) (*bangerv1.Operation, error) {
	was, err := message(c.Operations.Get(ctx, connect.NewRequest(&bangerv1.GetOperationRequest{Id: id})))
	if err != nil {
		return nil, err
	}
	if was.GetState() == opRunning {
		if _, err := c.Operations.Cancel(ctx, connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})); err != nil {
			return nil, err
		}
	}
	now, err := d.watchOp(ctx, c, id)
	switch {
	case now.GetState() == opCancelled && was.GetState() == opRunning:
		return now, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case now.GetState() == opDone || now.GetState() == opFailed || now.GetState() == opCancelled:
		what := map[string]string{opDone: "is done", opFailed: "has failed", opCancelled: "is cancelled"}[now.GetState()]
		return nil, fault.New(fault.Conflict, "operation %s (%s %s) %s already", id, now.GetKind(), now.GetTarget(), what).WithHint("banger op list")
	case err != nil:
		return nil, rpc.FromConnect(err)
	}
	return nil, errors.Join(err, fault.New(fault.Unavailable, "the daemon went away while it worked").WithHint("banger daemon logs"))
}

// answerBegun prints the id of an operation that was begun, or all about it as JSON.
func (d *Deps) answerBegun(ctx context.Context, c *client.Client, id string) error {
	if !d.Term.JSON() {
		return d.Term.Answer("%s", id)
	}
	op, err := message(c.Operations.Get(ctx, connect.NewRequest(&bangerv1.GetOperationRequest{Id: id})))
	if err != nil {
		return err
	}
	return d.Term.WriteJSON(viewOp(op))
}
