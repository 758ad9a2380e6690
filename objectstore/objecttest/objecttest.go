// Package objecttest supports tests of and on ostree repositories: with repositories that check themselves, trees
// written as literals, and the real ostree as judge.
package objecttest

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// NewRepo makes a repository of mode bare in a temporary directory. When the test ends it is verified by [Fsck] and
// closed.
func NewRepo(tb testing.TB) *objectstore.Repo {
	tb.Helper()
	return NewRepoAt(tb, OpenDir(tb, tb.TempDir()))
}

// NewRepoAt is NewRepo in an empty directory, which the caller keeps. A hook of the directory sees the repository's
// operations.
func NewRepoAt(tb testing.TB, dir *atfs.Dir) *objectstore.Repo {
	tb.Helper()
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !tb.Failed() {
			Fsck(tb, repo)
		}
		if err := repo.Close(); err != nil {
			tb.Errorf("close repository: %v", err)
		}
	})
	return repo
}

// OpenDir opens a directory until the test ends.
func OpenDir(tb testing.TB, path string) *atfs.Dir {
	tb.Helper()
	d, err := atfs.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("close directory: %v", err)
		}
	})
	return d
}

// Fsck fails the test if our fsck finds a problem in the repository, or the real ostree's does, where it is installed.
func Fsck(tb testing.TB, repo *objectstore.Repo) {
	tb.Helper()
	ctx := context.WithoutCancel(tb.Context()) // the test's own is cancelled at cleanup
	report, err := repo.Fsck(ctx, objectstore.FsckOptions{})
	if err != nil {
		tb.Errorf("fsck of %s: %v", repo.Dir().Path(), err)
		return
	}
	for _, p := range report.Problems {
		tb.Errorf("fsck of %s: %s", repo.Dir().Path(), p)
	}
	if HasOstree() {
		Ostree(tb, repo, "fsck", "--quiet")
	}
}

// HasOstree reports whether the real ostree is installed.
func HasOstree() bool {
	_, err := exec.LookPath("ostree")
	return err == nil
}

// NeedsOstree ends the test unless the real ostree is installed.
func NeedsOstree(tb testing.TB) {
	tb.Helper()
	testenv.NeedsTool(tb, "ostree")
}

// Ostree runs the real ostree on a repository, fails the test if it fails, and returns its output.
func Ostree(tb testing.TB, repo *objectstore.Repo, args ...string) string {
	tb.Helper()
	out, err := TryOstree(repo, args...)
	if err != nil {
		tb.Fatalf("ostree %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryOstree runs the real ostree on a repository and returns all its output.
func TryOstree(repo *objectstore.Repo, args ...string) (string, error) {
	out, err := exec.Command("ostree", append(args, "--repo="+repo.Dir().Path())...).CombinedOutput()
	return string(out), err
}
