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

// Images of what has a child, or gets one, are not made, and not finished.
func TestAhead(t *testing.T) {
	const long = time.Second // that an image takes
	for name, tt := range map[string]struct {
		do   func(a *ahead)
		want []string
	}{
		"one":            {func(a *ahead) { a.committed("a", "", nil) }, []string{"a"}},
		"two images":     {func(a *ahead) { a.committed("a", "", nil); a.committed("b", "", nil) }, []string{"a", "b"}},
		"layers at once": {func(a *ahead) { a.committed("a", "", nil); a.committed("b", "a", nil) }, []string{"b"}},
		"layers slowly":  {func(a *ahead) { a.committed("a", "", nil); time.Sleep(long / 2); a.committed("b", "a", nil) }, []string{"b"}},
		"layers late":    {func(a *ahead) { a.committed("a", "", nil); time.Sleep(2 * long); a.committed("b", "a", nil) }, []string{"a", "b"}},
		"is unpacked on": {func(a *ahead) { a.committed("a", "", nil); a.forget("a") }, nil},
		"is so slowly":   {func(a *ahead) { a.committed("a", "", nil); time.Sleep(long / 2); a.forget("a") }, nil},
		"closed":         {func(a *ahead) { a.committed("a", "", nil); time.Sleep(long / 2); a.close(); a.committed("b", "", nil) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var got []string
				a := &ahead{make: func(ctx context.Context, name string, _ []objectstore.Checksum) error {
					select {
					case <-time.After(long):
					case <-ctx.Done():
						return ctx.Err()
					}
					mu.Lock()
					defer mu.Unlock()
					got = append(got, name)
					return nil
				}}
				tt.do(a)
				time.Sleep(10 * long)
				a.close()
				slices.Sort(got)
				if !slices.Equal(got, tt.want) {
					t.Errorf("images of %q were made, want %q", got, tt.want)
				}
			})
		})
	}
}
