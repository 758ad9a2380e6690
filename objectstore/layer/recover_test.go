package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// objectFile is the path of an object of a store.
func (b *bed) objectFile(typ objectstore.ObjectType, sum objectstore.Checksum) string {
	return filepath.Join(b.path, "repo/objects", objectstore.LoosePath(sum, typ))
}

// truncate leaves a file as a power failure does if it was never written back.
func truncate(t testing.TB, name string) {
	t.Helper()
	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of a file, and nothing else.
func flip(t testing.TB, name string) {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data[len(data)/2] ^= 0x10
	if _, err := f.WriteAt(data[len(data)/2:len(data)/2+1], int64(len(data)/2)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// damages are the possible effects of a power failure on a layer.
var damages = []struct {
	name   string
	refs   bool // only refs suffer: the layer is complete
	damage func(t testing.TB, b *bed, l Layer)
}{
	{"empty content", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		sums, err := b.Objects(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		truncate(t, b.objectFile(objectstore.TypeFile, sums[0]))
	}},
	{"flipped bit", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		sums, err := b.Objects(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, b.objectFile(objectstore.TypeFile, sums[0]))
	}},
	{"missing content", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		sums, err := b.Objects(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(b.objectFile(objectstore.TypeFile, sums[0])); err != nil {
			t.Fatal(err)
		}
	}},
	{"empty image", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		truncate(t, b.objectFile(objectstore.TypeFile, l.Image))
	}},
	{"empty commit", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		truncate(t, b.objectFile(objectstore.TypeCommit, l.ID))
	}},
	{"missing commit", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		if err := os.Remove(b.objectFile(objectstore.TypeCommit, l.ID)); err != nil {
			t.Fatal(err)
		}
	}},
	{"empty dirtree", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		c, err := b.repo.Commit(l.ID)
		if err != nil {
			t.Fatal(err)
		}
		truncate(t, b.objectFile(objectstore.TypeDirTree, c.Tree))
	}},
	{"everything empty", false, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		names, err := b.Closure(l.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range names {
			if o.Type != objectstore.TypeDirMeta { // the only one that another layer has too
				truncate(t, b.objectFile(o.Type, o.Checksum))
			}
		}
	}},
	{"empty ref", true, func(t testing.TB, b *bed, l Layer) {
		t.Helper()
		truncate(t, filepath.Join(b.path, "repo/refs/heads/oci/diff", l.DiffID.Encoded()))
	}},
	{"missing ref", true, func(t testing.TB, b *bed, _ Layer) {
		t.Helper()
		if err := os.Remove(filepath.Join(b.path, "repo/refs/heads/oci/blob", someBlob.Encoded())); err != nil {
			t.Fatal(err)
		}
	}},
}

