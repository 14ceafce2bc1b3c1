package daemon

import (
	"log/slog"
	"sync"

	"banger/internal/fault"
	"banger/internal/hostmem"
	"banger/internal/vm"
)

// hostReserve is the memory of the host that no start takes.
const hostReserve = 64 << 20

// admission lets VMs start only where the host has the memory for them, so that nobody is killed for it. What a VM may
// take at most is not counted: most never do.
type admission struct {
	// Fixed.
	each uint64                       // what a start takes; 0: nothing is refused
	free func() (hostmem.Free, error) // what is left
	log  *slog.Logger

	mu      sync.Mutex // guards the field below
	pending uint64     // of starts that go on, which may not have taken it yet
}

// admissionFor says who asks, for the error.
type admissionFor struct {
	what  string // "vm dev", "30 clones of vm dev"
	count int
	fewer string // a command with a number, for a count that would fit; may be empty
}

// admit reserves the memory for some starts of guests with so much memory. release gives the reservation back, when they
// have ended or have taken what they need.
func (a *admission) admit(who admissionFor, memory uint64) (release func(), err error) {
	if a.each == 0 {
		return func() {}, nil
	}
	free, err := a.free()
	if err != nil {
		a.log.Warn("it is not known how much memory the host has left", "error", err)
		return func() {}, nil
	}
	each := min(a.each, memory+vmmMemory)
	need := each * uint64(who.count)
	a.mu.Lock()
	defer a.mu.Unlock()
	left := free.Bytes - min(free.Bytes, hostReserve+a.pending)
	if left < need {
		f := fault.New(fault.Exhausted, "there is not enough memory for %s: about %s are needed, %s are free (%s)", who.what,
			vm.FormatSize(need), vm.FormatSize(left), free.Limit)
		if n := left / each; n > 0 && who.fewer != "" {
			return nil, f.WithHint(who.fewer, n)
		}
		return nil, f.WithHint("banger vm suspend --all")
	}
	a.pending += need
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.pending -= need
	}), nil
}

// vmmMemory is what a VMM takes besides its guest's memory.
const vmmMemory = 64 << 20
