package supervisor

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/agentwire"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

func TestStats(t *testing.T) {
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.stats = func() agentwire.Stats {
			return agentwire.Stats{
				CPUMillis: 1, MemoryTotal: 100, MemoryAvailable: 60, Load1: 0.5, Processes: 3, DiskRead: 4, DiskWritten: 5,
				NetReceived: 6, NetSent: 7, DataTotal: 80, DataUsed: 8,
			}
		}
	})})
	disk := r.withDisk()
	r.start()
	r.ready()
	samples, err := r.stats(0)
	if err != nil || len(samples) != 1 {
		t.Fatalf("%v, %v", samples, err)
	}
	s := samples[0]
	var st syscall.Stat_t
	if err := syscall.Stat(disk, &st); err != nil {
		t.Fatal(err)
	}
	if s.GetDiskUsedBytes() != uint64(st.Blocks)*512 || s.GetHostRssBytes() < 1<<20 || time.Since(time.UnixMilli(s.GetAtMs())) > time.Minute {
		t.Errorf("host's part: %v", s)
	}
	waitFor(t, "CPU time to be used", func() bool {
		samples, err = r.stats(1)
		return err == nil && samples[0].GetHostCpuMs() > s.GetHostCpuMs()
	})
	want := &bangerv1.Sample{
		GuestCpuMs: 1, GuestMemoryTotalBytes: 100, GuestMemoryUsedBytes: 40, Load1: 0.5, Processes: 3, ReadBytes: 4, WrittenBytes: 5,
		ReceivedBytes: 6, SentBytes: 7, GuestDiskTotalBytes: 80, GuestDiskUsedBytes: 8,
	}
	want.AtMs, want.HostCpuMs, want.HostRssBytes, want.DiskUsedBytes = s.GetAtMs(), s.GetHostCpuMs(), s.GetHostRssBytes(), s.GetDiskUsedBytes()
	if s.String() != want.String() {
		t.Errorf("got  %v\nwant %v", s, want)
	}
	if _, err := r.stats(-1); !fault.Is(err, fault.Invalid) {
		t.Errorf("-1 samples: %v", err)
	}
}

func TestSamplesAreSharedAndKept(t *testing.T) {
	var asked atomic.Int32
	r := newRig(t, &fakeDriver{features: muxed, start: boots(func(_ int, m *fakeMachine) {
		m.stats = func() agentwire.Stats { asked.Add(1); return agentwire.Stats{CPUMillis: 1} }
	})})
	r.sup.times.sample, r.sup.times.fresh = time.Hour, time.Minute
	r.start()
	r.ready()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if samples, err := r.stats(5); err != nil || len(samples) != 1 {
				t.Errorf("%v, %v", samples, err)
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the guest was asked %d times", n)
	}

	// The history is that of the sampler, oldest first, and ends with a fresh one.
	r = with(t, func(*fakeMachine) {})
	waitFor(t, "the history", func() bool { samples, err := r.stats(4); return err == nil && len(samples) == 4 })
	samples, err := r.stats(3)
	if err != nil || len(samples) != 3 {
		t.Fatalf("%v, %v", samples, err)
	}
	for i := range samples[1:] {
		if samples[i].GetAtMs() >= samples[i+1].GetAtMs() {
			t.Errorf("not in order: %v", samples)
		}
	}
}

func TestHistoryIsARing(t *testing.T) {
	m := newMeter()
	for i := range int64(historySize + 10) {
		m.record(&bangerv1.Sample{AtMs: i})
	}
	all := m.before(nil, 10*historySize)
	if len(all) != historySize || all[0].GetAtMs() != 10 || all[historySize-1].GetAtMs() != historySize+9 {
		t.Errorf("%d samples from %v to %v", len(all), all[0], all[len(all)-1])
	}
	m.record(all[historySize-1])
	if again := m.before(nil, 10*historySize); len(again) != historySize || again[0] != all[0] {
		t.Errorf("one that is there was recorded again: from %v", again[0])
	}
	if last := m.before(all[historySize-1], 2); len(last) != 2 || last[1].GetAtMs() != historySize+8 {
		t.Errorf("%v", last)
	}
}

func TestPausedGuestIsNotSampled(t *testing.T) {
	var asked atomic.Int32
	r := with(t, func(m *fakeMachine) {
		m.stats = func() agentwire.Stats { return agentwire.Stats{CPUMillis: uint64(asked.Add(1))} }
	})
	waitFor(t, "a sample", func() bool { return asked.Load() > 0 })
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	var before int32
	var history int
	waitFor(t, "the end of the samples", func() bool { // one may be under way
		before, history = asked.Load(), len(r.sup.meter.before(nil, historySize))
		time.Sleep(5 * r.sup.times.sample)
		return asked.Load() == before && len(r.sup.meter.before(nil, historySize)) == history
	})
	samples, err := r.stats(1)
	if err != nil || samples[0].GetGuestCpuMs() != uint64(before) || samples[0].GetHostRssBytes() == 0 {
		t.Errorf("%v, %v; want what the guest said last", samples, err)
	}
	if n := asked.Load(); n != before {
		t.Errorf("the paused guest was asked %d times", n-before)
	}
	if n := len(r.sup.meter.before(nil, historySize)); n != history {
		t.Errorf("%d samples of a paused guest", n-history)
	}
}

