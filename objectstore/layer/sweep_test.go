package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

type sweepCase = faulttest.Case[*bed]

// sweepCases are the operations of a store, given the tar of a layer.
var sweepCases = map[string]func(tar func(testing.TB) []byte) sweepCase{
	"create":           func(func(testing.TB) []byte) sweepCase { return creating() },
	"start":            starting,
	"import":           importing,
	"import-directory": func(func(testing.TB) []byte) sweepCase { return importingDir() },
	"checkout":         func(tar func(testing.TB) []byte) sweepCase { return checkingOut(tar) },
	"checkout-upper":   func(func(testing.TB) []byte) sweepCase { return checkingOut(tinyTar, upperTar) },
	"rootfs":           func(tar func(testing.TB) []byte) sweepCase { return makingRootfs(tar, false) },
	"merge":            func(func(testing.TB) []byte) sweepCase { return merging(tinyTar, upperTar) },
	"refresh":          refreshing,
	"repair":           repairing,
	"prune":            func(func(testing.TB) []byte) sweepCase { return pruning() },
	"prune-slowly":     func(func(testing.TB) []byte) sweepCase { return slowlyPruning() },
	"recover":          func(func(testing.TB) []byte) sweepCase { return recovering() },
	"restore-refs":     func(func(testing.TB) []byte) sweepCase { return restoringRefs() },
}

// Whichever disk operation fails: the error names it, the store is whole, and a retry works.
func TestFaults(t *testing.T) {
	testenv.NeedsRoot(t)
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.Sweep(t, c(faultTar))
		})
	}
	t.Run("import-large", func(t *testing.T) {
		t.Parallel()
		faulttest.Sweep(t, importing(largeTar))
	})
}

// Whichever disk operation the process is killed before: the store is whole at the next start, and a retry works.
func TestKills(t *testing.T) {
	testenv.NeedsRoot(t)
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.KillSweep(t, c(faultTar))
		})
	}
}

// TestFaults and TestKills with fs-verity, on a disk.
func TestVerityFaults(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsVerity(t, t.TempDir())
	faulttest.Sweep(t, makingRootfs(tinyTar, true))
}

func TestVerityKills(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsVerity(t, t.TempDir())
	faulttest.KillSweep(t, makingRootfs(tinyTar, true))
}

// The order of disk operations, for reviewers.
func TestOrder(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, name := range []string{"import", "import-directory", "checkout", "prune", "recover", "repair"} {
		t.Run(name, func(t *testing.T) { faulttest.Order(t, name, sweepCases[name](tinyTar)) })
	}
}

// openSwept opens the store in path as the daemon does. The process died, but not the machine: nothing is lost.
func openSwept(t *testing.T, path string, hook atfs.Hook) *bed {
	t.Helper()
	b := &bed{path: path, hook: hook}
	testenv.Must(t, b.start(t.Context()))
	return b
}

// start does what the daemon does at its start.
func (b *bed) start(ctx context.Context) error {
	err := b.tryOpen(Options{Journal: true, Workers: 1})
	if err != nil {
		return err
	}
	err = b.SweepTmp()
	var r *Recovery
	if err == nil {
		r, err = b.Recover(ctx, nil)
	}
	if err == nil && len(r.Damaged)+len(r.Lost)+r.Checkouts != 0 {
		err = fmt.Errorf("after the end of a process: got %+v", r)
	}
	if err != nil {
		b.hook = nil
		return errors.Join(err, b.Close())
	}
	return nil
}

// prepare returns a Prepare that works on an open store.
func prepare(f func(t *testing.T, b *bed)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		b := openSwept(t, path, nil)
		f(t, b)
		testenv.Must(t, b.Close())
	}
}

var checks atomic.Int64

