package supervisor

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

const (
	historySize = 720 // an hour
	// noise is how many bytes a guest that nobody uses may send and receive between two samples of the history:
	// address resolution, a clock that is kept, a connection that is kept alive.
	noise = 2 << 10
	// Of WatchStats.
	minInterval     = 200 * time.Millisecond
	defaultInterval = time.Second
	maxInterval     = time.Hour
)

// meter takes samples of what the VM uses and keeps some.
type meter struct {
	turn chan struct{} // full while a sample is taken; guards the fields up to mu

	guest   agentwire.Stats // what it said last
	marked  time.Time       // when traffic was looked at last; zero: never
	traffic uint64          // what it was then

	mu      sync.Mutex // guards the fields below
	taken   time.Time  // when the last sample was begun
	last    *bangerv1.Sample
	history []*bangerv1.Sample // a ring once it is full
	next    int                // place of the next sample in history
}

func newMeter() *meter { return &meter{turn: make(chan struct{}, 1)} }

// latest returns the last sample if it is not older than limit.
func (r *meter) latest(limit time.Duration) *bangerv1.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || time.Since(r.taken) > limit {
		return nil
	}
	return r.last
}

func (r *meter) keep(sample *bangerv1.Sample, taken time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.taken = sample, taken
}

// record puts a sample into the history, unless it is there: a tick that comes late is followed by one that is on time.
func (r *meter) record(sample *bangerv1.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.history); n > 0 && r.history[(r.next+n-1)%n] == sample {
		return
	}
	if len(r.history) < historySize {
		r.history = append(r.history, sample)
		return
	}
	r.history[r.next] = sample
	r.next = (r.next + 1) % historySize
}

// before returns the last n samples of the history that are older than sample.
func (r *meter) before(sample *bangerv1.Sample, n int) []*bangerv1.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*bangerv1.Sample
	for i := range r.history {
		if s := r.history[(r.next+i)%len(r.history)]; s != sample {
			out = append(out, s)
		}
	}
	return out[max(0, len(out)-n):]
}

// keepSampling makes the history until ctx ends. A guest that is paused has none.
func (s *Supervisor) keepSampling(ctx context.Context) {
	ticker := time.NewTicker(s.times.sample)
	defer ticker.Stop()
	for {
		select { // first, for the guest has better things to do right after its boot
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if s.board.phase() != phaseReady {
			continue
		}
		if sample, err := s.sample(ctx); err == nil {
			s.meter.record(sample)
		}
	}
}

// sample returns a fresh sample, which all who ask at the same time share. The error is the end of ctx.
func (s *Supervisor) sample(ctx context.Context) (*bangerv1.Sample, error) {
	gone := func() error {
		return fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "vm %s: stats", s.name())
	}
	select {
	case s.meter.turn <- struct{}{}:
		defer func() { <-s.meter.turn }()
	case <-ctx.Done():
		return nil, gone()
	}
	// A little less than fresh: who asks at that interval is not to get the same sample twice.
	if last := s.meter.latest(s.times.fresh * 9 / 10); last != nil {
		return last, nil
	}
	began := time.Now()
	s.askGuest(ctx, began)
	if ctx.Err() != nil { // the guest may have had no time to answer, which is nothing to tell others
		return nil, gone()
	}
	sample := s.hostSample(began)
	addGuest(sample, s.meter.guest)
	s.meter.keep(sample, began)
	return sample, nil
}

// askGuest asks what the guest uses. One that is paused or does not answer in time is taken to use what it used before.
// The meter's turn is held.
func (s *Supervisor) askGuest(ctx context.Context, now time.Time) {
	conn, _ := s.link.get()
	if conn == nil || s.board.phase() != phaseReady {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.measure)
	defer cancel()
	stats, err := conn.client.Stats(ctx)
	if err != nil {
		s.log.Debug("the guest does not say what it uses", "error", err)
		return
	}
	s.meter.guest = stats
	s.board.running(stats.Sessions)
	s.noteTraffic(now, stats.NetReceived+stats.NetSent)
}

