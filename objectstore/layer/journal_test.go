package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A bed is a store that can be closed and reopened, and whose disk operations are recorded.
type bed struct {
	path string
	hook atfs.Hook
	repo *objectstore.Repo
	*Store
}

func newBed(t testing.TB, opts Options) *bed {
	t.Helper()
	testenv.NeedsRoot(t)
	b := &bed{path: t.TempDir()}
	b.open(t, opts)
	t.Cleanup(func() { b.close(t) })
	return b
}

func (b *bed) open(t testing.TB, opts Options) {
	t.Helper()
	if err := b.tryOpen(opts); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) tryOpen(opts Options) error {
	plain, err := atfs.Open(b.path)
	if err != nil {
		return err
	}
	defer plain.Close()
	root, err := plain.WithHook(func(op atfs.Op, name string) error {
		if b.hook == nil {
			return nil
		}
		return b.hook(op, name)
	})
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll("repo", 0o700); err != nil {
		return err
	}
	dir, err := root.OpenDir("repo")
	if err != nil {
		return err
	}
	defer dir.Close()
	b.repo, err = objectstore.Open(dir)
	if errors.Is(err, objectstore.ErrNoRepo) {
		b.repo, err = objectstore.Create(dir, objectstore.ModeBare)
	}
	if err != nil {
		return err
	}
	s, err := Open(root, b.repo, opts)
	if err != nil {
		return errors.Join(err, b.repo.Close())
	}
	b.Store = s
	return nil
}

// Close closes the store and its repository.
func (b *bed) Close() error {
	if b.Store == nil {
		return nil
	}
	err := errors.Join(b.Store.Close(), b.repo.Close())
	b.Store = nil
	return err
}

func (b *bed) close(t testing.TB) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// crash closes the store like the death of the process: nothing is synced and the journal stays.
func (b *bed) crash(t testing.TB) {
	t.Helper()
	j := &b.journal
	j.mu.Lock()
	clear(j.pending)
	clear(j.syncing)
	clear(j.entries)
	j.mu.Unlock()
	b.close(t)
}

// records reads the journal.
func (b *bed) records(t testing.TB) []journalRecord {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(b.path, "journal", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var records []journalRecord
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, parseJournal(data))
	}
	return records
}

func (b *bed) importBlob(t testing.TB, tar []byte, blob digest.Digest) Layer {
	t.Helper()
	h, err := b.Import(t.Context(), bytes.NewReader(tar), ImportOptions{Blob: blob, BlobFile: "/blobs/a \"name\"\n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	return h.Layer
}

func (b *bed) problems(t testing.TB) []objectstore.Problem {
	t.Helper()
	r, err := b.repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Problems
}

var someBlob = digest.FromString("a blob")

func someTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, dir("d"), file("d/a", "content a"), file("d/b", "content b"), file("c", strings.Repeat("large", 1<<18)), symlink("l", "d"))
}