// checkRepo fails the test unless every object matches its name, every ref leads to a complete layer, and tmp/ holds
// only files that a start leaves there.
func (b *bed) checkRepo(t *testing.T) {
	t.Helper()
	for _, p := range b.problems(t) {
		t.Errorf("fsck: %s", p)
	}
	refs, err := b.repo.Refs(RefPrefix)
	testenv.Must(t, err)
	for ref, id := range refs {
		if err := b.Whole(id); err != nil {
			t.Errorf("ref %s: %v", ref, err)
		}
	}
	if checks.Add(1)%32 == 0 { // slow to start
		checkOstree(t, b.path)
	}
	testenv.Must(t, b.SweepTmp())
	left, err := os.ReadDir(filepath.Join(b.path, TmpDir))
	if err != nil || len(left) != 0 {
		t.Errorf("tmp: got %v, %v, want nothing", left, err)
	}
	// A file being moved may be left. There is one at a time.
	left, err = os.ReadDir(filepath.Join(b.path, "repo/tmp"))
	if err != nil || len(left) > 2 {
		t.Errorf("repo/tmp: got %v, %v, want cache and another one at most", left, err)
	}
}

// checkAll is checkRepo, and also checks all checkouts of layers that need no layer below them.
func (b *bed) checkAll(t *testing.T) {
	t.Helper()
	b.checkRepo(t)
	layers, err := b.Layers(t.Context())
	testenv.Must(t, err)
	for _, l := range layers {
		if l.Unresolved == 0 {
			b.checkCheckout(t, l.ID)
		}
	}
}

// checkCheckout checks the checkout of the last layer of a chain, if it exists.
func (b *bed) checkCheckout(t *testing.T, chain ...objectstore.Checksum) {
	t.Helper()
	short := chain[len(chain)-1].String()[:shortID]
	found, err := filepath.Glob(filepath.Join(b.path, LayersDir, short, "fs*"))
	testenv.Must(t, err)
	if len(found) == 0 {
		return
	}
	if n, err := b.RefreshCheckout(t.Context(), chain); err != nil || n != 0 {
		t.Errorf("checkout %s: %d entries were wrong, %v", short, n, err)
	}
}

func faultTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, dir("d", owner(1, 2), withXattr("user.a", "1")), file("d/f", "content", mode(0o4755), owner(3, 4), withXattr("user.b", "2")),
		hardlink("d/g", "d/f", mode(0o755)), file("e", ""), symlink("l", "d"), fifo("p", owner(1, 1)), whiteout("", "w"),
		file("x", "x", withXattr("user.empty", "")))
}

// largeTar has a file that an import does not hold in memory.
func largeTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, file("large", strings.Repeat("b", smallFile+1)), file("small", "small"))
}

func tinyTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, dir("d"), file("d/a", "content a"), file("b", "content b"))
}

// upperTar needs tinyTar below it: for the target of its link, and for the attributes of its directory.
func upperTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, hardlink("d/below", "d/a"), file("d/new", "new"), whiteout("", "b"))
}

// layerOf returns the layer imported from a tar.
func (b *bed) layerOf(t *testing.T, tar []byte) objectstore.Checksum {
	t.Helper()
	h, err := b.Acquire(t.Context(), digest.FromBytes(tar))
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	return h.ID
}

func creating() sweepCase {
	return sweepCase{
		Min:  10,
		Open: func(_ *testing.T, path string, hook atfs.Hook) *bed { return &bed{path: path, hook: hook} },
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			if b.Store != nil {
				return nil
			}
			return b.start(t.Context())
		},
		Check: func(t *testing.T, b *bed, _ bool) {
			t.Helper()
			if b.Store != nil {
				b.checkAll(t)
			}
		},
	}
}

// A starting case opens a store that a process left without warning.
func starting(tar func(testing.TB) []byte) sweepCase {
	c := creating()
	c.Prepare = func(t *testing.T, path string) {
		t.Helper()
		b := openSwept(t, path, nil)
		checkOut(t, b.Store, path, b.importBlob(t, tar(t), someBlob).ID)
		b.crash(t)
		testenv.Must(t, os.MkdirAll(filepath.Join(path, TmpDir, checkoutTmpPrefix+"x", "d"), 0o700))
	}
	return c
}

// AddBlob records that a compressed blob unpacks to a layer that the caller holds.
func (s *Store) AddBlob(ctx context.Context, blob digest.Digest, id objectstore.Checksum) error {
	ref, err := digestRef(refBlob, blob)
	if err != nil {
		return err
	}
	txn, err := s.repo.Begin(ctx)
	if err != nil {
		return err
	}
	err = s.publishRefs(ctx, txn, journalRecord{layer: id, blob: blob, refs: []string{ref}})
	return errors.Join(err, txn.Abort())
}

