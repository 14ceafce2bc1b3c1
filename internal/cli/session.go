package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// ttyFlags say whether the guest's command gets a terminal.
type ttyFlags struct{ force, forbid bool }

func (f *ttyFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.force, "tty", "t", false, "give the command a terminal (default: when banger has one)")
	cmd.Flags().BoolVarP(&f.forbid, "no-tty", "T", false, "give the command no terminal")
}

func (f *ttyFlags) check() error {
	if f.force && f.forbid {
		return fault.New(fault.Invalid, "--tty and --no-tty exclude each other")
	}
	return nil
}

// session is a command in a guest, connected to the user's terminal or to whatever stands in its place.
type session struct {
	socket string // of the VM's supervisor
	argv   []string
	env    []string
	user   string
	dir    string
	tty    ttyFlags
	endsVM bool // the VM is there for this command only
}

// endpoint returns where the VM's supervisor listens. A VM that does not run is a fault of class Conflict.
func endpoint(ctx context.Context, c *client.Client, ref string) (*bangerv1.EndpointResponse, error) {
	resp, err := c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: ref, Resume: true}))
	if err != nil {
		return nil, err
	}
	if resp.Msg.GetSocket() == "" {
		name := resp.Msg.GetVm().GetSpec().GetName()
		return nil, fault.New(fault.Conflict, "vm %s is %s", name, resp.Msg.GetVm().GetState()).WithHint("banger vm start %s", name)
	}
	return resp.Msg, nil
}

// attach runs the session and returns the exit code of its command.
//
// With a terminal every key is a byte for the guest, and TERM and HUP end the session. Without one INT, TERM and HUP are
// passed on to the command; the second one ends the session. A background job does not touch the terminal's input.
func (d *Deps) attach(ctx context.Context, s session) (int, error) {
	foreground := d.Term.Foreground()
	start := &bangerv1.ExecStart{
		Argv: s.argv, User: s.user, Workdir: s.dir, Env: s.env, Stdin: foreground, EndsVm: s.endsVM,
		Tty: s.tty.force || (d.Term.Interactive() && !s.tty.forbid),
	}
	raw := start.GetTty() && foreground && d.Term.InputTTY()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	exec := vmclient.Exec{Start: start, Stdout: d.Term.Stdout(), Stderr: d.Term.Stderr()}
	if foreground {
		in, err := d.Term.Input()
		if err != nil {
			return 0, err
		}
		defer in.Close()
		exec.Stdin, exec.StopStdin = in, in.Stop
	}
	if start.GetTty() {
		d.addTerminal(start)
	}
	if raw {
		if err := d.Term.Raw(); err != nil {
			return 0, fault.Wrap(fault.Internal, err, "switch the terminal to raw mode")
		}
		defer d.Term.Restore()
	}
	w := d.watchSignals(cancel, raw)
	defer w.close()
	exec.Resizes, exec.Signals = w.resizes, w.forward
	sup := vmclient.New(s.socket)
	defer sup.Close()
	code, err := sup.Exec(ctx, exec)
	return code, sessionError(err)
}

// addTerminal tells the guest what kind of terminal there is.
func (d *Deps) addTerminal(start *bangerv1.ExecStart) {
	start.Size = terminalSize(d.Term)
	for _, name := range []string{"TERM", "COLORTERM"} {
		if value, ok := d.LookupEnv(name); ok && value != "" {
			start.Env = append([]string{name + "=" + value}, start.GetEnv()...) // what the user gave comes last and wins
		}
	}
}

func terminalSize(t *term.Term) *bangerv1.TerminalSize {
	rows, cols, ok := t.Size()
	if !ok {
		rows, cols = 24, 80
	}
	return &bangerv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)} //nolint:gosec // sizes of a terminal are 16 bit
}

// The exit codes with which shells tell that a command could not be started.
const (
	notExecutableCode = 126
	notFoundCode      = 127
)

// sessionError gives failures to start a command the exit codes that shells use.
func sessionError(err error) error {
	if notStarted, ok := errors.AsType[*vmclient.NotStartedError](err); ok {
		switch fault.ClassOf(err) {
		case fault.NotFound:
			return &exitError{notFoundCode, notStarted.Err}
		case fault.Denied:
			return &exitError{notExecutableCode, notStarted.Err}
		}
		return notStarted.Err
	}
	return err
}

// sessionSignals is what signals become during a session.
type sessionSignals struct {
	resizes chan *bangerv1.TerminalSize
	forward chan string
	done    chan struct{}
	wg      sync.WaitGroup
	stop    []func()
}

func (w *sessionSignals) close() {
	for _, stop := range w.stop {
		stop()
	}
	close(w.done)
	w.wg.Wait()
}

// watchSignals starts to turn signals into messages for the guest or into the end of the session.
func (d *Deps) watchSignals(cancel context.CancelCauseFunc, raw bool) *sessionSignals {
	w := &sessionSignals{resizes: make(chan *bangerv1.TerminalSize, 1), forward: make(chan string, 8), done: make(chan struct{})}
	taken, release := d.Signals.Take()
	// Being told of PIPE makes writes fail instead of ending the process, which has things to put in order first.
	window, pipe := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(window, syscall.SIGWINCH, syscall.SIGCONT)
	signal.Notify(pipe, syscall.SIGPIPE)
	w.stop = []func(){release, func() { signal.Stop(window) }, func() { signal.Stop(pipe) }}
	w.wg.Go(func() {
		got := 0
		for {
			select {
			case <-w.done:
				return
			case sig := <-window:
				d.windowChanged(w, sig, raw)
			case sig := <-taken:
				if got++; raw || got > 1 {
					cancel(&Interrupted{sig})
					continue
				}
				w.forward <- signalNames[sig]
			}
		}
	})
	return w
}

// windowChanged sends the size on, the newest one only. After a stop (SIGCONT) the terminal has the shell's modes.
func (d *Deps) windowChanged(w *sessionSignals, sig os.Signal, raw bool) {
	if !raw || (sig == syscall.SIGCONT && !d.Term.Foreground()) {
		return
	}
	if sig == syscall.SIGCONT {
		_ = d.Term.Raw() // if it cannot be had the session goes on in the shell's mode
	}
	select {
	case <-w.resizes:
	default:
	}
	w.resizes <- terminalSize(d.Term)
}
