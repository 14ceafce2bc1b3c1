package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fault"
)

// exitCode is a row of the table of exit codes.
type exitCode struct {
	code    int
	meaning string
}

// exitCodes is the documented table: docs/cli.md holds the same, which a test checks.
func exitCodes() []exitCode {
	of := fault.ExitCode
	return []exitCode{
		{0, "success"},
		{of(fault.Internal), "banger itself failed (class internal)"},
		{notExecutableCode, "the command was found in the guest and cannot be executed"},
		{notFoundCode, "the command was not found in the guest"},
		{of(fault.Cancelled), "interrupted (128+n for any other signal that ended banger or the guest's command)"},
		{of(fault.Invalid), "the request is wrong: an unknown flag, a bad name, an impossible size (class invalid)"},
		{of(fault.NotFound), "what it names does not exist (class not_found)"},
		{of(fault.Exists), "what it would make exists already (class already_exists)"},
		{of(fault.Conflict), "the object is in a state that does not allow it (class failed_precondition)"},
		{of(fault.Unavailable), "a part that is needed is missing or does not answer (class unavailable)"},
		{of(fault.Exhausted), "no space, memory or address left (class resource_exhausted)"},
		{of(fault.Denied), "not allowed (class permission_denied)"},
		{of(fault.Timeout), "a deadline passed (class timeout)"},
		{suspendedCode, "the vm was suspended while banger followed one of its sessions, which goes on when it is resumed"},
	}
}

// newExitCodes is a help topic: banger help exit-codes.
func newExitCodes() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of banger.\n\nrun, exec and ssh exit with the code of the guest's command once it has started; a command that a\n" +
		"signal ended has 128 plus the signal's number. Every failure of banger's own has one of these:\n\n")
	for _, e := range exitCodes() {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "What banger's exit codes mean", Long: b.String()}
}