// An importing case imports a tar for a blob, and records another blob for it.
func importing(tar func(testing.TB) []byte) sweepCase {
	otherBlob := digest.FromString("another blob")
	return sweepCase{
		Min:  30,
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			h, err := b.Import(t.Context(), bytes.NewReader(tar(t)), ImportOptions{Blob: someBlob, BlobFile: "/blobs/a"})
			if err != nil {
				return err
			}
			return errors.Join(b.AddBlob(t.Context(), otherBlob, h.ID), h.Release())
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkAll(t)
			if !done {
				return
			}
			id := b.layerOf(t, tar(t))
			for _, blob := range []digest.Digest{someBlob, otherBlob} {
				h, err := b.AcquireBlob(t.Context(), blob)
				testenv.Must(t, err)
				testenv.Must(t, h.Release())
				if h.ID != id {
					t.Errorf("blob %s is layer %s, want %s", blob, h.ID, id)
				}
			}
		},
	}
}

// An importingDir case makes a layer of a directory whose files can be linked, except one.
func importingDir() sweepCase {
	return sweepCase{
		Min: 20,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			upper := filepath.Join(path, "upper")
			testenv.Must(t, os.Mkdir(upper, 0o755))
			writeTree(t, upper, [2]string{"d/", ""}, [2]string{"d/f", "content"}, [2]string{"g", "more"}, [2]string{"h", "open"})
			testenv.Must(t, os.Chmod(upper, 0o755))
			testenv.Must(t, os.Chmod(filepath.Join(upper, "g"), 0o600))
			for _, name := range []string{"d/f", "g", "h", "d", "."} {
				testenv.Must(t, os.Chtimes(filepath.Join(upper, name), when, when))
			}
		},
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			w, err := os.OpenFile(filepath.Join(b.path, "upper/h"), os.O_WRONLY, 0)
			testenv.Must(t, err)
			defer w.Close()
			d, err := b.root.OpenDir("upper")
			testenv.Must(t, err)
			defer d.Close()
			h, err := b.ImportDir(t.Context(), d, nil, "x")
			if err != nil {
				return err
			}
			return h.Release()
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkAll(t)
			wantTree(t, filepath.Join(b.path, "upper"), "d: dir 755", `d/f: file 644 "content"`, `g: file 600 "more"`, `h: file 644 "open"`)
			if _, err := b.repo.Ref(refSnapshot + "x"); err != nil && done {
				t.Error(err)
			}
		},
	}
}

// A checkingOut case makes the checkout of the last of some layers.
func checkingOut(tars ...func(testing.TB) []byte) sweepCase {
	chain := func(t *testing.T, b *bed) (ids []objectstore.Checksum) {
		t.Helper()
		for _, tar := range tars {
			ids = append(ids, b.layerOf(t, tar(t)))
		}
		return ids
	}
	return sweepCase{
		Min: 15,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			for _, tar := range tars {
				importTar(t, b.Store, tar(t))
			}
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			_, _, err := b.Checkout(t.Context(), chain(t, b))
			return err
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkRepo(t)
			ids := chain(t, b)
			b.checkCheckout(t, ids...)
			if !done {
				return
			}
			root := checkOut(t, b.Store, b.path, ids...)
			if len(tars) > 1 {
				wantTree(t, root, `d: dir 755`, `d/below: file 644 "content a"`, `d/new: file 644 "new"`, "b: whiteout")
			} else if bytes.Equal(tars[0](t), faultTar(t)) {
				wantTree(t, root, `d: dir 755 1:2 user.a="1"`, `d/f: file 755 "content" user.b="2" = d/f`, `d/g: file 755 "content" user.b="2" = d/f`,
					`e: file 644 ""`, `l: link "d"`, "p: fifo 644 1:1", "w: whiteout", `x: file 644 "x" user.empty=""`)
			}
		},
	}
}

