package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

type sweepCase = faulttest.Case[*snaptest.Env]

// sweepCases are the snapshotter's operations on the disk.
var sweepCases = map[string]func(*testing.T) sweepCase{
	"start":          starting,
	"prepare":        preparing,
	"apply":          func(t *testing.T) sweepCase { t.Helper(); return applying(t, 0) },
	"apply-over":     func(t *testing.T) sweepCase { t.Helper(); return applying(t, 1) },
	"commit-applied": func(t *testing.T) sweepCase { t.Helper(); return committing(t, true, false) },
	"commit-written": func(t *testing.T) sweepCase { t.Helper(); return committing(t, false, true) },
	"commit-both":    func(t *testing.T) sweepCase { t.Helper(); return committing(t, true, true) },
	"commit-parent":  committingWithParent,
	"mounts":         mounting,
	"remove-some":    func(t *testing.T) sweepCase { t.Helper(); return removing(t, false) },
	"remove":         func(t *testing.T) sweepCase { t.Helper(); return removing(t, true) },
	"remove-later":   removingLater,
}

// TestFaults checks that, whichever operation on the disk fails, the error says so, the store is whole, all snapshots
// can be used, and a retry works.
func TestFaults(t *testing.T) {
	needsOverlay(t)
	silence(t)
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.Sweep(t, c(t))
		})
	}
}

// TestKills checks that, wherever the process is killed, at the next start the store is whole, all snapshots can be
// used, and a retry works.
func TestKills(t *testing.T) {
	needsOverlay(t)
	silence(t)
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.KillSweep(t, c(t))
		})
	}
}

// TestKillsInTransactions kills the process at the first write after any rename: that is inside a transaction of
// metadata.db if it moves a directory.
func TestKillsInTransactions(t *testing.T) {
	needsOverlay(t)
	silence(t)
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulttest.KillAfterRenameSweep(t, c(t))
		})
	}
}

// TestOrder records the order of operations on the disk, for reviewers.
func TestOrder(t *testing.T) {
	needsOverlay(t)
	silence(t)
	for _, name := range []string{"prepare", "commit-written", "remove", "remove-later"} {
		golden := name
		if snaptest.Composefs() {
			golden = "composefs-" + name
		}
		t.Run(name, func(t *testing.T) { faulttest.Order(t, golden, sweepCases[name](t)) })
	}
}

// needsOverlay is testenv.NeedsOverlay, which is slow, once for all children.
func needsOverlay(t *testing.T) {
	t.Helper()
	if !faulttest.IsChild() {
		testenv.NeedsOverlay(t)
	}
}

// silence drops log messages until the test ends: a sweep makes everything fail.
func silence(t *testing.T) {
	t.Helper()
	old := log.L.Logger.Out
	log.L.Logger.SetOutput(io.Discard)
	t.Cleanup(func() { log.L.Logger.SetOutput(old) })
}

// openSwept opens the store in path as the daemon does. Only the process died, not the machine: nothing is lost.
func openSwept(t *testing.T, path string, hook atfs.Hook) *snaptest.Env {
	t.Helper()
	return openSweptWith(t, path, hook)
}

func openSweptWith(t *testing.T, path string, hook atfs.Hook, opts ...snapshotter.Option) *snaptest.Env {
	t.Helper()
	plain, err := atfs.Open(path)
	testenv.Must(t, err)
	defer plain.Close()
	root, err := plain.WithHook(hook)
	testenv.Must(t, err)
	e, err := snaptest.OpenAt(t.Context(), root, layer.Options{Journal: true, Workers: 1}, append(opts, allowed)...)
	testenv.Must(t, err)
	e.StopPrebuild() // its operations would come at any time
	if r := e.Recovery; len(r.Damaged)+len(r.Lost)+r.Checkouts != 0 {
		t.Errorf("after the death of a process: got %+v", r)
	}
	return e
}

// prepared runs Prepare on an open store.
func prepared(f func(t *testing.T, e *snaptest.Env)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		e := openSwept(t, path, nil)
		f(t, e)
		testenv.Must(t, e.Close())
	}
}

