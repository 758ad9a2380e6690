package layer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// live returns a Live of these layers.
func live(layers ...Layer) Live {
	return func(context.Context) (map[objectstore.Checksum]struct{}, error) {
		ids := make(map[objectstore.Checksum]struct{})
		for _, l := range layers {
			ids[l.ID] = struct{}{}
		}
		return ids, nil
	}
}

// allocated returns the disk space of the store without its refs, each inode counted once.
func (b *bed) allocated(t testing.TB) int64 {
	t.Helper()
	var bytes int64
	seen := make(map[atfs.Inode]bool)
	root, err := atfs.Open(b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, dir := range []string{"repo/objects", "repo/tmp", "layers", "tmp"} {
		err := root.Walk(dir, func(st *unix.Stat_t) error {
			if id := atfs.InodeOf(st); !seen[id] {
				seen[id] = true
				bytes += atfs.Allocated(st)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return bytes
}

// A prune removes exactly what it planned, and frees the planned bytes.
func TestPruneFrees(t *testing.T) {
	b := newBed(t, Options{})
	kept := importTar(t, b.Store, makeTar(t, file("shared", "in both"), dir("d"), file("d/kept", "kept")))
	checkOut(t, b.Store, b.path, kept.ID)
	other := file("shared", "in both", at(time.Unix(99, 0))) // the checkout gets a copy
	dead := importTar(t, b.Store, makeTar(t, other, dir("d"), file("d/dead", "dead"), hardlink("again", "shared"), symlink("l", "d"), file("empty", "")))
	checkOut(t, b.Store, b.path, dead.ID)
	second := importTar(t, b.Store, makeTar(t, file("dead", "dead"), file("second", "second")))
	checkOut(t, b.Store, b.path, second.ID)
	lost := makeTar(t, file("lost", "of a pull that was interrupted"))
	broken := &errReader{r: bytes.NewReader(lost[:len(lost)-1]), err: io.ErrClosedPipe}
	if err := importErr(t, b.Store, broken, ImportOptions{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	ours := "obj-" + rand.Text()
	for _, name := range []string{
		"layers/0123456789abcdef/fs/file", "tmp/checkout-dead-1/fs/d/file", "tmp/checkout-old/fs/file", "tmp/checkout-new/fs/file",
		"repo/tmp/" + ours,
	} {
		name = filepath.Join(b.path, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte("a file"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// The removal of a checkout was interrupted: the objects it links to are garbage too.
	checkout := filepath.Join(b.path, "layers", dead.ID.String()[:shortID])
	if err := os.Link(checkout+"/fs/d/dead", filepath.Join(b.path, "tmp/checkout-dead-1/fs/dead")); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * unfinishedAge)
	if err := os.Chtimes(filepath.Join(b.path, "tmp/checkout-old"), old, old); err != nil {
		t.Fatal(err)
	}

	plan, err := b.PlanPrune(t.Context(), live(kept))
	if err != nil {
		t.Fatal(err)
	}
	before := b.allocated(t)
	got, err := plan.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got != plan.Stats() {
		t.Errorf("removed %+v, planned %+v", got, plan.Stats())
	}
	if freed := before - b.allocated(t); freed != got.Bytes || freed == 0 {
		t.Errorf("freed %d bytes, reported %d", freed, got.Bytes)
	}
	if got.Layers != 2 || got.Checkouts != 3 || got.Leftovers != 3 {
		t.Errorf("removed %+v, want 2 layers, 3 checkouts, 3 leftovers", got)
	}
	for name, want := range map[string]bool{
		"layers/0123456789abcdef": false, "tmp/checkout-dead-1": false, "tmp/checkout-old": false, "tmp/checkout-new": true,
		"repo/tmp/" + ours: false, "layers/" + kept.ID.String()[:shortID] + "/fs/d/kept": true,
	} {
		if _, err := os.Lstat(filepath.Join(b.path, name)); errors.Is(err, fs.ErrNotExist) == want {
			t.Errorf("%s: %v, want it kept: %t", name, err, want)
		}
	}
	if p := b.problems(t); len(p) > 0 {
		t.Errorf("after the prune: %v", p)
	}
}

// A removal in steps stops at the next file of a checkout, in the middle of a step, and the reason is its error.
func TestStepsStopInCheckouts(t *testing.T) {
	for _, kind := range []string{"removed", "left over"} {
		t.Run(kind, func(t *testing.T) {
			b := newBed(t, Options{})
			for i := range 2 {
				l := importTar(t, b.Store, makeTar(t, file("a", fmt.Sprint("a", i)), file("b", fmt.Sprint("b", i))))
				checkOut(t, b.Store, b.path, l.ID)
			}
			if kind == "left over" {
				_, err := b.Forget(t.Context(), live())
				testenv.Must(t, err)
			}
			plan, err := b.PlanPrune(t.Context(), live())
			testenv.Must(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			removed := 0
			b.hook = func(op atfs.Op, name string) error {
				if op == atfs.OpUnlink && strings.HasPrefix(name, TmpDir+"/"+deadPrefix) && filepath.Base(name) < "c" {
					removed++
					cancel()
				}
				return nil
			}
			_, err = plan.ExecuteInSteps(ctx, objectstore.Steps{
				Objects: 1000, Between: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) },
			})
			b.hook = nil
			if !errors.Is(err, context.Canceled) || errors.Is(err, objectstore.ErrNotRemoved) || removed != 1 {
				t.Errorf("got %v, after %d files, want it canceled after the first", err, removed)
			}
			plan, err = b.PlanPrune(t.Context(), live())
			if err == nil {
				_, err = plan.Execute(t.Context())
			}
			testenv.Must(t, err)
			if left, err := b.tmp.ReadNames(); err != nil || len(left) > 0 {
				t.Errorf("left: %q (%v)", left, err)
			}
		})
	}
}