// The entry is on the disk, name included, before any ref is written, and lists everything new.
func TestJournalBeforeRefs(t *testing.T) {
	b := newBed(t, Options{Journal: true, Boot: "this"})
	var mu sync.Mutex
	var ops []string
	var published []string
	b.hook = func(op atfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.HasPrefix(name, "journal"):
			ops = append(ops, fmt.Sprintf("%s journal", op))
		case strings.HasPrefix(name, "repo/refs/") && op == atfs.OpRename:
			ops = append(ops, "rename ref")
		case strings.HasPrefix(name, "repo/objects/") && op == atfs.OpLink:
			ops = append(ops, "link object")
			published = append(published, strings.ReplaceAll(strings.TrimPrefix(name, "repo/objects/"), "/", ""))
		}
		return nil
	}
	l := b.importBlob(t, someTar(t), someBlob)
	b.hook = nil
	want := []string{"link object", "create journal", "write journal", "sync journal", "sync journal", "rename ref"}
	if got := slices.Compact(slices.DeleteFunc(slices.Clone(ops), func(s string) bool { return s == "sync journal" })); !slices.Equal(got,
		slices.Compact(slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s == "sync journal" }))) {
		t.Errorf("order: got %v, want %v", got, want)
	}
	if i := slices.Index(ops, "rename ref"); i < 2 || ops[i-1] != "sync journal" || ops[i-2] != "sync journal" {
		t.Errorf("order: got %v, want file and directory synced before the first ref", ops)
	}
	records := b.records(t)
	if len(records) != 1 {
		t.Fatalf("got %d entries, want 1", len(records))
	}
	got := records[0]
	if got.layer != l.ID || got.blob != someBlob || got.file != "/blobs/a \"name\"\n" || got.boot != "this" || len(got.refs) != 2 {
		t.Errorf("got %+v", got)
	}
	var listed []string
	for _, o := range got.objects {
		listed = append(listed, o.String())
	}
	slices.Sort(listed)
	slices.Sort(published)
	if !slices.Equal(listed, published) {
		t.Errorf("listed %v, published %v", listed, published)
	}
}

// Objects on the disk are not listed; objects of another layer that are not on the disk are listed again.
func TestJournalListsPending(t *testing.T) {
	first := func(t *testing.T) []byte { t.Helper(); return makeTar(t, file("shared", "shared content")) }
	second := func(t *testing.T) []byte {
		t.Helper()
		return makeTar(t, file("x/shared", "shared content"), file("own", "own content"))
	}
	count := func(r journalRecord) (files int) {
		for _, o := range r.objects {
			if o.Type == objectstore.TypeFile {
				files++
			}
		}
		return files
	}
	for _, tt := range []struct {
		name    string
		between func(t *testing.T, b *bed)
		want    int // content objects in the second layer's entry, including image and recipe
	}{
		{"pending", func(*testing.T, *bed) {}, 4},
		{"synced", func(t *testing.T, b *bed) {
			t.Helper()
			if err := b.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Options{Journal: true})
			importTar(t, b.Store, first(t))
			tt.between(t, b)
			l := importTar(t, b.Store, second(t))
			for _, r := range b.records(t) {
				if r.layer == l.ID {
					if got := count(r); got != tt.want {
						t.Errorf("got %d content objects, want %d", got, tt.want)
					}
					return
				}
			}
			t.Error("the second layer has no entry")
		})
	}
}

func TestJournalNotWritten(t *testing.T) {
	ctx := t.Context()
	t.Run("off", func(t *testing.T) {
		b := newBed(t, Options{})
		importTar(t, b.Store, someTar(t))
		if r := b.records(t); len(r) != 0 {
			t.Errorf("got %d entries", len(r))
		}
	})
	t.Run("known", func(t *testing.T) {
		b := newBed(t, Options{Journal: true})
		l := importTar(t, b.Store, someTar(t))
		checkOut(t, b.Store, b.path, l.ID)
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		importTar(t, b.Store, someTar(t))
		h, err := b.Acquire(ctx, l.DiffID)
		if err != nil {
			t.Fatal(err)
		}
		checkOut(t, b.Store, b.path, l.ID)
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		if r := b.records(t); len(r) != 0 {
			t.Errorf("got %+v, want no entry", r)
		}
	})
}

// A checkout made after the layer was synced has its own entry; one made before does not.
func TestJournalCheckout(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	l := importTar(t, b.Store, someTar(t))
	checkOut(t, b.Store, b.path, l.ID)
	if r := b.records(t); len(r) != 1 {
		t.Errorf("got %d entries, want that of the import", len(r))
	}
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(b.path, "layers", l.ID.String()[:shortID])); err != nil {
		t.Fatal(err)
	}
	checkOut(t, b.Store, b.path, l.ID)
	if r := b.records(t); len(r) != 1 || r[0].layer != l.ID || len(r[0].objects) != 0 {
		t.Errorf("got %+v, want one entry for the checkout", r)
	}
}

