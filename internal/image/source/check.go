package source

import (
	"strconv"
	"strings"
	"unicode"

	"banger/internal/fault"
)

// maxText is the longest value of a configuration: what Linux takes as one argument or environment variable.
const maxText = 128<<10 - 1

// Check reports what in a configuration from elsewhere cannot be meant: it would be refused by the guest's kernel, or
// change what a terminal shows.
func (c Config) Check() error {
	for what, text := range map[string]string{"user": c.User, "working directory": c.Workdir, "shell": c.Shell, "stop signal": c.StopSignal} {
		if len(text) > 4095 || strings.ContainsFunc(text, unicode.IsControl) {
			return fault.New(fault.Invalid, "the image's configuration has a bad %s: %q", what, cut(text))
		}
	}
	for what, list := range map[string][]string{
		"entrypoint": c.Entrypoint, "command": c.Cmd, "environment": c.Env, "shell for builds": c.RunShell, "onbuild trigger": c.OnBuild,
	} {
		for _, text := range list {
			if len(text) > maxText || strings.IndexByte(text, 0) >= 0 {
				return fault.New(fault.Invalid, "the image's configuration has a bad %s: %q", what, cut(text))
			}
		}
	}
	for _, setting := range c.Env {
		if name, _, ok := strings.Cut(setting, "="); !ok || name == "" {
			return fault.New(fault.Invalid, "the image's configuration has an environment variable without a name: %q", cut(setting))
		}
	}
	for _, port := range c.ExposedPorts {
		if !isPort(port) {
			return fault.New(fault.Invalid, "the image's configuration exposes %q, which is no port", cut(port))
		}
	}
	return nil
}

// isPort knows "80", "80/tcp" and "8000-8010/udp".
func isPort(text string) bool {
	numbers, protocol, ok := strings.Cut(text, "/")
	if ok && protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return false
	}
	first, last, isRange := strings.Cut(numbers, "-")
	from, err := strconv.ParseUint(first, 10, 16)
	if err != nil || !isRange {
		return err == nil
	}
	to, err := strconv.ParseUint(last, 10, 16)
	return err == nil && from <= to
}

func cut(text string) string {
	if len(text) > 80 {
		return text[:80] + "..."
	}
	return text
}
