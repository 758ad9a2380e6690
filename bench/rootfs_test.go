package bench

import (
	"errors"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkRootfs makes the root file system image of base:1, which has one layer, in memory.
func BenchmarkRootfs(b *testing.B) {
	blob := layerBlob(b, "base:1")
	dir, remove := freshDisk(b, "4G")
	defer remove()
	store := openStore(b, dir)
	defer func() { testenv.Must(b, errors.Join(store.Close(), store.Repo().Close())) }()
	r, err := klauspost(b.Context(), blob)
	testenv.Must(b, err)
	h, err := store.Import(b.Context(), r, layer.ImportOptions{})
	testenv.Must(b, errors.Join(err, r.Close()))
	chain := []objectstore.Checksum{h.ID}
	defer func() { testenv.Must(b, h.Release()) }()
	for b.Loop() {
		_, _, err := store.MarshalRootfs(b.Context(), chain)
		testenv.Must(b, err)
	}
}
