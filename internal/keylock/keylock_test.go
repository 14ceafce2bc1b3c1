package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneHolderPerKeyAndNoGrowth(t *testing.T) {
	var m Map[string]
	var wg sync.WaitGroup
	count := map[string]*int{"a": new(int), "b": new(int)} // each int is guarded by its key's lock only
	for range 50 {
		for key, n := range count {
			wg.Go(func() {
				unlock, err := m.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				*n++
			})
		}
	}
	wg.Wait()
	if *count["a"] != 50 || *count["b"] != 50 {
		t.Errorf("counts %d %d", *count["a"], *count["b"])
	}
	if m.Len() != 0 {
		t.Errorf("%d keys left", m.Len())
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	var m Map[int]
	unlock, err := m.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := m.Lock(ctx, 1); !errors.Is(err, cause) {
		t.Errorf("err = %v", err)
	}
	unlock()
	unlock() // twice is harmless
	if m.Len() != 0 {
		t.Errorf("%d keys left", m.Len())
	}
}
