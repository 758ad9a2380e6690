package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestLockExcludesHoldersOfTheSameKey(t *testing.T) {
	var m Map
	var wg sync.WaitGroup
	counts := map[string]*int{"a": new(int), "b": new(int)}
	for key, n := range counts {
		for range 50 {
			wg.Go(func() {
				unlock, err := m.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				*n++ // the race detector reports it if the lock does not exclude
				unlock()
			})
		}
	}
	wg.Wait()
	for key, n := range counts {
		if *n != 50 {
			t.Errorf("key %s: got %d turns, want 50", key, *n)
		}
	}
	if len(m.locks) != 0 {
		t.Errorf("%d mutexes remain after all were unlocked, want 0", len(m.locks))
	}
}

func TestLockEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map
		unlock, err := m.Lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		want := errors.New("enough")
		got := make(chan error)
		go func() {
			_, err := m.Lock(ctx, "a")
			got <- err
		}()
		synctest.Wait()
		cancel(want)
		if err := <-got; !errors.Is(err, want) {
			t.Errorf("got %v, want the cause of the context", err)
		}
		unlock()
		unlock() // must not unlock for another holder
		again, err := m.Lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		ctx, cancel = context.WithCancelCause(t.Context())
		go func() {
			_, err := m.Lock(ctx, "a")
			got <- err
		}()
		synctest.Wait()
		cancel(want)
		if err := <-got; !errors.Is(err, want) {
			t.Errorf("lock was free after a second call of another holder's unlock: got %v", err)
		}
		again()
		if len(m.locks) != 0 {
			t.Errorf("%d mutexes remain, want 0", len(m.locks))
		}
	})
}
