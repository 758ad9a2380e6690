package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

var allowed = snapshotter.WithStaging(func(context.Context) bool { return true })

// apply imports a tar and adds it to an active snapshot, as the differ does.
func apply(tb testing.TB, e *snaptest.Env, mounts []mount.Mount, tar []byte) digest.Digest {
	tb.Helper()
	id, _, err := e.Locate(tb.Context(), mounts)
	if err != nil {
		tb.Fatal(err)
	}
	held, err := e.Store.Import(tb.Context(), bytes.NewReader(tar), layer.ImportOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(e.AddLayer(tb.Context(), id, held, false), held.Release()); err != nil {
		tb.Fatal(err)
	}
	return held.DiffID
}

// unpack unpacks a layer as containerd does in namespace default. It returns the name of the snapshot.
func unpack(tb testing.TB, e *snaptest.Env, chain []digest.Digest, tar []byte) string {
	tb.Helper()
	ids := identity.ChainIDs(slices.Clone(chain))
	ref := ids[len(ids)-1].String()
	parent := ""
	if len(ids) > 1 {
		parent = "default/1/" + ids[len(ids)-2].String()
	}
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:    ref,
		snapshots.LabelSnapshotDiffID: chain[len(chain)-1].String(),
	})
	key := "default/2/extract-1 " + ref
	mounts, err := e.Prepare(tb.Context(), key, parent, labels)
	if err != nil {
		tb.Fatal(err)
	}
	if got := apply(tb, e, mounts, tar); got != chain[len(chain)-1] {
		tb.Fatalf("diff ID is %s, want %s", got, chain[len(chain)-1])
	}
	name := "default/1/" + ref
	if err := e.Commit(tb.Context(), name, key, labels); err != nil {
		tb.Fatal(err)
	}
	return name
}

