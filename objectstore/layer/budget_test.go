package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"golang.org/x/sync/errgroup"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestMemoryTogether imports five layers at the limit of entries at once, with a budget that is just enough for one of them.
// The whole process stays below the budget, and all of them succeed.
func TestMemoryTogether(t *testing.T) {
	const bombs = 5
	limit := testenv.Scale(1<<16, 1<<20)
	budget := (memoryPerImport + minBlocks*blockSize + (memoryPerEntry+memoryPerText*16)*int64(limit)) * 4 / 3
	testenv.LimitMemory(t, budget, func() {
		s, _ := newStore(t, Options{MaxEntries: limit, MaxInFlight: minBlocks * blockSize, TotalMemory: budget})
		var g errgroup.Group
		for b := range bombs {
			g.Go(func() error {
				entry := func(i int) []byte { return rawHeader(tar.TypeReg, fmt.Sprintf("b%d/%s", b, nthName(i)), 0, nil) }
				h, err := s.Import(t.Context(), &tarGenerator{n: limit * 99 / 100, entry: entry}, ImportOptions{})
				if err != nil {
					return err
				}
				return h.Release()
			})
		}
		testenv.Must(t, g.Wait())
	})
}

// TestBudgetEnds has many imports grow at random: none waits for ever, and they never hold more than there is.
func TestBudgetEnds(t *testing.T) {
	const total = 1 << 30
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(total, scanBlocks*blockSize)
			var g errgroup.Group
			for i := range uint64(30) {
				g.Go(func() error {
					rnd := rand.New(rand.NewPCG(seed, i))
					s, err := b.begin(t.Context())
					if err != nil {
						return err
					}
					defer s.release()
					end := rnd.Int64N(b.most - b.least)
					if rnd.IntN(3) == 0 {
						end = b.most - b.least
					}
					for need := int64(0); need < end; {
						need = min(end, need+rnd.Int64N(64<<20))
						if err := s.grow(t.Context(), need); err != nil {
							return err
						}
						b.mu.Lock()
						if b.free < 0 || s.held < b.least+need {
							t.Errorf("seed %d: %d bytes are free, a share of %d bytes should have %d", seed, b.free, s.held, need)
						}
						b.mu.Unlock()
					}
					return nil
				})
			}
			testenv.Must(t, g.Wait())
			if want := int64(total); b.free != want || len(b.shares) > 0 || len(b.waiting) > 0 {
				t.Errorf("seed %d: got %d bytes free, %d shares, %d waiting at the end; want %d, none, none", seed, b.free, len(b.shares), len(b.waiting), want)
			}
		})
	}
}

// TestBudgetWaits has imports wait for the largest one: another that grows first, then a new one.
func TestBudgetWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBudget(400<<20, scanBlocks*blockSize)
		large, err := b.begin(ctx)
		testenv.Must(t, err)
		testenv.Must(t, large.grow(ctx, b.most-b.least))
		small, err := b.begin(ctx)
		testenv.Must(t, err)
		ended := make(chan error, 2)
		go func() {
			err := small.grow(ctx, b.most-b.least)
			small.release()
			ended <- err
		}()
		synctest.Wait()
		go func() {
			s, err := b.begin(ctx)
			s.release()
			ended <- err
		}()
		synctest.Wait()
		if len(ended) > 0 || len(b.waiting) != 2 {
			t.Errorf("%d imports wait for the one that holds most, and %d did not; want 2 and 0", len(b.waiting), len(ended))
		}
		large.release()
		testenv.Must(t, errors.Join(<-ended, <-ended))
	})
}

// TestBudgetCancelled cancels an import that waits for another. A small one did not have to.
func TestBudgetCancelled(t *testing.T) {
	cause := errors.New("client went away")
	const limit = 1 << 18
	s, _ := newStore(t, Options{MaxEntries: limit, TotalMemory: 400 << 20})
	large, err := s.budget.begin(t.Context())
	testenv.Must(t, err)
	testenv.Must(t, large.grow(t.Context(), s.budget.most-s.budget.least))
	importTar(t, s, makeTar(t, file("a", "x"))) // what is left is enough for it
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		bomb := &tarGenerator{n: limit / 2, entry: func(i int) []byte { return rawHeader(tar.TypeReg, nthName(i), 0, nil) }}
		_, err := s.Import(ctx, bomb, ImportOptions{})
		done <- err
	}()
	for waiting := false; !waiting; {
		s.budget.mu.Lock()
		waiting = len(s.budget.waiting) > 0
		s.budget.mu.Unlock()
	}
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) || errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want %v, which is not the layer's fault", err, cause)
	}
	large.release()
	if layers, err := s.Layers(t.Context()); err != nil || len(layers) != 1 {
		t.Errorf("got layers %v (%v), want the small one alone", layers, err)
	}
	if len(s.budget.shares)+len(s.budget.waiting) > 0 {
		t.Errorf("%d shares and %d requests are left", len(s.budget.shares), len(s.budget.waiting))
	}
}

// TestBudgetRefuses refuses a layer that would take more than one import may, whatever else is being imported.
func TestBudgetRefuses(t *testing.T) {
	s, _ := newStore(t, Options{TotalMemory: 64 << 20})
	tar := &tarGenerator{n: 1 << 16, entry: func(i int) []byte { return rawHeader(tar.TypeReg, nthName(i), 0, nil) }}
	if err := importErr(t, s, tar, ImportOptions{}); !errors.Is(err, errMemory) || !errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want %v", err, errMemory)
	}
	wantNoRefs(t, s)
}