// survives reports whether an operation may fail without an error for the caller: a later Cleanup repeats it, or
// removes the rest.
func survives(_ atfs.Op, name string) bool {
	return strings.HasPrefix(name, "tmp/snapshot-old-") || strings.HasPrefix(name, "mounts/")
}

var checks atomic.Int64

// checkRepo checks that fsck finds nothing.
func checkRepo(t *testing.T, e *snaptest.Env) {
	t.Helper()
	if checks.Add(1)%32 == 0 { // ostree(1) is slow to start
		testenv.Must(t, e.Check(t.Context()))
		return
	}
	report, err := e.Repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err == nil {
		err = report.Err()
	}
	testenv.Must(t, err)
}

// checkStore checks that fsck finds nothing and that every snapshot can be used. With done, it compares the files of
// committed ones with want, by name; otherwise it only checks that their content exists, since mounting is slow.
func checkStore(t *testing.T, e *snaptest.Env, want map[string]map[string]string, done bool) {
	t.Helper()
	checkRepo(t, e)
	testenv.Must(t, e.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		wanted, ok := want[info.Name]
		switch {
		case info.Kind != snapshots.KindCommitted:
			mounts, err := e.Mounts(t.Context(), info.Name)
			checkMounts(t, mounts)
			return err
		case !ok:
			t.Errorf("snapshot %q is there", info.Name)
		case done:
			wantFiles(t, view(t, e, info.Name), wanted)
		default:
			mounts, err := e.View(t.Context(), "check", info.Name)
			checkMounts(t, mounts)
			return errors.Join(err, e.Remove(t.Context(), "check"))
		}
		return nil
	}))
}

// checkMounts checks that the directories of mounts exist.
func checkMounts(t *testing.T, mounts []mount.Mount) {
	t.Helper()
	for _, m := range mounts {
		dirs := []string{m.Source}
		for _, o := range m.Options {
			if key, value, ok := strings.Cut(o, "="); ok && strings.HasSuffix(key, "dir") {
				dirs = append(dirs, strings.FieldsFunc(value, func(r rune) bool { return r == ':' })...)
			}
		}
		for _, dir := range dirs {
			if fi, err := os.Stat(dir); dir != "overlay" && (err != nil || !fi.IsDir()) {
				t.Errorf("mounts %v: %s: %v", mounts, dir, err)
			}
		}
	}
}

// has reports whether a snapshot exists.
func has(t *testing.T, e *snaptest.Env, name string) bool {
	t.Helper()
	_, err := e.Stat(t.Context(), name)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	return err == nil
}

// mounted calls f with a directory that shows an active snapshot. A snapshot for unpacking without parent is its own
// directory.
func mounted(t *testing.T, e *snaptest.Env, key string, f func(dir string)) {
	t.Helper()
	mounts, err := e.Mounts(t.Context(), key)
	testenv.Must(t, err)
	var upper string
	for _, o := range mounts[0].Options {
		if strings.HasPrefix(o, "lowerdir=") {
			upper = ""
			break
		}
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	if upper != "" {
		f(upper)
		return
	}
	target, unmount := snaptest.Mount(t, mounts)
	defer unmount()
	f(target)
}

// activeFiles returns the files of an active snapshot.
func activeFiles(t *testing.T, e *snaptest.Env, key string) (found map[string]string) {
	t.Helper()
	mounted(t, e, key, func(dir string) { found = files(t, dir) })
	return found
}

// write writes to an active snapshot as a container does.
func write(t *testing.T, e *snaptest.Env, key, name, content string) {
	t.Helper()
	mounted(t, e, key, func(dir string) { testenv.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)) })
}

// left returns the names in the store that an empty one does not have.
func left(t *testing.T, e *snaptest.Env) (names []string) {
	t.Helper()
	for _, pattern := range []string{"snapshots/*", "layers/*", "rootfs/*", "mounts/*", "tmp/*", "repo/objects/??/*", "repo/tmp/*", "repo/refs/heads/oci/*/*"} {
		found, err := filepath.Glob(filepath.Join(e.Path, pattern))
		testenv.Must(t, err)
		for _, name := range found {
			if name = strings.TrimPrefix(name, e.Path+"/"); name != "repo/tmp/cache" {
				names = append(names, name)
			}
		}
	}
	return names
}