func prepare(tb testing.TB, e *snaptest.Env, key, parent string, opts ...snapshots.Opt) []mount.Mount {
	tb.Helper()
	m, err := e.Prepare(tb.Context(), key, parent, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func commit(tb testing.TB, e *snaptest.Env, name, key string, opts ...snapshots.Opt) {
	tb.Helper()
	if err := e.Commit(tb.Context(), name, key, opts...); err != nil {
		tb.Fatal(err)
	}
}

func labelsOf(tb testing.TB, e *snaptest.Env, name string) map[string]string {
	tb.Helper()
	info, err := e.Stat(tb.Context(), name)
	if err != nil {
		tb.Fatal(err)
	}
	return info.Labels
}

// files returns the contents of the files below dir, by path.
func files(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	got := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		got[name] = string(b)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// view returns the files of a committed snapshot.
func view(tb testing.TB, e *snaptest.Env, name string) map[string]string {
	tb.Helper()
	key := "view of " + name
	mounts, err := e.View(tb.Context(), key, name)
	if err != nil {
		tb.Fatal(err)
	}
	target, unmount := snaptest.Mount(tb, mounts)
	got := files(tb, target)
	unmount()
	if err := e.Remove(tb.Context(), key); err != nil {
		tb.Fatal(err)
	}
	return got
}

func wantFiles(tb testing.TB, got, want map[string]string) {
	tb.Helper()
	if diff := testenv.Diff(want, got); diff != "" {
		tb.Errorf("files (-want +got):\n%s", diff)
	}
}

// image has two layers: the second changes, deletes and hides files of the first.
type image struct {
	tars  [][]byte
	chain []digest.Digest
}

func newImage(tb testing.TB) image {
	tb.Helper()
	tars := [][]byte{
		snaptest.Tar(tb, snaptest.Dir("etc"), snaptest.File("etc/conf", "base"), snaptest.Dir("dir"), snaptest.File("dir/old", "2"),
			snaptest.File("gone", "1"), snaptest.File("same", "same")),
		snaptest.Tar(tb, snaptest.Dir("etc"), snaptest.File("etc/conf", "changed"), snaptest.Dir("dir"), snaptest.File("dir/.wh..wh..opq", ""),
			snaptest.File("dir/new", "3"), snaptest.File(".wh.gone", "")),
	}
	return image{tars: tars, chain: []digest.Digest{digest.FromBytes(tars[0]), digest.FromBytes(tars[1])}}
}

var (
	lowerFiles = map[string]string{"etc/conf": "base", "dir/old": "2", "gone": "1", "same": "same"}
	imageFiles = map[string]string{"etc/conf": "changed", "dir/new": "3", "same": "same"}
)

// unpackAll unpacks the image in namespace default and returns the name of its topmost snapshot.
func (i image) unpackAll(tb testing.TB, e *snaptest.Env) string {
	tb.Helper()
	var name string
	for n := range i.tars {
		name = unpack(tb, e, i.chain[:n+1], i.tars[n])
	}
	return name
}

func TestUnpackSequentially(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	lower := unpack(t, e, img.chain[:1], img.tars[0])
	wantFiles(t, view(t, e, lower), lowerFiles)
	top := unpack(t, e, img.chain, img.tars[1])
	wantFiles(t, view(t, e, top), imageFiles)

	mounts := prepare(t, e, "default/9/container", top)
	target, unmount := snaptest.Mount(t, mounts)
	if err := os.WriteFile(filepath.Join(target, "same"), []byte("written"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	wantFiles(t, view(t, e, top), imageFiles)
	commit(t, e, "default/10/committed", "default/9/container")
	want := maps.Clone(imageFiles)
	want["same"] = "written"
	wantFiles(t, view(t, e, "default/10/committed"), want)
	if _, err := os.Stat(filepath.Join(e.Path, "snapshots")); err != nil {
		t.Fatal(err)
	}
}

// TestUnpackInParallel prepares every layer without a parent and names it at Commit, as parallel unpacking does.
// Whiteouts must survive that.
func TestUnpackInParallel(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	ids := identity.ChainIDs(slices.Clone(img.chain))
	for i := range img.tars {
		key := fmt.Sprintf("default/%d/extract-%d %s", i, i, ids[i])
		m := prepare(t, e, key, "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ids[i].String()}))
		if m[0].Type != "overlay" || m[0].ReadOnly() {
			t.Fatalf("mounts are %v, want an overlay that can be written to", m)
		}
		apply(t, e, m, img.tars[i])
	}
	commit(t, e, "default/1/"+ids[0].String(), "default/0/extract-0 "+ids[0].String())
	top := "default/1/" + ids[1].String()
	key := "default/1/extract-1 " + ids[1].String()
	commit(t, e, top, key, snapshots.WithParent("default/1/"+ids[0].String()))
	wantFiles(t, view(t, e, top), imageFiles)
	if got := labelsOf(t, e, top)[snapshotter.LabelChainID]; got != ids[1].String() {
		t.Errorf("chain ID is %q, want %s", got, ids[1])
	}
}

func TestCommitErrors(t *testing.T) {
	e := snaptest.New(t)
	for _, name := range []string{"a", "b"} {
		prepare(t, e, name+"-key", "")
		commit(t, e, name, name+"-key")
	}
	prepare(t, e, "on-a", "a")
	prepare(t, e, "alone", "")
	if _, err := e.View(t.Context(), "view", "a"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, snapshot, key string
		opts                []snapshots.Opt
		is                  func(error) bool
	}{
		{"no such key", "c", "nothing", nil, errdefs.IsNotFound},
		{"a view", "c", "view", nil, errdefs.IsFailedPrecondition},
		{"name is taken", "a", "alone", nil, errdefs.IsAlreadyExists},
		{"another parent", "c", "on-a", []snapshots.Opt{snapshots.WithParent("b")}, errdefs.IsInvalidArgument},
		{"no such parent", "c", "alone", []snapshots.Opt{snapshots.WithParent("z")}, errdefs.IsNotFound},
		{"parent not committed", "c", "alone", []snapshots.Opt{snapshots.WithParent("on-a")}, errdefs.IsInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := e.Commit(t.Context(), c.snapshot, c.key, c.opts...); !c.is(err) {
				t.Errorf("got error %v of another class", err)
			}
		})
	}
	commit(t, e, "c", "alone", snapshots.WithParent("b"))
	commit(t, e, "d", "on-a", snapshots.WithParent("a"))
}

// TestPrepareInAnotherNamespace checks that a snapshot is its namespace's alone: only there did containerd fetch the
// blobs of the image.
func TestPrepareInAnotherNamespace(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	img.unpackAll(t, e)
	ref := img.chain[0].String()
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: ref, snapshots.LabelSnapshotDiffID: ref,
	})
	for _, key := range []string{
		"k8s.io/7/extract-1 " + ref,
		"default/7/extract-1 " + ref, // containerd knows no snapshot of this chain there, so it may lack the blobs too
		"no namespace",
	} {
		m, err := e.Prepare(t.Context(), key, "", labels)
		if err != nil || len(m) != 1 || m[0].ReadOnly() {
			t.Errorf("prepare %q: got %v, %v, want mounts to unpack to", key, m, err)
		}
	}
}

func TestSharedNamespaces(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithSharedNamespaces())
	img := newImage(t)
	top := img.unpackAll(t, e)
	ids := identity.ChainIDs(slices.Clone(img.chain))
	ref := func(i int) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ids[i].String()})
	}
	lower := "default/1/" + ids[0].String()
	check := func(when string) {
		t.Helper()
		for _, c := range []struct {
			name, parent string
			opts         []snapshots.Opt
			exists       bool
		}{
			{"the lower layer", "", []snapshots.Opt{ref(0)}, true},
			{"the upper layer", lower, []snapshots.Opt{ref(1)}, true},
			{"the upper layer in parallel mode", "", []snapshots.Opt{ref(1)}, false},
			{"the lower layer elsewhere", lower, []snapshots.Opt{ref(0)}, false},
			{"no reference", lower, nil, false},
		} {
			t.Run(when+"/"+c.name, func(t *testing.T) {
				key := "k8s.io/7/extract-1 " + c.name
				_, err := e.Prepare(t.Context(), key, c.parent, c.opts...)
				if got := errdefs.IsAlreadyExists(err); got != c.exists || (err != nil) != c.exists {
					t.Errorf("got error %v, want already exists: %v", err, c.exists)
				}
				if err == nil {
					testenv.Must(t, e.Remove(t.Context(), key))
				}
			})
		}
	}
	check("after unpack")

	// containerd then searches for the snapshot like this.
	var found []string
	err := e.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found = append(found, info.Name)
		return nil
	}, fmt.Sprintf("labels.%q==%s,parent==%s", snapshots.LabelSnapshotRef, ids[1], lower))
	if err != nil || !slices.Equal(found, []string{top}) {
		t.Errorf("walk found %q, %v, want %q", found, err, top)
	}

	e.Reopen(t, snapshotter.WithSharedNamespaces())
	check("after restart")

	// Without the label containerd could not find the snapshot; it is restored.
	if _, err := e.Update(t.Context(), snapshots.Info{Name: top}); err != nil {
		t.Fatal(err)
	}
	check("after update")

	if err := e.Remove(t.Context(), top); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prepare(t.Context(), "k8s.io/8/extract-1 again", lower, ref(1)); err != nil {
		t.Errorf("after remove: got %v, want none", err)
	}
}

