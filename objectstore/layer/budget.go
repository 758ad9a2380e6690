package layer

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// What an import takes in memory, in the worst case. TestMemoryOfEntries and TestMemoryOfText hold it to this.
const (
	memoryPerImport = 13 << 20 // whatever it imports, besides the blocks of the tar
	memoryPerEntry  = 1400     // until the layer image is made
	memoryPerText   = 6        // times the length of names, link targets and extended attributes

	// budgetStep is what an import that needs more takes at once, so that it rarely asks.
	budgetStep = 4 << 20
)

// A budget bounds the memory that all imports of a store take together. Every import holds a share, which grows with
// the layer's tree: how large the tree becomes is not known before its end. An import that cannot have more waits.
//
// Imports that all hold a part and wait for more would wait for ever. So what is free is always enough for the import
// that holds most to take all that one import may hold: it never waits, and ends.
type budget struct {
	least int64 // that one import holds
	most  int64 // that one import may hold

	mu      sync.Mutex
	free    int64
	shares  map[*share]struct{}
	waiting []*request // in the order in which they began to wait
}

// newBudget returns a budget of total bytes, nil if total is 0. A nil budget bounds nothing. Each import holds at least
// memoryPerImport and its blocks.
func newBudget(total, blocks int64) *budget {
	if total <= 0 {
		return nil
	}
	least := memoryPerImport + blocks
	free := max(total, least)
	return &budget{
		least:  least,
		most:   max(free*3/4, least), // the rest is for imports beside it
		free:   free,
		shares: make(map[*share]struct{}),
	}
}

// A share is the part of a budget that one import holds. Only one goroutine may use it. A nil share is unlimited.
type share struct {
	b    *budget
	held int64
}

// A request is a share that waits to be larger.
type request struct {
	share   *share
	more    int64
	granted chan struct{} // closed when the share has it
}

// begin returns the share of a new import, when there is room for it. New imports wait behind those that wait already.
func (b *budget) begin(ctx context.Context) (*share, error) {
	if b == nil {
		return nil, nil
	}
	s := &share{b: b}
	if err := b.take(ctx, s, b.least); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// errMemory reports a layer that would take more memory than one import may.
var errMemory = errors.New("unpacking the layer takes more memory than total_memory allows")

// grow waits until the share has need bytes more than the least. A share that can never be as large is an errMemory; the
// end of ctx is a storeError.
func (s *share) grow(ctx context.Context, need int64) error {
	if s == nil {
		return nil
	}
	need += s.b.least
	switch {
	case need <= s.held:
		return nil
	case need > s.b.most:
		return errMemory
	}
	if err := s.b.take(ctx, s, min(max(need-s.held, budgetStep), s.b.most-s.held)); err != nil {
		return &storeError{err}
	}
	return nil
}

func (b *budget) take(ctx context.Context, s *share, more int64) error {
	b.mu.Lock()
	if (s.held > 0 || len(b.waiting) == 0) && b.grant(s, more) {
		b.mu.Unlock()
		return nil
	}
	r := &request{share: s, more: more, granted: make(chan struct{})}
	b.waiting = append(b.waiting, r)
	b.mu.Unlock()
	select {
	case <-r.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = slices.DeleteFunc(b.waiting, func(w *request) bool { return w == r })
	return context.Cause(ctx)
}

// grant makes a share larger if the one that is then the largest can still grow to the most. It must be called with the
// mutex held.
func (b *budget) grant(s *share, more int64) bool {
	largest := s.held + more
	for other := range b.shares {
		largest = max(largest, other.held)
	}
	if b.free-more < b.most-largest {
		return false
	}
	b.free -= more
	s.held += more
	b.shares[s] = struct{}{}
	return true
}

// release returns the share. Further calls do nothing.
func (s *share) release() {
	if s == nil {
		return
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += s.held
	s.held = 0
	delete(b.shares, s)
	blocked := false // an import waits, so no new one begins
	b.waiting = slices.DeleteFunc(b.waiting, func(r *request) bool {
		if (blocked && r.share.held == 0) || !b.grant(r.share, r.more) {
			blocked = true
			return false
		}
		close(r.granted)
		return true
	})
}
