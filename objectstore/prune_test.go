package objectstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func plan(tb testing.TB, repo *objectstore.Repo) *objectstore.PrunePlan {
	tb.Helper()
	p, err := repo.PlanPrune(tb.Context(), objectstore.PruneOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func execute(tb testing.TB, p *objectstore.PrunePlan) objectstore.PruneStats {
	tb.Helper()
	s, err := p.Execute(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func oneFile(content string) *objecttest.Node {
	return objecttest.Dir(0o755, map[string]*objecttest.Node{"f": objecttest.File(0o644, content)})
}

// TestRefSetAfterPlan has garbage that a ref reaches after the plan and before execution: it must survive.
func TestRefSetAfterPlan(t *testing.T) {
	repo := objecttest.NewRepo(t)
	saved := objecttest.Commit(t, repo, "", oneFile("saved"))
	objecttest.Commit(t, repo, "", oneFile("garbage"))
	objecttest.Commit(t, repo, "moved", oneFile("before"))
	p := plan(t, repo)
	if got := p.Stats().Objects; got != 6 {
		t.Fatalf("%d objects are planned, want 6: commit, dirtree and file of each commit; the dirmeta is shared", got)
	}
	txn := begin(t, repo)
	txn.SetRef("saved", saved)
	txn.SetRef("moved", saved)
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	fresh := objecttest.Commit(t, repo, "fresh", oneFile("fresh"))
	if got := execute(t, p).Objects; got != 3 {
		t.Errorf("%d objects were removed, want the 3 of the garbage", got)
	}
	for _, sum := range []objectstore.Checksum{saved, fresh} {
		if have, err := repo.Has(objectstore.TypeCommit, sum); err != nil || !have {
			t.Errorf("commit %s is gone (%v)", sum, err)
		}
	}
	// The old target of "moved" is garbage by now, but was not planned.
	if got := execute(t, plan(t, repo)).Objects; got != 3 {
		t.Errorf("the next prune removed %d objects, want 3", got)
	}
}

// TestCommitAfterPlan has a transaction whose files are planned for removal before it stores its commit. A commit that
// no ref reaches afterwards must not stay without its files; fsck checks at the end of the test.
func TestCommitAfterPlan(t *testing.T) {
	for name, end := range map[string]func(repo *objectstore.Repo, txn *objectstore.Txn, sum objectstore.Checksum) error{
		"given up": func(_ *objectstore.Repo, txn *objectstore.Txn, _ objectstore.Checksum) error { return txn.Abort() },
		"ref deleted": func(repo *objectstore.Repo, txn *objectstore.Txn, sum objectstore.Checksum) error {
			txn.SetRef("brief", sum)
			return errors.Join(txn.Commit(t.Context(), objectstore.CommitOptions{}), repo.DeleteRefs(t.Context(), "brief"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			repo := objecttest.NewRepo(t)
			objecttest.Commit(t, repo, "kept", oneFile("kept"))
			txn := begin(t, repo)
			if _, _, err := objecttest.Store(txn, oneFile("stored")); err != nil {
				t.Fatal(err)
			}
			p := plan(t, repo)
			sum, err := objecttest.StoreCommit(txn, "", oneFile("stored"))
			if err == nil {
				err = end(repo, txn, sum)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := execute(t, p).Objects; got != 3 {
				t.Errorf("%d objects were removed, want commit, dirtree and file", got)
			}
		})
	}
}

// TestPartialCompleted has a commit with a ref that lacks a directory. After the plan a pull completes it, with a file that
// was garbage until then; no ref moves. The file must stay.
func TestPartialCompleted(t *testing.T) {
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "partial", oneFile("wanted"))
	c, err := repo.Commit(sum)
	testenv.Must(t, err)
	path := repo.Dir().Path()
	mark := filepath.Join(path, "state", sum.String()+".commitpartial")
	testenv.Must(t, os.MkdirAll(filepath.Dir(mark), 0o755))
	testenv.Must(t, os.WriteFile(mark, nil, 0o644))
	tree := filepath.Join(path, "objects", c.Tree.String()[:2], c.Tree.String()[2:]+".dirtree")
	data, err := os.ReadFile(tree)
	testenv.Must(t, err)
	testenv.Must(t, os.Remove(tree))
	p := plan(t, repo)
	if n := p.Stats().Objects; n != 1 {
		t.Fatalf("%d objects are planned, want the file", n)
	}
	txn := begin(t, repo)
	_, err = txn.StoreMetadata(objectstore.TypeDirTree, data)
	testenv.Must(t, errors.Join(err, os.Remove(mark), txn.Commit(t.Context(), objectstore.CommitOptions{})))
	if got := execute(t, p).Objects; got != 0 {
		t.Errorf("%d objects of a complete commit were removed", got)
	}
}

// TestHistoryAfterPlan pulls older history after the plan, as ostree pull does: no ref changes, and still it is
// reached.
func TestHistoryAfterPlan(t *testing.T) {
	repo := objecttest.NewRepo(t)
	store := func(txn *objectstore.Txn, content string, parent *objectstore.Checksum) objectstore.Checksum {
		t.Helper()
		tree, meta, err := objecttest.Store(txn, oneFile(content))
		if err != nil {
			t.Fatal(err)
		}
		c := objectstore.Commit{Subject: content, Tree: tree, Meta: meta, Parent: parent}
		data, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s, err := txn.StoreMetadata(objectstore.TypeCommit, data)
		if err != nil {
			t.Fatal(err)
		}
		return s.Checksum
	}
	txn := begin(t, repo)
	older := store(txn, "older", nil)
	txn.SetRef("ref", store(txn, "newer", &older))
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	lock, err := repo.Lock(t.Context(), objectstore.LockExclusive)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lock.RemoveObject(objectstore.TypeCommit, older), lock.Unlock()); err != nil {
		t.Fatal(err)
	}
	p := plan(t, repo)
	if got := p.Stats().Objects; got != 2 {
		t.Fatalf("%d objects are planned, want dirtree and file of the commit that is not there", got)
	}
	txn = begin(t, repo)
	store(txn, "older", nil)
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := execute(t, p).Objects; got != 0 {
		t.Errorf("%d objects were removed that a ref reaches", got)
	}
}

// TestPruneNoHistory leaves parents of commits out, in the plan and among the commits added since.
func TestPruneNoHistory(t *testing.T) {
	repo := objecttest.NewRepo(t)
	commit := func(content string, parent *objectstore.Checksum) objectstore.Checksum {
		t.Helper()
		txn := begin(t, repo)
		tree, meta, err := objecttest.Store(txn, oneFile(content))
		testenv.Must(t, err)
		data, err := (&objectstore.Commit{Tree: tree, Meta: meta, Parent: parent}).Marshal()
		testenv.Must(t, err)
		s, err := txn.StoreMetadata(objectstore.TypeCommit, data)
		testenv.Must(t, err)
		txn.SetRef("ref", s.Checksum)
		testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
		return s.Checksum
	}
	first := commit("first", nil)
	second := commit("second", &first)
	p, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{NoHistory: true})
	testenv.Must(t, err)
	if got := p.Stats().Objects; got != 3 {
		t.Errorf("%d objects are planned, want commit, dirtree and file of the parent", got)
	}
	third := commit("third", &second)
	commit("fourth", &third)
	if got := execute(t, p).Objects; got != 4 {
		t.Errorf("%d objects were removed, want three, and the commit that was added since", got)
	}
}

// TestPruneWithoutRefs plans with refs that will be deleted.
func TestPruneWithoutRefs(t *testing.T) {
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "a", oneFile("a"))
	objecttest.Commit(t, repo, "b", oneFile("b"))
	p, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{Without: []string{"a", "b"}})
	if err != nil || p.Stats().Objects != 7 {
		t.Fatalf("planned %+v, %v, want 7 objects", p, err)
	}
	lock, err := repo.Lock(t.Context(), objectstore.LockExclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lock.Unlock(); err != nil {
			t.Error(err)
		}
	}()
	if err := lock.DeleteRefs("a"); err != nil {
		t.Fatal(err)
	}
	if got, err := p.ExecuteLocked(t.Context(), lock); err != nil || got.Objects != 3 {
		t.Errorf("removed %+v, %v, want 3 objects: the ref b is still there", got, err)
	}
}

// TestTransactionBlocksPrune has a transaction that reuses garbage while a prune waits to remove it.
func TestTransactionBlocksPrune(t *testing.T) {
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "", oneFile("reused"))
	p := plan(t, repo)

	txn := begin(t, repo)
	sum, err := objecttest.StoreCommit(txn, "", oneFile("reused")) // writes nothing: everything exists
	if err != nil {
		t.Fatal(err)
	}
	txn.SetRef("reused", sum)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := p.Execute(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("prune beside a transaction: got %v, want it to wait", err)
	}
	plan(t, repo) // a plan does not wait
	done := make(chan objectstore.PruneStats)
	go func() {
		s, err := p.Execute(t.Context())
		if err != nil {
			t.Error(err)
		}
		done <- s
	}()
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := <-done; s.Objects != 0 {
		t.Errorf("%d objects were removed, all are in use", s.Objects)
	}
	if _, err := repo.Commit(sum); err != nil {
		t.Error(err)
	}
}

