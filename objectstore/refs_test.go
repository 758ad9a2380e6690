package objectstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestRefsAgain lists refs repeatedly while they change in every way: remembered content must never be returned after
// the file has changed.
func TestRefsAgain(t *testing.T) {
	repo := objecttest.NewRepo(t)
	sums := []objectstore.Checksum{
		objecttest.Commit(t, repo, "dir/a", oneFile("a")),
		objecttest.Commit(t, repo, "dir/b", oneFile("b")),
	}
	heads := filepath.Join(repo.Dir().Path(), "refs/heads")
	want := map[string]objectstore.Checksum{"dir/a": sums[0], "dir/b": sums[1]}
	check := func(what string) {
		t.Helper()
		for range 2 {
			got, err := repo.Refs("")
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: refs are %v, %v, want %v", what, got, err, want)
			}
		}
	}
	check("at first")
	time.Sleep(500 * time.Millisecond) // long enough for times to differ
	check("after a while")

	txn := begin(t, repo)
	txn.SetRef("dir/a", sums[1])
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	want["dir/a"] = sums[1]
	check("moved")

	st, err := os.Stat(filepath.Join(heads, "dir/b"))
	if err != nil {
		t.Fatal(err)
	}
	// In place, with its old time.
	err = errors.Join(os.WriteFile(filepath.Join(heads, "dir/b"), []byte(sums[0].String()+"\n"), 0o644),
		os.Chtimes(filepath.Join(heads, "dir/b"), st.ModTime(), st.ModTime()))
	if err != nil {
		t.Fatal(err)
	}
	want["dir/b"] = sums[0]
	check("overwritten")

	if err := os.Rename(filepath.Join(heads, "dir/b"), filepath.Join(heads, "dir/a")); err != nil {
		t.Fatal(err)
	}
	want = map[string]objectstore.Checksum{"dir/a": sums[0]}
	check("renamed")
	if err := os.Rename(filepath.Join(heads, "dir"), filepath.Join(heads, "other")); err != nil {
		t.Fatal(err)
	}
	want = map[string]objectstore.Checksum{"other/a": sums[0]}
	check("directory renamed")
}