// TestReferenceOfUnlabelledCommit checks that a snapshot without labels, as from client-side unpacking, gets its name
// as reference if that is its chain ID.
func TestReferenceOfUnlabelledCommit(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithSharedNamespaces())
	img := newImage(t)
	prepared := func(key string) { apply(t, e, prepare(t, e, key, ""), img.tars[0]) }

	prepared("ns/1/honest")
	name := "ns/2/" + img.chain[0].String()
	commit(t, e, name, "ns/1/honest")
	if got := labelsOf(t, e, name)[snapshots.LabelSnapshotRef]; got != img.chain[0].String() {
		t.Errorf("reference is %q, want %s", got, img.chain[0])
	}

	// Other namespaces must not get a snapshot that only claims to be a chain.
	prepared("ns/1/liar")
	lie := digest.FromString("another chain").String()
	commit(t, e, "ns/3/"+lie, "ns/1/liar", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: lie}))
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: lie})
	if _, err := e.Prepare(t.Context(), "other/1/extract-1 x", "", labels); err != nil {
		t.Errorf("content that was never verified was taken for chain %s: %v", lie, err)
	}
}

func TestStaging(t *testing.T) {
	img := newImage(t)
	implied := snaptest.Tar(t, snaptest.File("a/b/c", "implied parents")) // resolved against the layers below
	ids := identity.ChainIDs(slices.Clone(img.chain))
	label := func(d digest.Digest) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: d.String()})
	}
	setup := func(t *testing.T, opts ...snapshotter.Option) *snaptest.Env {
		t.Helper()
		e := snaptest.New(t, opts...)
		img.unpackAll(t, e)
		apply(t, e, prepare(t, e, "default/3/implied", ""), implied)
		return e
	}
	t.Run("parallel", func(t *testing.T) {
		e := setup(t, allowed)
		for i, d := range img.chain {
			key := fmt.Sprintf("k8s.io/%d/extract-%d x", i, i)
			m := prepare(t, e, key, "", label(d))
			if !m[0].ReadOnly() {
				t.Fatalf("layer %d is not staged: %v", i, m)
			}
			if id, staged, err := e.Locate(t.Context(), m); err != nil || id != "" || staged.IsZero() {
				t.Errorf("located snapshot %q, layer %s, %v, want a staged layer", id, staged, err)
			}
			var opts []snapshots.Opt
			if i > 0 {
				opts = append(opts, snapshots.WithParent(fmt.Sprintf("k8s.io/1/%d", i-1)))
			}
			commit(t, e, fmt.Sprintf("k8s.io/1/%d", i), key, opts...)
		}
		wantFiles(t, view(t, e, "k8s.io/1/1"), imageFiles)
		if got := labelsOf(t, e, "k8s.io/1/1")[snapshotter.LabelChainID]; got != ids[1].String() {
			t.Errorf("chain ID of staged snapshot is %q, want %s", got, ids[1])
		}
	})
	t.Run("sequential", func(t *testing.T) {
		e := setup(t, allowed)
		m := prepare(t, e, "k8s.io/1/extract-1 x", "default/1/"+ids[0].String(), label(img.chain[1]))
		if !m[0].ReadOnly() {
			t.Fatalf("mounts are %v, want read-only ones", m)
		}
		m, err := e.Mounts(t.Context(), "k8s.io/1/extract-1 x")
		testenv.Must(t, err)
		if !m[0].ReadOnly() || m[0].Type != "overlay" && !snaptest.Composefs() {
			t.Fatalf("mounts are %v, want a read-only overlay", m)
		}
		target, unmount := snaptest.Mount(t, m)
		wantFiles(t, files(t, target), imageFiles)
		unmount()
		commit(t, e, "k8s.io/2/x", "k8s.io/1/extract-1 x")
		wantFiles(t, view(t, e, "k8s.io/2/x"), imageFiles)
	})
	t.Run("layer with implied parents", func(t *testing.T) {
		e := setup(t, allowed)
		m := prepare(t, e, "k8s.io/1/extract-1 x", "", label(digest.FromBytes(implied)))
		if !m[0].ReadOnly() {
			t.Fatalf("not staged: %v", m)
		}
		if _, staged, err := e.Locate(t.Context(), m); err != nil || staged.IsZero() {
			t.Errorf("located layer %s, %v, want the staged one", staged, err)
		}
		commit(t, e, "k8s.io/2/x", "k8s.io/1/extract-1 x", snapshots.WithParent("default/1/"+ids[0].String()))
		want := maps.Clone(lowerFiles)
		want["a/b/c"] = "implied parents"
		wantFiles(t, view(t, e, "k8s.io/2/x"), want)
	})
	for _, c := range []struct {
		name string
		opts []snapshotter.Option
		key  string
		diff string
	}{
		{"off", nil, "k8s.io/1/extract-1 x", img.chain[0].String()},
		{"old containerd", []snapshotter.Option{snapshotter.WithStaging(func(context.Context) bool { return false })}, "k8s.io/1/extract-1 x", img.chain[0].String()},
		{"not an unpack", []snapshotter.Option{allowed}, "k8s.io/1/container", img.chain[0].String()},
		{"unknown layer", []snapshotter.Option{allowed}, "k8s.io/1/extract-1 x", digest.FromString("?").String()},
		{"hostile label", []snapshotter.Option{allowed}, "k8s.io/1/extract-1 x", "../../../etc/passwd"},
		{"hostile digest", []snapshotter.Option{allowed}, "k8s.io/1/extract-1 x", "sha256:" + strings.Repeat("/..", 21) + "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := setup(t, c.opts...)
			m := prepare(t, e, c.key, "", label(digest.Digest(c.diff)))
			if m[0].ReadOnly() {
				t.Errorf("staged: %v", m)
			}
			// Nothing may hold the store.
			if err := e.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStagedLayerSurvivesPrune checks that a staged layer stays although nothing else needs it.
func TestStagedLayerSurvivesPrune(t *testing.T) {
	e := snaptest.New(t, allowed)
	img := newImage(t)
	name := unpack(t, e, img.chain[:1], img.tars[0])
	prepare(t, e, "b/1/extract-1 x", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: img.chain[0].String()}))
	if err := errors.Join(e.Remove(t.Context(), name), e.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	commit(t, e, "b/2/x", "b/1/extract-1 x")
	wantFiles(t, view(t, e, "b/2/x"), lowerFiles)
}

// TestPrivateLabelsCannotBeSet checks that callers cannot set our labels: their labels come from image authors too.
func TestPrivateLabelsCannotBeSet(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	name := unpack(t, e, img.chain[:1], img.tars[0])
	want := labelsOf(t, e, name)
	forged := map[string]string{
		snapshotter.LabelLayer:                strings.Repeat("0", 64),
		snapshotter.LabelCheckout:             "../../..",
		snapshotter.LabelChainID:              digest.FromString("forged").String(),
		snapshots.LabelSnapshotRef:            digest.FromString("forged").String(),
		"containerd.io/snapshot/ostree.other": "x",
		"containerd.io/snapshot/theirs":       "y",
	}
	t.Run("prepare", func(t *testing.T) {
		m := prepare(t, e, "a", "", snapshots.WithLabels(maps.Clone(forged)))
		got := labelsOf(t, e, "a")
		for k := range got {
			if strings.HasPrefix(k, "containerd.io/snapshot/ostree.") {
				t.Errorf("label %s was kept", k)
			}
		}
		if got["containerd.io/snapshot/theirs"] != "y" {
			t.Error("another label was dropped")
		}
		apply(t, e, m, img.tars[0])
	})
	t.Run("commit", func(t *testing.T) {
		commit(t, e, "b", "a", snapshots.WithLabels(maps.Clone(forged)))
		got := labelsOf(t, e, "b")
		for _, k := range []string{snapshotter.LabelLayer, snapshotter.LabelCheckout, snapshotter.LabelChainID, "containerd.io/snapshot/ostree.other"} {
			if got[k] != want[k] {
				t.Errorf("label %s is %q, want %q", k, got[k], want[k])
			}
		}
		wantFiles(t, view(t, e, "b"), lowerFiles)
	})
	t.Run("update of an active snapshot", func(t *testing.T) {
		prepare(t, e, "c", "")
		if _, err := e.Update(t.Context(), snapshots.Info{Name: "c", Labels: map[string]string{"other": "x"}}, "labels."+snapshotter.LabelLayer); err != nil {
			t.Fatal(err)
		}
		if got := labelsOf(t, e, "c"); len(got) != 0 {
			t.Errorf("got labels %v, want none", got)
		}
	})
	for _, fieldpaths := range [][]string{nil, {"labels"}, {"labels." + snapshotter.LabelLayer, "labels." + snapshotter.LabelCheckout}, {"labels.containerd.io/snapshot/ostree.other"}} {
		t.Run(fmt.Sprintf("update %q", fieldpaths), func(t *testing.T) {
			if _, err := e.Update(t.Context(), snapshots.Info{Name: name, Labels: maps.Clone(forged)}, fieldpaths...); err != nil {
				t.Fatal(err)
			}
			got := labelsOf(t, e, name)
			for k := range got {
				if strings.HasPrefix(k, "containerd.io/snapshot/ostree.") && got[k] != want[k] {
					t.Errorf("label %s is %q, want %q", k, got[k], want[k])
				}
			}
			for _, k := range []string{snapshotter.LabelLayer, snapshotter.LabelCheckout, snapshotter.LabelChainID} {
				if got[k] != want[k] {
					t.Errorf("label %s is %q, want %q", k, got[k], want[k])
				}
			}
		})
	}
}

func TestRestart(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	top := img.unpackAll(t, e)
	mounts := prepare(t, e, "container", top)
	applied := prepare(t, e, "default/5/extract-1 x", "")
	apply(t, e, applied, img.tars[0])

	e.Reopen(t)
	again, err := e.Mounts(t.Context(), "container")
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(mounts, again); diff != "" {
		t.Errorf("mounts changed by a restart (-before +after):\n%s", diff)
	}
	wantFiles(t, view(t, e, top), imageFiles)
	commit(t, e, "default/6/x", "default/5/extract-1 x")
	wantFiles(t, view(t, e, "default/6/x"), lowerFiles)
}

func TestCheckoutIsMadeAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(t *testing.T, e *snaptest.Env, name string) []mount.Mount
	}{
		{"prepare", func(t *testing.T, e *snaptest.Env, name string) []mount.Mount {
			t.Helper()
			return prepare(t, e, "new", name)
		}},
		{"view", func(t *testing.T, e *snaptest.Env, name string) []mount.Mount {
			t.Helper()
			m, err := e.View(t.Context(), "new", name)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}},
		{"mounts", func(t *testing.T, e *snaptest.Env, _ string) []mount.Mount {
			t.Helper()
			m, err := e.Mounts(t.Context(), "before")
			if err != nil {
				t.Fatal(err)
			}
			return m
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := snaptest.New(t)
			top := newImage(t).unpackAll(t, e)
			prepare(t, e, "before", top)
			if err := os.RemoveAll(filepath.Join(e.Path, "layers")); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(e.Path, "layers"), 0o700); err != nil {
				t.Fatal(err)
			}
			e.Reopen(t) // no directory is removed below a running process
			target, unmount := snaptest.Mount(t, c.use(t, e, top))
			defer unmount()
			wantFiles(t, files(t, target), imageFiles)
		})
	}
}