// After damage to objects in the journal, the store is right again: healed if the blob exists, without the layer if
// not. Without the journal the damage stays.
func TestRecover(t *testing.T) {
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			prepare := func(t *testing.T, journal bool) (*bed, Layer, Layer) {
				t.Helper()
				b := newBed(t, Options{Journal: journal, Boot: "before"})
				other := importTar(t, b.Store, makeTar(t, file("other", "of another layer")))
				if err := b.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				l := b.importBlob(t, someTar(t), someBlob)
				checkOut(t, b.Store, b.path, l.ID)
				b.crash(t)
				b.open(t, Options{Journal: journal, Boot: "after"})
				tt.damage(t, b, l)
				return b, l, other
			}
			check := func(t *testing.T, b *bed, other Layer) {
				t.Helper()
				if p := b.problems(t); len(p) != 0 {
					t.Errorf("fsck: %v", p)
				}
				checkStore(t, b.path)
				if _, err := b.Layer(t.Context(), other.ID); err != nil {
					t.Errorf("layer that was synced: %v", err)
				}
				if r := b.records(t); len(r) != 0 {
					t.Errorf("journal has %d entries", len(r))
				}
			}
			t.Run("healed", func(t *testing.T) {
				b, l, other := prepare(t, true)
				r, err := b.Recover(t.Context(), func(ctx context.Context, lost LostLayer) error {
					if lost.ID != l.ID || lost.Blob != someBlob || lost.BlobFile == "" {
						t.Errorf("got %+v", lost)
					}
					h, err := b.Import(ctx, bytes.NewReader(someTar(t)), ImportOptions{Blob: lost.Blob})
					if err != nil {
						return err
					}
					return h.Release()
				})
				if err != nil {
					t.Fatal(err)
				}
				if r.Entries != 1 || len(r.Lost) != 0 || (len(r.Remade) == 1) == tt.refs || r.Checkouts != 1 {
					t.Errorf("got %+v", r)
				}
				check(t, b, other)
				for _, ref := range []string{"oci/diff/" + l.DiffID.Encoded(), "oci/blob/" + someBlob.Encoded()} {
					if id, err := b.repo.Ref(ref); err != nil || id != l.ID {
						t.Errorf("ref %s: got %s, %v", ref, id, err)
					}
				}
				if got, err := os.ReadFile(filepath.Join(checkOut(t, b.Store, b.path, l.ID), "d/a")); err != nil || string(got) != "content a" {
					t.Errorf("got %q, %v", got, err)
				}
			})
			t.Run("lost", func(t *testing.T) {
				b, l, other := prepare(t, true)
				r, err := b.Recover(t.Context(), func(context.Context, LostLayer) error { return fs.ErrNotExist })
				if err != nil {
					t.Fatal(err)
				}
				check(t, b, other)
				_, err = b.Layer(t.Context(), l.ID)
				if tt.refs {
					if len(r.Lost) != 0 || err != nil {
						t.Errorf("got %+v, %v", r, err)
					}
					return
				}
				if len(r.Lost) != 1 || r.Lost[0].ID != l.ID || !errors.Is(r.Lost[0].Cause, fs.ErrNotExist) || !errors.Is(err, ErrNotExist) {
					t.Errorf("got %+v, %v, want the layer lost", r, err)
				}
				if ok, err := b.HasCheckout("layers/" + l.ID.String()[:shortID]); ok || err != nil {
					t.Errorf("checkout is there (%v)", err)
				}
				// A pull restores it.
				if again := b.importBlob(t, someTar(t), someBlob); again.ID != l.ID {
					t.Errorf("got layer %s, want %s", again.ID, l.ID)
				}
				if p := b.problems(t); len(p) != 0 {
					t.Errorf("fsck after the next import: %v", p)
				}
			})
			t.Run("journal off", func(t *testing.T) {
				b, _, _ := prepare(t, false)
				r, err := b.Recover(t.Context(), nil)
				if err != nil || r.Entries != 0 {
					t.Errorf("got %+v, %v", r, err)
				}
				if p := b.problems(t); len(p) == 0 && tt.name != "missing ref" {
					t.Error("fsck finds nothing: this test does not damage anything")
				}
			})
		})
	}
}

// TestStuckMended: an object that could not be removed is trusted again once another process has mended it.
func TestStuckMended(t *testing.T) {
	b := newBed(t, Options{Journal: true, Boot: "before"})
	l := b.importBlob(t, someTar(t), someBlob)
	name := objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: l.Image}
	object := b.objectFile(name.Type, name.Checksum)
	text, err := os.ReadFile(object)
	testenv.Must(t, err)
	truncate(t, object)
	b.stuck[name] = struct{}{} // as after a recovery
	if err := b.Whole(l.ID); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("damaged: got error %v, want %v", err, objectstore.ErrCorrupt)
	}
	testenv.Must(t, os.WriteFile(object, text, 0))
	if err := b.Whole(l.ID); err != nil || len(b.stuckObjects()) > 0 {
		t.Errorf("mended: got error %v, distrusted %v, want neither", err, b.stuckObjects())
	}
}

