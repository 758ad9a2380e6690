package layer

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestShare shares the space out among two layers that have a file in common, and borrow another from the host. In the
// order of their import each gets what it added; in the other order, the sum is the same.
func TestShare(t *testing.T) {
	testenv.NeedsRoot(t)
	host := hostRepo(t, t.TempDir(), 2, when)
	s, _ := newStore(t, Options{Borrow: []*objectstore.Repo{host}})
	common := file("common", strings.Repeat("common", 20000))
	lib := []tarEntry{dir("lib"), file("lib/f0", libContent(0)), file("lib/f1", libContent(1))}
	ids := make([]objectstore.Checksum, 2)
	want := make(map[objectstore.Checksum]Usage)
	var sum Usage
	for i, own := range []tarEntry{file("a", strings.Repeat("a", 9000)), file("b", strings.Repeat("b", 30000))} {
		h, err := s.Import(t.Context(), bytes.NewReader(makeTar(t, append(lib, common, own)...)), ImportOptions{})
		testenv.Must(t, err)
		testenv.Must(t, h.Release())
		_, added, err := s.Checkout(t.Context(), []objectstore.Checksum{h.ID})
		testenv.Must(t, err)
		ids[i] = h.ID
		want[h.ID] = Usage{Bytes: h.Added.Bytes + added.Bytes, Inodes: h.Added.Inodes + added.Inodes}
		sum.Bytes += want[h.ID].Bytes
		sum.Inodes += want[h.ID].Inodes
	}
	unknown := objectstore.Checksum{1}
	got, err := s.Share(t.Context(), []objectstore.Checksum{ids[0], unknown, ids[1], ids[0]})
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("shares are %v, %v, want what each layer added: %v", got, err, want)
	}
	other, err := s.Share(t.Context(), []objectstore.Checksum{ids[1], ids[0]})
	a, b := other[ids[0]], other[ids[1]]
	if err != nil || a.Bytes+b.Bytes != sum.Bytes || a.Inodes+b.Inodes != sum.Inodes || b.Bytes <= want[ids[1]].Bytes {
		t.Errorf("in the other order shares are %v, %v, want the sum %v and more for the first", other, err, sum)
	}
}

// BenchmarkShare shares out 20 layers, of 1,000 files each, of which 900 are in all of them.
func BenchmarkShare(b *testing.B) {
	testenv.NeedsRoot(b)
	s, _ := newStore(b, Options{})
	var ids []objectstore.Checksum
	for i := range 20 {
		var entries []tarEntry
		for j := range 1000 {
			entries = append(entries, file(fmt.Sprint(j), fmt.Sprint(j, i*max(j-899, 0))))
		}
		ids = append(ids, importTar(b, s, makeTar(b, entries...)).ID)
	}
	for b.Loop() {
		if _, err := s.Share(b.Context(), ids); err != nil {
			b.Fatal(err)
		}
	}
}
