package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A layer is imported, a durable row names it, and the power fails: with the journal the next start heals the layer or
// reports it lost, and the repository is right. Without it, damaged objects stay under their names, which this test
// would show of a broken journal.
func TestPowerLoss(t *testing.T) {
	tar := makeTar(t, manyFiles()...)
	for _, fstype := range []string{"ext4", "xfs"} {
		for _, journal := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/journal=%v", fstype, journal), func(t *testing.T) {
				before := testenv.NewDisk(t, fstype, 512<<20, "-q")
				b := &bed{path: before.Dir}
				b.open(t, Options{Journal: true})
				if err := b.Sync(t.Context()); err != nil { // the store itself is old
					t.Fatal(err)
				}
				b.close(t)
				b.open(t, Options{Journal: journal})
				defer b.close(t)
				l := b.importBlob(t, tar, someBlob)
				checkOut(t, b.Store, b.path, l.ID)
				chain := []objectstore.Checksum{l.ID}
				makeImage(t, b, chain)
				row, err := os.Create(filepath.Join(before.Dir, rowFile))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := row.WriteString(l.ID.String()); err != nil {
					t.Fatal(err)
				}
				if err := row.Sync(); err != nil {
					t.Fatal(err)
				}
				if err := row.Close(); err != nil {
					t.Fatal(err)
				}
				// At once: the kernel writes data by itself after some seconds.
				copies := map[bool]string{true: before.PowerLoss(t).Dir, false: before.PowerLoss(t).Dir}
				for blob, dir := range copies {
					t.Run(fmt.Sprintf("blob=%v", blob), func(t *testing.T) {
						after := &bed{path: dir}
						if got, err := os.ReadFile(filepath.Join(after.path, rowFile)); err != nil || string(got) != l.ID.String() {
							t.Fatalf("row: got %q, %v", got, err)
						}
						after.open(t, Options{Journal: true, Boot: "after"})
						defer after.close(t)
						damaged := after.problems(t)
						if len(damaged) == 0 {
							t.Fatal("nothing was lost: this test does not test anything")
						}
						t.Logf("%d problems after the power failure", len(damaged))
						var remake func(context.Context, LostLayer) error
						if blob {
							remake = func(ctx context.Context, lost LostLayer) error {
								h, err := after.Import(ctx, bytes.NewReader(tar), ImportOptions{Blob: lost.Blob})
								if err != nil {
									return err
								}
								return h.Release()
							}
						}
						r, err := after.Recover(t.Context(), remake)
						if err != nil {
							t.Fatal(err)
						}
						problems := after.problems(t)
						_, err = after.Layer(t.Context(), l.ID)
						switch {
						case !journal:
							if len(problems) == 0 {
								t.Error("got no problems, although there is no journal")
							}
							return
						case len(problems) != 0:
							t.Errorf("got %d problems after recovery, first %v", len(problems), problems[0])
						case blob && (len(r.Remade) != 1 || err != nil):
							t.Errorf("got %+v, %v, want the layer made again", r, err)
						case !blob && (len(r.Lost) != 1 || err == nil):
							t.Errorf("got %+v, %v, want the layer lost", r, err)
						}
						checkStore(t, after.path)
						if blob {
							if err := after.VerifyRootfs(t.Context(), chain); err != nil && !errors.Is(err, fs.ErrNotExist) {
								t.Errorf("rootfs image: %v", err)
							}
							fs := checkOut(t, after.Store, after.path, l.ID)
							if got, err := os.ReadFile(filepath.Join(fs, "f7")); err != nil || string(got) != "content 7" {
								t.Errorf("got %q, %v", got, err)
							}
						}
					})
				}
			})
		}
	}
}

func manyFiles() []tarEntry {
	entries := []tarEntry{file("large", strings.Repeat("0123456789abcdef", 1<<17))}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprint("f", i), fmt.Sprint("content ", i)))
	}
	return entries
}
