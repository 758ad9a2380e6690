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
				l, chain, copies := losePower(t, tar, fstype, journal)
				for blob, dir := range copies {
					t.Run(fmt.Sprintf("blob=%v", blob), func(t *testing.T) {
						after := &bed{path: dir}
						if got, err := os.ReadFile(filepath.Join(after.path, rowFile)); err != nil || string(got) != l.ID.String() {
							t.Fatalf("row: got %q, %v", got, err)
						}
						after.open(t, Options{Journal: true, Boot: "after"})
						defer after.close(t)
						t.Logf("%d problems after the power failure", len(after.problems(t)))
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

// losePower imports a layer into a new store and returns the disks that a power failure would leave, for imports again with
// and without the blob. Something must be lost. The kernel writes data by itself after some seconds, or earlier if much is to
// be written elsewhere on the machine: then another store loses power.
func losePower(t *testing.T, tar []byte, fstype string, journal bool) (l Layer, chain []objectstore.Checksum, copies map[bool]string) {
	t.Helper()
	for range 10 {
		before := testenv.NewDisk(t, fstype, 512<<20, "-q")
		b := &bed{path: before.Dir}
		b.open(t, Options{Journal: true})
		testenv.Must(t, b.Sync(t.Context())) // the store itself is old
		b.close(t)
		b.open(t, Options{Journal: journal})
		t.Cleanup(func() { b.close(t) })
		l = b.importBlob(t, tar, someBlob)
		checkOut(t, b.Store, b.path, l.ID)
		chain = []objectstore.Checksum{l.ID}
		makeImage(t, b, chain)
		row, err := os.Create(filepath.Join(before.Dir, rowFile))
		testenv.Must(t, err)
		_, err = row.WriteString(l.ID.String())
		testenv.Must(t, errors.Join(err, row.Sync(), row.Close()))
		copies = map[bool]string{true: before.PowerLoss(t).Dir, false: before.PowerLoss(t).Dir}
		last := &bed{path: before.PowerLoss(t).Dir} // has lost least
		last.open(t, Options{Journal: true, Boot: "after"})
		lost := len(last.problems(t))
		last.close(t)
		if lost > 0 {
			return l, chain, copies
		}
	}
	t.Fatal("nothing was lost: this test does not test anything")
	return Layer{}, nil, nil
}

func manyFiles() []tarEntry {
	entries := []tarEntry{file("large", strings.Repeat("0123456789abcdef", 1<<17))}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprint("f", i), fmt.Sprint("content ", i)))
	}
	return entries
}