// newSweptImage is a small newImage.
func newSweptImage(tb testing.TB) image {
	tb.Helper()
	tars := [][]byte{
		snaptest.Tar(tb, snaptest.Dir("dir"), snaptest.File("dir/old", "old"), snaptest.File("same", "same")),
		snaptest.Tar(tb, snaptest.Dir("dir"), snaptest.File("dir/.wh..wh..opq", ""), snaptest.File("dir/new", "new")),
	}
	return image{tars: tars, chain: []digest.Digest{digest.FromBytes(tars[0]), digest.FromBytes(tars[1])}}
}

var (
	sweptLower = map[string]string{"dir/old": "old", "same": "same"}
	sweptImage = map[string]string{"dir/new": "new", "same": "same"}
)

// unpacked returns the name of the topmost of the first n snapshots of an image.
func (i image) unpacked(n int) string {
	ids := identity.ChainIDs(slices.Clone(i.chain[:n]))
	return "default/1/" + ids[n-1].String()
}

// files returns the files of an image's snapshots, by name.
func (i image) files() map[string]map[string]string {
	return map[string]map[string]string{i.unpacked(1): sweptLower, i.unpacked(2): sweptImage}
}

// A started store is closed again: the sweep covers opening it after a process died with everything unfinished.
func starting(t *testing.T) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	hooks := make(map[string]atfs.Hook)
	check := func(t *testing.T, e *snaptest.Env) {
		t.Helper()
		checkStore(t, e, img.files(), true)
		if !has(t, e, img.unpacked(2)) || !has(t, e, "container") {
			t.Error("a snapshot is gone")
		}
		names := left(t, e)
		for _, name := range []string{"snapshots/99", "tmp/snapshot-new-x", "tmp/checkout-x"} {
			if slices.Contains(names, name) {
				t.Errorf("%s is left", name)
			}
		}
	}
	return sweepCase{
		Min: 8,
		Survives: func(_ atfs.Op, name string) bool { // the next start removes it
			return survives("", name) || strings.HasPrefix(name, "tmp/snapshot-new-x") || strings.HasPrefix(name, "tmp/checkout-x")
		},
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			prepared(func(t *testing.T, e *snaptest.Env) {
				t.Helper()
				prepare(t, e, "container", img.unpackAll(t, e))
			})(t, path)
			for _, dir := range []string{"snapshots/99/fs/a", "tmp/snapshot-new-x/fs", "tmp/snapshot-old-7/fs/b", "tmp/checkout-x/fs"} {
				testenv.Must(t, os.MkdirAll(filepath.Join(path, dir), 0o700))
			}
			testenv.Must(t, os.WriteFile(filepath.Join(path, "journal/x"), []byte("layer is not known\n"), 0o600))
		},
		Open: func(_ *testing.T, path string, hook atfs.Hook) *snaptest.Env {
			hooks[path] = hook
			return &snaptest.Env{Path: path}
		},
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			plain, err := atfs.Open(e.Path)
			testenv.Must(t, err)
			defer plain.Close()
			root, err := plain.WithHook(hooks[e.Path])
			testenv.Must(t, err)
			opened, err := snaptest.OpenAt(t.Context(), root, layer.Options{Journal: true, Workers: 1})
			if err != nil {
				return err
			}
			return opened.Close()
		},
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			if !done {
				return // the next start repeats it
			}
			opened := openSwept(t, e.Path, nil)
			check(t, opened)
			testenv.Must(t, opened.Close())
		},
	}
}

