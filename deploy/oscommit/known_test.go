package oscommit_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const listOfLabelled = "/extensions/ostree-snapshotter/labelled"

// A relabelBed is a store, and a sysroot's repository that has a labelled commit of it.
type relabelBed struct {
	bed
	to     *objectstore.Repo
	clones atomic.Int64 // tried, one for each content that was read
	layers [][]byte
	commit objectstore.Checksum
}

func newRelabelBed(t *testing.T) *relabelBed {
	t.Helper()
	r := &relabelBed{bed: newBed(t), layers: labelledLayers(t)}
	r.to = sysrootRepo(t, t.TempDir()+"/repo", func(op atfs.Op, _ string) error {
		if op == atfs.OpClone {
			r.clones.Add(1)
		}
		return nil
	})
	r.commit = r.storeAgain(t)
	return r
}

// storeAgain stores the labelled tree of the layers and further ones. It counts the files whose content it reads.
func (r *relabelBed) storeAgain(t *testing.T, more ...[]byte) objectstore.Checksum {
	t.Helper()
	r.clones.Store(-1) // one tells how files get into the repository
	sum, err := storeInto(t, r.labelledTree(t, 0, append(r.layers, more...)...), r.to, r.repo)
	testenv.Must(t, err)
	return sum
}

// TestUpdateReadsWhatIsNew reads no content for a second commit of the same tree, and only what is new for an update.
func TestUpdateReadsWhatIsNew(t *testing.T) {
	r := newRelabelBed(t)
	if sum := r.storeAgain(t); sum != r.commit || r.clones.Load() != 0 {
		t.Errorf("the same tree: commit %s, %d files, want %s and none", sum, r.clones.Load(), r.commit)
	}
	before := len(contentObjects(t, r.to))
	r.storeAgain(t, makeTar(t, entry{"usr/share/.wh.of-builder", "", nil}, entry{"usr/share/new", "new", nil}, entry{"usr/bin/new", "new", nil}, entry{"usr/share/moved", strings.Repeat("0123456789abcdef", 64<<10), nil}))
	if added := len(contentObjects(t, r.to)) - before; added != 2 || r.clones.Load() != 2 { // the third has the object of another
		t.Errorf("update: %d files are read for %d objects, want 2", r.clones.Load(), added)
	}
	if sum := r.storeAgain(t); sum != r.commit || r.clones.Load() != 0 {
		t.Errorf("the old tree: commit %s, %d files, want %s and none", sum, r.clones.Load(), r.commit)
	}
	tree := r.labelledTree(t, 0, r.layers...)
	if need, err := tree.Need(r.to, r.repo); err != nil || need.Objects+need.Shared != 0 || need.Metadata != 0 {
		t.Errorf("need: got %+v, %v, want nothing", need, err)
	}
}

// TestKnownForgets removes objects from the list that the repository has no longer.
func TestKnownForgets(t *testing.T) {
	r := newRelabelBed(t)
	for name, st := range contentObjects(t, r.to) {
		if st.Size == int64(len("builder")) {
			testenv.Must(t, os.Remove(filepath.Join(r.to.ObjectsDir().Path(), name)))
		}
	}
	listed := func() int64 {
		st, err := os.Stat(r.to.Dir().Path() + listOfLabelled)
		testenv.Must(t, err)
		return st.Size()
	}
	before := listed()
	r.storeAgain(t, makeTar(t, entry{"usr/share/.wh.of-builder", "", nil}, entry{"usr/share/new", "new", nil}))
	if after := listed(); after != before {
		t.Errorf("the list has %d bytes, want %d: one object more, one less", after, before)
	}
	r.storeAgain(t) // the repository is checked when the test ends
}