func TestStatsOfAGuestThatDoesNotAnswer(t *testing.T) {
	r := with(t, func(m *fakeMachine) {
		m.stats = func() agentwire.Stats { <-m.done; return agentwire.Stats{} }
	})
	r.sup.meter.turn <- struct{}{} // the sampler is not in the way
	r.sup.times.measure = 50 * time.Millisecond
	<-r.sup.meter.turn
	began := time.Now()
	samples, err := r.stats(1)
	if err != nil || samples[0].GetHostRssBytes() == 0 || samples[0].GetGuestCpuMs() != 0 {
		t.Errorf("%v, %v", samples, err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestTrafficIsUse(t *testing.T) {
	var bytes atomic.Uint64
	r := with(t, func(m *fakeMachine) {
		m.stats = func() agentwire.Stats { return agentwire.Stats{NetReceived: bytes.Load(), NetSent: 10} }
	})
	settle := func() { time.Sleep(5 * r.sup.times.sample) }
	settle()
	last := r.status().GetLastActivityMs()
	bytes.Add(noise / 2) // of an idle guest
	settle()
	if got := r.status().GetLastActivityMs(); got != last {
		t.Errorf("noise counts as use")
	}
	bytes.Add(10_000 * noise) // also for a machine that takes its time between two samples
	waitFor(t, "traffic to count as use", func() bool { return r.status().GetLastActivityMs() > last })
	last = r.status().GetLastActivityMs()
	settle()
	if got := r.status().GetLastActivityMs(); got != last {
		t.Errorf("traffic counts twice")
	}
}

func TestTrafficThresholdFitsTheTime(t *testing.T) {
	r := newRig(t, &fakeDriver{})
	s := r.sup
	s.times.sample = time.Second
	s.board = newBoard(&bangerv1.SupervisorStatus{})
	start := time.Now()
	for i, step := range []struct {
		after time.Duration
		bytes uint64
		used  bool
	}{
		{0, 1 << 40, false}, // before it was looked at
		{100 * time.Millisecond, 1<<40 + 9*noise, false}, // too soon to tell
		{time.Second, 1<<40 + 9*noise, true},
		{11 * time.Second, 1<<40 + 18*noise, false}, // ten intervals, nine times the noise
		{12 * time.Second, 5, false},                // a counter that began anew
		{13 * time.Second, 5 + 2*noise, true},
	} {
		s.board.activity.Store(0)
		s.noteTraffic(start.Add(step.after), step.bytes)
		if used := s.board.activity.Load() != 0; used != step.used {
			t.Errorf("step %d: used %v", i, used)
		}
	}
}

func TestWatchStats(t *testing.T) {
	r := with(t, func(*fakeMachine) {})
	watch := func(millis int64) (*connect.ServerStreamForClient[bangerv1.Sample], context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := r.client.WatchStats(ctx, connect.NewRequest(&bangerv1.SupervisorWatchStatsRequest{IntervalMs: millis}))
		if err != nil {
			t.Fatal(err)
		}
		return stream, cancel
	}
	for _, millis := range []int64{-1, 199, 1 << 60} {
		stream, cancel := watch(millis)
		if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeInvalidArgument {
			t.Errorf("%d ms: %v", millis, stream.Err())
		}
		cancel()
		stream.Close()
	}
	stream, cancel := watch(200)
	defer cancel()
	var at []int64
	for len(at) < 3 && stream.Receive() {
		if n, ms := len(at), stream.Msg().GetAtMs(); n == 0 || ms > at[n-1] {
			at = append(at, ms)
		} else if ms < at[n-1] { // the same comes again on a machine that is late
			t.Fatalf("%d after %v", ms, at)
		}
	}
	if len(at) < 3 {
		t.Fatalf("%v, %v", at, stream.Err())
	}
	if _, err := r.pause(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if !stream.Receive() {
			t.Fatalf("while paused: %v", stream.Err())
		}
	}
	if _, err := r.stop(true, 0); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() { // what was under way
	}
	if err := stream.Err(); err != nil {
		t.Errorf("at the end: %v", err)
	}
	stream.Close()
}

func TestUsageOfThisProcess(t *testing.T) {
	cpu, rss := usage(os.Getpid())
	if rss < 1<<20 || rss > 1<<40 || cpu > 1<<40 {
		t.Errorf("%d ms, %d bytes", cpu, rss)
	}
	if cpu, rss := usage(0); cpu != 0 || rss != 0 {
		t.Errorf("process 0: %d ms, %d bytes", cpu, rss)
	}
	for stat, want := range map[string]uint64{
		"1 (a) b) (c) S 1 1 1 0 -1 4 0 0 0 0 12 30 5 6 20 0": 420,
		"1 (x) S 1": 0, "": 0, strings.Repeat(")", 10): 0,
	} {
		if got := parseCPUTime(stat); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
}
