package sysroot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// treeOf returns a tree of files with the given content, by name.
func treeOf(files map[string]string) *objecttest.Node {
	root := &objecttest.Node{Mode: unix.S_IFDIR | 0o755, Entries: make(map[string]*objecttest.Node)}
	for name, content := range files {
		root.Entries[name] = &objecttest.Node{Mode: unix.S_IFREG | 0o644, Content: []byte(content)}
	}
	return root
}

// kib returns n KiB of content that depends on the seed.
func kib(seed string, n int) string {
	return strings.Repeat(fmt.Sprintf("%-63s\n", seed), n<<10/64)
}

// The unique size of a deployment is what a prune frees when the deployment is gone.
func TestFootprints(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	a := objecttest.Commit(t, repo, "ostree/0/1/0", treeOf(map[string]string{
		"kernel": kib("kernel", 100), "common": kib("common", 200), "twice": kib("a", 40), "again": kib("a", 40), "layer": kib("layer", 60),
		"held": kib("held", 80),
	}))
	b := objecttest.Commit(t, repo, "ostree/0/1/1", treeOf(map[string]string{"common": kib("common", 200), "b": kib("b", 16)}))
	objecttest.Commit(t, repo, "oci/diff/0", treeOf(map[string]string{"layer": kib("layer", 60)}))
	gone := objectstore.Checksum{1}
	dir := t.TempDir()
	sys := objecttest.OpenDir(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "boot/ostree/os-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []objectstore.Checksum{a, b} {
		if err := repo.Checkout(t.Context(), d, sys, d.String(), objectstore.CheckoutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []struct{ from, to string }{
		{a.String() + "/kernel", "boot/ostree/os-0/vmlinuz-1"},
		{a.String() + "/held", "elsewhere"}, // as by the store of a snapshotter
	} {
		if err := os.Link(filepath.Join(dir, link.from), filepath.Join(dir, link.to)); err != nil {
			t.Fatal(err)
		}
	}
	list := []*Deployment{{Commit: a}, {Commit: b}, {Commit: gone}}
	boot := objecttest.OpenDir(t, filepath.Join(dir, "boot"))
	got, err := footprints(t.Context(), repo, boot, list)
	if err != nil {
		t.Fatal(err)
	}
	if got[2] != nil {
		t.Errorf("a commit that is not here takes %+v", got[2])
	}
	// kernel and a; of b its file. Dirtrees and commits take at most a block each.
	meta := func(total, files int64) bool { return total >= files<<10 && total <= files<<10+8*4096 }
	if !meta(got[0].Unique, 100+40) || !meta(got[0].Shared, 200+60+80) {
		t.Errorf("a takes %+v", *got[0])
	}
	if !meta(got[1].Unique, 16) || !meta(got[1].Shared, 200) {
		t.Errorf("b takes %+v", *got[1])
	}

	before := allocated(t, repo)
	if err := repo.DeleteRefs(t.Context(), "ostree/0/1/1"); err != nil {
		t.Fatal(err)
	}
	plan, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{})
	if err == nil {
		_, err = plan.Execute(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if freed := before - allocated(t, repo); freed != got[1].Unique {
		t.Errorf("without b the repository takes %d bytes less, and not %d", freed, got[1].Unique)
	}
	if both, err := footprints(t.Context(), repo, boot, []*Deployment{{Commit: a}, {Commit: a, Serial: 1}}); err != nil || both[0].Unique != 0 {
		t.Errorf("one of two deployments of one commit takes %+v alone, %v", both[0], err)
	}
}

// TestFootprintsInside measures a deployment of an image with a commit inside, whose ref goes with the deployment. Files
// of that commit that the image replaces are no files of the deployment, but go too.
func TestFootprintsInside(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	inside := objecttest.Commit(t, repo, "ostree/container/blob/x", treeOf(map[string]string{"kept": kib("kept", 100), "old": kib("old", 40)}))
	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	tree, meta, err := objecttest.Store(txn, treeOf(map[string]string{"kept": kib("kept", 100), "new": kib("new", 16)}))
	testenv.Must(t, err)
	data, err := (&objectstore.Commit{Tree: tree, Meta: meta, Parent: &inside}).Marshal()
	testenv.Must(t, err)
	image, err := txn.StoreMetadata(objectstore.TypeCommit, data)
	testenv.Must(t, err)
	txn.SetRef("ostree/0/1/0", image.Checksum)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	boot := objecttest.OpenDir(t, t.TempDir())
	list := []*Deployment{{Commit: image.Checksum}}
	got, err := footprints(t.Context(), repo, boot, list)
	testenv.Must(t, err)
	if all := allocated(t, repo); got[0].Unique != all || got[0].Shared != 0 {
		t.Errorf("got %+v, want %d bytes unique", *got[0], all)
	}
	txn, err = repo.Begin(t.Context())
	testenv.Must(t, err)
	txn.SetRef("branch", inside)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	got, err = footprints(t.Context(), repo, boot, list)
	testenv.Must(t, err)
	if got[0].Unique >= 30<<10 || got[0].Shared < 140<<10 {
		t.Errorf("with another ref: got %+v, want 16 KiB of files unique", *got[0])
	}
}

// allocated returns the size on the disk of a repository's objects.
func allocated(t *testing.T, repo *objectstore.Repo) (sum int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo.ObjectsDir().Path(), "*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			t.Fatal(err)
		}
		sum += atfs.Allocated(&st)
	}
	return sum
}