func TestLostLayer(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	name := unpack(t, e, img.chain[:1], img.tars[0])
	short := labelsOf(t, e, name)[snapshotter.LabelLayer]
	for _, path := range []string{"layers/" + short[:16], "repo/objects/" + short[:2] + "/" + short[2:] + ".commit", "repo/refs/heads/oci"} {
		if err := os.RemoveAll(filepath.Join(e.Path, path)); err != nil {
			t.Fatal(err)
		}
	}
	e.Reopen(t)
	_, err := e.Prepare(t.Context(), "container", name)
	var lost *snapshotter.LostLayerError
	if !errors.As(err, &lost) || !errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		t.Fatalf("got %v, want a LostLayerError that is a data loss", err)
	}
	if text := err.Error(); !strings.Contains(text, name) || !strings.Contains(text, short) || !strings.Contains(text, "build or load it again, or pull it") {
		t.Errorf("error %q names neither snapshot, layer nor remedy", text)
	}
	// Pulling the image again must work, and repair the first snapshot: a layer's ID is a function of its tar.
	again := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: img.chain[0].String()})
	m, err := e.Prepare(t.Context(), "k8s.io/2/extract-1 x", "", again)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, e, m, img.tars[0])
	commit(t, e, "k8s.io/1/"+img.chain[0].String(), "k8s.io/2/extract-1 x")
	wantFiles(t, view(t, e, name), lowerFiles)
}