// A preparing case creates one snapshot of each kind: on an image, without parent, read-only, and staged with a known
// layer.
func preparing(t *testing.T) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	keys := []string{"active", "default/5/extract-5 staged", "alone", "view", "view alone"}
	return sweepCase{
		Min: 20,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			img.unpackAll(t, e)
		}),
		Open: openSwept,
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			parents := map[string]string{"active": img.unpacked(2), "view": img.unpacked(1)}
			for _, key := range keys {
				var err error
				if strings.HasPrefix(key, "view") {
					_, err = e.View(t.Context(), key, parents[key])
				} else {
					_, err = e.Prepare(t.Context(), key, parents[key], snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: img.chain[0].String()}))
				}
				if err != nil && !errdefs.IsAlreadyExists(err) {
					return err
				}
			}
			return nil
		},
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			for _, name := range left(t, e) {
				if strings.HasPrefix(name, "tmp/") && !survives("", name) {
					t.Errorf("%s is left", name)
				}
			}
			checkStore(t, e, img.files(), done)
			if !done {
				return
			}
			wantFiles(t, activeFiles(t, e, "active"), sweptImage)
			wantFiles(t, activeFiles(t, e, "view"), sweptLower)
			wantFiles(t, activeFiles(t, e, keys[1]), sweptLower)
			wantFiles(t, activeFiles(t, e, "alone"), map[string]string{})
			if names, err := os.ReadDir(filepath.Join(e.Path, "snapshots")); err != nil || len(names) != 4 { // a view on an image has none
				t.Errorf("snapshots: got %v, %v, want 4 directories", names, err)
			}
		},
	}
}

const extract = "default/2/extract-1 sha256:x"

// An applying case applies a layer to an active snapshot that has one already.
func applying(t *testing.T, before int) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	return sweepCase{
		Min: 35,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			m := prepare(t, e, extract, "")
			for _, tar := range img.tars[:before] {
				apply(t, e, m, tar)
			}
		}),
		Open: openSwept,
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			mounts, err := e.Mounts(t.Context(), extract)
			if err != nil {
				return err
			}
			id, _, err := e.Locate(t.Context(), mounts)
			if err != nil {
				return err
			}
			held, err := e.Store.Import(t.Context(), bytes.NewReader(img.tars[before]), layer.ImportOptions{Blob: digest.FromString("blob")})
			if err != nil {
				return err
			}
			return errors.Join(e.AddLayer(t.Context(), id, held, true), held.Release())
		},
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			checkStore(t, e, nil, done)
			want := []map[string]string{{}, sweptLower, sweptImage}
			got := activeFiles(t, e, extract)
			if !done && maps.Equal(got, want[before]) {
				return
			}
			wantFiles(t, got, want[before+1])
		},
	}
}

// A committing case commits a snapshot with an applied layer, with written files, or with both.
func committing(t *testing.T, applied, written bool) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	want := map[string]string{}
	if applied {
		want = maps.Clone(sweptLower)
	}
	if written {
		want["written"] = "by a container"
		want["same"] = "another"
	}
	return sweepCase{
		Min: 3,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			m := prepare(t, e, extract, "")
			if applied {
				apply(t, e, m, img.tars[0])
			}
			if written {
				write(t, e, extract, "written", want["written"])
				write(t, e, extract, "same", want["same"])
			}
		}),
		Open: openSwept,
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			err := e.Commit(t.Context(), "committed", extract)
			if errdefs.IsNotFound(err) && has(t, e, "committed") {
				return nil // by a killed process
			}
			return err
		},
		Survives: survives,
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			if done && !has(t, e, "committed") {
				t.Error("there is no committed snapshot")
			}
			if has(t, e, "committed") == has(t, e, extract) {
				t.Error("there is either none of the snapshots or both")
			}
			checkStore(t, e, map[string]map[string]string{"committed": want}, done)
		},
	}
}

// A committingWithParent case gives a snapshot its parent at last, and resolves its layer.
func committingWithParent(t *testing.T) sweepCase {
	t.Helper()
	lower := snaptest.Tar(t, snaptest.Dir("dir"), snaptest.File("dir/old", "old"))
	upper := snaptest.Tar(t, snaptest.Link("dir/link", "dir/old"), snaptest.File("dir/new", "new"))
	want := map[string]map[string]string{"lower": {"dir/old": "old"}, "upper": {"dir/old": "old", "dir/link": "old", "dir/new": "new"}}
	return sweepCase{
		Min: 15,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			apply(t, e, prepare(t, e, "default/3/extract-1 lower", ""), lower)
			commit(t, e, "lower", "default/3/extract-1 lower")
			apply(t, e, prepare(t, e, extract, ""), upper)
		}),
		Open: openSwept,
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			err := e.Commit(t.Context(), "upper", extract, snapshots.WithParent("lower"))
			if errdefs.IsNotFound(err) && has(t, e, "upper") {
				return nil
			}
			return err
		},
		Survives: survives,
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			if has(t, e, "upper") {
				checkStore(t, e, want, done)
			} else { // without its parent it cannot be mounted yet
				checkRepo(t, e)
			}
			if !has(t, e, "lower") || done && !has(t, e, "upper") {
				t.Error("a committed snapshot is missing")
			}
		},
	}
}

