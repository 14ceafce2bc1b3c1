package agentwire

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// maxSignal is the last real-time signal.
const maxSignal = 64

// ParseSignal reads a signal's name ("TERM", "SIGTERM") or number ("15").
func ParseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= maxSignal {
		return syscall.Signal(n), nil
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	return 0, fault.New(fault.Invalid, "unknown signal %q", name)
}
