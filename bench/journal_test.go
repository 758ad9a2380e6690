package bench

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkJournal compares a cold pull of a real gzip layer of 340 MB and 16,000 entries with the journal and without:
// decompress, import, check out, and write a row durably, as Commit does in metadata.db. The two take turns, each time
// on a new file system.
func BenchmarkJournal(b *testing.B) {
	blob := layerBlob(b, "base:1")
	s := make(series)
	for i := 0; b.Loop(); i++ {
		variants := []string{"off", "journal"}
		if i%2 == 1 { // each is first in every other round
			variants[0], variants[1] = variants[1], variants[0]
		}
		for _, name := range variants {
			dir, remove := freshDisk(b, "4G")
			store := openJournalStore(b, dir, name == "journal")
			s.time(b, name, func() error {
				r, err := builtin(b.Context(), blob)
				if err != nil {
					return err
				}
				h, err := store.Import(b.Context(), r, layer.ImportOptions{})
				if err = errors.Join(err, r.Close()); err != nil {
					return err
				}
				_, _, err = store.Checkout(b.Context(), []objectstore.Checksum{h.ID})
				return errors.Join(err, writeRow(dir), h.Release())
			})
			testenv.Must(b, errors.Join(store.Close(), store.Repo().Close()))
			remove()
		}
	}
	s.report(b, "off")
}

func writeRow(dir string) error {
	f, err := os.Create(filepath.Join(dir, "row"))
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4<<12))
	return errors.Join(err, f.Sync(), f.Close())
}

func openJournalStore(b *testing.B, dir string, journal bool) *layer.Store {
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
	store, err := layer.Open(root, repo, layer.Options{Journal: journal})
	testenv.Must(b, err)
	return store
}
