// Package cli is the command line: one file per command, each of them flags, an options struct, and a run function that
// gets a context, the options and what it depends on.
//
// Commands talk to the daemon through package client and to the user through package term; nothing else here touches a
// socket or a standard stream. A command's answer goes to stdout and everything else to stderr; failures are faults,
// whose class is the exit code (see exitcodes.go). The commands that run something in a guest exit with the code of
// what they ran.
package cli

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/paths"
	"banger/internal/preflight"
	"banger/internal/term"
	"banger/internal/userunit"
)

// Deps is what commands depend on. All of it is made by the composition root.
type Deps struct {
	Term      *term.Term
	Signals   *Signals // nil: signals are not handled
	Paths     paths.Paths
	Version   Version
	LookupEnv func(string) (string, bool)

	// Connect returns a client of the user's daemon and starts one if need be. Attach returns one of the daemon that
	// runs, or client.ErrNotRunning.
	Connect func(context.Context) (*client.Client, error)
	Attach  func(context.Context) (*client.Client, error)
	// Stop ends the daemon behind a client and waits until it is gone.
	Stop func(context.Context, *client.Client) error

	// Unit says what the daemon is as a service of the user.
	Unit func() (userunit.Config, error)

	// Doctor checks the host. Daemon and Supervisor are the other roles of the program; they return when ctx ends.
	Doctor     func(context.Context) []preflight.Result
	Daemon     func(context.Context) error
	Supervisor func(ctx context.Context, dir string) error
}

// Main runs the command line args (without the program's name) and returns the exit code.
func Main(ctx context.Context, args []string, d *Deps) int {
	defer d.Term.Close()
	root := newRoot(d)
	root.SetArgs(args)
	root.SetOut(d.Term.Stdout())
	root.SetErr(d.Term.Stderr())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		preferJSON(d, args)
		return flagError(cmd, err)
	})
	return d.finish(ctx, root.ExecuteContext(ctx))
}

// exitError carries an exit code that is not the class's own. err may be nil: then there is nothing to say.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit"
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// finish tells the user what err is and returns the exit code for it.
func (d *Deps) finish(ctx context.Context, err error) int {
	d.Term.Close()
	code := codeOf(ctx, err)
	exit, ok := errors.AsType[*exitError](err)
	if err == nil || (ok && exit.err == nil) || errors.Is(err, syscall.EPIPE) {
		return code
	}
	if interrupt := interruptOf(ctx, err); interrupt != nil {
		err = interrupt
	}
	d.Term.Failure(err)
	return code
}

// codeOf is the exit code for err.
func codeOf(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.code
	}
	if interrupt := interruptOf(ctx, err); interrupt != nil {
		return interrupt.code()
	}
	if errors.Is(err, syscall.EPIPE) { // whoever read our output is gone
		return 128 + int(syscall.SIGPIPE)
	}
	return fault.ExitCode(fault.ClassOf(err))
}

// interruptOf returns the signal that err is about, nil if it is about something else.
func interruptOf(ctx context.Context, err error) *Interrupted {
	if interrupt, ok := errors.AsType[*Interrupted](err); ok {
		return interrupt
	}
	if fault.Is(err, fault.Cancelled) {
		if interrupt, ok := errors.AsType[*Interrupted](context.Cause(ctx)); ok {
			return interrupt
		}
	}
	return nil
}

// flagError makes a fault of what the flag parser says, with the nearest flag for an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	f := fault.New(fault.Invalid, "%s: %s", cmd.CommandPath(), err)
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && len(unknown.GetSpecifiedName()) > 1 {
		f.Message = cmd.CommandPath() + ": unknown flag --" + unknown.GetSpecifiedName()
		var names []string
		cmd.Flags().VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
		if near := nearest.Of(unknown.GetSpecifiedName(), names); near != "" {
			f.Message += ", did you mean --" + near + "?"
		}
	}
	return f.WithHint("%s --help", cmd.CommandPath())
}

// preferJSON looks for --format json in a command line that cannot be parsed, so that the failure is JSON too.
func preferJSON(d *Deps, args []string) {
	for i, arg := range args {
		switch {
		case arg == "--":
			return
		case arg == "--format=json", arg == "--format" && i+1 < len(args) && args[i+1] == "json":
			d.Term.SetFormat(term.FormatJSON)
		}
	}
}

// noArgs refuses positional arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fault.New(fault.Invalid, "%s takes no argument %q", cmd.CommandPath(), args[0]).
			WithHint("%s --help", cmd.CommandPath())
	}
	return nil
}

// someVMs wants the names of VMs, one at least.
func someVMs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fault.New(fault.Invalid, "%s needs the name of a vm", cmd.CommandPath()).WithHint("banger vm list")
	}
	return noEmpty(cmd, args)
}

// noEmpty refuses empty arguments: they are unset variables of a script.
func noEmpty(cmd *cobra.Command, args []string) error {
	for _, arg := range args {
		if arg == "" {
			return fault.New(fault.Invalid, "%s: a name is empty", cmd.CommandPath()).WithHint("%s --help", cmd.CommandPath())
		}
	}
	return nil
}

// oneVM wants the name of one VM.
func oneVM(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fault.New(fault.Invalid, "%s takes one vm, not %d", cmd.CommandPath(), len(args)).WithHint("%s --help", cmd.CommandPath())
	}
	return someVMs(cmd, args)
}
