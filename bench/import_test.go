package bench

import (
	"errors"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkImport compares decompressing a real gzip layer of 340 MB and 16,000 entries with importing it and checking
// it out: into an empty store (cold), and into one that has every file but not the layer's blob (known). checkout is
// the share of the hard links in the former; with composefs, rootfs takes its place. It runs with the decompressor
// of package inflate, with the fastest one in Go elsewhere, and with Intel's.
func BenchmarkImport(b *testing.B) {
	blob := layerBlob(b, "base:1")
	for _, d := range []struct {
		name string
		open gunzip
	}{{"builtin", builtin}, {"klauspost", klauspost}, {"igzip", igzip}} {
		b.Run(d.name, func(b *testing.B) {
			if d.name == "igzip" {
				testenv.NeedsTool(b, "igzip") // from the Debian package isal
			}
			s := make(series)
			for b.Loop() {
				s.time(b, "decompress", func() error {
					r, err := d.open(b.Context(), blob)
					if err != nil {
						return err
					}
					_, err = drain(r)
					return err
				})
				dir, remove := freshDisk(b, "4G")
				store := openStore(b, dir)
				var chain []objectstore.Checksum
				load := func(checkout string) error {
					r, err := d.open(b.Context(), blob)
					if err != nil {
						return err
					}
					h, err := store.Import(b.Context(), r, layer.ImportOptions{})
					if err = errors.Join(err, r.Close()); err != nil {
						return err
					}
					chain = []objectstore.Checksum{h.ID}
					s.time(b, checkout, func() error {
						_, _, err := store.Checkout(b.Context(), chain)
						return err
					})
					return h.Release()
				}
				s.time(b, "cold", func() error { return load("checkout") })
				s.time(b, "rootfs", func() error {
					image, _, err := store.OpenRootfs(b.Context(), chain)
					if err != nil {
						return err
					}
					return image.Close()
				})
				run(b, "sync", "-f", dir) // known must not pay for the writes of cold
				s.time(b, "known", func() error { return load("known-checkout") })
				testenv.Must(b, errors.Join(store.Close(), store.Repo().Close()))
				remove()
			}
			s.report(b, "decompress")
		})
	}
}

func openStore(b *testing.B, dir string) *layer.Store {
	b.Helper()
	root, err := atfs.Open(dir)
	testenv.Must(b, err)
	defer root.Close()
	testenv.Must(b, root.MkdirAll("repo", 0o700))
	repoDir, err := root.OpenDir("repo")
	testenv.Must(b, err)
	defer repoDir.Close()
	repo, err := objectstore.Create(repoDir, objectstore.ModeBare)
	testenv.Must(b, err)
	store, err := layer.Open(root, repo, layer.Options{})
	testenv.Must(b, err)
	return store
}
