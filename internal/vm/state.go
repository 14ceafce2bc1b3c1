package vm

import (
	"maps"
	"slices"
	"strings"

	"banger/internal/fault"
)

// State is where a VM is in its life.
type State string

// The states. Legal moves: transitions.
const (
	Created   State = "created"   // has a row and a directory, never ran
	Starting  State = "starting"  // a supervisor was spawned, the guest is not ready yet
	Running   State = "running"   // the guest is ready
	Paused    State = "paused"    // its CPUs stand still, its memory is kept
	Stopping  State = "stopping"  // the stop ladder is under way
	Stopped   State = "stopped"   // ran, does not run now; its disk is kept
	Failed    State = "failed"    // the last start failed; its disk is kept
	Suspended State = "suspended" // its memory is on disk, it has no processes
	Deleting  State = "deleting"  // on its way out; finished by the next daemon if this one dies
)

// transitions lists for each state the states it may go to.
var transitions = map[State][]State{
	Created:   {Starting, Deleting},
	Starting:  {Running, Stopping, Stopped, Suspended, Failed, Deleting},
	Running:   {Paused, Stopping, Stopped, Suspended, Failed, Deleting},
	Paused:    {Running, Stopping, Stopped, Suspended, Failed, Deleting},
	Stopping:  {Stopped, Suspended, Failed, Deleting},
	Stopped:   {Starting, Deleting},
	Failed:    {Starting, Deleting},
	Suspended: {Starting, Stopped, Deleting},
	Deleting:  {},
}

// States lists every state, in the order of their names.
func States() []State { return slices.Sorted(maps.Keys(transitions)) }

// CanGo reports whether a VM may go from s to next.
func (s State) CanGo(next State) bool { return slices.Contains(transitions[s], next) }

// Live reports whether a VM in state s has, or may have, processes on the host.
func (s State) Live() bool { return s == Starting || s == Running || s == Paused || s == Stopping }

// ParseState returns the state of that name or a fault of class Invalid.
func ParseState(s string) (State, error) {
	if _, ok := transitions[State(s)]; ok {
		return State(s), nil
	}
	names := make([]string, 0, len(transitions))
	for _, state := range States() {
		names = append(names, string(state))
	}
	return "", fault.New(fault.Invalid, "unknown vm state %q: one of %s", s, strings.Join(names, ", "))
}
