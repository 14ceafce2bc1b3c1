package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/term"
)

const rootLong = `banger runs virtual machines that start in seconds: each with its own kernel, disk and network.

A VM is made, entered and removed with one command:

  banger vm run --rm

The daemon that looks after the VMs starts by itself. It needs no root.`

// newRoot is the whole command tree.
func newRoot(d *Deps) *cobra.Command {
	root := group("banger", "Virtual machines in one command", rootLong)
	root.Example = "  banger vm run\n  banger vm run --rm -- uname -a\n  banger vm list"
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = d.Version.Version // for those who try --version
	root.SetVersionTemplate("banger {{.Version}}\n")
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.PersistentFlags().Var(&formatFlag{d: d}, "format", "how to print the answer: table or json")
	complete(root, "format", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return term.Formats, cobra.ShellCompDirectiveNoFileComp
	})
	root.AddGroup(&cobra.Group{ID: "short", Title: "Short cuts:"}, &cobra.Group{ID: "noun", Title: "Commands:"})
	for _, cmd := range []*cobra.Command{newRun(d), newList(d, "ps"), newExec(d), newSSH(d)} {
		cmd.GroupID = "short"
		root.AddCommand(cmd)
	}
	for _, cmd := range []*cobra.Command{
		newVM(d), newSession(d), newImage(d), newKernel(d), newTemplate(d), newSnapshot(d), newOp(d), newEvents(d), newConfig(d), newDaemon(d),
		newFsck(d), newDoctor(d), newVersion(d),
	} {
		cmd.GroupID = "noun"
		root.AddCommand(cmd)
	}
	root.AddCommand(newSupervisor(d), newExitCodes())
	root.SetCompletionCommandGroupID("noun")
	root.SetHelpCommand(newHelp())
	root.InitDefaultCompletionCmd()
	return root
}

// newVM is the group of the commands about VMs.
func newVM(d *Deps) *cobra.Command {
	cmd := group("vm", "Make, use and remove virtual machines", "Make, use and remove virtual machines.")
	cmd.Example = "  banger vm run --name dev\n  banger vm exec dev -- make test\n  banger vm rm --force dev"
	cmd.AddCommand(newRun(d), newCreate(d), newStart(d), newStop(d), newKill(d), newRestart(d), newPause(d), newUnpause(d), newSuspend(d), newResume(d), newFork(d),
		newSnapshotVM(d), newRestore(d), newRewind(d),
		newRemove(d), newList(d, "list"), newShow(d), newSet(d), newRename(d), newReset(d), newWait(d), newStats(d), newPorts(d),
		newLogs(d), newExec(d), newSSH(d))
	return cmd
}

// group is a command that only holds others. Alone it prints its help.
func group(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
}

// unknownCommand refuses a word that is no command and names the nearest one.
func unknownCommand(cmd *cobra.Command, word string) error {
	f := fault.New(fault.Invalid, "unknown command %q for %q", word, cmd.CommandPath())
	if near := nearest.Of(word, visible(cmd)); near != "" {
		f.Message += ", did you mean " + near + "?"
		return f.WithHint("%s %s --help", cmd.CommandPath(), near)
	}
	return f.WithHint("%s --help", cmd.CommandPath())
}

// newHelp is "banger help", which unlike cobra's own fails for what it does not know.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Help about a command", GroupID: "noun",
		Long:    "Print the help of a command. It is the same as COMMAND --help.",
		Example: "  banger help vm run\n  banger help exit-codes",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(found, args[len(args)-max(len(rest), 1)])
			}
			return found.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return visible(found), cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// visible are the names of the commands below cmd that people see.
func visible(cmd *cobra.Command) (names []string) {
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return names
}

// formatFlag is --format. It takes effect while the command line is parsed, so that what is wrong further on is
// reported in that format.
type formatFlag struct{ d *Deps }

// String is the present value.
func (f *formatFlag) String() string {
	if f.d != nil && f.d.Term.JSON() {
		return string(term.FormatJSON)
	}
	return string(term.FormatTable)
}

// Set parses s.
func (f *formatFlag) Set(s string) error {
	format, err := term.ParseFormat(s)
	if err != nil {
		return err
	}
	f.d.Term.SetFormat(format)
	return nil
}

// Type is shown in the help.
func (f *formatFlag) Type() string { return "format" }

// complete registers the completion of a flag's value.
func complete(cmd *cobra.Command, flag string, fn cobra.CompletionFunc) {
	_ = cmd.RegisterFlagCompletionFunc(flag, fn) // fails for a flag that is not there or is there twice: the tests would tell
}

// without returns all but what done holds.
func without(all, done []string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return slices.Contains(done, s) })
}