// A makingRootfs case makes the rootfs image of a layer. With verity the repository requires fs-verity from then on,
// which its objects lack so far, and gets another layer.
func makingRootfs(tar func(testing.TB) []byte, verity bool) sweepCase {
	return sweepCase{
		Min:  4,
		Disk: verity,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			importTar(t, b.Store, tar(t))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			chain := []objectstore.Checksum{b.layerOf(t, tar(t))}
			if verity {
				if err := b.repo.SetVerity(true); err != nil {
					return err
				}
				h, err := b.Import(t.Context(), bytes.NewReader(upperTar(t)), ImportOptions{})
				if err != nil {
					return err
				}
				chain = append(chain, h.ID)
				if err := h.Release(); err != nil {
					return err
				}
			}
			image, _, err := b.OpenRootfs(t.Context(), chain)
			if err != nil {
				return err
			}
			return image.Close()
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkRepo(t)
			chain := []objectstore.Checksum{b.layerOf(t, tar(t))}
			if verity && done {
				chain = append(chain, b.layerOf(t, upperTar(t)))
			}
			if err := b.VerifyRootfs(t.Context(), chain); err != nil && (done || !errors.Is(err, fs.ErrNotExist)) {
				t.Error(err)
			}
			if done && b.repo.Verity() != verity {
				t.Errorf("the repository has fs-verity: %v", b.repo.Verity())
			}
		},
	}
}

// A merging case makes one layer of two.
func merging(lower, upper func(testing.TB) []byte) sweepCase {
	return sweepCase{
		Min: 10,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			importTar(t, b.Store, lower(t))
			importTar(t, b.Store, upper(t))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			h, err := b.Merge(t.Context(), b.layerOf(t, lower(t)), b.layerOf(t, upper(t)), "x")
			if err != nil {
				return err
			}
			return h.Release()
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkAll(t)
			id, err := b.repo.Ref(refSnapshot + "x")
			if !done && errors.Is(err, objectstore.ErrNotExist) {
				return
			}
			testenv.Must(t, err)
			wantTree(t, checkOut(t, b.Store, b.path, id), `d: dir 755`, `d/a: file 644 "content a" = d/a`, `d/below: file 644 "content a" = d/a`,
				`d/new: file 644 "new"`, "b: whiteout")
		},
	}
}

// A refreshing case repairs a checkout that was changed.
func refreshing(tar func(testing.TB) []byte) sweepCase {
	return sweepCase{
		Min: 20,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			root := checkOut(t, b.Store, b.path, importTar(t, b.Store, tar(t)).ID)
			names, err := os.ReadDir(filepath.Join(root, "d"))
			testenv.Must(t, err)
			testenv.Must(t, os.Remove(filepath.Join(root, "d", names[0].Name())))
			testenv.Must(t, os.Mkdir(filepath.Join(root, "d", names[0].Name()), 0o700))
			testenv.Must(t, os.WriteFile(filepath.Join(root, "foreign"), nil, 0o600))
			testenv.Must(t, os.Chmod(root, 0o700))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			_, err := b.RefreshCheckout(t.Context(), []objectstore.Checksum{b.layerOf(t, tar(t))})
			return err
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkRepo(t)
			if done {
				b.checkCheckout(t, b.layerOf(t, tar(t)))
			}
		},
	}
}

// A repairing case reimports the tar of a layer with a damaged object, and refreshes its checkout.
func repairing(tar func(testing.TB) []byte) sweepCase {
	damaged := func(t *testing.T, b *bed) map[objectstore.ObjectName]struct{} {
		t.Helper()
		bad := make(map[objectstore.ObjectName]struct{})
		for _, p := range b.problems(t) {
			bad[objectstore.ObjectName{Type: p.Type, Checksum: p.Checksum}] = struct{}{}
		}
		return bad
	}
	return sweepCase{
		Min: 20,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			l := importTar(t, b.Store, tar(t))
			checkOut(t, b.Store, b.path, l.ID)
			sums, err := b.Objects(t.Context(), l.ID)
			testenv.Must(t, err)
			flip(t, b.objectFile(objectstore.TypeFile, sums[0]))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			h, err := b.Import(t.Context(), bytes.NewReader(tar(t)), ImportOptions{Distrust: damaged(t, b)})
			if err != nil {
				return err
			}
			_, err = b.RefreshCheckout(t.Context(), []objectstore.Checksum{h.ID})
			return errors.Join(err, h.Release())
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			if done {
				b.checkAll(t)
			} else if bad := damaged(t, b); len(bad) > 1 {
				t.Errorf("got %d damaged objects, there was one", len(bad))
			}
		},
	}
}

