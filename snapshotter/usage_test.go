package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// sumUsage adds up the usages of all snapshots.
func sumUsage(tb testing.TB, e *snaptest.Env) (sum snapshots.Usage) {
	tb.Helper()
	err := e.Walk(tb.Context(), func(ctx context.Context, info snapshots.Info) error {
		u, err := e.Usage(ctx, info.Name)
		sum.Add(u)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return sum
}

// storeUsage measures the objects and the checkouts of a store.
func storeUsage(tb testing.TB, e *snaptest.Env) (sum snapshots.Usage) {
	tb.Helper()
	seen := make(map[uint64]bool)
	for _, top := range []string{"repo/objects", layer.LayersDir} {
		root := filepath.Join(e.Path, top)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == root || d.IsDir() && top != layer.LayersDir {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil || seen[st.Ino] {
				return err
			}
			seen[st.Ino] = true
			sum.Add(snapshots.Usage{Size: atfs.Allocated(&st), Inodes: 1})
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	return sum
}

// neededUsage measures the layers of all snapshots, while there is garbage beside them.
func neededUsage(tb testing.TB, e *snaptest.Env) (sum snapshots.Usage) {
	tb.Helper()
	live, err := e.Live(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	shares, err := e.Store.Share(tb.Context(), slices.Collect(maps.Keys(live)))
	if err != nil {
		tb.Fatal(err)
	}
	for _, u := range shares {
		sum.Add(snapshots.Usage{Size: u.Bytes, Inodes: u.Inodes})
	}
	return sum
}

// TestUsageAfterRemoval removes the first of two images that share a file. The other one takes over the file's space.
func TestUsageAfterRemoval(t *testing.T) {
	e := snaptest.New(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	for i, name := range []string{"first", "second"} {
		key := fmt.Sprintf("n/%d/extract-1 x", i)
		apply(t, e, prepare(t, e, key, ""), snaptest.Tar(t, snaptest.File("big", big), snaptest.File(name, name)))
		commit(t, e, name, key)
	}
	before := sumUsage(t, e)
	testenv.Must(t, errors.Join(e.Remove(t.Context(), "first"), e.Cleanup(t.Context())))
	u, err := e.Usage(t.Context(), "second")
	if err != nil || u.Size < int64(len(big)) || u.Size >= before.Size {
		t.Errorf("usage of the second image is %d bytes, %v, want at least the %d of the file it has", u.Size, err, len(big))
	}
	if want := storeUsage(t, e); u != want {
		t.Errorf("usage is %+v, and the store takes %+v", u, want)
	}
}

// TestUsageOfGarbage unpacks a layer that a removed snapshot has left in the store: it added nothing, and has all of it.
func TestUsageOfGarbage(t *testing.T) {
	e := snaptest.New(t)
	apply(t, e, prepare(t, e, "n/9/extract-1 x", ""), snaptest.Tar(t, snaptest.File("other", "other")))
	commit(t, e, "other", "n/9/extract-1 x")
	tar := snaptest.Tar(t, snaptest.File("big", snaptest.KiB("big", 512)))
	var other snapshots.Usage
	for i := range 3 {
		key := fmt.Sprintf("n/%d/extract-1 x", i)
		apply(t, e, prepare(t, e, key, ""), tar)
		commit(t, e, "image", key)
		if got, want := sumUsage(t, e), storeUsage(t, e); got != want {
			t.Errorf("unpacked %d times: usage is %+v, and the store takes %+v", i+1, got, want)
		}
		testenv.Must(t, e.Remove(t.Context(), "image"))
		left := sumUsage(t, e)
		if i > 0 && left != other || left.Size > 256<<10 {
			t.Errorf("removed %d times: usage of the other snapshot is %+v, before %+v", i+1, left, other)
		}
		other = left
	}
}

// TestUsageOfRebuiltCheckout loses the checkout of a layer, if it has one, while the daemon runs. The next container has
// it rebuilt.
func TestUsageOfRebuiltCheckout(t *testing.T) {
	e := snaptest.New(t)
	apply(t, e, prepare(t, e, "n/1/extract-1 x", ""), snaptest.Tar(t, snaptest.File("a", "a"), snaptest.File("b", "b")))
	commit(t, e, "image", "n/1/extract-1 x")
	testenv.Must(t, e.Cleanup(t.Context()))
	checkouts, err := filepath.Glob(filepath.Join(e.Path, layer.LayersDir, "*"))
	testenv.Must(t, err)
	for _, name := range checkouts {
		testenv.Must(t, os.RemoveAll(name))
	}
	for _, when := range []string{"lost", "rebuilt"} {
		if got, want := sumUsage(t, e), storeUsage(t, e); got != want {
			t.Errorf("checkout is %s: usage is %+v, and the store takes %+v", when, got, want)
		}
		prepare(t, e, "container", "image")
		testenv.Must(t, e.Remove(t.Context(), "container"))
	}
}

// TestUsageAfterFailure unpacks a layer whose first unpacking has failed and left objects. A cleanup finds them in use,
// before the snapshot is committed.
func TestUsageAfterFailure(t *testing.T) {
	e := snaptest.New(t)
	apply(t, e, prepare(t, e, "n/1/extract-1 x", ""), snaptest.Tar(t, snaptest.File("other", "other")))
	commit(t, e, "other", "n/1/extract-1 x")
	testenv.Must(t, e.Cleanup(t.Context()))
	sumUsage(t, e)
	tar := snaptest.Tar(t, snaptest.File("first", snaptest.KiB("first", 512)), snaptest.File("second", snaptest.KiB("second", 512)))
	if _, err := e.Store.Import(t.Context(), bytes.NewReader(tar[:len(tar)*3/4]), layer.ImportOptions{}); err == nil {
		t.Fatal("a part of a layer was imported")
	}
	e.MarkGarbage()
	apply(t, e, prepare(t, e, "n/2/extract-1 x", ""), tar)
	testenv.Must(t, e.Cleanup(t.Context()))
	commit(t, e, "image", "n/2/extract-1 x")
	if got, want := sumUsage(t, e), storeUsage(t, e); got != want {
		t.Errorf("usage is %+v, and the store takes %+v", got, want)
	}
}

// TestUsageAddsUp pulls, commits and removes images that share layers and files, in random order, with pulls that fail
// between them. After each step the usages add up to what the store has.
func TestUsageAddsUp(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testUsageAddsUp(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func testUsageAddsUp(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	e := snaptest.New(t)
	var tars [][]byte
	var diffIDs []digest.Digest
	for i := range 6 {
		var files []snaptest.TarFile
		for j := range 8 {
			if rnd.IntN(3) > 0 {
				files = append(files, snaptest.TarFile{
					Name: fmt.Sprintf("dir/%d", j), Content: snaptest.KiB(fmt.Sprint("file", j), 1+5*j), Mtime: int64(1 + i%2),
				})
			}
		}
		files = append(files, snaptest.TarFile{Name: fmt.Sprintf("own/%d", i), Content: snaptest.KiB(fmt.Sprint("own", i), 7)})
		tar, err := snaptest.MakeTar(files)
		testenv.Must(t, err)
		tars = append(tars, tar)
		diffIDs = append(diffIDs, digest.FromBytes(tar))
	}
	serial := 0
	key := func() string { serial++; return fmt.Sprintf("n/%d/extract-1 x", serial) }
	names := make(map[string]string) // parent by name
	add := func(name, parent string, fill func(mounts []mount.Mount)) {
		if _, ok := names[name]; ok {
			return
		}
		k := key()
		fill(prepare(t, e, k, parent))
		commit(t, e, name, k)
		names[name] = parent
	}
	pull := func() {
		ns, parent := fmt.Sprintf("ns%d", rnd.IntN(2)), ""
		image := rnd.Perm(len(tars))[:1+rnd.IntN(3)]
		var chain []digest.Digest
		for _, i := range image {
			chain = append(chain, diffIDs[i])
			name := ns + "/1/" + identity.ChainID(slices.Clone(chain)).String()
			add(name, parent, func(mounts []mount.Mount) { apply(t, e, mounts, tars[i]) })
			parent = name
		}
	}
	fail := func() { // a pull that breaks off leaves objects
		tar := tars[rnd.IntN(len(tars))]
		_, err := e.Store.Import(t.Context(), bytes.NewReader(tar[:len(tar)*2/3]), layer.ImportOptions{})
		if err == nil {
			t.Fatal("half a layer was imported")
		}
		e.MarkGarbage()
	}
	write := func() { // an image is built on another
		parent := ""
		for name := range names {
			parent = max(parent, name)
		}
		add(fmt.Sprintf("built/%d", serial), parent, func(mounts []mount.Mount) {
			id, _, err := e.Locate(t.Context(), mounts)
			testenv.Must(t, err)
			testenv.Must(t, os.WriteFile(filepath.Join(e.Path, "snapshots", id, "fs/7"), []byte(snaptest.KiB("file7", 36)), 0o644))
		})
	}
	remove := func() {
		var leaves []string
		for name := range names {
			leaf := true
			for _, parent := range names {
				leaf = leaf && parent != name
			}
			if leaf {
				leaves = append(leaves, name)
			}
		}
		if len(leaves) == 0 {
			return
		}
		slices.Sort(leaves)
		name := leaves[rnd.IntN(len(leaves))]
		testenv.Must(t, e.Remove(t.Context(), name))
		delete(names, name)
	}
	for step := range 60 {
		what := "pull"
		switch rnd.IntN(10) {
		case 0, 1, 2:
			pull()
		case 3:
			what = "broken pull"
			fail()
		case 4:
			what = "build"
			write()
		case 5:
			what = "restart"
			e.Reopen(t)
		default:
			what = "removal"
			remove()
		}
		if got, want := sumUsage(t, e), neededUsage(t, e); got != want {
			t.Fatalf("step %d, %s: the usages of %d snapshots add up to %+v, and they need %+v", step, what, len(names), got, want)
		}
		if rnd.IntN(3) > 0 {
			continue
		}
		testenv.Must(t, e.Cleanup(t.Context()))
		if got, want := sumUsage(t, e), storeUsage(t, e); got != want {
			t.Fatalf("step %d, %s: the usages of %d snapshots add up to %+v, and the store takes %+v", step, what, len(names), got, want)
		}
	}
}
