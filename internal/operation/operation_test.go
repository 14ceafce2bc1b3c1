package operation

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/progress"
)

// begin starts an operation or fails the test.
func begin(t *testing.T, r *Registry[string], spec Spec, do Job[string]) string {
	t.Helper()
	id, err := r.Begin(spec, do)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func get(t *testing.T, r *Registry[string], id string) Snapshot[string] {
	t.Helper()
	s, err := r.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waits is a job that runs until it is cancelled.
func waits(ctx context.Context, _ progress.Func) (string, error) {
	<-ctx.Done()
	return "", fmt.Errorf("broken off: %w", ctx.Err())
}

func TestOutcomes(t *testing.T) {
	boom := fault.New(fault.Exhausted, "no space")
	for name, tt := range map[string]struct {
		do    Job[string]
		state State
		err   error
	}{
		"done":     {func(context.Context, progress.Func) (string, error) { return "x", nil }, Done, nil},
		"failed":   {func(context.Context, progress.Func) (string, error) { return "", boom }, Failed, boom},
		"gave up":  {func(context.Context, progress.Func) (string, error) { return "", context.Canceled }, Cancelled, context.Canceled},
		"internal": {func(context.Context, progress.Func) (string, error) { return "", errors.ErrUnsupported }, Failed, errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := New[string]()
				id := begin(t, r, Spec{Kind: "k", Target: "t"}, tt.do)
				synctest.Wait()
				s := get(t, r, id)
				if s.State != tt.state || !errors.Is(s.Err, tt.err) || (tt.state == Done) != (s.Result == "x") || s.Ended.IsZero() {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestTheSameKeyIsOneJobUntilItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		var runs atomic.Int32
		job := func(ctx context.Context, report progress.Func) (string, error) {
			n := runs.Add(1)
			report(progress.Update{Stage: "image", Done: 1})
			time.Sleep(time.Second)
			return fmt.Sprint(n), nil
		}
		spec := Spec{Kind: "image.pull", Key: "image/x"}
		a, b := begin(t, r, spec, job), begin(t, r, spec, job)
		other := begin(t, r, Spec{Key: "image/y"}, job)
		synctest.Wait()
		late := begin(t, r, spec, job)
		if s := get(t, r, late); s.Progress.Stage != "image" {
			t.Errorf("who joins late does not see the progress: %+v", s)
		}
		time.Sleep(2 * time.Second)
		if get(t, r, a).Result != get(t, r, b).Result || get(t, r, late).Result != get(t, r, a).Result || a == b {
			t.Error("not shared")
		}
		if get(t, r, other).State != Done || runs.Load() != 2 {
			t.Errorf("%d runs", runs.Load())
		}
		begin(t, r, spec, job)
		synctest.Wait()
		if runs.Load() != 3 {
			t.Error("a job that has ended was joined")
		}
		time.Sleep(2 * time.Second)
	})
}

func TestCancelCountsTheParties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		spec := Spec{Key: "x"}
		var undone atomic.Bool
		job := func(ctx context.Context, report progress.Func) (string, error) {
			<-ctx.Done()
			if context.Cause(ctx) != ErrCancelled {
				t.Errorf("cause %v", context.Cause(ctx))
			}
			time.Sleep(time.Second) // undoes
			undone.Store(true)
			return "", ctx.Err()
		}
		a, b := begin(t, r, spec, job), begin(t, r, spec, job)
		if s, err := r.Cancel(a); err != nil || s.State != Cancelled {
			t.Errorf("%+v, %v", s, err)
		}
		synctest.Wait()
		if get(t, r, b).State != Running {
			t.Error("one party's cancel ended the other's operation")
		}
		if s, err := r.Cancel(b); err != nil || s.State != Running {
			t.Errorf("the last one ends with the job: %+v, %v", s, err)
		}
		if _, err := r.Cancel(b); err != nil { // again, while it undoes itself
			t.Error(err)
		}
		fresh := begin(t, r, spec, func(context.Context, progress.Func) (string, error) { return "new", nil })
		synctest.Wait()
		if s := get(t, r, fresh); s.Result != "new" {
			t.Errorf("a dying job was joined: %+v", s)
		}
		time.Sleep(2 * time.Second)
		if s := get(t, r, b); s.State != Cancelled || !undone.Load() || !errors.Is(s.Err, ErrCancelled) {
			t.Errorf("%+v", s)
		}
	})
}

func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		spec := Spec{Key: "x"}
		step := make(chan struct{})
		job := func(ctx context.Context, report progress.Func) (string, error) {
			report(progress.Update{Stage: "one"})
			select {
			case <-step:
				return "x", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		owner := begin(t, r, spec, job)
		synctest.Wait()

		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, err := r.Share(ctx, spec, nil, job)
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		if get(t, r, owner).State != Running || len(r.List()) != 1 || r.Running() != 1 {
			t.Error("who left took the job along, or is listed")
		}

		var seen atomic.Value
		got := make(chan string)
		go func() {
			result, err := r.Share(t.Context(), spec, func(u progress.Update) { seen.Store(u.Stage) }, job)
			if err != nil {
				t.Error(err)
			}
			got <- result
		}()
		synctest.Wait()
		if _, err := r.Cancel(owner); err != nil {
			t.Error(err)
		}
		step <- struct{}{}
		if result := <-got; result != "x" || seen.Load() != "one" {
			t.Errorf("result %q, progress %v", result, seen.Load())
		}
	})
}

