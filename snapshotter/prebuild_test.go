package snapshotter

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestPrebuild checks that images of chains with a child, or that get one, are not built.
func TestPrebuild(t *testing.T) {
	const long = time.Second // that an image takes
	for name, tt := range map[string]struct {
		do   func(p *prebuilder)
		want []string
	}{
		"one":            {func(p *prebuilder) { p.committed("a", "", nil) }, []string{"a"}},
		"two images":     {func(p *prebuilder) { p.committed("a", "", nil); p.committed("b", "", nil) }, []string{"a", "b"}},
		"layers at once": {func(p *prebuilder) { p.committed("a", "", nil); p.committed("b", "a", nil) }, []string{"b"}},
		"layers slowly":  {func(p *prebuilder) { p.committed("a", "", nil); time.Sleep(long / 2); p.committed("b", "a", nil) }, []string{"b"}},
		"layers late":    {func(p *prebuilder) { p.committed("a", "", nil); time.Sleep(2 * long); p.committed("b", "a", nil) }, []string{"a", "b"}},
		"is unpacked on": {func(p *prebuilder) { p.committed("a", "", nil); p.cancelPrebuild("a") }, nil},
		"is so slowly":   {func(p *prebuilder) { p.committed("a", "", nil); time.Sleep(long / 2); p.cancelPrebuild("a") }, nil},
		"closed": {func(p *prebuilder) {
			p.committed("a", "", nil)
			time.Sleep(long / 2)
			p.close()
			p.committed("b", "", nil)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var got []string
				p := newPrebuilder(func(ctx context.Context, name string, _ []objectstore.Checksum) error {
					select {
					case <-time.After(long):
					case <-ctx.Done():
						return ctx.Err()
					}
					mu.Lock()
					defer mu.Unlock()
					got = append(got, name)
					return nil
				})
				tt.do(p)
				time.Sleep(10 * long)
				p.close()
				slices.Sort(got)
				if !slices.Equal(got, tt.want) {
					t.Errorf("images of %q were built, want %q", got, tt.want)
				}
			})
		})
	}
}