// TestLostLayerWithBlob: the blob of a lost layer is known.
func TestLostLayerWithBlob(t *testing.T) {
	err := error(&snapshotter.LostLayerError{Snapshot: "s", Blob: blobs[0], Cause: layer.ErrNotExist})
	if text := err.Error(); !strings.Contains(text, `fsck --repair", or remove the image and pull`) || strings.Contains(text, "build") {
		t.Errorf("error is %q, want it to advise a repair or a pull alone", text)
	}
}

// TestLostBuiltLayers: layers made of directories are lost, and no blob is known. Their images cannot be pulled. The log
// has one line about all of them.
func TestLostBuiltLayers(t *testing.T) {
	e := snaptest.New(t)
	const built = 5
	for i := range built {
		key := fmt.Sprintf("build-%d", i)
		target, unmount := snaptest.Mount(t, prepare(t, e, key, ""))
		testenv.Must(t, os.WriteFile(filepath.Join(target, "file"), []byte(key), 0o644))
		unmount()
		commit(t, e, "built-"+key, key)
	}
	testenv.Must(t, e.Close())
	for _, path := range []string{"layers", "rootfs", "repo/refs/heads/oci"} {
		testenv.Must(t, os.RemoveAll(filepath.Join(e.Path, path)))
	}
	commits, err := filepath.Glob(filepath.Join(e.Path, "repo/objects/*/*.commit"))
	if err != nil || len(commits) != built {
		t.Fatalf("there are %d commits, %v, want %d", len(commits), err, built)
	}
	for _, name := range commits {
		testenv.Must(t, os.Remove(name))
	}
	ctx, text := logged(t.Context())
	again, err := snaptest.Open(ctx, e.Path)
	testenv.Must(t, err)
	*e = *again
	for _, want := range []string{"build or load it again", "lost=5", `snapshots="built-build-0, built-build-1, built-build-2, and 2 more"`} {
		if n := strings.Count(text.String(), "layers of snapshots are lost"); n != 1 || !strings.Contains(text.String(), want) {
			t.Errorf("log has %d lines about lost layers, want one with %q:\n%s", n, want, text)
		}
	}
	_, err = e.Prepare(t.Context(), "container", "built-build-0")
	var lost *snapshotter.LostLayerError
	if !errors.As(err, &lost) || !strings.Contains(err.Error(), "build or load it again") {
		t.Errorf("got %v, want a LostLayerError that advises to build the image again", err)
	}
}

