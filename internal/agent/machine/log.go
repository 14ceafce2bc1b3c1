package machine

import (
	"os"
	"strings"
)

// Levels of the kernel's log. A kernel that boots quietly shows errors on the console and keeps the rest to itself.
const (
	levelError = "<3>"
	levelInfo  = "<6>"

	maxLogLine = 900 // the kernel cuts off a little more than that
)

// Log writes to the kernel's log.
func (m *Machine) Log(text string) { m.write(levelInfo, text) }

// Error writes to the kernel's log and to the console.
func (m *Machine) Error(text string) { m.write(levelError, text) }

func (m *Machine) write(level, text string) {
	out := m.kmsg
	if out == nil {
		out = os.Stderr
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); len(line) > maxLogLine {
			line = line[:maxLogLine]
		}
		_, _ = out.WriteString(level + "banger-agent: " + line + "\n") // one write is one record
	}
}