// TestKnownDamaged makes the same commit whatever is in the list of labelled objects, and lists them again.
func TestKnownDamaged(t *testing.T) {
	r := newRelabelBed(t)
	path := r.to.Dir().Path() + listOfLabelled
	whole, err := os.ReadFile(path)
	testenv.Must(t, err)
	change := func(at int) []byte {
		data := []byte(string(whole))
		data[at] ^= 1
		return data
	}
	for name, data := range map[string][]byte{
		"empty": nil, "cut": whole[:len(whole)-1], "cut by an entry": whole[:len(whole)-64], "garbage": []byte("garbage"), "no hash": whole[:20],
		"magic": change(0), "hash": change(30), "key": change(60), "object": change(len(whole) - 1), "too large": make([]byte, 100<<20),
	} {
		testenv.Must(t, os.WriteFile(path, data, 0o644))
		if sum := r.storeAgain(t); sum != r.commit || r.clones.Load() == 0 {
			t.Errorf("%s: commit %s, %d files, want %s and all read", name, sum, r.clones.Load(), r.commit)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != string(whole) {
			t.Errorf("%s: it is not written again: %v", name, err)
		}
	}
}

// TestKnownObjectsChanged does not believe the list if the repository has no such object with the file's attributes.
func TestKnownObjectsChanged(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"gone":       os.Remove,
		"other size": func(path string) error { return os.Truncate(path, 1) },
		"other mode": func(path string) error { return os.Chmod(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelabelBed(t)
			for name, st := range contentObjects(t, r.to) {
				if st.Size == 1<<20 {
					testenv.Must(t, change(filepath.Join(r.to.ObjectsDir().Path(), name)))
				}
			}
			if sum := r.storeAgain(t); sum != r.commit || r.clones.Load() != 1 {
				t.Errorf("commit %s, %d files, want %s and one", sum, r.clones.Load(), r.commit)
			}
			objecttest.Fsck(t, r.to)
		})
	}
}

// TestStoreLabelledFaults fails at each operation on the disk: a retry makes the commit, and nothing is damaged.
func TestStoreLabelledFaults(t *testing.T) {
	b := newBed(t)
	layers := makeTar(t, entry{"f", "content", nil}, entry{"link -> f", "", nil})
	tree := func() *oscommit.Tree {
		tree, err := oscommit.NewTree(b.flatten(t, layers))
		testenv.Must(t, err)
		tree.Label(labels{"/": "u:o:root", "/f": "u:o:f", "/link": "u:o:link"}, 0)
		return tree
	}
	store := func(t *testing.T, repo *objectstore.Repo) error {
		t.Helper()
		txn, err := repo.Begin(t.Context())
		if err != nil {
			return err
		}
		defer txn.Abort() //nolint:errcheck // Commit's error matters
		stored, err := tree().Store(t.Context(), txn, b.repo, oscommit.Image{})
		if err != nil {
			return err
		}
		txn.SetRef("os", stored.Commit)
		return txn.Commit(t.Context(), objectstore.CommitOptions{Sync: true})
	}
	want := b.store(t, tree(), oscommit.Image{})
	faulttest.Sweep(t, faulttest.Case[*objectstore.Repo]{
		Min: 30,
		Open: func(t *testing.T, path string, hook atfs.Hook) *objectstore.Repo {
			t.Helper()
			dir, err := objecttest.OpenDir(t, path).WithHook(hook)
			testenv.Must(t, err)
			defer dir.Close()
			repo, err := objectstore.Open(dir)
			if err != nil {
				repo, err = objectstore.Create(dir, objectstore.ModeBare)
			}
			testenv.Must(t, err)
			return repo
		},
		Run: store,
		Check: func(t *testing.T, repo *objectstore.Repo, done bool) {
			t.Helper()
			objecttest.Fsck(t, repo)
			if sum, err := repo.Ref("os"); done && (err != nil || sum != want) {
				t.Errorf("commit %s, %v, want %s", sum, err, want)
			}
			if names, err := os.ReadDir(repo.Dir().Path() + "/tmp"); done && (err != nil || len(names) > 1) {
				t.Errorf("tmp: got %v, %v, want cache alone", names, err)
			}
		},
	})
}