// The journal is cleared 5 s after the last import, and at most 30 s after the first.
func TestJournalBackground(t *testing.T) {
	b := newBed(t, Options{})
	b.close(t)
	synctest.Test(t, func(t *testing.T) {
		b.open(t, Options{Journal: true})
		defer b.close(t)
		importTar(t, b.Store, makeTar(t, file("a", "a")))
		time.Sleep(syncAfterLast - time.Second)
		synctest.Wait()
		if r := b.records(t); len(r) != 1 {
			t.Errorf("too early: got %d entries, want 1", len(r))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r := b.records(t); len(r) != 0 {
			t.Errorf("after the last import: got %d entries, want none", len(r))
		}
		begin := time.Now()
		for i := range 9 {
			importTar(t, b.Store, makeTar(t, file("a", fmt.Sprint("content ", i))))
			time.Sleep(4 * time.Second)
			synctest.Wait()
		}
		if r := b.records(t); time.Since(begin) < syncAfterFirst || len(r) > 2 {
			t.Errorf("%v after the first import: got %d entries, want those of the last seconds", time.Since(begin), len(r))
		}
	})
}

// During a sync, imports and checkouts continue, and what they add stays in the journal.
func TestJournalImportDuringSync(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	old := importTar(t, b.Store, someTar(t))
	var young Layer
	b.hook = func(op atfs.Op, _ string) error {
		if op == atfs.OpSyncFS {
			b.hook = nil
			young = importTar(t, b.Store, makeTar(t, file("d/a", "content a"), file("new", "new")))
			checkOut(t, b.Store, b.path, old.ID)
		}
		return nil
	}
	if err := b.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	layers := make(map[objectstore.Checksum]int)
	for _, r := range b.records(t) {
		layers[r.layer] = len(r.objects)
	}
	if n := layers[young.ID]; n != 7+1 { // two files, image, recipe, two dirtrees, commit, and the dirmeta of the other
		t.Errorf("entry of the new layer lists %d objects, want 8", n)
	}
	if n, ok := layers[old.ID]; !ok || n != 0 {
		t.Errorf("entry of the new checkout: got %d objects (%v), want one without", n, ok)
	}
}

// After a failed sync this process never clears the journal again: the kernel may have dropped the data.
func TestJournalSyncFails(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	importTar(t, b.Store, someTar(t))
	b.hook = func(op atfs.Op, _ string) error {
		if op == atfs.OpSyncFS {
			return unix.EIO
		}
		return nil
	}
	if err := b.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	b.hook = nil
	if err := b.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	b.close(t)
	if r := b.records(t); len(r) != 1 {
		t.Errorf("got %d entries, want 1", len(r))
	}
	b.open(t, Options{Journal: true})
	r, err := b.Recover(t.Context(), nil)
	if err != nil || r.Entries != 1 || r.Objects == 0 || len(r.Damaged)+len(r.Lost) != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	if r := b.records(t); len(r) != 0 {
		t.Errorf("got %d entries, want none", len(r))
	}
}

func TestJournalBackgroundFails(t *testing.T) {
	b := newBed(t, Options{})
	b.close(t)
	synctest.Test(t, func(t *testing.T) {
		var got error
		b.open(t, Options{Journal: true, SyncFailed: func(err error) { got = err }})
		defer b.close(t)
		b.hook = func(op atfs.Op, _ string) error {
			if op == atfs.OpSyncFS {
				return unix.EIO
			}
			return nil
		}
		importTar(t, b.Store, someTar(t))
		time.Sleep(2 * syncAfterLast)
		synctest.Wait()
		b.hook = nil
		if !errors.Is(got, unix.EIO) {
			t.Errorf("got %v, want EIO", got)
		}
	})
}

// Pruned layers leave the journal: they are not lost.
func TestJournalPrune(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	dead := importTar(t, b.Store, makeTar(t, file("a", "dead"), file("b", "shared")))
	live := importTar(t, b.Store, makeTar(t, file("a", "live"), file("b", "shared")))
	plan, err := b.PlanPrune(t.Context(), func(context.Context) (map[objectstore.Checksum]struct{}, error) {
		return map[objectstore.Checksum]struct{}{live.ID: {}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Execute(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.crash(t)
	b.open(t, Options{Journal: true})
	r, err := b.Recover(t.Context(), func(context.Context, LostLayer) error { return errors.New("not to be called") })
	if err != nil || r.Entries != 1 || len(r.Lost) != 0 {
		t.Errorf("got %+v, %v, want the entry of the live layer alone", r, err)
	}
	if _, err := b.Layer(t.Context(), live.ID); err != nil {
		t.Error(err)
	}
	if _, err := b.Layer(t.Context(), dead.ID); !errors.Is(err, ErrNotExist) {
		t.Errorf("pruned layer: got %v", err)
	}
}

// Layers pruned by another process, such as the command line, leave the daemon's journal too.
func TestJournalPruneByAnother(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	tar := makeTar(t, dir("d"), file("d/a", "dead"))
	dead := importTar(t, b.Store, tar)
	other := &bed{path: b.path}
	other.open(t, Options{})
	plan, err := other.PlanPrune(t.Context(), live())
	if err == nil {
		_, err = plan.Execute(t.Context())
	}
	other.close(t)
	if err != nil {
		t.Fatal(err)
	}
	if r := b.records(t); len(r) != 0 {
		t.Fatalf("got %d entries after the layer was pruned, want none", len(r))
	}

	// It is imported again. An entry on the disk must cover the checkout while it is being made.
	importTar(t, b.Store, tar)
	b.hook = func(op atfs.Op, name string) error {
		if op == atfs.OpRename && strings.HasPrefix(name, "tmp/"+checkoutTmpPrefix) {
			b.hook = nil
			if err := b.Sync(t.Context()); err != nil {
				t.Error(err)
			}
			if r := b.records(t); len(r) != 1 || r[0].layer != dead.ID {
				t.Errorf("while the checkout is being made: got %+v, want an entry for its layer", r)
			}
		}
		return nil
	}
	checkOut(t, b.Store, b.path, dead.ID)
	if b.hook != nil {
		t.Fatal("no checkout was made")
	}
	b.crash(t)
	b.open(t, Options{Journal: true})
	if r, err := b.Recover(t.Context(), nil); err != nil || len(r.Lost) != 0 {
		t.Errorf("got %+v, %v, want nothing lost", r, err)
	}
}

// After a clean stop there is nothing to check.
func TestCleanStop(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	importTar(t, b.Store, someTar(t))
	b.close(t)
	b.open(t, Options{Journal: true})
	r, err := b.Recover(t.Context(), nil)
	if err != nil || r.Entries != 0 || r.Objects != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func FuzzParseJournal(f *testing.F) {
	r := journalRecord{
		boot: "b", layer: objectstore.Checksum{1}, blob: someBlob, file: "x", refs: []string{"oci/diff/a"},
		objects: []objectstore.ObjectName{{Type: objectstore.TypeFile, Checksum: objectstore.Checksum{2}}},
	}
	f.Add(r.marshal())
	f.Add([]byte("object xx\nref ../../x\nref other\nlayer\nfile x\nblob sha256:../x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		t.Helper()
		r := parseJournal(b)
		for _, ref := range r.refs {
			if !strings.HasPrefix(ref, "oci/") || objectstore.ValidateRef(ref) != nil {
				t.Errorf("ref %q", ref)
			}
		}
		again := parseJournal(r.marshal())
		if len(again.objects) != len(r.objects) || again.layer != r.layer || again.file != r.file {
			t.Errorf("got %+v, then %+v", r, again)
		}
	})
}
