package agentwire

import (
	"strings"
	"unicode"

	"banger/internal/fault"
)

// maxText bounds what is shown of a message from the other side.
const maxText = 4 << 10

// FaultOf makes err ready for the wire.
func FaultOf(err error) *Fault {
	return &Fault{Class: string(fault.ClassOf(err)), Message: err.Error(), Hint: fault.HintOf(err)}
}

// Err returns the fault as an error. Its text is made fit for a terminal: it comes from a guest, which may be hostile.
func (f *Fault) Err() error {
	return &fault.Error{
		Class:   fault.ParseClass(f.Class),
		Message: printable(f.Message),
		Hint:    printable(f.Hint),
	}
}

// printable cuts s to a bearable length and replaces what a terminal would act on.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
