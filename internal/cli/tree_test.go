package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"banger/internal/term"
)

var update = flag.Bool("update", false, "write the reference in docs/cli.md anew")

// offline returns what commands depend on when nothing is to be reached.
func offline(t *testing.T) (d *Deps, out, errOut *bytes.Buffer) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	out, errOut = new(bytes.Buffer), new(bytes.Buffer)
	return &Deps{
		Term:      term.New(term.Config{Stdin: null, Stdout: out, Stderr: errOut}),
		LookupEnv: func(string) (string, bool) { return "", false },
	}, out, errOut
}

// commands returns every command that people see, in the order of the help.
func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	d, _, _ := offline(t)
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		all = append(all, cmd)
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" && !sub.IsAdditionalHelpTopicCommand() {
				walk(sub)
			}
		}
	}
	walk(newRoot(d))
	return all
}

func TestEveryCommandExplainsItself(t *testing.T) {
	for _, cmd := range commands(t) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s: short %q, long %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Long, cmd.Example)
		}
		if cmd.Runnable() && cmd.Args == nil {
			t.Errorf("%s does not check its arguments", cmd.CommandPath())
		}
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.ValidArgsFunction == nil && cmd.Args != nil && strings.Contains(cmd.Use, "NAME") {
			t.Errorf("%s does not complete names", cmd.CommandPath())
		}
	}
}

// Examples are command lines that parse: the command is there and knows the flags.
func TestExamplesParse(t *testing.T) {
	for _, cmd := range commands(t) {
		for line := range strings.Lines(cmd.Example) {
			_, line, ok := strings.Cut(line, "banger ") // what stands before it feeds a pipe
			if !ok {
				continue
			}
			line, _, _ = strings.Cut(line, " | ")
			args := strings.Fields(line)
			d, _, _ := offline(t)
			found, rest, err := newRoot(d).Find(args)
			if err == nil {
				err = found.ParseFlags(rest)
			}
			if err == nil && found.Args != nil {
				err = found.ValidateArgs(found.Flags().Args())
			}
			if err != nil || found.HasSubCommands() {
				t.Errorf("%s: example %q: %v", cmd.CommandPath(), line, err)
			}
		}
	}
}

const (
	docs  = "../../docs/cli.md"
	begin = "<!-- reference: written by go test ./internal/cli -update -->\n"
)

// The reference in docs/cli.md is what the commands say of themselves.
func TestReference(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	head, have, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("%s has no line %q", docs, begin)
	}
	var b strings.Builder
	for _, cmd := range commands(t) {
		reference(&b, cmd)
	}
	if *update {
		if err := os.WriteFile(docs, []byte(head+begin+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), have); diff != "" {
		t.Errorf("run go test ./internal/cli -update:\n%s", diff)
	}
	for _, e := range exitCodes() {
		if row := fmt.Sprintf("| %d | %s |\n", e.code, e.meaning); !strings.Contains(head, row) {
			t.Errorf("%s lacks the row %q", docs, row)
		}
	}
}

func reference(b *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(b, "\n### %s\n\n%s\n\n```\n%s\n", cmd.CommandPath(), cmd.Long, cmd.UseLine())
	if flags := cmd.NonInheritedFlags().FlagUsagesWrapped(110); flags != "" {
		fmt.Fprintf(b, "\n%s", flags)
	}
	fmt.Fprintf(b, "\nExamples:\n%s\n```\n", cmd.Example)
}
