// Package keylock is a set of locks by key that does not grow: a key's lock exists only while somebody holds it or
// waits for it.
package keylock

import (
	"context"
	"sync"
)

// Map is a set of locks. The zero value is ready.
type Map[K comparable] struct {
	mu      sync.Mutex // guards entries and every entry's users
	entries map[K]*entry
}

type entry struct {
	users int           // holders and waiters
	token chan struct{} // capacity 1: full while the lock is held
}

// Lock waits for the lock of key and returns the function that gives it back, which may be called more than once. When
// ctx ends first, its cause is returned and nothing is held.
func (m *Map[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	e := m.acquire(key)
	select {
	case e.token <- struct{}{}:
		return sync.OnceFunc(func() {
			<-e.token
			m.release(key, e)
		}), nil
	case <-ctx.Done():
		m.release(key, e)
		return nil, context.Cause(ctx)
	}
}

// Len is how many keys are locked or waited for.
func (m *Map[K]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries)
}

func (m *Map[K]) acquire(key K) *entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == nil {
		m.entries = make(map[K]*entry)
	}
	e := m.entries[key]
	if e == nil {
		e = &entry{token: make(chan struct{}, 1)}
		m.entries[key] = e
	}
	e.users++
	return e
}

func (m *Map[K]) release(key K, e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(m.entries, key)
	}
}