// A slowlyPruning case is a pruning case of the background: the layer is forgotten first, and its files removed in steps.
func slowlyPruning() sweepCase {
	return pruningWith(func(ctx context.Context, b *bed, live Live) error {
		if _, err := b.Forget(ctx, live); err != nil {
			return err
		}
		plan, err := b.PlanPrune(ctx, live)
		if err == nil {
			_, err = plan.ExecuteInSteps(ctx, objectstore.Steps{
				Objects: 2, Between: func(context.Context, time.Duration) error { return nil },
			})
		}
		return err
	})
}

func pruning() sweepCase {
	return pruningWith(func(ctx context.Context, b *bed, live Live) error {
		plan, err := b.PlanPrune(ctx, live)
		if err == nil {
			_, err = plan.Execute(ctx)
		}
		return err
	})
}

// A pruning case has a dead layer, a live one that shares a file with it, and one that lost its ref.
func pruningWith(prune func(ctx context.Context, b *bed, live Live) error) sweepCase {
	lost := func(t testing.TB) []byte { t.Helper(); return makeTar(t, file("lost", "lost")) }
	live := func(t testing.TB) []byte { t.Helper(); return makeTar(t, file("b", "content b"), file("live", "live")) }
	diffRef := func(tar []byte) string { return refDiff + digest.FromBytes(tar).Encoded() }
	return sweepCase{
		Min: 15,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			var rows []byte
			for _, tar := range [][]byte{tinyTar(t), live(t), lost(t)} {
				l := importTar(t, b.Store, tar)
				checkOut(t, b.Store, b.path, l.ID)
				rows = fmt.Appendln(rows, l.ID)
			}
			testenv.Must(t, b.repo.DeleteRefs(t.Context(), diffRef(lost(t))))
			testenv.Must(t, os.WriteFile(filepath.Join(b.path, rowFile), rows, 0o600))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			return prune(t.Context(), b, func(context.Context) (map[objectstore.Checksum]struct{}, error) {
				rows := b.rows(t)
				return map[objectstore.Checksum]struct{}{rows[1]: {}, rows[2]: {}}, nil
			})
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			left, err := os.ReadDir(filepath.Join(b.path, TmpDir))
			if done && (err != nil || len(left) != 0) {
				t.Errorf("tmp: got %v, %v, want nothing", left, err)
			}
			b.checkAll(t)
			rows := b.rows(t)
			for _, id := range rows[1:] {
				if err := b.Whole(id); err != nil {
					t.Errorf("live layer %s: %v", id, err)
				}
			}
			if !done {
				return
			}
			for _, tar := range [][]byte{live(t), lost(t)} {
				if _, err := b.repo.Ref(diffRef(tar)); err != nil {
					t.Error(err)
				}
			}
			needed := make(map[objectstore.ObjectName]struct{})
			for _, id := range rows[1:] {
				for _, name := range value(b.Closure(id))(t) {
					needed[name] = struct{}{}
				}
			}
			refs := value(b.repo.Refs(""))(t)
			objects := value(filepath.Glob(filepath.Join(b.path, "repo/objects/??/*")))(t)
			checkouts := value(os.ReadDir(filepath.Join(b.path, LayersDir)))(t)
			if len(refs) != 2 || len(objects) != len(needed) || len(checkouts) != 2 {
				t.Errorf("got %d refs, %d objects, %d checkouts, want 2, %d, 2", len(refs), len(objects), len(checkouts), len(needed))
			}
			if ok, err := b.repo.Has(objectstore.TypeCommit, rows[0]); ok || err != nil {
				t.Errorf("commit of the dead layer is there (%v)", err)
			}
		},
	}
}

const rowFile = "rows" // durable, one layer a line, in place of the snapshotter's metadata.db

func (b *bed) rows(t *testing.T) (ids []objectstore.Checksum) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.path, rowFile))
	if !errors.Is(err, fs.ErrNotExist) {
		testenv.Must(t, err)
	}
	for _, line := range strings.Fields(string(data)) {
		ids = append(ids, value(objectstore.ParseChecksum(line))(t))
	}
	return ids
}

