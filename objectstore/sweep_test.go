package objectstore_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

type sweepCase = faulttest.Case[*objectstore.Repo]

var sweepCases = map[string]func(*testing.T) sweepCase{
	"commit": committing, "prune": pruning, "prune in steps": pruningInSteps, "import": linking, "import content": relabelling,
}

// Whichever disk operation fails: the error names it, the repository is whole, and a retry works.
func TestFaults(t *testing.T) {
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) { faulttest.Sweep(t, c(t)) })
	}
}

// Whichever disk operation the process is killed before: the repository is whole, and a retry works.
func TestKills(t *testing.T) {
	for name, c := range sweepCases {
		t.Run(name, func(t *testing.T) { faulttest.KillSweep(t, c(t)) })
	}
}

// Objects are on the disk before the refs that name them, and no object goes before one that needs it.
func TestOrder(t *testing.T) {
	testenv.NeedsRoot(t)
	t.Run("commit", func(t *testing.T) {
		ops := faulttest.Order(t, "commit", committing(t))
		sync := slices.Index(ops, "syncfs: objects")
		if sync < 0 {
			t.Fatal("nothing is synced")
		}
		for i, op := range ops {
			if i < sync && strings.Contains(op, "refs/") || i > sync && strings.Contains(op, ": objects/") {
				t.Errorf("operation %d, %s, is on the wrong side of the syncfs, which is operation %d", i, op, sync)
			}
		}
	})
	t.Run("prune", func(t *testing.T) { faulttest.Order(t, "prune", pruning(t)) })
	t.Run("prune-steps", func(t *testing.T) { faulttest.Order(t, "prune-steps", pruningInSteps(t)) })
}

// openSwept opens the repository in path, and makes it if needed.
func openSwept(t *testing.T, path string, hook atfs.Hook) *objectstore.Repo {
	t.Helper()
	plain, err := atfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	dir, err := plain.WithHook(hook)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	repo, err := objectstore.Open(dir)
	if errors.Is(err, objectstore.ErrNoRepo) {
		repo, err = objectstore.Create(dir, objectstore.ModeBare)
	}
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// checkWhole fails the test if fsck finds a problem.
func checkWhole(t *testing.T, repo *objectstore.Repo) {
	t.Helper()
	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 1})
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		t.Errorf("fsck: %v", err)
	}
}

// checkDone also requires the approval of ostree(1), which is slow to start.
func checkDone(t *testing.T, repo *objectstore.Repo) {
	t.Helper()
	checkWhole(t, repo)
	if objecttest.HasOstree() && strings.HasSuffix(t.Name(), "0") {
		objecttest.Ostree(t, repo, "fsck", "--quiet")
	}
}

// A committing case is a transaction with a commit, its objects and a ref.
func committing(t *testing.T) sweepCase {
	t.Helper()
	root := smallTree(t)
	return sweepCase{
		Min:  40,
		Open: openSwept,
		Run: func(t *testing.T, repo *objectstore.Repo) error {
			t.Helper()
			return storeSmall(t.Context(), repo, root, true)
		},
		Check: func(t *testing.T, repo *objectstore.Repo, done bool) {
			t.Helper()
			checkWhole(t, repo)
			if _, err := repo.Ref("dir/ref"); err != nil && (done || !errors.Is(err, objectstore.ErrNotExist)) {
				t.Error(err)
			}
			if done {
				checkDone(t, repo)
			}
		},
	}
}

func pruning(t *testing.T) sweepCase {
	t.Helper()
	return pruningWith(t, (*objectstore.PrunePlan).Execute)
}

func pruningInSteps(t *testing.T) sweepCase {
	t.Helper()
	return pruningWith(t, func(p *objectstore.PrunePlan, ctx context.Context) (objectstore.PruneStats, error) {
		return p.ExecuteInSteps(ctx, objectstore.Steps{
			Objects: 2, Between: func(context.Context, time.Duration) error { return nil },
		})
	})
}

// A pruning case has a commit that is kept, and two that are removed.
func pruningWith(t *testing.T, execute func(*objectstore.PrunePlan, context.Context) (objectstore.PruneStats, error)) sweepCase {
	t.Helper()
	objects := func(t *testing.T, repo *objectstore.Repo) int {
		t.Helper()
		return len(objectNames(t, repo.Dir().Path()))
	}
	return sweepCase{
		Min: 6,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			repo := openSwept(t, path, nil)
			objecttest.Commit(t, repo, "kept", oneFile("kept"))
			for _, content := range []string{"a", "b"} {
				objecttest.Commit(t, repo, "", oneFile(content))
			}
			old := time.Now().Add(-25 * time.Hour)
			if err := errors.Join(os.WriteFile(path+"/tmp/old", nil, 0o644), os.Chtimes(path+"/tmp/old", old, old), repo.Close()); err != nil {
				t.Fatal(err)
			}
		},
		Open: openSwept,
		Run: func(t *testing.T, repo *objectstore.Repo) error {
			t.Helper()
			p, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{})
			if err != nil {
				return err
			}
			before := objects(t, repo)
			stats, err := execute(p, t.Context())
			// It reports the removed objects even if it could not remove everything.
			if after := objects(t, repo); before-after != stats.Objects {
				t.Errorf("%d objects are gone, got %d", before-after, stats.Objects)
			}
			return err
		},
		Check: func(t *testing.T, repo *objectstore.Repo, done bool) {
			t.Helper()
			checkWhole(t, repo)
			if !done {
				return
			}
			checkDone(t, repo)
			if n := objects(t, repo); n != 4 {
				t.Errorf("got %d objects, want the 4 of the commit that has a ref", n)
			}
			if names, err := os.ReadDir(repo.Dir().Path() + "/tmp"); err != nil || len(names) != 1 {
				t.Errorf("tmp: got %v, %v, want cache alone", names, err)
			}
		},
	}
}
