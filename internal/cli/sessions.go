package cli

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// suspendedCode is the exit code of a command that followed a session when its VM was suspended: the session goes on.
const suspendedCode = 248

// askTimeout bounds what each VM may take to say what runs in it, when all of them are asked.
const askTimeout = 5 * time.Second

const sessionLong = `A session is a command in a VM that outlives whoever started it: it goes on when the terminal is closed, the daemon ends,
or the VM is suspended and resumed, until it ends by itself, is stopped, or the VM is. banger vm exec --detach starts one.`

// newSession is the group of the commands about sessions.
func newSession(d *Deps) *cobra.Command {
	cmd := group("session", "Commands in vms that outlive who started them", sessionLong)
	cmd.Example = `  banger vm exec --detach --tty --name shell dev
  banger session attach dev shell
  banger session list`
	cmd.AddCommand(newSessionList(d), newSessionAttach(d), newSessionLogs(d), newSessionSend(d), newSessionWait(d), newSessionStop(d), newSessionRemove(d))
	return cmd
}

type sessionView struct {
	VM         string     `json:"vm"`
	ID         string     `json:"id"`
	Name       string     `json:"name,omitempty"`
	State      string     `json:"state"` // "running", "ended"
	Command    []string   `json:"command"`
	User       string     `json:"user,omitempty"`
	Workdir    string     `json:"workdir,omitempty"`
	TTY        bool       `json:"tty"`
	Stdin      bool       `json:"stdin"`
	PID        int32      `json:"pid"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	EndedAt    *time.Time `json:"ended_at,omitempty"`
	ExitCode   *int32     `json:"exit_code,omitempty"`
	Signal     string     `json:"signal,omitempty"`
	Attached   int32      `json:"attached"`
	OutputSize uint64     `json:"output_bytes"`
}

func viewSession(vmName string, s *bangerv1.Session) sessionView {
	view := sessionView{
		VM: vmName, ID: s.GetId(), Name: s.GetName(), State: "running", Command: append([]string{}, s.GetArgv()...), User: s.GetUser(), Workdir: s.GetWorkdir(),
		TTY: s.GetTty(), Stdin: s.GetStdin(), PID: s.GetPid(), StartedAt: at(s.GetStartedAtMs()), EndedAt: at(s.GetEndedAtMs()),
		Attached: s.GetAttached(), OutputSize: s.GetOutputBytes(),
	}
	if e := s.GetExited(); e != nil {
		code := e.GetCode()
		view.State, view.ExitCode, view.Signal = "ended", &code, e.GetSignal()
	}
	return view
}

// sessionLabel is what people call a session.
func sessionLabel(s *bangerv1.Session) string { return cmp.Or(s.GetName(), s.GetId()) }

// place is a session and where its VM's supervisor listens.
type place struct {
	vm      *bangerv1.VM
	socket  string
	session string // as the user called it
}

func (p place) name() string { return p.vm.GetSpec().GetName() }

// fault makes of err what people are to be told.
func (p place) fault(err error) error { return vmclient.OldVM(p.name(), err) }

// oneSession wants the name of a session, and perhaps that of its VM before it.
func oneSession(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fault.New(fault.Invalid, "%s needs the name of a session", cmd.CommandPath()).WithHint("banger session list")
	case len(args) > 2:
		return fault.New(fault.Invalid, "%s takes a vm and a session, not %d names", cmd.CommandPath(), len(args)).WithHint("%s --help", cmd.CommandPath())
	}
	return noEmpty(cmd, args)
}

// locate finds the session that args name: a VM and a session, or a session that only one of the VMs that run has. A VM that
// is named and suspended is resumed.
func (d *Deps) locate(ctx context.Context, c *client.Client, args []string) (place, error) {
	if len(args) == 1 {
		return d.search(ctx, c, args[0])
	}
	where, err := endpoint(ctx, c, args[0])
	if err != nil {
		return place{}, err
	}
	return place{where.GetVm(), where.GetSocket(), args[1]}, nil
}

// vmSessions is what a VM has answered.
type vmSessions struct {
	place
	sessions []*bangerv1.Session
	err      error
}

// allSessions asks every VM that runs. The VMs are in the order of their names.
func (d *Deps) allSessions(ctx context.Context, c *client.Client) ([]vmSessions, error) {
	resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: []string{string(vm.Running)}})))
	if err != nil {
		return nil, err
	}
	out := make([]vmSessions, len(resp.GetVms()))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, m := range resp.GetVms() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = sessionsOf(ctx, c, m)
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b vmSessions) int { return compareNames(a.name(), b.name()) })
	return out, context.Cause(ctx)
}

// sessionsOf asks one VM, which is not resumed for that.
func sessionsOf(ctx context.Context, c *client.Client, m *bangerv1.VM) vmSessions {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	out := vmSessions{place: place{vm: m}}
	where, err := message(c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: m.GetId()})))
	if err != nil || where.GetSocket() == "" { // it has just ended
		out.err = err
		return out
	}
	out.socket = where.GetSocket()
	sup := vmclient.New(out.socket)
	defer sup.Close()
	out.sessions, err = sup.Sessions(ctx)
	out.err = out.fault(err)
	return out
}

// search finds the one VM that runs and has a session called ref.
func (d *Deps) search(ctx context.Context, c *client.Client, ref string) (place, error) {
	all, err := d.allSessions(ctx, c)
	if err != nil {
		return place{}, err
	}
	var exact, begin []place
	var names, vms, failed []string
	for _, v := range all {
		vms = append(vms, v.name())
		if v.err != nil {
			failed = append(failed, v.name())
		}
		is, begins := false, false
		for _, s := range v.sessions {
			names = append(names, s.GetName())
			is = is || s.GetId() == ref || s.GetName() == ref
			begins = begins || strings.HasPrefix(s.GetName(), ref)
		}
		if is {
			exact = append(exact, place{v.vm, v.socket, ref})
		}
		if begins {
			begin = append(begin, place{v.vm, v.socket, ref})
		}
	}
	found := exact
	if len(exact) == 0 {
		found = begin
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		in := make([]string, 0, len(found))
		for _, p := range found {
			in = append(in, p.name())
		}
		return place{}, fault.New(fault.Invalid, "session %q is ambiguous: these vms have one: %s", ref, strings.Join(in, ", ")).
			WithHint("banger session attach %s %s", in[0], ref)
	case slices.Contains(vms, ref):
		return place{}, fault.New(fault.Invalid, "%s is a vm: name one of its sessions, too", ref).WithHint("banger session list %s", ref)
	}
	f := fault.New(fault.NotFound, "no vm that runs has a session %q", ref).WithHint("banger session list")
	near, silent := nearest.Of(ref, names), silentVMs(ctx, c)
	switch {
	case near != "":
		f.Message += ", did you mean " + near + "?"
	case len(failed) > 0:
		f.Message += "; these did not say what they have: " + strings.Join(failed, ", ")
	case len(silent) > 0:
		f.Message += "; not asked: " + strings.Join(silent, ", ")
		name, _, _ := strings.Cut(silent[0], " ")
		return place{}, f.WithHint("banger session list %s", name)
	}
	return place{}, f
}

// silentVMs are the names of the VMs that may have sessions but cannot say so, with their states.
func silentVMs(ctx context.Context, c *client.Client) (names []string) {
	states := []string{string(vm.Suspended), string(vm.Paused)}
	resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: states})))
	if err != nil {
		return nil
	}
	for _, m := range resp.GetVms() {
		names = append(names, m.GetSpec().GetName()+" ("+m.GetState()+")")
	}
	slices.SortFunc(names, compareNames)
	return names
}

// withSession runs fn with the session that args name.
func (d *Deps) withSession(ctx context.Context, args []string, fn func(context.Context, place, *vmclient.Client) error) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := d.locate(ctx, c, args)
	if err != nil {
		return err
	}
	sup := vmclient.New(p.socket)
	defer sup.Close()
	err = p.fault(fn(ctx, p, sup))
	if fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
		err = d.whyGone(ctx, c, &bangerv1.VM{Id: p.vm.GetId(), Spec: p.vm.GetSpec()}, err)
	}
	return err
}

// sessionOver is what ended the following of a session before the session was seen to end: err, nil if nothing did.
func sessionOver(p place, label, verb string, err error) error {
	over, ok := errors.AsType[*vmclient.OverError](err)
	switch {
	case !ok:
		if notStarted, ok := errors.AsType[*vmclient.NotStartedError](err); ok {
			return notStarted.Err
		}
		return err
	case over.Why == "read":
		return nil
	case over.Why == "suspended":
		return &exitError{suspendedCode, fault.New(fault.Conflict, "vm %s was suspended; its session %s goes on when it is resumed", p.name(), label).
			WithHint("banger session %s %s %s", verb, p.name(), label)}
	}
	return fault.New(fault.NotFound, "session %s of vm %s was %s", label, p.name(), over.Why).WithHint("banger session list %s", p.name())
}

// completeSessions completes "[VM] SESSION": VMs and sessions that only one of them has, then the sessions of the VM.
func completeSessions(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return ask(cmd, d, func(ctx context.Context, c *client.Client) (out []string) {
			all, err := d.allSessions(ctx, c)
			if err != nil {
				return nil
			}
			for _, v := range all {
				if len(args) == 0 {
					out = append(out, cobra.CompletionWithDesc(v.name(), "vm"))
				} else if v.name() != args[0] {
					continue
				}
				for _, s := range v.sessions {
					if s.GetName() != "" || len(args) > 0 {
						out = append(out, cobra.CompletionWithDesc(sessionLabel(s), sessionText(s)))
					}
				}
			}
			return out
		}), cobra.ShellCompDirectiveNoFileComp
	}
}
