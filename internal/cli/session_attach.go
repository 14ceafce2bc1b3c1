package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"banger/internal/term"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// attachBytes is how much of what a session has written is shown first.
const attachBytes = 64 << 10

// errDetached is the cause of the end of an attach by its keys.
var errDetached = errors.New("detached")

type attachOptions struct {
	args    []string
	keys    string
	noStdin bool
}

func newSessionAttach(d *Deps) *cobra.Command {
	var opts attachOptions
	cmd := &cobra.Command{
		Use:   "attach [flags] [VM] SESSION",
		Short: "Connect the terminal to a session",
		Long: `Connect the terminal to a session: what it wrote lately, and then what it writes; keys and the terminal's size go to it.
Several can be attached at once. ctrl-p ctrl-q detaches: the session goes on, as it does whatever becomes of banger. Of a
session without a terminal of its own, ^C detaches.

The VM may be left out if only one that runs has such a session. One that is suspended is resumed. If the session ends, its
exit code is banger's; if the VM is suspended meanwhile, it is 248.`,
		Example: `  banger session attach dev shell
  banger session attach --no-stdin build
  banger session attach --detach-keys ctrl-b,d dev shell`,
		Args: oneSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.args = args
			keys, err := parseDetachKeys(opts.keys)
			if err != nil {
				return err
			}
			return d.withSession(cmd.Context(), args, func(ctx context.Context, p place, sup *vmclient.Client) error {
				a := &attachment{d: d, place: p, label: p.session, keys: keys, keyNames: opts.keys, noStdin: opts.noStdin}
				return a.run(ctx, sup)
			})
		},
		ValidArgsFunction: completeSessions(d),
	}
	cmd.Flags().StringVar(&opts.keys, "detach-keys", defaultDetachKeys, `the keys that detach, such as ctrl-b,d; "" for none`)
	cmd.Flags().BoolVar(&opts.noStdin, "no-stdin", false, "only watch: send no keys and no size")
	complete(cmd, "detach-keys", cobra.NoFileCompletions)
	return cmd
}

// attachment is one run of attach.
type attachment struct {
	d *Deps
	place
	label    string // of the session
	keys     []byte
	keyNames string
	noStdin  bool

	raw   atomic.Bool // keys go to the session as they are
	modes *term.Modes
}

// run connects to the session and returns the exit code of its command as an error. The user's signals end the
// connection, not the session.
func (a *attachment) run(ctx context.Context, sup *vmclient.Client) error {
	d := a.d
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.modes = d.Term.Modes()
	exec := vmclient.Exec{
		Attach:   &bangerv1.SessionAttach{Session: a.session, Bytes: attachBytes, Lines: -1, Follow: true},
		Attached: a.attached, Dropped: a.dropped, Stdout: d.Term.Stdout(), Stderr: d.Term.Stderr(),
	}
	if d.Term.StdoutTTY() {
		exec.Stdout = a.modes
	}
	if !a.noStdin && d.Term.Foreground() {
		in, err := d.Term.Input()
		if err != nil {
			return err
		}
		defer in.Close()
		exec.Attach.Stdin, exec.Stdin, exec.StopStdin = true, a.reader(in, cancel), in.Stop
		if d.Term.Interactive() {
			exec.Attach.Size = terminalSize(d.Term)
		}
	}
	w := a.watchWindow()
	defer w.close()
	exec.Resizes = w.resizes
	code, err := sup.Exec(ctx, exec)
	a.leave()
	return a.outcome(ctx, code, err)
}

// reader is the user's input, with the keys that detach taken out of it.
func (a *attachment) reader(in io.Reader, cancel context.CancelCauseFunc) io.Reader {
	if len(a.keys) == 0 || !a.d.Term.InputTTY() {
		return in
	}
	return &detachReader{r: in, keys: a.keys, detach: func() { cancel(errDetached) }}
}

// attached is called before there is any output.
func (a *attachment) attached(s *bangerv1.Session) {
	d := a.d
	a.label = sessionLabel(s)
	switch {
	case !d.Term.Interactive() || s.GetExited() != nil:
		return
	case a.noStdin, !s.GetTty():
		d.Term.Note("attached to session %s of vm %s; ^C detaches", a.label, a.name())
		return
	case len(a.keys) > 0:
		d.Term.Note("attached to session %s of vm %s; %s detaches", a.label, a.name(), strings.ReplaceAll(a.keyNames, ",", " "))
	}
	if err := d.Term.Raw(); err == nil { // without it keys come line by line, which is better than nothing
		a.raw.Store(true)
	}
}

// dropped says in the middle of the output that some of it is missing.
func (a *attachment) dropped(n uint64) {
	text, eol := "banger: "+vm.FormatSize(n)+" of output are skipped", "\n"
	if a.raw.Load() {
		eol = "\r\n"
	}
	_, _ = fmt.Fprint(a.d.Term.Stderr(), eol, text, eol)
}

// leave gives the terminal back as a shell expects it.
func (a *attachment) leave() {
	if a.raw.Load() {
		a.modes.Reset()
	}
	a.d.Term.Restore()
}

// outcome is how it ended, for the user.
func (a *attachment) outcome(ctx context.Context, code int, err error) error {
	d, interrupt := a.d, interruptOf(ctx, err)
	switch {
	case err == nil:
		if d.Term.Interactive() {
			a.newLine()
			d.Term.Note("session %s of vm %s has ended with exit code %d", a.label, a.name(), code)
		}
		return exitWith(code, nil)
	case errors.Is(err, errDetached), interrupt != nil:
		a.newLine()
		d.Term.Note("detached; session %s of vm %s goes on", a.label, a.name())
		d.Term.Hint("banger session attach %s %s", a.name(), a.label)
		if interrupt != nil {
			return &exitError{code: interrupt.code()}
		}
		return nil
	}
	if a.raw.Load() {
		a.newLine()
	}
	return sessionOver(a.place, a.label, "attach", err)
}

// newLine ends the line in which the session's output or the echo of ^C has left the cursor.
func (a *attachment) newLine() {
	if a.d.Term.StdoutTTY() {
		_, _ = io.WriteString(a.d.Term.Stderr(), "\n")
	}
}

// watchWindow starts to tell of changes of the terminal's size. Being told of PIPE makes writes fail instead of ending the
// process, which has a terminal to put in order.
func (a *attachment) watchWindow() *sessionSignals {
	w := &sessionSignals{resizes: make(chan *bangerv1.TerminalSize, 1), done: make(chan struct{})}
	window, pipe := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(window, syscall.SIGWINCH, syscall.SIGCONT)
	signal.Notify(pipe, syscall.SIGPIPE)
	w.stop = []func(){func() { signal.Stop(window) }, func() { signal.Stop(pipe) }}
	w.wg.Go(func() {
		for {
			select {
			case <-w.done:
				return
			case sig := <-window:
				a.d.windowChanged(w, sig, a.raw.Load())
			}
		}
	})
	return w
}
