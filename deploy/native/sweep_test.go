package native_test

import (
	"errors"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// Whichever disk operation fails: the error names it, there is no commit without all of its objects, and a retry works.
func TestFaults(t *testing.T) { faulttest.Sweep(t, storing(t)) }

// Whichever disk operation the process is killed before: likewise.
func TestKills(t *testing.T) { faulttest.KillSweep(t, storing(t)) }

// openAt opens a repository, and makes it if needed.
func openAt(t *testing.T, path string, hook atfs.Hook) *objectstore.Repo {
	t.Helper()
	testenv.Must(t, os.MkdirAll(path, 0o700))
	dir, err := atfs.Open(path)
	testenv.Must(t, err)
	defer dir.Close()
	hooked, err := dir.WithHook(hook)
	testenv.Must(t, err)
	defer hooked.Close()
	repo, err := objectstore.Open(hooked)
	if errors.Is(err, objectstore.ErrNoRepo) {
		repo, err = objectstore.Create(hooked, objectstore.ModeBare)
	}
	testenv.Must(t, err)
	return repo
}

// A storing case rebuilds the commit of an image, with signatures, in a repository beside that of the layers.
func storing(t *testing.T) faulttest.Case[*objectstore.Repo] {
	t.Helper()
	testenv.NeedsRoot(t)
	const store = "-layers"
	return faulttest.Case[*objectstore.Repo]{
		Min: 40,
		Open: func(t *testing.T, path string, hook atfs.Hook) *objectstore.Repo {
			t.Helper()
			return openAt(t, path, hook)
		},
		Run: func(t *testing.T, to *objectstore.Repo) error {
			t.Helper()
			path := to.Dir().Path() + store
			from := openAt(t, path+"/repo", nil)
			defer from.Close()
			base, err := readSmall(t, path, from)
			if err != nil {
				return err
			}
			return storeBase(t, base, to, from)
		},
		Check: func(t *testing.T, to *objectstore.Repo, done bool) {
			t.Helper()
			report, err := to.Fsck(t.Context(), objectstore.FsckOptions{Workers: 1})
			testenv.Must(t, err)
			testenv.Must(t, report.Err())
			if _, err := to.Ref("base"); err != nil && (done || !errors.Is(err, objectstore.ErrNotExist)) {
				t.Error(err)
			}
		},
		Clean: func(t *testing.T, path string) {
			t.Helper()
			testenv.Must(t, os.RemoveAll(path+store))
		},
	}
}

// readSmall reads a commit from layers, which it imports into the store at path if needed.
func readSmall(t *testing.T, path string, repo *objectstore.Repo) (*native.Base, error) {
	t.Helper()
	root := objecttest.OpenDir(t, path)
	layers, err := layer.Open(root, repo, layer.Options{})
	testenv.Must(t, err)
	defer layers.Close()
	commit := objecttest.Commit(t, repo, "small", small())
	made := nativetest.Encapsulate(t, repo, commit, 3, smallChunks)
	made[0] = append(made[0], nativetest.File(nativetest.ObjectPath(commit, objectstore.TypeCommitMeta), signatures, 0o644))
	img := labelImage(t, layers, commit, made...)
	return img.read(t)
}