// noteTraffic counts more traffic than noise as use of the VM. The meter's turn is held.
func (s *Supervisor) noteTraffic(now time.Time, bytes uint64) {
	r := s.meter
	elapsed := now.Sub(r.marked)
	if elapsed < s.times.sample*4/5 {
		return // others ask more often, but the threshold is for that time
	}
	intervals := max(1, elapsed.Seconds()/s.times.sample.Seconds())
	if !r.marked.IsZero() && bytes > r.traffic && float64(bytes-r.traffic) > noise*intervals {
		s.board.touch()
	}
	r.marked, r.traffic = now, bytes
}

// addGuest adds the guest's part to a sample.
func addGuest(sample *bangerv1.Sample, g agentwire.Stats) {
	sample.GuestCpuMs = g.CPUMillis
	sample.GuestMemoryTotalBytes = g.MemoryTotal
	sample.GuestMemoryUsedBytes = g.MemoryTotal - g.MemoryAvailable
	sample.Load1 = g.Load1
	sample.GuestDiskTotalBytes, sample.GuestDiskUsedBytes = g.DataTotal, g.DataUsed
	sample.ReadBytes, sample.WrittenBytes = g.DiskRead, g.DiskWritten
	sample.ReceivedBytes, sample.SentBytes = g.NetReceived, g.NetSent
	sample.Processes = int32(g.Processes)
}

// measurable says why there are no samples in the present phase, if there are none.
func (s service) measurable() error {
	status, _ := s.board.get()
	switch status.GetPhase() {
	case phaseReady, phasePaused:
		return nil
	case phaseStarting:
		return fault.New(fault.Conflict, "vm %s is still starting", s.name())
	}
	return s.notRunning(status)
}

// Stats implements the RPC.
func (s service) Stats(ctx context.Context, req *connect.Request[bangerv1.SupervisorStatsRequest]) (*connect.Response[bangerv1.SupervisorStatsResponse], error) {
	n := int(req.Msg.GetSamples())
	if n < 0 {
		return nil, fault.New(fault.Invalid, "%d samples are not possible", n)
	}
	if err := s.measurable(); err != nil {
		return nil, err
	}
	sample, err := s.sample(ctx)
	if err != nil {
		return nil, err
	}
	samples := append(s.meter.before(sample, max(n-1, 0)), sample)
	return connect.NewResponse(&bangerv1.SupervisorStatsResponse{Samples: samples}), nil
}

// WatchStats implements the RPC. It ends when the VM stops.
func (s service) WatchStats(ctx context.Context, req *connect.Request[bangerv1.SupervisorWatchStatsRequest], stream *connect.ServerStream[bangerv1.Sample]) error {
	interval, err := watchInterval(req.Msg.GetIntervalMs())
	if err != nil {
		return err
	}
	if err := s.measurable(); err != nil {
		return err
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for s.measurable() == nil {
		sample, err := s.sample(ctx)
		if err == nil {
			err = stream.Send(sample)
		}
		if err != nil {
			return err
		}
		if err := s.nextTick(ctx, ticker.C); err != nil {
			return err
		}
	}
	return nil
}

// watchInterval reads the interval of a WatchStats.
func watchInterval(millis int64) (time.Duration, error) {
	if millis == 0 {
		return defaultInterval, nil
	}
	if millis < minInterval.Milliseconds() || millis > maxInterval.Milliseconds() {
		return 0, fault.New(fault.Invalid, "an interval of %d ms is not between %d and %d", millis,
			minInterval.Milliseconds(), maxInterval.Milliseconds())
	}
	return time.Duration(millis) * time.Millisecond, nil
}

// nextTick waits for the tick, but not longer than the VM runs.
func (s service) nextTick(ctx context.Context, tick <-chan time.Time) error {
	for {
		_, changed := s.board.get()
		if s.measurable() != nil {
			return nil
		}
		select {
		case <-tick:
			return nil
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