// A mounting case has lost its checkouts.
func mounting(t *testing.T) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	return sweepCase{
		Min: 10,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			prepare(t, e, "container", img.unpackAll(t, e))
			testenv.Must(t, e.Store.Sync(t.Context()))
			testenv.Must(t, e.Unmount())
			testenv.Must(t, os.RemoveAll(filepath.Join(e.Path, "rootfs")))
		}),
		Open: func(t *testing.T, path string, hook atfs.Hook) *snaptest.Env {
			t.Helper()
			e := openSwept(t, path, hook)
			names, err := filepath.Glob(filepath.Join(path, "layers/*"))
			testenv.Must(t, err)
			for _, name := range names { // the start would rebuild them
				testenv.Must(t, os.RemoveAll(name))
			}
			return e
		},
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			_, err := e.Mounts(t.Context(), "container")
			return err
		},
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			checkStore(t, e, img.files(), done)
			if done {
				wantFiles(t, activeFiles(t, e, "container"), sweptImage)
			}
		},
	}
}

// A removingLater case is a removing case that leaves the files of layers to the background.
func removingLater(t *testing.T) sweepCase {
	t.Helper()
	c := removing(t, true)
	c.Open = func(t *testing.T, path string, hook atfs.Hook) *snaptest.Env {
		t.Helper()
		e := openSweptWith(t, path, hook, snapshotter.WithBackgroundRemoval(100))
		e.StopRemoval() // its operations would come at any time
		return e
	}
	remove, check := c.Run, c.Check
	c.Run = func(t *testing.T, e *snaptest.Env) error {
		t.Helper()
		if err := remove(t, e); err != nil {
			return err
		}
		if refs, err := e.Repo.Refs(layer.RefPrefix); err != nil || len(refs) > 0 {
			t.Errorf("after the cleanup there are refs %v (%v)", refs, err)
		}
		return e.RemoveRest()
	}
	c.Check = func(t *testing.T, e *snaptest.Env, done bool) {
		t.Helper()
		if done {
			testenv.Must(t, e.RemoveRest())
		}
		check(t, e, done)
	}
	return c
}

// A removing case removes a container and its image. Nothing stays except what another image shares.
func removing(t *testing.T, all bool) sweepCase {
	t.Helper()
	img := newSweptImage(t)
	gone := []string{"container", img.unpacked(2)}
	if all {
		gone = append(gone, img.unpacked(1))
	}
	return sweepCase{
		Min: 15,
		Prepare: prepared(func(t *testing.T, e *snaptest.Env) {
			t.Helper()
			prepare(t, e, "container", img.unpackAll(t, e))
			write(t, e, "container", "own", "own")
		}),
		Open: openSwept,
		Run: func(t *testing.T, e *snaptest.Env) error {
			t.Helper()
			for _, name := range gone {
				if err := e.Remove(t.Context(), name); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
			}
			return e.Cleanup(t.Context())
		},
		Survives: survives,
		Check: func(t *testing.T, e *snaptest.Env, done bool) {
			t.Helper()
			checkStore(t, e, img.files(), done)
			if !done {
				return
			}
			for _, name := range gone {
				if has(t, e, name) {
					t.Errorf("snapshot %q is there", name)
				}
			}
			testenv.Must(t, e.Cleanup(t.Context())) // after the containers of the check
			names := left(t, e)
			if all && len(names) != 0 {
				t.Errorf("left: %q", names)
			}
			if layers, err := e.Store.Layers(t.Context()); !all && (err != nil || len(layers) != 1 || len(names) == 0) {
				t.Errorf("got %d layers, %v, want 1", len(layers), err)
			}
		},
	}
}