func TestLostDirectory(t *testing.T) {
	e := snaptest.New(t)
	prepare(t, e, "container", "")
	if err := os.RemoveAll(filepath.Join(e.Path, "snapshots", "1")); err != nil {
		t.Fatal(err)
	}
	e.Reopen(t)
	if _, err := e.Mounts(t.Context(), "container"); !errdefs.IsDataLoss(err) {
		t.Errorf("mounts: got %v, want a data loss", err)
	}
	if err := e.Commit(t.Context(), "x", "container"); !errdefs.IsDataLoss(err) {
		t.Errorf("commit: got %v, want a data loss", err)
	}
	if err := e.Remove(t.Context(), "container"); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// TestDamagedLayerFile checks that an empty file, as after a power failure, neither becomes an empty layer nor keeps
// the store from being pruned.
func TestDamagedLayerFile(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	apply(t, e, prepare(t, e, "n/1/extract-1 x", ""), img.tars[0])
	if err := os.Truncate(filepath.Join(e.Path, "snapshots/1/layer"), 0); err != nil {
		t.Fatal(err)
	}
	e.Reopen(t)
	if err := e.Commit(t.Context(), "x", "n/1/extract-1 x"); !errdefs.IsDataLoss(err) {
		t.Errorf("commit: got %v, want a data loss", err)
	}
	if _, err := e.Mounts(t.Context(), "n/1/extract-1 x"); !errdefs.IsDataLoss(err) {
		t.Errorf("mounts: got %v, want a data loss", err)
	}
	if err := errors.Join(e.Cleanup(t.Context()), e.Remove(t.Context(), "n/1/extract-1 x")); err != nil {
		t.Error(err)
	}
}

// TestWriteInWalk checks that a writer and a reader inside Walk do not wait for each other.
func TestWriteInWalk(t *testing.T) {
	e := snaptest.New(t)
	for i := range 20 {
		prepare(t, e, fmt.Sprint(i), "")
	}
	n := 0
	err := e.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		n++
		return e.Remove(ctx, info.Name)
	})
	if err != nil || n != 20 {
		t.Errorf("removed %d snapshots, %v, want 20", n, err)
	}
}

func TestOrphansAreSwept(t *testing.T) {
	e := snaptest.New(t)
	prepare(t, e, "container", "")
	for _, dir := range []string{"snapshots/99/fs/a", "snapshots/new-x", "tmp/snapshot-new-x/fs", "tmp/snapshot-old-7/fs/b"} {
		if err := os.MkdirAll(filepath.Join(e.Path, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	e.Reopen(t)
	if err := e.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][]string{"snapshots": {"1"}, "tmp": nil} {
		ents, err := os.ReadDir(filepath.Join(e.Path, dir))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, ent := range ents {
			got = append(got, ent.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", dir, got, want)
		}
	}
}

// TestFailedPrepareLeavesNothing checks that a snapshot whose directory cannot be created leaves nothing, with one
// plain error.
func TestFailedPrepareLeavesNothing(t *testing.T) {
	testenv.NeedsRoot(t)
	e, err := openHooked(t, t.TempDir(), func(_ atfs.Op, name string) error {
		if strings.HasPrefix(name, "tmp/snapshot-new-") && strings.HasSuffix(name, "/work") {
			return unix.ENOSPC
		}
		return nil
	})
	testenv.Must(t, err)
	defer e.Close()
	_, err = e.Prepare(t.Context(), "a", "")
	if !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want ENOSPC alone", err)
	}
	if names, err := os.ReadDir(filepath.Join(e.Path, "tmp")); err != nil || len(names) != 0 {
		t.Errorf("tmp: got %v, %v, want nothing", names, err)
	}
}

// TestCleanupFinishesFailedPrepare checks that Cleanup removes what a failed Prepare could not, for the same reason.
func TestCleanupFinishesFailedPrepare(t *testing.T) {
	testenv.NeedsRoot(t)
	failing := false
	e, err := openHooked(t, t.TempDir(), func(op atfs.Op, name string) error {
		if failing && (op == atfs.OpUnlink || op == atfs.OpMkdir && strings.HasSuffix(name, "/work")) {
			return unix.EMFILE
		}
		return nil
	})
	testenv.Must(t, err)
	defer e.Close()
	wantLeft := func(want int) {
		t.Helper()
		if names, err := os.ReadDir(filepath.Join(e.Path, "tmp")); err != nil || len(names) != want {
			t.Errorf("tmp: got %v, %v, want %d names", names, err, want)
		}
	}
	failing = true
	if _, err := e.Prepare(t.Context(), "a", ""); !errors.Is(err, unix.EMFILE) {
		t.Errorf("got %v, want EMFILE", err)
	}
	wantLeft(1)
	failing = false
	testenv.Must(t, e.Cleanup(t.Context()))
	wantLeft(0)
}

func TestCleanupPrunesWhatNobodyNeeds(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	top := img.unpackAll(t, e)
	lower := "default/1/" + img.chain[0].String()
	layers := func() int {
		t.Helper()
		if err := e.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		ls, err := e.Store.Layers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(ls)
	}
	if got := layers(); got != 2 {
		t.Errorf("%d layers, want 2", got)
	}
	if err := e.Remove(t.Context(), top); err != nil {
		t.Fatal(err)
	}
	if got := layers(); got != 1 {
		t.Errorf("%d layers after the upper snapshot was removed, want 1", got)
	}
	wantFiles(t, view(t, e, lower), lowerFiles)
	if err := e.Remove(t.Context(), lower); err != nil {
		t.Fatal(err)
	}
	if got := layers(); got != 0 {
		t.Errorf("%d layers after all snapshots were removed, want 0", got)
	}
	for _, dir := range []string{"layers", "tmp", "snapshots"} {
		if ents, err := os.ReadDir(filepath.Join(e.Path, dir)); err != nil || len(ents) != 0 {
			t.Errorf("%s has %v, %v, want nothing", dir, ents, err)
		}
	}
	objects, err := filepath.Glob(filepath.Join(e.Path, "repo/objects/*/*"))
	if err != nil || len(objects) != 0 {
		t.Errorf("objects %q remain, %v", objects, err)
	}
}

// TestCommitAndRemoveAtOnce checks that a snapshot removed as soon as it is committed is neither found nor needed
// afterwards.
func TestCommitAndRemoveAtOnce(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	ref := img.chain[0].String()
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref})
	for i := range 40 {
		key, name := fmt.Sprintf("default/%d/extract-1 %s", i, ref), "default/1/"+ref
		mounts, err := e.Prepare(t.Context(), key, "", labels)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		apply(t, e, mounts, img.tars[0])
		committed := make(chan error, 1)
		go func() { committed <- e.Commit(t.Context(), name, key, labels) }()
		for {
			err := e.Remove(t.Context(), name)
			if err == nil {
				break
			}
			if !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
		}
		if err := <-committed; err != nil {
			t.Fatal(err)
		}
	}
	if live, err := e.Live(t.Context()); err != nil || len(live) != 0 {
		t.Errorf("layers %v (%v) are needed, want none", live, err)
	}
}

