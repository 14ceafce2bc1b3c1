package daemon_test

import (
	"context"
	"testing"

	"connectrpc.com/connect"

	bangerv1 "banger/proto/banger/v1"
)

// An operation ends with the caller that owns it, and goes on without one that only watches.
func TestOperationOfLostCaller(t *testing.T) {
	h := newHost(t)
	h.run()
	watch := func(id string, owner bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := h.ops.Watch(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id, Owner: owner}))
		if err != nil || !stream.Receive() {
			t.Fatalf("%v, %v", err, stream.Err())
		}
		cancel()
		stream.Close()
	}
	id := h.begin(&bangerv1.VMSpec{Name: "dev", Env: []string{bootHangs}}, true)
	h.until("dev", "starting")
	watch(id, false)
	watch(id, true)
	if op := h.wait(id); op.GetState() != "cancelled" {
		t.Errorf("%v", op)
	}
	h.nothingLeft()
	id = h.begin(&bangerv1.VMSpec{Name: "dev"}, true)
	watch(id, false)
	if op := h.wait(id); op.GetState() != "done" {
		t.Errorf("%v", op)
	}
	watch(id, true) // too late
	h.get("dev")
}