// TestRecoverStuck: a damaged object that cannot be removed keeps no other layer from being rebuilt. It is named. Its layer is
// lost, and an import of the layer's blob fails rather than use the object. Once the cause has gone, an import repairs it,
// and so does the next start.
func TestRecoverStuck(t *testing.T) {
	blobs := map[digest.Digest][]byte{
		someBlob:                      someTar(t),
		digest.FromString("a second"): makeTar(t, file("other", "of another layer")),
	}
	for _, repair := range []string{"import", "start"} {
		t.Run(repair, func(t *testing.T) {
			b := newBed(t, Options{Journal: true, Boot: "before"})
			layers := make(map[digest.Digest]Layer)
			for blob, data := range blobs {
				layers[blob] = b.importBlob(t, data, blob)
			}
			b.crash(t)
			b.open(t, Options{Journal: true, Boot: "after"})
			for _, l := range layers {
				truncate(t, b.objectFile(objectstore.TypeFile, l.Image))
			}
			bad := layers[someBlob]
			stuck := objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: bad.Image}
			base := filepath.Base(b.objectFile(stuck.Type, stuck.Checksum))
			b.hook = func(op atfs.Op, name string) error {
				if filepath.Base(name) == base && (op == atfs.OpUnlink || op == atfs.OpRename || op == atfs.OpWrite) {
					return unix.EIO
				}
				return nil
			}
			remake := func(ctx context.Context, lost LostLayer) error {
				h, err := b.Import(ctx, bytes.NewReader(blobs[lost.Blob]), ImportOptions{Blob: lost.Blob})
				if err != nil {
					return err
				}
				return h.Release()
			}
			r, err := b.Recover(t.Context(), remake)
			testenv.Must(t, err)
			if !errors.Is(r.Left, objectstore.ErrNotRemoved) || !strings.Contains(r.Left.Error(), stuck.String()) {
				t.Errorf("got left %v, want %s", r.Left, stuck)
			}
			if len(r.Lost) != 1 || r.Lost[0].ID != bad.ID || !errors.Is(r.Lost[0].Cause, unix.EIO) || len(r.Remade) != 1 {
				t.Errorf("got lost layers %+v, rebuilt %v, want %s lost, and the other rebuilt", r.Lost, r.Remade, bad.ID)
			}
			if err := remake(t.Context(), LostLayer{Blob: someBlob}); !errors.Is(err, unix.EIO) {
				t.Errorf("import that needs the object: got %v, want %v", err, unix.EIO)
			}

			b.hook = nil
			if repair == "import" {
				testenv.Must(t, remake(t.Context(), LostLayer{Blob: someBlob}))
				testenv.Must(t, b.Whole(bad.ID))
			}
			b.crash(t)
			b.open(t, Options{Journal: true, Boot: "after"})
			r, err = b.Recover(t.Context(), remake)
			testenv.Must(t, err)
			if r.Left != nil || len(r.Lost) > 0 {
				t.Errorf("the next time: got left %v, lost layers %+v, want none", r.Left, r.Lost)
			}
			if p := b.problems(t); len(p) != 0 {
				t.Errorf("fsck: %v", p)
			}
			if records := b.records(t); len(records) != 0 {
				t.Errorf("journal has %d entries", len(records))
			}
			for blob, l := range layers {
				testenv.Must(t, b.Whole(l.ID))
				if _, err := b.Layer(t.Context(), l.ID); err != nil {
					t.Errorf("layer of blob %s: %v", blob, err)
				}
			}
		})
	}
}

// A kill of the process loses nothing: checkouts, which containers may be using, stay.
func TestRecoverSameBoot(t *testing.T) {
	for _, boot := range []string{"first", "second"} {
		t.Run(boot, func(t *testing.T) {
			b := newBed(t, Options{Journal: true, Boot: "first"})
			l := importTar(t, b.Store, someTar(t))
			name, _, err := b.Checkout(t.Context(), []objectstore.Checksum{l.ID})
			if err != nil {
				t.Fatal(err)
			}
			b.crash(t)
			b.open(t, Options{Journal: true, Boot: boot})
			r, err := b.Recover(t.Context(), nil)
			if err != nil || len(r.Lost)+len(r.Damaged)+len(r.Remade) != 0 || r.Objects == 0 {
				t.Errorf("got %+v, %v", r, err)
			}
			if ok, err := b.HasCheckout(name); err != nil || ok != (boot == "first") {
				t.Errorf("checkout is there: got %v, %v", ok, err)
			}
		})
	}
}