// A recovering case starts after a power failure: one layer lacks content and has a blob, another has lost its commit
// and has none.
func recovering() sweepCase {
	orphan := func(t testing.TB) []byte { t.Helper(); return makeTar(t, file("orphan", "orphan")) }
	var reported []LostLayer
	return sweepCase{
		Min:      40,
		Survives: func(_ atfs.Op, name string) bool { return strings.HasPrefix(name, TmpDir+"/"+deadPrefix) }, // prunes remove it
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			reported = nil
			b := &bed{path: path}
			b.open(t, Options{Journal: true, Boot: "before", Workers: 1})
			l := b.importBlob(t, tinyTar(t), someBlob)
			checkOut(t, b.Store, path, l.ID)
			o := importTar(t, b.Store, orphan(t))
			checkOut(t, b.Store, path, o.ID)
			damages[0].damage(t, b, l)
			truncate(t, filepath.Join(path, "repo/refs/heads/oci/blob", someBlob.Encoded()))
			truncate(t, b.objectFile(objectstore.TypeCommit, o.ID))
			b.crash(t)
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) *bed {
			t.Helper()
			b := &bed{path: path, hook: hook}
			b.open(t, Options{Journal: true, Boot: "after", Workers: 1})
			return b
		},
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			again := func(ctx context.Context, lost LostLayer) error {
				if lost.Blob != someBlob {
					t.Errorf("layer %s has blob %q", lost.ID, lost.Blob)
				}
				h, err := b.Import(ctx, bytes.NewReader(tinyTar(t)), ImportOptions{Blob: lost.Blob})
				if err != nil {
					return err
				}
				return h.Release()
			}
			r, err := b.Recover(t.Context(), again)
			if err == nil {
				err = r.Left
			}
			if err != nil {
				return err
			}
			for _, l := range append(r.Lost, reported...) {
				if l.Blob != someBlob {
					continue
				}
				// It could not be rebuilt, and is reported. Pulling the image rebuilds it.
				if reported = append(reported, l); len(reported) == 1 {
					return l.Cause
				}
				return again(t.Context(), l)
			}
			return nil
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			if !done {
				return // the next start begins again
			}
			b.checkRepo(t)
			b.layerOf(t, tinyTar(t))
			if h, err := b.AcquireBlob(t.Context(), someBlob); err != nil {
				t.Error(err)
			} else {
				testenv.Must(t, h.Release())
			}
			if _, err := b.Acquire(t.Context(), digest.FromBytes(orphan(t))); !errors.Is(err, ErrNotExist) {
				t.Errorf("layer that is lost: got %v", err)
			}
			if r := b.records(t); len(r) != 0 && !b.journal.broken && len(reported) == 0 {
				t.Errorf("journal has %d entries", len(r))
			}
		},
	}
}

const (
	syncedFile = "synced" // lists the objects that cannot be lost any more
	leftFile   = "left"   // lists the files that a first process left without a layer
)

