package daemon

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// How many events one answer has when nobody says, and at most; and how many a watcher gets at a time.
const (
	usualEvents = 100
	mostEvents  = 5000
	eventBatch  = 256
)

// eventService is the wire's EventService. Watchers read from the store at their own pace: a slow one holds up nobody,
// and costs no memory. One that is so slow that events are forgotten before it gets to them misses those.
type eventService struct {
	store    *store.Store
	stopping <-chan struct{}
}

// List implements the RPC: the newest events, the oldest of them first.
func (s *eventService) List(ctx context.Context, req *connect.Request[bangerv1.ListEventsRequest]) (*connect.Response[bangerv1.ListEventsResponse], error) {
	limit := int(req.Msg.GetLimit())
	switch {
	case limit < 0:
		return nil, fault.New(fault.Invalid, "a limit of %d events is not possible", limit).WithHint("banger events --limit 100")
	case limit == 0:
		limit = usualEvents
	}
	filter, err := s.filter(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	found, err := s.store.LatestEvents(ctx, filter, min(limit, mostEvents))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.ListEventsResponse{Events: convert(found, eventProto)}), nil
}

// Watch implements the RPC. With history, or after a number, it begins with what is kept; else with what happens next.
func (s *eventService) Watch(ctx context.Context, req *connect.Request[bangerv1.WatchEventsRequest], stream *connect.ServerStream[bangerv1.Event]) error {
	filter, err := s.filter(ctx, req.Msg.GetRef())
	if err != nil {
		return err
	}
	after := req.Msg.GetAfter()
	if after <= 0 && !req.Msg.GetHistory() {
		if after, err = s.store.LastEvent(ctx); err != nil {
			return err
		}
	}
	if err := stream.Send(nil); err != nil { // the headers: from now on nothing is missed
		return err
	}
	for {
		changed := s.store.Changed() // before the look, so that nothing is missed
		found, err := s.store.Events(ctx, filter, after, eventBatch)
		if err != nil {
			return err
		}
		for _, e := range found {
			if err := stream.Send(eventProto(e)); err != nil {
				return err
			}
			after = e.Seq
		}
		if len(found) == eventBatch {
			continue
		}
		select {
		case <-changed:
		case <-s.stopping:
			return fault.New(fault.Unavailable, "the daemon is stopping").WithHint("banger events --follow")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// filter chooses the events of what ref means: a VM that is there, or anything that has, or had, exactly that name or id.
func (s *eventService) filter(ctx context.Context, ref string) (store.EventFilter, error) {
	if ref == "" {
		return store.EventFilter{}, nil
	}
	v, err := s.store.FindVM(ctx, ref)
	switch {
	case err == nil:
		return store.EventFilter{ObjectID: v.ID}, nil
	case fault.Is(err, fault.NotFound):
		return store.EventFilter{ObjectID: vm.ID(ref), Object: ref}, nil
	}
	return store.EventFilter{}, err
}

func eventProto(e store.Event) *bangerv1.Event {
	return &bangerv1.Event{
		Seq: e.Seq, AtMs: millis(e.At), Kind: e.Kind, ObjectId: e.ObjectID, Object: e.Object, Message: e.Message,
	}
}