// A layer is on the disk, and the power fails after its rootfs image was made: a damaged image is removed. A kill of the
// process damages none, and containers may be running on it.
func TestRecoverRootfs(t *testing.T) {
	for _, tt := range []struct {
		boot    string
		damaged []string
		stays   bool
	}{
		{"first", []string{rootfsImage}, true},
		{"second", nil, true},
		{"second", []string{rootfsImage}, false},
		{"second", []string{rootfsDigest}, false},
		{"second", []string{rootfsImage, rootfsDigest}, false},
	} {
		t.Run(fmt.Sprint(tt.boot, tt.damaged), func(t *testing.T) {
			b := newBed(t, Options{Journal: true, Boot: "first"})
			l := importTar(t, b.Store, someTar(t))
			if err := b.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			chain := []objectstore.Checksum{l.ID}
			makeImage(t, b, chain)
			image := filepath.Join(b.path, b.RootfsName(chain))
			b.crash(t)
			for _, name := range tt.damaged {
				truncate(t, filepath.Join(image, name))
			}
			b.open(t, Options{Journal: true, Boot: tt.boot})
			r, err := b.Recover(t.Context(), nil)
			if err != nil || len(r.Lost)+len(r.Damaged)+len(r.Remade) != 0 || r.Rootfses == 0 != tt.stays {
				t.Errorf("got %+v, %v", r, err)
			}
			if names, err := b.RootfsNames(); err != nil || len(names) != 0 != tt.stays {
				t.Errorf("images: got %q, %v, want that it stays: %t", names, err, tt.stays)
			}
			if left, err := os.ReadDir(filepath.Join(b.path, TmpDir)); err != nil || len(left) != 0 {
				t.Errorf("tmp: got %v, %v, want nothing", left, err)
			}
			if err := b.VerifyRootfs(t.Context(), chain); !tt.stays && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v, want that there is no image", err)
			}
		})
	}
}

