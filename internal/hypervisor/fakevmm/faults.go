package fakevmm

import (
	"strings"
	"time"

	"banger/internal/fault"
)

// FaultsEnv gives the faults of a driver whose Options have none, so that a test can set them for a whole daemon.
const FaultsEnv = "BANGER_FAKE_VMM_FAULTS"

// Faults is what goes wrong with a fake machine.
type Faults struct {
	StartError     bool          // Start fails before there is a process
	DieAtStart     bool          // the process ends before it listens, so that Start fails
	NeverReady     bool          // the agent never answers
	DieAfter       time.Duration // the process kills itself that long after its start; 0: it does not
	IgnoreShutdown bool          // the agent answers a request to shut down, and goes on
	IgnoreQuit     bool          // Quit has no effect
	IgnoreTerm     bool          // SIGTERM has no effect
	PanicAfter     time.Duration // the guest resets that long after its start, as after a kernel panic
	RestoreError   bool          // Start fails when it is to restore a machine
	HaltAfter      time.Duration // the machine is paused that long after its start, as by a host without space
}

// ParseFaults reads a comma-separated list and returns what it says about the machine of that name. Each item is a
// fault: start-error, die-at-start, restore-error, never-ready, die-after=200ms, panic-after=200ms, halt-after=200ms, ignore-shutdown,
// ignore-quit, ignore-term, with NAME/ before it if it is for the machine NAME alone: "dev/never-ready,ignore-quit".
func ParseFaults(text, name string) (Faults, error) {
	var f Faults
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if owner, rest, ok := strings.Cut(item, "/"); ok {
			if owner != name {
				continue
			}
			item = rest
		}
		if err := f.set(item); err != nil {
			return Faults{}, err
		}
	}
	return f, nil
}

func (f *Faults) set(item string) error {
	key, value, _ := strings.Cut(item, "=")
	var err error
	switch key {
	case "":
	case "start-error":
		f.StartError = true
	case "die-at-start":
		f.DieAtStart = true
	case "never-ready":
		f.NeverReady = true
	case "restore-error":
		f.RestoreError = true
	case "ignore-shutdown":
		f.IgnoreShutdown = true
	case "ignore-quit":
		f.IgnoreQuit = true
	case "ignore-term":
		f.IgnoreTerm = true
	case "die-after":
		f.DieAfter, err = time.ParseDuration(value)
	case "panic-after":
		f.PanicAfter, err = time.ParseDuration(value)
	case "halt-after":
		f.HaltAfter, err = time.ParseDuration(value)
	default:
		return fault.New(fault.Invalid, "fake vmm: unknown fault %q", item)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "fake vmm: fault %q", item)
	}
	return nil
}