func TestShareByTheLastPartyWaitsForTheUndoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		undone := false
		_, err := r.Share(ctx, Spec{Key: "x"}, nil, func(ctx context.Context, _ progress.Func) (string, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			undone = true
			return "", ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || !undone {
			t.Errorf("err = %v, undone %v", err, undone)
		}
	})
}

func TestWatchCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := begin(t, r, Spec{}, func(_ context.Context, report progress.Func) (string, error) {
			for i := range 1000 {
				report(progress.Update{Done: uint64(i)})
				time.Sleep(time.Millisecond)
			}
			return "x", nil
		})
		var seen []Snapshot[string]
		start := time.Now()
		err := r.Watch(t.Context(), id, func(s Snapshot[string]) error {
			seen = append(seen, s)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) < 5 || len(seen) > 12 {
			t.Errorf("%d reports in a second", len(seen))
		}
		if last := seen[len(seen)-1]; last.State != Done || last.Result != "x" || time.Since(start) != time.Second {
			t.Errorf("last %+v after %v", last, time.Since(start))
		}
	})
}

// Stages go on side by side: what one says last arrives although another speaks right after it, through Share too.
func TestTheLastWordOfEveryStageArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		kernel := func(_ context.Context, report progress.Func) (string, error) {
			report(progress.Update{Stage: "kernel"})
			time.Sleep(time.Second)
			report(progress.Update{Stage: "kernel", Message: "ready", Done: 1, Total: 1})
			return "", nil
		}
		id := begin(t, r, Spec{}, func(ctx context.Context, report progress.Func) (string, error) {
			report(progress.Update{Stage: "image"})
			_, err := r.Share(ctx, Spec{Key: "kernel"}, report, kernel)
			report(progress.Update{Stage: "image", Done: 1})
			report(progress.Update{Stage: "image", Done: 2})
			return "", err
		})
		last := map[string]progress.Update{}
		var states []State
		if err := r.Watch(t.Context(), id, func(s Snapshot[string]) error {
			last[s.Progress.Stage] = s.Progress
			states = append(states, s.State)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if last["kernel"].Message != "ready" || last["image"].Done != 2 {
			t.Errorf("%+v", last)
		}
		for i, s := range states {
			if (s == Done) != (i == len(states)-1) {
				t.Errorf("states %v: the end is said once, and last", states)
			}
		}
	})
}

func TestWatchEndsWithItsContextOrItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := begin(t, r, Spec{}, waits)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Watch(ctx, id, func(Snapshot[string]) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		lost := errors.New("connection lost")
		if err := r.Watch(t.Context(), id, func(Snapshot[string]) error { return lost }); err != lost {
			t.Errorf("err = %v", err)
		}
		if get(t, r, id).State != Running {
			t.Error("a watcher that left took the operation along")
		}
		if err := r.Close(t.Context(), ErrCancelled); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseCancelsAndRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := begin(t, r, Spec{}, waits)
		if err := r.Close(t.Context(), fault.New(fault.Cancelled, "the daemon is stopping")); err != nil {
			t.Fatal(err)
		}
		if s := get(t, r, id); s.State != Cancelled || s.Err.Error() != "the daemon is stopping" {
			t.Errorf("%+v", s)
		}
		if _, err := r.Begin(Spec{}, waits); !fault.Is(err, fault.Unavailable) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestCloseIfIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := begin(t, r, Spec{}, waits)
		if r.CloseIfIdle() {
			t.Error("closed although an operation runs")
		}
		if _, err := r.Cancel(id); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if !r.CloseIfIdle() {
			t.Error("not closed although none runs")
		}
		if _, err := r.Begin(Spec{}, waits); !fault.Is(err, fault.Unavailable) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		begin(t, r, Spec{}, func(context.Context, progress.Func) (string, error) {
			time.Sleep(time.Hour)
			return "", nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Close(ctx, ErrCancelled); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		time.Sleep(2 * time.Hour)
	})
}

func TestOldOperationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		quick := func(context.Context, progress.Func) (string, error) { return "", nil }
		running := begin(t, r, Spec{Target: "runs"}, waits)
		for range keepEnded + 50 {
			begin(t, r, Spec{}, quick)
			synctest.Wait()
		}
		if n := len(r.List()); n != keepEnded+1 {
			t.Errorf("%d are kept", n)
		}
		time.Sleep(keepFor + time.Second)
		left := r.List()
		if len(left) != 1 || left[0].ID != running {
			t.Errorf("%d are kept after an hour", len(left))
		}
		if _, err := r.Get("nothing"); !fault.Is(err, fault.NotFound) {
			t.Errorf("err = %v", err)
		}
		if diff := cmp.Diff(1, r.Running()); diff != "" {
			t.Error(diff)
		}
		if err := r.Close(t.Context(), ErrCancelled); err != nil {
			t.Error(err)
		}
	})
}