func makeImage(t *testing.T, b *bed, chain []objectstore.Checksum) {
	t.Helper()
	image, _, err := b.OpenRootfs(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
}

// Without a journal a rootfs image is on the disk before it has its name.
func TestSyncedRootfs(t *testing.T) {
	b := newBed(t, Options{})
	l := importTar(t, b.Store, someTar(t))
	var synced []string
	b.hook = func(op atfs.Op, name string) error {
		if op == atfs.OpSync {
			synced = append(synced, filepath.Base(name))
		}
		return nil
	}
	makeImage(t, b, []objectstore.Checksum{l.ID})
	if got := strings.Join(synced, " "); !strings.Contains(got, rootfsImage) || !strings.Contains(got, rootfsDigest) {
		t.Errorf("synced: %q, want image and digest", got)
	}
}

// An import is killed after writing its entry and before writing refs, and another program prunes before the next
// start: nothing was lost.
func TestRecoverPruned(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	killed := errors.New("killed")
	b.hook = func(_ atfs.Op, name string) error {
		if strings.Contains(name, "refs/heads/oci/") {
			return killed
		}
		return nil
	}
	if err := importErr(t, b.Store, bytes.NewReader(someTar(t)), ImportOptions{Blob: someBlob}); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	b.hook = nil
	b.crash(t)
	if r := b.records(t); len(r) != 1 {
		t.Fatalf("got %d entries, want 1", len(r))
	}
	b.open(t, Options{Boot: "whatever"})
	plan, err := b.PlanPrune(t.Context(), live())
	if err == nil {
		_, err = plan.Execute(t.Context())
	}
	b.close(t)
	if err != nil {
		t.Fatal(err)
	}
	b.open(t, Options{Journal: true})
	r, err := b.Recover(t.Context(), func(context.Context, LostLayer) error { return errors.New("not to be called") })
	if err != nil || r.Entries != 1 || len(r.Lost)+len(r.Remade)+len(r.Damaged) != 0 {
		t.Errorf("got %+v, %v, want one entry and nothing lost", r, err)
	}
}

// A container that runs on a damaged checkout sees the right content after an import of the layer and a refresh of the
// checkout: links to the damaged inode, copies, missing and foreign files.
func TestRefreshCheckout(t *testing.T) {
	testenv.NeedsOverlay(t)
	b := newBed(t, Options{})
	first := importTar(t, b.Store, makeTar(t, file("copy", "content of both")))
	tar := makeTar(t, dir("d"), file("d/linked", "linked content"), hardlink("d/name", "d/linked"),
		file("d/copy", "content of both", at(when.Add(1))), file("gone", "gone"), symlink("link", "d"))
	l := importTar(t, b.Store, tar)
	fs := checkOut(t, b.Store, b.path, l.ID)
	tree := func() string {
		out, err := exec.Command("find", fs, "-printf", "%P %y %m %U %G %T@ %s %l\n").Output()
		testenv.Must(t, err)
		return string(out)
	}
	mnt := t.TempDir()
	work := t.TempDir()
	for _, name := range []string{"upper", "work"} {
		testenv.Must(t, os.Mkdir(filepath.Join(work, name), 0o755))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,index=off", fs, work, work)
	testenv.Must(t, unix.Mount("overlay", mnt, "overlay", 0, options))
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	want := strings.Split(tree(), "\n")

	// Files that a container has open, or only looked up, are right afterwards too.
	open := make(map[string]*os.File)
	for _, name := range []string{"d/linked", "d/copy"} {
		f, err := os.Open(filepath.Join(mnt, name))
		testenv.Must(t, err)
		defer f.Close()
		open[name] = f
	}
	flip(t, filepath.Join(fs, "d/linked"))
	flip(t, filepath.Join(fs, "d/copy"))
	bad := make(map[objectstore.ObjectName]struct{})
	for _, p := range b.problems(t) {
		bad[objectstore.ObjectName{Type: p.Type, Checksum: p.Checksum}] = struct{}{}
	}
	if len(bad) != 1 {
		t.Fatalf("got %d damaged objects, want that of d/linked", len(bad))
	}
	testenv.Must(t, os.Remove(filepath.Join(fs, "gone")))
	testenv.Must(t, os.WriteFile(filepath.Join(fs, "d/foreign"), nil, 0o600))
	h, err := b.Import(t.Context(), bytes.NewReader(tar), ImportOptions{Distrust: bad})
	testenv.Must(t, err)
	defer func() { testenv.Must(t, h.Release()) }()
	t.Run("an import replaces the object", func(t *testing.T) {
		if p := b.problems(t); len(p) != 0 || h.ID != l.ID {
			t.Errorf("layer %s, problems %v", h.ID, p)
		}
	})
	chain := []objectstore.Checksum{first.ID, l.ID}
	t.Run("the checkout is refreshed", func(t *testing.T) {
		if n, err := b.RefreshCheckout(t.Context(), chain); err != nil || n != 3 {
			t.Errorf("got %d changes, %v, want 3: the copy, what is gone, what is foreign", n, err)
		}
	})
	t.Run("what a container has open is right", func(t *testing.T) {
		for name, f := range open {
			var content [64]byte
			n, err := f.Read(content[:])
			if want := map[string]string{"d/linked": "linked content", "d/copy": "content of both"}[name]; err != nil || string(content[:n]) != want {
				t.Errorf("%s: got %q, %v, want %q", name, content[:n], err, want)
			}
		}
	})
	t.Run("what a container looks up is right", func(t *testing.T) {
		for name, content := range map[string]string{"d/linked": "linked content", "d/name": "linked content", "d/copy": "content of both", "gone": "gone"} {
			for _, root := range []string{fs, mnt} {
				if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != content {
					t.Errorf("%s in %s: got %q, %v, want %q", name, root, got, err, content)
				}
			}
		}
	})
	t.Run("the tree is as before", func(t *testing.T) {
		got := strings.Split(tree(), "\n")
		sort.Strings(got)
		sort.Strings(want)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
	t.Run("again there is nothing to do", func(t *testing.T) {
		if n, err := b.RefreshCheckout(t.Context(), chain); err != nil || n != 0 {
			t.Errorf("got %d changes, %v, want none", n, err)
		}
	})
}
