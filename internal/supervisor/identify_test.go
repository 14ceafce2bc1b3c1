package supervisor

import (
	"sync"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// The guest of a VM of the pool takes names until one is final, which from then on is the VM's.
func TestIdentify(t *testing.T) {
	var mu sync.Mutex
	var got []agentwire.Wake
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.wake = func(w agentwire.Wake) { mu.Lock(); got = append(got, w); mu.Unlock() }
	})})
	r.launch.Pool = true
	r.start()
	r.ready()
	identify := func(name string, final bool) error {
		_, err := r.client.Identify(t.Context(), connect.NewRequest(&bangerv1.SupervisorIdentifyRequest{
			Name: name, Env: []string{"A=1"}, User: "me", Workdir: "/src", Final: final,
		}))
		return err
	}
	if err := identify("pool-1", false); err != nil {
		t.Fatal(err)
	}
	if err := identify("mine", true); err != nil {
		t.Fatal(err)
	}
	if err := identify("yours", true); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second time: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 2 || got[1].Identity.Hostname != "mine" || got[1].Settings.User != "me" || len(got[1].Entropy) != 64 || got[1].UnixNano == 0 {
		t.Errorf("the guest was told %+v", got)
	}
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.tryExec(); err == nil || err.Error() != "vm mine is paused" {
		t.Errorf("exec: %v", err)
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Error(err)
	}
}

// No other VM can be given a name.
func TestIdentifyIsForThePool(t *testing.T) {
	r := with(t, func(*fakeMachine) {})
	_, err := r.client.Identify(t.Context(), connect.NewRequest(&bangerv1.SupervisorIdentifyRequest{Name: "other", Final: true}))
	if !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Error(err)
	}
}