// TestPruneCountsWhatIsGone makes the removal of a commit's mark fail: the commit itself is gone and counted, and so is
// everything it reached.
func TestPruneCountsWhatIsGone(t *testing.T) {
	repo := objecttest.NewRepoAt(t, hooked(t, func(op atfs.Op, name string) error {
		if op == atfs.OpUnlink && strings.HasPrefix(name, "state/") {
			return unix.EIO
		}
		return nil
	}))
	objecttest.Commit(t, repo, "", oneFile("a"))
	if stats, err := plan(t, repo).Execute(t.Context()); stats.Objects != 4 || stats.Failed != 0 || stats.Bytes == 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("got %+v, %v, want 4 objects and EIO", stats, err)
	}
}

func TestTmpIsCleaned(t *testing.T) {
	repo := objecttest.NewRepo(t)
	tmp := repo.Dir().Path() + "/tmp"
	old := time.Now().Add(-25 * time.Hour)
	ours := "obj-" + rand.Text() // of a killed import
	for _, name := range []string{"new", "staging-new/x", "old", "staging-old/x/y", "cache/old", "obj-new", ours} {
		path := filepath.Join(tmp, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"old", "staging-old", "cache/old", "cache"} {
		if err := os.Chtimes(filepath.Join(tmp, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	p := plan(t, repo)
	if got := execute(t, p); got != p.Stats() || got.Leftovers != 3 {
		t.Errorf("removed %+v, planned %+v, want 3 leftovers in both", got, p.Stats())
	}
	for name, want := range map[string]bool{
		"new": true, "staging-new/x": true, "old": false, "staging-old": false, "cache/old": true, "obj-new": true, ours: false,
	} {
		if _, err := os.Lstat(filepath.Join(tmp, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it kept: %v", name, err, want)
		}
	}
}

// TestTombstones enables tombstone-commits: ostree must understand the remains of a commit.
func TestTombstones(t *testing.T) {
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "", oneFile("gone"))
	objecttest.Ostree(t, repo, "config", "set", "core.tombstone-commits", "true")
	execute(t, plan(t, openRepo(t, repo.Dir().Path())))
	if have, err := repo.Has(objectstore.TypeTombstone, sum); err != nil || !have {
		t.Errorf("no tombstone of %s (%v)", sum, err)
	}
	objecttest.Ostree(t, repo, "fsck", "--quiet")
}

// TestFsckFindsEachObject damages and then removes every object of a repository in turn.
func TestFsckFindsEachObject(t *testing.T) {
	testenv.NeedsRoot(t)
	src := objecttest.NewRepo(t)
	objecttest.Commit(t, src, "r", smallTree(t))
	var damage int
	for _, name := range objectNames(t, src.Dir().Path()) {
		sum := mustSum(t, strings.ReplaceAll(strings.TrimPrefix(strings.Split(name, ".")[0], "/objects/"), "/", ""))
		for what, do := range map[string]func(path string) error{
			"bit": func(path string) error {
				b, err := os.ReadFile(path)
				if err != nil || len(b) == 0 {
					return errors.Join(err, os.WriteFile(path, []byte("x"), 0))
				}
				b[len(b)/2] ^= 4
				return os.WriteFile(path, b, 0)
			},
			"truncated": func(path string) error { return os.Truncate(path, 0) },
			"mode":      func(path string) error { return os.Chmod(path, 0o711) },
			"owner":     func(path string) error { return os.Lchown(path, 77, 88) },
			"xattr":     func(path string) error { return unix.Lsetxattr(path, "trusted.x", []byte("y"), 0) },
			"fifo":      func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
			"link":      func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
			"missing":   os.Remove,
		} {
			fi, err := os.Lstat(src.Dir().Path() + name)
			if err != nil {
				t.Fatal(err)
			}
			isFile, isLink := strings.HasSuffix(name, ".file"), fi.Mode()&os.ModeSymlink != 0
			switch what { // metadata objects are only bytes, symbolic links have none
			case "bit":
				if isLink {
					continue
				}
			case "truncated":
				if isLink || fi.Size() == 0 {
					continue
				}
			case "mode":
				if !isFile || isLink {
					continue
				}
			case "owner", "xattr":
				if !isFile {
					continue
				}
			}
			copied := t.TempDir() + "/repo"
			run(t, "cp", "-a", src.Dir().Path(), copied)
			if err := do(copied + name); err != nil {
				t.Fatal(err)
			}
			repo := openRepo(t, copied)
			report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
			if err != nil {
				t.Fatalf("%s of %s: %v", what, name, err)
			}
			damage++
			var found bool
			for _, p := range report.Problems {
				if p.Ref == "" && p.Checksum == sum && strings.HasSuffix(name, "."+p.Type.Ext()) {
					found = true
					want := objectstore.ErrCorrupt
					if what == "missing" {
						want = objectstore.ErrNotExist
					}
					if !errors.Is(p.Err, want) {
						t.Errorf("%s of %s: got %v, want %v", what, name, p.Err, want)
					}
				}
			}
			if !found && (what != "missing" || !strings.HasSuffix(name, ".commit")) {
				t.Errorf("%s of %s was not found: %v", what, name, report.Problems)
			}
			if report.Err() == nil {
				t.Errorf("%s of %s: the report has no error", what, name)
			}
		}
	}
	if damage < 50 {
		t.Errorf("only %d damages were tried", damage)
	}
}

// TestFsckRefs damages refs.
func TestFsckRefs(t *testing.T) {
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "good", oneFile("good"))
	for name, text := range map[string]string{
		"empty": "", "short": "abc\n", "long": strings.Repeat("a", 100), "absent": strings.Repeat("a", 64) + "\n",
	} {
		if err := repo.Dir().WriteFile("refs/heads/"+name, []byte(text), 0o644, false); err != nil {
			t.Fatal(err)
		}
		report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
		if err != nil || len(report.Problems) != 1 || report.Problems[0].Ref != name || report.Refs != 2 {
			t.Errorf("%s: got %+v, %v, want one problem", name, report, err)
		}
		if _, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{}); err == nil {
			t.Errorf("%s: a prune was planned", name)
		}
		if err := repo.Dir().Unlink("refs/heads/" + name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFsckWithFewFiles lets fsck run out of files while it hashes: it must report that, and no damage.
func TestFsckWithFewFiles(t *testing.T) {
	dir := objecttest.OpenDir(t, t.TempDir())
	repo := objecttest.NewRepoAt(t, dir)
	files := make(map[string]*objecttest.Node)
	for i := range 8 {
		name := fmt.Sprint(i)
		files[name] = objecttest.File(0o644, strings.Repeat(name, 4<<20))
	}
	objecttest.Commit(t, repo, "ref", objecttest.Dir(0o755, files))
	failed := true
	for more := 1; failed; more++ {
		err := faulttest.WithFiles(t, more, func() error {
			repo, err := objectstore.Open(dir)
			if err != nil {
				return err
			}
			report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 8})
			if err == nil {
				err = report.Err()
			}
			return errors.Join(err, repo.Close())
		})
		if failed = err != nil; failed && !errors.Is(err, unix.EMFILE) {
			t.Errorf("with %d files: got %v, want EMFILE", more, err)
		}
	}
}

func TestFsckProgress(t *testing.T) {
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "r", oneFile("x"))
	var calls, last int64
	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 4, Progress: func(done, total int64) {
		calls++
		last = max(last, done)
		if total != 4 {
			t.Errorf("total %d, want 4", total)
		}
	}})
	if err != nil || report.Objects != 4 || report.Commits != 1 || report.Refs != 1 || calls != 4 || last != 4 {
		t.Errorf("got %+v, %v, %d calls, last %d", report, err, calls, last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := repo.Fsck(ctx, objectstore.FsckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestHostileTree checks out trees that could only be made on purpose.
func TestHostileTree(t *testing.T) {
	repo := objecttest.NewRepo(t)
	txn := begin(t, repo)
	meta, err := txn.StoreMetadata(objectstore.TypeDirMeta, mustMarshal(t, &objectstore.DirMeta{Mode: unix.S_IFDIR | 0o755}))
	if err != nil {
		t.Fatal(err)
	}
	// Marshal rejects a name with a slash; patch it into the bytes.
	good := mustMarshal(t, &objectstore.DirTree{Dirs: []objectstore.TreeDir{{Name: "aXb", Tree: hashOf([]byte{0}), Meta: meta.Checksum}}})
	for _, name := range []string{"a/b", "../", "..\x00"} {
		bad := []byte(strings.Replace(string(good), "aXb", name, 1))
		if _, err := txn.StoreMetadata(objectstore.TypeDirTree, bad); !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("name %q: got %v, want ErrInvalid", name, err)
		}
		path := objectstore.LoosePath(hashOf(bad), objectstore.TypeDirTree)
		if err := repo.ObjectsDir().MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := repo.ObjectsDir().WriteFile(path, bad, 0o644, false); err != nil {
			t.Fatal(err)
		}
		out := objecttest.OpenDir(t, t.TempDir())
		err := repo.CheckoutTree(t.Context(), hashOf(bad), meta.Checksum, out, "x", objectstore.CheckoutOptions{})
		if !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("checkout of name %q: got %v, want ErrCorrupt", name, err)
		}
		if err := repo.ObjectsDir().Unlink(path); err != nil {
			t.Fatal(err)
		}
	}
	// A tree deeper than the limit.
	tree, err := txn.StoreMetadata(objectstore.TypeDirTree, []byte{0})
	if err != nil {
		t.Fatal(err)
	}
	for range 1100 {
		b := mustMarshal(t, &objectstore.DirTree{Dirs: []objectstore.TreeDir{{Name: "d", Tree: tree.Checksum, Meta: meta.Checksum}}})
		if tree, err = txn.StoreMetadata(objectstore.TypeDirTree, b); err != nil {
			t.Fatal(err)
		}
	}
	out := objecttest.OpenDir(t, t.TempDir())
	if err := repo.CheckoutTree(t.Context(), tree.Checksum, meta.Checksum, out, "x", objectstore.CheckoutOptions{}); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("deep tree: got %v, want ErrCorrupt", err)
	}
	if names, err := out.ReadNames(); err != nil || len(names) != 0 {
		t.Errorf("the failed checkout left %q, %v", names, err)
	}
}

func mustMarshal(tb testing.TB, m interface{ Marshal() ([]byte, error) }) []byte {
	tb.Helper()
	b, err := m.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestCheckoutOptions(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	timed := objecttest.File(0o644, "content")
	timed.Mtime = unix.Timespec{Sec: 1e9, Nsec: 5}
	sum := objecttest.Commit(t, repo, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"f": timed, "empty": objecttest.File(0o644, ""),
		".ostree-wh.gone": objecttest.File(0o600, "").Own(3, 4).Xattr("trusted.a", "b"),
	}))
	out := objecttest.OpenDir(t, t.TempDir())
	for name, opts := range map[string]objectstore.CheckoutOptions{
		"link": {}, "copy": {ForceCopy: true}, "whiteout": {PassthroughWhiteouts: true},
	} {
		if err := repo.Checkout(t.Context(), sum, out, name, opts); err != nil {
			t.Fatal(err)
		}
		f, err := out.Lstat(name + "/f")
		if err != nil {
			t.Fatal(err)
		}
		if wantLinks := !opts.ForceCopy; (f.Nlink > 1) != wantLinks || f.Mtim != timed.Mtime {
			t.Errorf("%s: %d links, mtime %v", name, f.Nlink, f.Mtim)
		}
		if e, err := out.Lstat(name + "/empty"); err != nil || e.Nlink != 1 {
			t.Errorf("%s: the empty file has %d links, %v", name, e.Nlink, err)
		}
		if d, err := out.Lstat(name); err != nil || d.Mtim != (unix.Timespec{}) {
			t.Errorf("%s: directory with mtime %v, %v", name, d.Mtim, err)
		}
	}
	theirs := t.TempDir() + "/theirs"
	objecttest.Ostree(t, repo, "checkout", "--process-passthrough-whiteouts", "r", theirs)
	want := snapshot(t, theirs)
	if got := snapshot(t, out.Path()+"/whiteout"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("whiteouts: got %v, ostree makes %v", got, want)
	}
	if want["gone"].Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("ostree made no whiteout: %v", want["gone"])
	}
	if err := repo.Checkout(t.Context(), sum, out, "link", objectstore.CheckoutOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("checkout over another: got %v, want fs.ErrExist", err)
	}
	if _, err := out.Lstat("link/f"); err != nil {
		t.Errorf("the refused checkout has removed the old one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := repo.Checkout(ctx, sum, out, "cancelled", objectstore.CheckoutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestPruneGoesOn has an object that cannot be removed: the others go, the error names it, a commit that stays keeps
// its closure, and once the obstacle is removed the rest goes.
func TestPruneGoesOn(t *testing.T) {
	for _, c := range []struct {
		name string
		ext  string // of the irremovable object
		left int    // objects that stay because of it
	}{
		{"file", "file", 1},
		{"commit", "commit", 4}, // with dirtree, dirmeta and file
	} {
		t.Run(c.name, func(t *testing.T) {
			repo := objecttest.NewRepo(t)
			objecttest.Commit(t, repo, "kept", objecttest.Dir(0o700, nil))
			objecttest.Commit(t, repo, "", oneFile("stuck"))
			protected, err := filepath.Glob(filepath.Join(repo.Dir().Path(), "objects/??/*."+c.ext))
			if err != nil {
				t.Fatal(err)
			}
			kept, err := repo.Ref("kept")
			if err != nil {
				t.Fatal(err)
			}
			protected = slices.DeleteFunc(protected, func(name string) bool { return strings.HasSuffix(name, kept.String()[2:]+".commit") })
			if len(protected) != 1 {
				t.Fatalf("objects with .%s are %v, want one beside the one of ref kept", c.ext, protected)
			}
			for i := range 5 {
				objecttest.Commit(t, repo, "", oneFile(fmt.Sprint("garbage", i)))
			}
			total := plan(t, repo).Stats().Objects
			undo := testenv.SetFlags(t, protected[0], testenv.Immutable)

			stats, err := plan(t, repo).Execute(t.Context())
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), filepath.Base(protected[0])) {
				t.Errorf("got %v, want operation not permitted, for %s", err, filepath.Base(protected[0]))
			}
			if stats.Failed != 1 || stats.Objects != total-c.left {
				t.Errorf("%d objects were removed and %d not, want %d and 1", stats.Objects, stats.Failed, total-c.left)
			}
			undo()
			if stats := execute(t, plan(t, repo)); stats.Objects != c.left {
				t.Errorf("afterwards %d objects were removed, want %d", stats.Objects, c.left)
			}
		})
	}
}