// Killed at any operation, with the loss of everything unsynced on top: after the next start every recorded layer is
// complete or reported lost, and after the prune that follows each start no object is damaged.
func TestKillAndPowerLoss(t *testing.T) {
	testenv.NeedsRoot(t)
	for name, leave := range map[string]func(t *testing.T, b *bed, tar []byte){
		"new": nil,
		// Before that another process was killed, and left objects that are not on the disk and in no entry of the journal.
		"removed": func(t *testing.T, b *bed, tar []byte) {
			t.Helper()
			importTar(t, b.Store, tar)
			value(b.Forget(t.Context(), live()))(t)
		},
		"abandoned": func(t *testing.T, b *bed, tar []byte) {
			t.Helper()
			no := errors.New("not that one")
			_, err := b.Import(t.Context(), bytes.NewReader(tar), ImportOptions{Accept: func(digest.Digest, int64) error {
				for len(filesIn(t, b.path)) == 0 {
					time.Sleep(time.Millisecond)
				}
				return no
			}})
			if !errors.Is(err, no) {
				t.Fatalf("got %v, want the import refused", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.KillSweep(t, killedAndPowerless(leave))
		})
	}
}

// killedAndPowerless is the case of TestKillAndPowerLoss. leave, if not nil, does what the first process did.
func killedAndPowerless(leave func(t *testing.T, b *bed, tar []byte)) sweepCase {
	var recovered *Recovery // result of the last Open
	tar := func(t testing.TB, i int) []byte {
		t.Helper()
		return makeTar(t, file("same", "in both"), dir("d"), file("d/own", fmt.Sprint("only in ", i)))
	}
	return sweepCase{
		Min: 80,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			if leave == nil {
				return
			}
			b := &bed{path: path}
			b.open(t, Options{Journal: true, Boot: "before", Workers: 1})
			leave(t, b, tar(t, 0))
			b.crash(t)
			left := filesIn(t, path)
			if len(left) == 0 || len(b.records(t)) > 0 {
				t.Fatal("the first process left no files, or an entry of the journal")
			}
			testenv.Must(t, os.WriteFile(filepath.Join(path, leftFile), []byte(strings.Join(left, "\n")), 0o600))
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) *bed {
			t.Helper()
			var mu sync.Mutex
			var syncing []byte // objects
			b := &bed{path: path, hook: func(op atfs.Op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				if syncing != nil { // and synced by now
					testenv.Must(t, os.WriteFile(filepath.Join(path, syncedFile), syncing, 0o600))
					syncing = nil
				}
				if op == atfs.OpSyncFS {
					syncing = []byte(strings.Join(objectsIn(t, path), "\n"))
				}
				if hook == nil {
					return nil
				}
				return hook(op, name)
			}}
			boot := "before"
			if hook == nil {
				truncateUnsynced(t, path)
				boot = "after"
			}
			b.open(t, Options{Journal: true, Boot: boot, Workers: 1})
			testenv.Must(t, b.SweepTmp())
			recovered = value(b.Recover(t.Context(), nil))(t)
			return b
		},
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			for i := range 2 {
				l := importTar(t, b.Store, tar(t, i))
				checkOut(t, b.Store, b.path, l.ID)
				rows, err := os.OpenFile(filepath.Join(b.path, rowFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
				testenv.Must(t, err)
				fmt.Fprintln(rows, l.ID)
				testenv.Must(t, rows.Close())
			}
			return nil
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			lost := make(map[objectstore.Checksum]bool)
			for _, l := range recovered.Lost {
				lost[l.ID] = true
			}
			live := make(map[objectstore.Checksum]struct{})
			for _, id := range b.rows(t) {
				if !lost[id] || b.Whole(id) == nil { // it was pulled again
					live[id] = struct{}{}
				}
			}
			for id := range live {
				if err := b.Whole(id); err != nil {
					t.Errorf("layer %s: %v, and not reported", id, err)
				}
			}
			plan, err := b.PlanPrune(t.Context(), func(context.Context) (map[objectstore.Checksum]struct{}, error) {
				again := make(map[objectstore.Checksum]struct{})
				for id := range live {
					again[id] = struct{}{}
				}
				return again, nil
			})
			testenv.Must(t, err)
			value(plan.Execute(t.Context()))(t)
			b.checkAll(t)
			if done && len(live) != 2 {
				t.Errorf("got %d layers, want 2", len(live))
			}
		},
	}
}

// truncateUnsynced simulates a power failure: what was not synced is lost, or only what the first process left of it.
func truncateUnsynced(t testing.TB, path string) {
	t.Helper()
	read := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(path, name))
		testenv.Must(t, atfs.IgnoreNotExist(err))
		return strings.Fields(string(data))
	}
	synced, left := read(syncedFile), read(leftFile)
	for _, name := range objectsIn(t, path) {
		if !slices.Contains(synced, name) && (len(left) == 0 || slices.Contains(left, name)) {
			testenv.Must(t, os.Truncate(filepath.Join(path, name), 0))
		}
	}
}

// objectsIn lists the files of objects.
func objectsIn(t testing.TB, path string) (names []string) {
	t.Helper()
	testenv.Must(t, filepath.WalkDir(filepath.Join(path, "repo/objects"), func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(name, path+"/"))
		}
		return err
	}))
	return names
}

// filesIn lists those of files and symlinks.
func filesIn(t testing.TB, path string) []string {
	t.Helper()
	return slices.DeleteFunc(objectsIn(t, path), func(name string) bool { return !strings.HasSuffix(name, ".file") })
}
