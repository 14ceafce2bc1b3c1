package daemon

import (
	"testing"

	"banger/internal/vm"
)

func TestDecide(t *testing.T) {
	const silent = ""
	type row struct {
		state vm.State
		dead  action
		phase map[string]action // what a living supervisor answers
	}
	rows := []row{
		{vm.Created, keep, map[string]action{silent: killIt, phaseStarting: revive, phaseReady: revive, phasePaused: revive, phaseStopping: keep, phaseExited: keep}},
		{vm.Stopped, keep, map[string]action{silent: killIt, phaseStarting: revive, phaseReady: revive, phasePaused: revive, phaseStopping: keep, phaseExited: keep}},
		{vm.Failed, keep, map[string]action{silent: killIt, phaseStarting: revive, phaseReady: revive, phasePaused: revive, phaseStopping: keep, phaseExited: keep}},
		{vm.Suspended, keep, map[string]action{silent: killIt, phaseStarting: revive, phaseReady: revive, phasePaused: revive, phaseStopping: keep, phaseExited: keep}},
		{vm.Paused, recordEnd, map[string]action{silent: watchIt, phaseStarting: watchIt, phaseReady: watchIt, phasePaused: watchIt, phaseStopping: watchIt, phaseExited: watchIt}},
		{vm.Starting, recordEnd, map[string]action{silent: watchIt, phaseStarting: watchIt, phaseReady: watchIt, phasePaused: watchIt, phaseStopping: watchIt, phaseExited: watchIt}},
		{vm.Running, recordEnd, map[string]action{silent: watchIt, phaseStarting: watchIt, phaseReady: watchIt, phasePaused: watchIt, phaseStopping: watchIt, phaseExited: watchIt}},
		{vm.Stopping, recordEnd, map[string]action{silent: killIt, phaseStarting: stopAgain, phaseReady: stopAgain, phasePaused: stopAgain, phaseStopping: watchIt, phaseExited: watchIt}},
		{vm.Deleting, destroyIt, map[string]action{silent: destroyIt, phaseStarting: destroyIt, phaseReady: destroyIt, phasePaused: destroyIt, phaseStopping: destroyIt, phaseExited: destroyIt}},
	}
	for _, r := range rows {
		if got := decide(evidence{state: r.state, made: true}); got != r.dead {
			t.Errorf("%s, no supervisor: %s, want %s", r.state, got, r.dead)
		}
		for phase, want := range r.phase {
			if got := decide(evidence{state: r.state, made: true, alive: true, phase: phase}); got != want {
				t.Errorf("%s, supervisor says %q: %s, want %s", r.state, phase, got, want)
			}
			if got := decide(evidence{state: r.state, alive: true, phase: phase}); got != destroyIt {
				t.Errorf("%s, half made: %s", r.state, got)
			}
		}
		orphan := decide(evidence{state: r.state, made: true, orphan: true})
		if want := r.dead; orphan != want && !(want == keep && orphan == lament) {
			t.Errorf("%s without a directory: %s", r.state, orphan)
		}
	}
}
