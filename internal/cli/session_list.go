package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

func newSessionList(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "list [VM]", Aliases: []string{"ls"}, Short: "List sessions",
		Long: `List the sessions of a VM, or of all VMs that run: those that run and the last ones that have ended, which are kept until
"banger session rm" or the end of the VM. A VM that is named and suspended is resumed.`,
		Example: "  banger session list\n  banger session list dev --format json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fault.New(fault.Invalid, "%s takes one vm, not %d", cmd.CommandPath(), len(args)).WithHint("%s --help", cmd.CommandPath())
			}
			return noEmpty(cmd, args)
		},
		RunE:              func(cmd *cobra.Command, args []string) error { return runSessionList(cmd.Context(), args, d) },
		ValidArgsFunction: completeOneVM(d, "running", "suspended"),
	}
}

func runSessionList(ctx context.Context, args []string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var all []vmSessions
	if len(args) == 1 {
		one, err := d.sessionsOfOne(ctx, c, args[0])
		if err != nil {
			return err
		}
		all = append(all, one)
	} else if all, err = d.allSessions(ctx, c); err != nil {
		return err
	}
	if d.Term.JSON() {
		views := []sessionView{}
		for _, v := range all {
			for _, s := range v.sessions {
				views = append(views, viewSession(v.name(), s))
			}
		}
		if err := d.Term.WriteJSON(views); err != nil {
			return err
		}
	} else if err := d.Term.Table(sessionTable(all, time.Now())); err != nil {
		return err
	}
	var failures []error
	for _, v := range all {
		switch {
		case v.err == nil:
		case len(args) == 0 && fault.Is(v.err, fault.Conflict): // it has none, or cannot say so now
			d.Term.Note("%s", v.err)
		default:
			failures = append(failures, v.err)
		}
	}
	if len(args) == 0 {
		if names := silentVMs(ctx, c); len(names) > 0 {
			d.Term.Note("not asked: %s", strings.Join(names, ", "))
		}
	}
	return d.several(failures)
}

// sessionsOfOne asks the VM called ref, which is resumed if need be.
func (d *Deps) sessionsOfOne(ctx context.Context, c *client.Client, ref string) (vmSessions, error) {
	where, err := endpoint(ctx, c, ref)
	if err != nil {
		return vmSessions{}, err
	}
	v := vmSessions{place: place{vm: where.GetVm(), socket: where.GetSocket()}}
	sup := vmclient.New(v.socket)
	defer sup.Close()
	v.sessions, err = sup.Sessions(ctx)
	return v, v.fault(err)
}

func sessionTable(all []vmSessions, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "VM"}, {Title: "ID", Right: true, Fixed: true}, {Title: "NAME"},
		{Title: "STATE", Fixed: true, Paint: term.PaintBy([]string{"running"}, nil, nil)},
		{Title: "STARTED", Fixed: true, Rank: 1}, {Title: "TTY", Fixed: true, Rank: 3}, {Title: "ATTACHED", Right: true, Fixed: true, Rank: 2}, {Title: "COMMAND"},
	}}
	for _, v := range all {
		for _, s := range v.sessions {
			tty, attached := "no", "-"
			if s.GetTty() {
				tty = "yes"
			}
			if s.GetAttached() > 0 {
				attached = strconv.Itoa(int(s.GetAttached()))
			}
			table.Rows = append(table.Rows, []string{
				v.name(), s.GetId(), orDash(s.GetName()), sessionState(s), age(max(now.Sub(time.UnixMilli(s.GetStartedAtMs())), 0)) + " ago",
				tty, attached, sessionText(s),
			})
		}
	}
	return table
}

// sessionState is running, or how it ended.
func sessionState(s *bangerv1.Session) string {
	e := s.GetExited()
	switch {
	case e == nil:
		return "running"
	case e.GetSignal() != "":
		return "ended (" + e.GetSignal() + ")"
	}
	return "ended (" + strconv.Itoa(int(e.GetCode())) + ")"
}

// sessionText is the command line of a session.
func sessionText(s *bangerv1.Session) string {
	if len(s.GetArgv()) == 0 {
		return "login shell"
	}
	return strings.Join(strings.Fields(strings.Join(s.GetArgv(), " ")), " ") // a script has lines
}
