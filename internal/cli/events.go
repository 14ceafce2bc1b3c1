package cli

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/rpc"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

type eventsOptions struct {
	ref    string
	follow bool
	tail   int
}

func newEvents(d *Deps) *cobra.Command {
	var opts eventsOptions
	cmd := &cobra.Command{
		Use:   "events [flags] [NAME]",
		Short: "Show what happened",
		Long: `Show what happened to VMs, images and kernels, or to one VM, the newest last. The history is bounded.

--follow goes on with what happens from now on, until it is interrupted. It outlives the daemon: when another one is
there it takes up where it was, and misses nothing. With --format json each event is one line of JSON.`,
		Example: "  banger events\n  banger events --follow\n  banger events --tail 20 dev\n  banger events --follow --format json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneVM(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				opts.ref = args[0]
			}
			if opts.tail < 0 {
				return fault.New(fault.Invalid, "%d events are not possible", opts.tail).WithHint("%s --tail 20", cmd.CommandPath())
			}
			return runEvents(cmd.Context(), opts, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	cmd.Flags().BoolVarP(&opts.follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().IntVarP(&opts.tail, "tail", "n", 100, "how many of the last events; 0: all that are kept")
	complete(cmd, "tail", cobra.NoFileCompletions)
	return cmd
}

type eventView struct {
	Seq      int64      `json:"seq"`
	At       *time.Time `json:"at"`
	Kind     string     `json:"kind"`
	ObjectID string     `json:"object_id,omitempty"`
	Object   string     `json:"object,omitempty"`
	Message  string     `json:"message,omitempty"`
}

func viewEvent(e *bangerv1.Event) eventView {
	return eventView{e.GetSeq(), at(e.GetAtMs()), e.GetKind(), e.GetObjectId(), e.GetObject(), e.GetMessage()}
}

func runEvents(ctx context.Context, opts eventsOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	f := follower{d: d, c: c, opts: opts, out: d.eventWriter()}
	defer func() { f.c.Close() }()
	resp, err := message(c.Events.List(ctx, connect.NewRequest(&bangerv1.ListEventsRequest{
		Ref: opts.ref, Limit: int32(min(opts.tail, 1<<20)), //nolint:gosec // bounded
	})))
	if err != nil {
		return err
	}
	events := resp.GetEvents()
	if len(events) == 0 && opts.ref != "" { // of a VM that is gone there may be events, of one that never was there are none
		if _, err := f.c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: opts.ref})); fault.Is(err, fault.NotFound) {
			return err
		}
	}
	for _, e := range events {
		if err := f.out(e); err != nil {
			return err
		}
		f.last = max(f.last, e.GetSeq())
	}
	if !opts.follow {
		return nil
	}
	return endOfLog(ctx, f.run(ctx))
}

// eventWriter returns what prints one event: as a line of JSON, or as a row that fits the terminal.
func (d *Deps) eventWriter() func(*bangerv1.Event) error {
	if d.Term.JSON() {
		return func(e *bangerv1.Event) error { return d.Term.WriteJSONLine(viewEvent(e)) }
	}
	rows := d.Term.Rows([]term.Column{
		{Title: "TIME", Least: len("2006-01-02 15:04:05")}, {Title: "EVENT", Least: 12, Paint: paintEvent}, {Title: "WHAT", Least: 8}, {Title: "MESSAGE"},
	})
	return func(e *bangerv1.Event) error {
		what := e.GetObject()
		if what == "" {
			what = e.GetObjectId()
		}
		return rows.Row(localTime(e.GetAtMs()), e.GetKind(), orDash(what), e.GetMessage())
	}
}

// paintEvent colours events that people look for.
func paintEvent(kind string) string {
	return term.PaintBy([]string{"vm.running"}, []string{"vm.stopped", "vm.removed"}, []string{"vm.failed"})(kind)
}

// follower follows events over the ends of daemons.
type follower struct {
	d    *Deps
	c    *client.Client
	opts eventsOptions
	out  func(*bangerv1.Event) error
	last int64 // number of the newest event that was printed
}

// outputError is a failure to print: the end of the following.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

func (f *follower) run(ctx context.Context) error {
	for {
		err := f.watch(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var output *outputError
		if errors.As(err, &output) || err != nil && !cut(err) {
			return err
		}
		if err := f.rejoin(ctx, err); err != nil {
			return err
		}
	}
}

// cut reports whether err may be what a stream looks like whose daemon has ended.
func cut(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Internal) || fault.Is(err, fault.Cancelled)
}

// watch prints events until the stream ends.
func (f *follower) watch(ctx context.Context) error {
	stream, err := f.c.Events.Watch(ctx, connect.NewRequest(&bangerv1.WatchEventsRequest{Ref: f.opts.ref, After: f.last, History: true}))
	if err != nil {
		return rpc.FromConnect(err)
	}
	defer stream.Close()
	for stream.Receive() {
		e := stream.Msg()
		if err := f.out(e); err != nil {
			return &outputError{err}
		}
		f.last = max(f.last, e.GetSeq())
	}
	return rpc.FromConnect(stream.Err())
}

// rejoin waits for the next daemon; it starts none: whoever stopped it may have meant it. cause is why the last one
// does not answer any more. A daemon whose events have smaller numbers has a new history, of which all is news.
func (f *follower) rejoin(ctx context.Context, cause error) error {
	before, told := f.c.PID, false
	f.c.Close()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(rejoinEvery):
		}
		c, err := f.d.Attach(ctx)
		if err != nil {
			if !told && !errors.Is(err, client.ErrNotRunning) && !fault.Is(err, fault.Unavailable) {
				return err
			}
			if !told {
				f.d.Term.Note("the daemon has ended; waiting for the next one")
				told = true
			}
			continue
		}
		f.c = c
		status, err := message(c.Daemon.Status(ctx, connect.NewRequest(&bangerv1.StatusRequest{})))
		if err != nil {
			c.Close()
			continue
		}
		if int(status.GetPid()) == before && cause != nil && !fault.Is(cause, fault.Unavailable) {
			return cause // it is there: it means what it says
		}
		c.PID = int(status.GetPid())
		newest, err := message(c.Events.List(ctx, connect.NewRequest(&bangerv1.ListEventsRequest{Limit: 1})))
		if err != nil {
			c.Close()
			continue
		}
		if events := newest.GetEvents(); len(events) > 0 && events[len(events)-1].GetSeq() < f.last {
			f.last = 0
		}
		return nil
	}
}
