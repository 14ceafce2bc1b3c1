package supervisor

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

// Phases of a supervisor, in order, but that paused goes back to ready too. All can go to exited directly.
const (
	phaseStarting = "starting" // from the first moment until the guest has been configured
	phaseReady    = "ready"
	phasePaused   = "paused"   // the guest's CPUs stand still
	phaseStopping = "stopping" // the stop ladder is under way
	phaseExited   = "exited"   // the VMM is gone, and everything of this run on the host too
)

// board holds the present status and tells watchers of changes. A watcher that is slow misses states in between but
// never the last one, and costs no memory.
type board struct {
	activity atomic.Int64 // Unix milliseconds; changes too often to tell watchers

	mu      sync.Mutex                 // guards the fields below
	status  *bangerv1.SupervisorStatus // never changed in place
	changed chan struct{}              // closed by the next change
}

func newBoard(first *bangerv1.SupervisorStatus) *board {
	return &board{status: first, changed: make(chan struct{})}
}

// get returns a copy of the present status and a channel that is closed when there is a newer one.
func (b *board) get() (*bangerv1.SupervisorStatus, <-chan struct{}) {
	b.mu.Lock()
	status, changed := b.status, b.changed
	b.mu.Unlock()
	status = proto.CloneOf(status)
	status.LastActivityMs = b.activity.Load()
	return status, changed
}

func (b *board) phase() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status.GetPhase()
}

// update changes the status. After exited nothing changes any more.
func (b *board) update(change func(*bangerv1.SupervisorStatus)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.GetPhase() == phaseExited {
		return
	}
	next := proto.CloneOf(b.status)
	change(next)
	b.status = next
	close(b.changed)
	b.changed = make(chan struct{})
}

// suspended reports whether the VM has been saved and does not run any more.
func (b *board) suspended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status.GetSuspended()
}

// running notes how many sessions run in the guest. When none is left, the VM has been used until now.
func (b *board) running(sessions int) {
	b.mu.Lock()
	before := int(b.status.GetRunningSessions())
	b.mu.Unlock()
	if sessions == before {
		return
	}
	b.touch()
	b.update(func(s *bangerv1.SupervisorStatus) { s.RunningSessions = int32(sessions) })
}

// touch notes that the VM was used.
func (b *board) touch() { b.activity.Store(time.Now().UnixMilli()) }

// session notes the start (+1) or the end (-1) of a session.
func (b *board) session(delta int32) {
	b.touch()
	b.update(func(s *bangerv1.SupervisorStatus) { s.OpenSessions += delta })
}

// service is the supervisor's face to its callers. No call waits for the guest unless it says so.
type service struct{ *Supervisor }

var _ bangerv1connect.SupervisorServiceHandler = service{}

// Status implements the RPC. It waits for nothing.
func (s service) Status(context.Context, *connect.Request[bangerv1.SupervisorStatusRequest]) (*connect.Response[bangerv1.SupervisorStatus], error) {
	status, _ := s.board.get()
	return connect.NewResponse(status), nil
}

// Watch implements the RPC. It ends after the status of phase exited.
func (s service) Watch(ctx context.Context, _ *connect.Request[bangerv1.SupervisorWatchRequest], stream *connect.ServerStream[bangerv1.SupervisorStatus]) error {
	for {
		status, changed := s.board.get()
		if err := stream.Send(status); err != nil {
			return err
		}
		if status.GetPhase() == phaseExited {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
