package operation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/progress"
)

// read returns the whole log of an operation as "step kind text".
func read(t *testing.T, r *Registry[string], id string) (all []string) {
	t.Helper()
	err := r.Logs(t.Context(), id, func(l Line) error {
		all = append(all, fmt.Sprint(l.Step, " ", l.Kind, " ", l.Text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func logged(t *testing.T, r *Registry[string], do LoggingJob[string]) string {
	t.Helper()
	id, err := r.BeginLogged(Spec{Kind: "image.build"}, do)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLogsAreReadWhileTheyAreWrittenAndAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := logged(t, r, func(_ context.Context, _ progress.Func, log LogFunc) (string, error) {
			log(Line{Step: 1, Kind: LineBegin, Text: "RUN make"})
			time.Sleep(time.Second)
			for i := range 3 * logBatch {
				log(Line{Step: 1, Kind: LineOutput, Text: fmt.Sprint(i)})
			}
			time.Sleep(time.Second)
			log(Line{Step: 1, Kind: LineDone, Took: 2 * time.Second})
			return "x", nil
		})
		want := []string{"1 begin RUN make"}
		for i := range 3 * logBatch {
			want = append(want, fmt.Sprint("1 output ", i))
		}
		want = append(want, "1 done ")
		for range 2 {
			if diff := cmp.Diff(want, read(t, r, id)); diff != "" {
				t.Error(diff)
			}
		}
	})
}

func TestASlowReaderHoldsUpNobodyAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		line := strings.Repeat("x", maxLogLine)
		id := logged(t, r, func(_ context.Context, _ progress.Func, log LogFunc) (string, error) {
			log(Line{Kind: LineOutput, Text: "first"})
			time.Sleep(time.Second)
			for range 10_000 { // 160 MB
				log(Line{Kind: LineOutput, Text: line + "more"})
			}
			return "", nil
		})
		var kinds []string
		size := 0
		err := r.Logs(t.Context(), id, func(l Line) error {
			time.Sleep(time.Minute)
			if size += len(l.Text); l.Kind == LineLost {
				kinds = append(kinds, l.Text)
			}
			return nil
		})
		if err != nil || len(kinds) != 1 || size > logLimit+maxLogLine || size < logLimit-2*maxLogLine {
			t.Errorf("%v: %v, %d bytes", err, kinds, size)
		}
	})
}

func TestLogsEndWithTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		id := logged(t, r, func(ctx context.Context, _ progress.Func, log LogFunc) (string, error) {
			log(Line{Text: "a"})
			<-ctx.Done()
			return "", ctx.Err()
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		gone, full := errors.New("gone"), errors.New("full")
		go func() {
			time.Sleep(time.Second)
			cancel(gone)
		}()
		if err := r.Logs(ctx, id, func(Line) error { return nil }); !errors.Is(err, gone) {
			t.Error(err)
		}
		if err := r.Logs(t.Context(), id, func(Line) error { return full }); !errors.Is(err, full) {
			t.Error(err)
		}
		if err := r.Logs(t.Context(), "nobody", nil); err == nil {
			t.Error("the log of an operation that is not there")
		}
		if _, err := r.Cancel(id); err != nil {
			t.Error(err)
		}
		if got := read(t, r, id); len(got) != 1 {
			t.Errorf("%v", got)
		}
		plain := begin(t, r, Spec{}, func(context.Context, progress.Func) (string, error) { return "", nil })
		if got := read(t, r, plain); len(got) != 0 {
			t.Errorf("a job without a log: %v", got)
		}
	})
}

func TestOldLogsAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[string]()
		var ids []string
		for range keepLogs + 1 {
			ids = append(ids, logged(t, r, func(_ context.Context, _ progress.Func, log LogFunc) (string, error) {
				for range 100 {
					log(Line{Text: strings.Repeat("y", 10_000)})
				}
				return "", nil
			}))
			synctest.Wait()
		}
		if n := len(read(t, r, ids[0])); n > 10 {
			t.Errorf("%d lines of an old job", n)
		}
		if n := len(read(t, r, ids[1])); n != 100 {
			t.Errorf("%d lines of one of the last jobs", n)
		}
	})
}
