// Package keylock provides mutexes named by strings, which exist while they are held or waited for.
package keylock

import (
	"context"
	"sync"
)

// A Map is a set of mutexes. Its zero value is ready for use.
type Map struct {
	mu    sync.Mutex
	locks map[string]*entry
}

type entry struct {
	held chan struct{} // holds an element while the mutex is locked
	refs int           // holders and waiters
}

// Lock locks the mutex called key and returns its unlock function, or the cause of ctx if that ends first. Further
// calls of the unlock function do nothing.
func (m *Map) Lock(ctx context.Context, key string) (unlock func(), err error) {
	m.mu.Lock()
	e := m.locks[key]
	if e == nil {
		if m.locks == nil {
			m.locks = make(map[string]*entry)
		}
		e = &entry{held: make(chan struct{}, 1)}
		m.locks[key] = e
	}
	e.refs++
	m.mu.Unlock()

	select {
	case e.held <- struct{}{}:
		return sync.OnceFunc(func() {
			<-e.held
			m.drop(key, e)
		}), nil
	case <-ctx.Done():
		m.drop(key, e)
		return nil, context.Cause(ctx)
	}
}

func (m *Map) drop(key string, e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.refs--; e.refs == 0 {
		delete(m.locks, key)
	}
}
