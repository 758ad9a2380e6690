package objectstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestWantedBetweenSteps has garbage that is stored again, with a ref, between two steps of a prune: whatever was removed
// by then, it must be whole in the end. If the ref goes again one step later, no commit may stay without its files. fsck
// checks at the end of each test.
func TestWantedBetweenSteps(t *testing.T) {
	contents := []string{"a", "b", "c"}
	for name, again := range map[string]func(t *testing.T, repo *objectstore.Repo, pause, at int){
		"stays": func(t *testing.T, repo *objectstore.Repo, pause, at int) {
			t.Helper()
			if pause == at {
				storeAgain(t, repo)
			}
		},
		"goes": func(t *testing.T, repo *objectstore.Repo, pause, at int) {
			t.Helper()
			switch pause {
			case at:
				storeAgain(t, repo)
			case at + 1:
				testenv.Must(t, repo.DeleteRefs(t.Context(), "again"))
			}
		},
		"comes back": func(t *testing.T, repo *objectstore.Repo, pause, at int) {
			t.Helper()
			switch pause {
			case at, at + 2:
				storeAgain(t, repo)
			case at + 1:
				testenv.Must(t, repo.DeleteRefs(t.Context(), "again"))
			}
		},
	} {
		for at := 1; ; at++ {
			pauses := 0
			t.Run(fmt.Sprintf("%s/%d", name, at), func(t *testing.T) {
				repo := objecttest.NewRepo(t)
				objecttest.Commit(t, repo, "kept", oneFile("kept"))
				var sum objectstore.Checksum
				for _, content := range contents {
					if s := objecttest.Commit(t, repo, "", oneFile(content)); content == "b" {
						sum = s
					}
				}
				p := plan(t, repo)
				stats, err := p.ExecuteInSteps(t.Context(), objectstore.Steps{Objects: 1, Between: func(context.Context, time.Duration) error {
					pauses++
					again(t, repo, pauses, at)
					return nil
				}})
				if err != nil || stats.Objects == 0 {
					t.Errorf("removed %+v, %v", stats, err)
				}
				refs, err := repo.Refs("")
				testenv.Must(t, err)
				if _, wanted := refs["again"]; wanted != (pauses >= at) && name == "stays" {
					t.Errorf("got refs %v after %d pauses", refs, pauses)
				} else if wanted && refs["again"] != sum {
					t.Errorf("the commit is %v, want %v: this tests nothing", refs["again"], sum)
				}
				report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
				if err == nil {
					err = report.Err()
				}
				testenv.Must(t, err)
				testenv.Must(t, repo.DeleteRefs(t.Context(), "again"))
				execute(t, plan(t, repo))
				if n := len(objectNames(t, repo.Dir().Path())); n != 4 {
					t.Errorf("%d objects are left, want the 4 of the commit that has a ref", n)
				}
			})
			if at > pauses {
				if pauses < 3*len(contents)-1 {
					t.Errorf("%d pauses, want one after each object", pauses)
				}
				break
			}
		}
	}
}

// storeAgain stores the commit with the content b, and sets a ref.
func storeAgain(t *testing.T, repo *objectstore.Repo) {
	t.Helper()
	txn := begin(t, repo)
	sum, err := objecttest.StoreCommit(txn, "", oneFile("b"))
	testenv.Must(t, err)
	txn.SetRef("again", sum)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
}

// TestStepsStop ends a prune between two steps: the rest stays, the error says why, and the next prune goes on.
func TestStepsStop(t *testing.T) {
	repo := objecttest.NewRepo(t)
	for _, content := range []string{"a", "b"} {
		objecttest.Commit(t, repo, "", oneFile(content))
	}
	before := len(objectNames(t, repo.Dir().Path()))
	ctx, cancel := context.WithCancel(t.Context())
	stats, err := plan(t, repo).ExecuteInSteps(ctx, objectstore.Steps{Objects: 2, Between: func(ctx context.Context, _ time.Duration) error {
		cancel()
		return context.Cause(ctx)
	}})
	if left := len(objectNames(t, repo.Dir().Path())); !errors.Is(err, context.Canceled) || stats.Objects != 2 || left != before-2 {
		t.Errorf("removed %+v, %v, and %d of %d objects are left, want 2 removed", stats, err, left, before)
	}
	execute(t, plan(t, repo))
	if left := objectNames(t, repo.Dir().Path()); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestStepYields has a transaction begin while a step removes its first object: the step ends there, and the transaction gets
// the lock before the next one.
func TestStepYields(t *testing.T) {
	var repo *objectstore.Repo
	begun := make(chan error, 1)
	removed := 0
	dir, err := objecttest.OpenDir(t, t.TempDir()).WithHook(func(op atfs.Op, name string) error {
		if op != atfs.OpUnlink || !strings.HasPrefix(name, "objects/") {
			return nil
		}
		if removed++; removed == 1 {
			go func() {
				txn, err := repo.Begin(t.Context())
				if err == nil {
					err = txn.Abort()
				}
				begun <- err
			}()
			for repo.Waiting() == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	testenv.Must(t, err)
	defer dir.Close()
	repo = objecttest.NewRepoAt(t, dir)
	objecttest.Commit(t, repo, "", oneFile("a"))
	pauses := 0
	_, err = plan(t, repo).ExecuteInSteps(t.Context(), objectstore.Steps{Objects: 1000, Between: func(context.Context, time.Duration) error {
		if pauses++; removed != 1 {
			t.Errorf("%d objects are removed when the step ends, want 1", removed)
		}
		return <-begun
	}})
	if err != nil || pauses != 1 {
		t.Errorf("got %v, and %d pauses, want 1", err, pauses)
	}
}

// TestStepsForgetRemovedCommits removes many commits in steps: a later step does not look again at what an earlier one
// removed. One that finds any fresh commit unreached reads the commits of all refs, too.
func TestStepsForgetRemovedCommits(t *testing.T) {
	const gone, perStep = 12, 3
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "kept", oneFile("kept"))
	for i := range gone {
		objecttest.Commit(t, repo, "", oneFile(fmt.Sprint("gone", i)))
	}
	p := plan(t, repo)
	steps := 0
	_, err := p.ExecuteInSteps(t.Context(), objectstore.Steps{Objects: perStep, Between: func(context.Context, time.Duration) error {
		steps++
		if n := p.Fresh(); n > perStep+1 { // those of this step, and the one that it ended before
			t.Errorf("after step %d, the next one has %d commits to look at", steps, n)
		}
		return nil
	}})
	if err != nil || steps < gone/perStep {
		t.Errorf("got %v after %d steps", err, steps)
	}
}