// TestCleanupBesideAWriter checks that Cleanup does not wait for a snapshot being created, and leaves its directory
// alone.
func TestCleanupBesideAWriter(t *testing.T) {
	e := snaptest.New(t)
	prepare(t, e, "running", "")
	calls, inside, gate := 0, make(chan struct{}), make(chan struct{})
	slow := snapshots.Opt(func(info *snapshots.Info) error {
		if calls++; calls == 2 { // the second call is inside the transaction
			close(inside)
			<-gate
		}
		return snapshots.WithLabels(nil)(info)
	})
	done := make(chan error, 1)
	go func() {
		_, err := e.Prepare(t.Context(), "slow", "", slow)
		done <- err
	}()
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cleaned := make(chan error, 1)
	go func() { cleaned <- e.Cleanup(ctx) }()
	select {
	case err := <-cleaned:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("Cleanup waits for a Prepare")
	}
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := e.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"running", "slow"} {
		if _, err := e.Mounts(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

// TestCleanupBesideAPull checks that during a pull Cleanup neither fails nor removes anything.
func TestCleanupBesideAPull(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	name := unpack(t, e, img.chain[:1], img.tars[0])
	held, err := e.Store.Import(t.Context(), bytes.NewReader(img.tars[1]), layer.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Remove(t.Context(), name), e.Cleanup(t.Context())); err != nil {
		t.Errorf("cleanup beside a pull: %v", err)
	}
	m := prepare(t, e, "default/3/extract-1 x", "")
	id, _, err := e.Locate(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.AddLayer(t.Context(), id, held, true), held.Release(), e.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	ls, err := e.Store.Layers(t.Context())
	if err != nil || len(ls) != 1 || ls[0].DiffID != img.chain[1] {
		t.Errorf("layers are %v, %v, want only the one that was being pulled", ls, err)
	}
}

// TestUsage checks that the usages add up to the space of the store and the upper directories, whatever they share.
func TestUsage(t *testing.T) {
	e := snaptest.New(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	first := snaptest.Tar(t, snaptest.File("big", big), snaptest.File("a", "a"))
	second := snaptest.Tar(t, snaptest.File("copy", big), snaptest.File("b", "b"))
	usage := func(key string) snapshots.Usage {
		t.Helper()
		u, err := e.Usage(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	m := prepare(t, e, "n/1/extract-1 x", "")
	apply(t, e, m, first)
	if u := usage("n/1/extract-1 x"); u.Size < int64(len(big)) {
		t.Errorf("usage of active snapshot with a layer is %v, want the layer in it", u)
	}
	e.Reopen(t)
	commit(t, e, "first", "n/1/extract-1 x")
	if u := usage("first"); u.Size < int64(len(big)) || u.Size > int64(len(big))+128<<10 {
		t.Errorf("usage of first layer is %d bytes, want a little more than %d", u.Size, len(big))
	}
	m = prepare(t, e, "n/2/extract-1 x", "first")
	apply(t, e, m, second)
	commit(t, e, "second", "n/2/extract-1 x")
	if u := usage("second"); u.Size <= 0 || u.Size > 128<<10 {
		t.Errorf("usage of a layer whose big file is known is %d bytes, want a little", u.Size)
	}
	m = prepare(t, e, "n/3/extract-1 x", "second")
	apply(t, e, m, second)
	commit(t, e, "third", "n/3/extract-1 x")
	if u := usage("third"); u != (snapshots.Usage{}) {
		t.Errorf("usage of a known layer is %v, want nothing", u)
	}
	m = prepare(t, e, "container", "third")
	target, unmount := snaptest.Mount(t, m)
	if err := os.WriteFile(filepath.Join(target, "new"), []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	if u := usage("container"); u.Size < int64(len(big)) {
		t.Errorf("usage of a container is %v, want what it wrote", u)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Usage(ctx, "container"); !errors.Is(err, context.Canceled) {
		t.Errorf("usage with a context that is done: got %v", err)
	}
}

func TestLocate(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	top := img.unpackAll(t, e)
	active := prepare(t, e, "container", top)
	alone := prepare(t, e, "alone", "")
	emptyView, err := e.View(t.Context(), "empty", "")
	if err != nil {
		t.Fatal(err)
	}
	fullView, err := e.View(t.Context(), "full", "default/1/"+img.chain[0].String())
	if err != nil {
		t.Fatal(err)
	}
	layerID, err := objectstore.ParseChecksum(labelsOf(t, e, "default/1/"+img.chain[0].String())[snapshotter.LabelLayer])
	if err != nil {
		t.Fatal(err)
	}
	bind := func(source string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: source, Options: []string{"rw", "rbind"}}}
	}
	for _, c := range []struct {
		name   string
		mounts []mount.Mount
		ours   bool
		staged objectstore.Checksum
	}{
		{name: "overlay", mounts: active, ours: true},
		{name: "bind", mounts: alone, ours: true},
		{name: "view of a layer", mounts: fullView, ours: !snaptest.Composefs(), staged: layerID},
		{name: "view of nothing", mounts: emptyView},
		{name: "none"},
		{name: "several", mounts: append(slices.Clone(alone), alone...)},
		{name: "another snapshotter's", mounts: bind("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs")},
		{name: "root", mounts: bind(e.Path)},
		{name: "repository", mounts: bind(e.Path + "/repo/fs")},
		{name: "no such snapshot", mounts: bind(e.Path + "/snapshots/77/fs")},
		{name: "work directory", mounts: bind(e.Path + "/snapshots/1/work")},
		{name: "not clean", mounts: bind(e.Path + "/snapshots/../snapshots/1/fs")},
		{name: "not a number", mounts: bind(e.Path + "/snapshots/../fs")},
		{name: "writable checkout", mounts: bind(fullView[0].Source)},
		{name: "another type", mounts: []mount.Mount{{Type: "erofs", Source: alone[0].Source}}},
		{name: "outside", mounts: bind(e.Path + "-other/snapshots/1/fs")},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, staged, err := e.Locate(t.Context(), c.mounts)
			if !c.ours {
				if !errdefs.IsNotImplemented(err) {
					t.Errorf("got %q, %s, %v, want not implemented", id, staged, err)
				}
				return
			}
			if err != nil || staged != c.staged || (id == "") != !staged.IsZero() {
				t.Errorf("got %q, %s, %v, want layer %s", id, staged, err, c.staged)
			}
		})
	}
}

func TestAddLayerOverAnother(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	m := prepare(t, e, "n/1/extract-1 x", "")
	for _, tar := range img.tars {
		apply(t, e, m, tar)
	}
	again, err := e.Mounts(t.Context(), "n/1/extract-1 x")
	if err != nil {
		t.Fatal(err)
	}
	target, unmount := snaptest.Mount(t, again)
	wantFiles(t, files(t, target), imageFiles)
	if err := os.WriteFile(filepath.Join(target, "own"), []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(target, "same")); err != nil {
		t.Fatal(err)
	}
	unmount()
	commit(t, e, "x", "n/1/extract-1 x")
	want := map[string]string{"etc/conf": "changed", "dir/new": "3", "own": "own"}
	wantFiles(t, view(t, e, "x"), want)
	if _, ok := labelsOf(t, e, "x")[snapshotter.LabelChainID]; ok {
		t.Error("what was written by hand has a chain ID")
	}
}

func TestAddLayerToWrittenSnapshot(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	held, err := e.Store.Import(t.Context(), bytes.NewReader(img.tars[0]), layer.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := held.Release(); err != nil {
			t.Error(err)
		}
	}()
	m := prepare(t, e, "a", "")
	id, _, err := e.Locate(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m[0].Source, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.AddLayer(t.Context(), id, held, false); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v, want not implemented, so that another differ does it", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := e.AddLayer(t.Context(), id, held, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.AddLayer(t.Context(), id, held, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want a failed precondition", err)
	}
}

// TestAddLayerToLabelledSnapshot unpacks a layer where the kernel labels new directories: a label is nothing that was written.
func TestAddLayerToLabelledSnapshot(t *testing.T) {
	e := snaptest.New(t)
	m := prepare(t, e, "a", "")
	label := func() {
		t.Helper()
		if err := unix.Setxattr(m[0].Source, "security.selinux", []byte("system_u:object_r:var_lib_t:s0\x00"), 0); err != nil {
			t.Fatal(err)
		}
	}
	label()
	apply(t, e, m, newImage(t).tars[0])
	label()
	commit(t, e, "x", "a")
	if _, ok := labelsOf(t, e, "x")[snapshotter.LabelChainID]; !ok {
		t.Error("the snapshot has no chain ID: its label counts as written by hand")
	}
}

// TestConcurrentCommits checks that of two concurrent commits of a snapshot one succeeds.
func TestConcurrentCommits(t *testing.T) {
	e := snaptest.New(t)
	m := prepare(t, e, "key", "")
	if err := os.WriteFile(filepath.Join(m[0].Source, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = e.Commit(t.Context(), fmt.Sprintf("name-%d", i), "key") })
	}
	wg.Wait()
	committed := 0
	for _, err := range errs {
		switch {
		case err == nil:
			committed++
		case !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err):
			t.Errorf("got %v, want not found", err)
		}
	}
	if committed != 1 {
		t.Errorf("%d commits succeeded, want 1", committed)
	}
}

// TestLayerTwice mounts an image with a layer twice. Layers in between must be visible, and files that the layer hides
// must not.
func TestLayerTwice(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	between := snaptest.Tar(t, snaptest.Dir("dir"), snaptest.File("dir/hidden", "h"), snaptest.File("gone", "back"), snaptest.File("seen", "s"))
	tars := [][]byte{img.tars[0], img.tars[1], between, img.tars[1]}
	parent := ""
	for i, tar := range tars {
		key := fmt.Sprintf("n/%d/extract-1 x", i)
		apply(t, e, prepare(t, e, key, parent), tar)
		parent = fmt.Sprintf("n/1/%d", i)
		commit(t, e, parent, key)
	}
	want := maps.Clone(imageFiles)
	want["seen"] = "s"
	wantFiles(t, view(t, e, parent), want)
	target, unmount := snaptest.Mount(t, prepare(t, e, "container", parent))
	defer unmount()
	wantFiles(t, files(t, target), want)
}
