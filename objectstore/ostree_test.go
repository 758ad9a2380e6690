package objectstore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// entry is a file of a checkout, without times of directories and of new inodes.
type entry struct {
	Mode, UID, GID uint32
	Size           int64
	Target         string
	Content        string
	Xattrs         map[string]string
}

// snapshot reads a directory tree. The key "." is the directory itself.
func snapshot(tb testing.TB, root string) map[string]entry {
	tb.Helper()
	d := objecttest.OpenDir(tb, root)
	got := make(map[string]entry)
	err := filepath.WalkDir(root, func(path string, de fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		st, err := d.Lstat(rel)
		if err != nil {
			return err
		}
		e := entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Xattrs: map[string]string{}}
		x, err := d.Xattrs(rel)
		if err != nil {
			return err
		}
		for k, v := range x {
			e.Xattrs[k] = string(v)
		}
		switch {
		case de.Type()&fs.ModeSymlink != 0:
			e.Target, err = d.Readlink(rel)
		case de.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(path)
			e.Content, e.Size = string(b), st.Size
		}
		got[rel] = e
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// TestWeWriteOstreeReads stores the odd tree, which the real ostree must verify, list and check out.
func TestWeWriteOstreeReads(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	for _, umask := range []int{0, 0o022, 0o077} {
		t.Run(fmt.Sprintf("umask %03o", umask), func(t *testing.T) {
			repo := objecttest.NewRepo(t)
			old := unix.Umask(umask)
			defer unix.Umask(old)
			sum := objecttest.Commit(t, repo, "test/odd", objecttest.OddTree())
			if got := strings.TrimSpace(objecttest.Ostree(t, repo, "rev-parse", "test/odd")); got != sum.String() {
				t.Errorf("rev-parse: got %s, want %s", got, sum)
			}
			if got := objecttest.Ostree(t, repo, "refs"); got != "test/odd\n" {
				t.Errorf("refs: got %q", got)
			}
			objecttest.Ostree(t, repo, "fsck", "--quiet")

			list := objecttest.Ostree(t, repo, "ls", "-R", "-C", "-X", "test/odd")
			for _, want := range []string{
				"-00640 70000 4294967294", "d01777 0 0", "-04755 0 0", "l00777 1000 1000", "/grüße-€-日本語",
				"/xattrs", "b'user.a', [0x31, 0x31]", "b'security.capability'",
			} {
				if !strings.Contains(list, want) {
					t.Errorf("ostree ls -R -C -X does not show %q", want)
				}
			}
			theirs, ours := t.TempDir()+"/theirs", objecttest.OpenDir(t, t.TempDir())
			objecttest.Ostree(t, repo, "checkout", "test/odd", theirs)
			if err := repo.Checkout(t.Context(), sum, ours, "ours", objectstore.CheckoutOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := repo.Checkout(t.Context(), sum, ours, "copy", objectstore.CheckoutOptions{ForceCopy: true}); err != nil {
				t.Fatal(err)
			}
			want := snapshot(t, theirs)
			if len(want) < 300 {
				t.Fatalf("ostree checked out only %d entries", len(want))
			}
			for _, name := range []string{"ours", "copy"} {
				if diff := testenv.Diff(want, snapshot(t, filepath.Join(ours.Path(), name))); diff != "" {
					t.Errorf("checkout %q (-ostree +ours):\n%s", name, diff)
				}
			}
			checkNode(t, want, ".", objecttest.OddTree())
			objecttest.Ostree(t, repo, "prune", "--refs-only")
			objecttest.Ostree(t, repo, "fsck", "--quiet")

			// ostree must make the same commit of its checkout, except for the time.
			objecttest.Ostree(t, repo, "commit", "-b", "again", theirs)
			again := commitOf(t, repo, "again")
			first := commitOf(t, repo, "test/odd")
			if again.Tree != first.Tree || again.Meta != first.Meta {
				t.Errorf("ostree commits tree %s, %s; ours is %s, %s", again.Tree, again.Meta, first.Tree, first.Meta)
			}
		})
	}
}

func commitOf(tb testing.TB, repo *objectstore.Repo, ref string) *objectstore.Commit {
	tb.Helper()
	sum, err := repo.Ref(ref)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := repo.Commit(sum)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// checkNode compares a checkout with its literal.
func checkNode(t *testing.T, got map[string]entry, path string, n *objecttest.Node) {
	t.Helper()
	want := entry{Mode: n.Mode, UID: n.UID, GID: n.GID, Size: int64(len(n.Content)), Target: n.Target, Content: string(n.Content), Xattrs: map[string]string{}}
	for _, x := range n.Xattrs {
		want.Xattrs[x.Name] = string(x.Value)
	}
	if diff := testenv.Diff(want, got[path]); diff != "" {
		t.Errorf("%s (-literal +checkout):\n%s", path, diff)
	}
	for name, child := range n.Entries {
		checkNode(t, got, filepath.Join(path, name), child)
	}
}

// TestOstreeWritesWeRead commits a directory with ostree, and reads, verifies and checks out the result.
func TestOstreeWritesWeRead(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	src := t.TempDir()
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "seed", objecttest.OddTree())
	if err := repo.Checkout(t.Context(), sum, objecttest.OpenDir(t, src), "odd", objectstore.CheckoutOptions{ForceCopy: true}); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(src, "odd")
	theirs := ostreeRepo(t, "bare")
	run(t, "ostree", "--repo="+theirs, "commit", "-b", "x/y", "-s", "subject ü", "-m", "body", "--add-metadata-string=version=1.2", odd)
	r := openRepo(t, theirs)

	report, err := r.Fsck(t.Context(), objectstore.FsckOptions{Workers: 3})
	if err != nil || len(report.Problems) > 0 {
		t.Fatalf("fsck: %v, %v", report, err)
	}
	c := commitOf(t, r, "x/y")
	if v, ok := c.MetaString("version"); !ok || v != "1.2" || c.Subject != "subject ü" {
		t.Errorf("got version %q (%v), subject %q", v, ok, c.Subject)
	}
	if b, ok := metadata(c, "ostree.ref-binding").Strings(); !ok || len(b) != 1 || b[0] != "x/y" {
		t.Errorf("ref binding: got %q, %v", b, ok)
	}
	if time.Since(c.Time()) > time.Hour || time.Since(c.Time()) < -time.Hour {
		t.Errorf("timestamp %s is not now", c.Time())
	}
	first := commitOf(t, repo, "seed")
	if c.Tree != first.Tree || c.Meta != first.Meta {
		t.Errorf("ostree made tree %s, %s of what ours calls %s, %s", c.Tree, c.Meta, first.Tree, first.Meta)
	}
	ref, err := r.Ref("x/y")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Checkout(t.Context(), ref, objecttest.OpenDir(t, src), "out", objectstore.CheckoutOptions{}); err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(snapshot(t, odd), snapshot(t, filepath.Join(src, "out"))); diff != "" {
		t.Errorf("(-committed +checked out):\n%s", diff)
	}

	// Our own commit of the directory is the same, and every object reads back as it was written.
	txn := begin(t, repo)
	tree, meta, err := repo.WriteTree(t.Context(), txn, objecttest.OpenDir(t, odd))
	if err != nil || tree != c.Tree || meta != c.Meta {
		t.Errorf("WriteTree: got %s, %s, %v, want %s, %s", tree, meta, err, c.Tree, c.Meta)
	}
}

func ostreeRepo(tb testing.TB, mode string) string {
	tb.Helper()
	dir := tb.TempDir()
	run(tb, "ostree", "--repo="+dir, "init", "--mode="+mode)
	return dir
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func openRepo(tb testing.TB, path string) *objectstore.Repo {
	tb.Helper()
	r, err := objectstore.Open(objecttest.OpenDir(tb, path))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// TestOstreeAcceptsMtime is the proof cited by docs/adr/0002-object-mtime.md.
func TestOstreeAcceptsMtime(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	file := objecttest.File(0o644, "content")
	file.Mtime = unix.Timespec{Sec: 1234567890, Nsec: 987654321}
	objecttest.Commit(t, repo, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{"f": file}))
	objecttest.Ostree(t, repo, "fsck", "--quiet")
	objecttest.Ostree(t, repo, "prune", "--refs-only")
	out := t.TempDir()
	objecttest.Ostree(t, repo, "checkout", "r", out+"/tree")
	st, err := objecttest.OpenDir(t, out+"/tree").Lstat("f")
	if err != nil {
		t.Fatal(err)
	}
	if st.Mtim != file.Mtime {
		t.Errorf("mtime in a checkout of ostree: got %v, want %v", st.Mtim, file.Mtime)
	}
	for _, mode := range []string{"bare", "bare-user", "archive"} {
		other := ostreeRepo(t, mode)
		run(t, "ostree", "--repo="+other, "pull-local", repo.Dir().Path(), "r")
		run(t, "ostree", "--repo="+other, "fsck", "--quiet")
	}
	// The first writer wins, in memory and in pieces.
	txn := begin(t, repo)
	stored, err := txn.StoreFile(file.FileMeta(), unix.Timespec{Sec: 1}, file.Content)
	if err != nil || stored.Added {
		t.Fatalf("stored again: %+v, %v", stored, err)
	}
	if st, err = repo.Stat(stored.Checksum); err != nil || st.Mtim != file.Mtime {
		t.Errorf("mtime after the second writer: got %v, %v, want %v", st.Mtim, err, file.Mtime)
	}
}

func TestOtherModesAreRefused(t *testing.T) {
	for _, mode := range []string{"archive", "bare-user", "bare-user-only", "bare-split-xattrs"} {
		t.Run(mode, func(t *testing.T) {
			objecttest.NeedsOstree(t)
			_, err := objectstore.Open(objecttest.OpenDir(t, ostreeRepo(t, mode)))
			var me *objectstore.UnsupportedModeError
			if !errors.As(err, &me) || !strings.HasPrefix(me.Mode, mode) {
				t.Fatalf("got %v, want an UnsupportedModeError for %s", err, mode)
			}
			for _, want := range []string{fmt.Sprintf("%q", me.Mode), "pull-local"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %s: %v", want, err)
				}
			}
			if _, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.Mode(mode)); !errors.As(err, &me) {
				t.Errorf("create: got %v, want an UnsupportedModeError", err)
			}
		})
	}
}

// TestOstreePruneWaits holds our shared lock: ostree prune must give up after lock-timeout-secs, and our prune must
// wait for ostree's lock.
func TestOstreePruneWaits(t *testing.T) {
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	objecttest.Ostree(t, repo, "config", "set", "core.lock-timeout-secs", "1")
	lock, err := repo.Lock(t.Context(), objectstore.LockShared)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := objecttest.TryOstree(repo, "prune"); err == nil || !strings.Contains(out, "Locking repo exclusive failed") {
		t.Errorf("ostree prune under our lock: %v, %s", err, out)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	objecttest.Ostree(t, repo, "prune")

	// The other way round: a lock taken as libostree does.
	f, err := os.OpenFile(repo.Dir().Path()+"/.lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	again := openRepo(t, repo.Dir().Path()) // with the new timeout
	if _, err := again.Begin(t.Context()); !errors.Is(err, objectstore.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

// TestPruneAgreesWithOstree prunes copies of one repository with ostree and with our code: the same objects must
// remain.
func TestPruneAgreesWithOstree(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "keep", objecttest.OddTree())
	objecttest.Commit(t, repo, "", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"gone": objecttest.File(0o600, "gone"), "hello": objecttest.File(0o755, "hello\n"), "l": objecttest.Symlink("gone"),
		"d": objecttest.Dir(0o711, nil),
	}))
	src := t.TempDir()
	if err := os.WriteFile(src+"/v", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // a history, which is kept
		if err := os.WriteFile(src+"/v", fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		objecttest.Ostree(t, repo, "commit", "-b", "history", src)
	}
	objecttest.Ostree(t, repo, "commit", "-b", "deleted", "--add-metadata-string=a=b", src)
	objecttest.Ostree(t, repo, "refs", "--delete", "deleted")

	copied := t.TempDir() + "/repo"
	run(t, "cp", "-a", repo.Dir().Path(), copied)
	run(t, "ostree", "--repo="+copied, "prune", "--refs-only")
	plan, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stats, err := plan.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stats != plan.Stats() || stats.Objects != 6 || stats.Bytes <= 0 {
		t.Errorf("got %+v, planned %+v, want 6 objects: two commits, a dirtree, a dirmeta, a file, a link", stats, plan.Stats())
	}
	if diff := testenv.Diff(objectNames(t, copied), objectNames(t, repo.Dir().Path())); diff != "" {
		t.Errorf("objects left (-ostree +ours):\n%s", diff)
	}
	if again, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{}); err != nil || again.Stats().Objects != 0 {
		t.Errorf("second plan: %+v, %v", again, err)
	}
}

func objectNames(tb testing.TB, repo string) []string {
	tb.Helper()
	names, err := filepath.Glob(repo + "/objects/??/*")
	if err != nil {
		tb.Fatal(err)
	}
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], repo)
	}
	return names
}

// TestPartialCommit has a commit without its closure: it is counted if it has its mark, and corrupt without.
func TestPartialCommit(t *testing.T) {
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"d": objecttest.Dir(0o755, map[string]*objecttest.Node{"f": objecttest.File(0o644, "f")}),
	}))
	tree, err := repo.DirTree(commitOf(t, repo, "r").Tree)
	if err != nil {
		t.Fatal(err)
	}
	lost := tree.Dirs[0].Tree
	path := objectstore.LoosePath(lost, objectstore.TypeDirTree)
	data, err := os.ReadFile(repo.Dir().Path() + "/objects/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.ObjectsDir().Unlink(path); err != nil {
		t.Fatal(err)
	}
	mark := "state/" + sum.String() + ".commitpartial"
	if err := repo.Dir().WriteFile(mark, nil, 0o644, false); err != nil {
		t.Fatal(err)
	}

	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err != nil || report.Partial != 1 || report.Commits != 0 || len(report.Problems) != 0 {
		t.Errorf("with the mark: %+v, %v", report, err)
	}
	if out, err := objecttest.TryOstree(repo, "fsck"); err != nil || !strings.Contains(out, "1 partial commits") {
		t.Errorf("ostree fsck: %v, %s", err, out)
	}
	if plan, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{}); err != nil || plan.Stats().Objects != 1 {
		t.Errorf("plan with the mark: %+v, %v, want one object: the file that only the lost dirtree named", plan, err)
	}

	if err := repo.Dir().Unlink(mark); err != nil {
		t.Fatal(err)
	}
	report, err = repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Checksum != lost ||
		report.Problems[0].Type != objectstore.TypeDirTree || !errors.Is(report.Problems[0].Err, objectstore.ErrNotExist) {
		t.Errorf("without the mark: %+v, %v, want %s missing", report, err, lost)
	}
	if _, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{}); !errors.Is(err, objectstore.ErrNotExist) || !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("plan without the mark: got %v, want an error that names %s", err, lost)
	}
	out := objecttest.OpenDir(t, t.TempDir())
	if err := repo.Checkout(t.Context(), sum, out, "x", objectstore.CheckoutOptions{}); !errors.Is(err, objectstore.ErrNotExist) {
		t.Errorf("checkout: got %v, want ErrNotExist", err)
	}
	if names, err := out.ReadNames(); err != nil || len(names) != 0 {
		t.Errorf("the failed checkout left %q, %v", names, err)
	}

	// Repair it, so that the fsck at the end finds nothing.
	txn, err := repo.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := txn.StoreMetadata(objectstore.TypeDirTree, data); err != nil {
		t.Error(err)
	}
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
		t.Error(err)
	}
}

func TestAliasesAndRemotes(t *testing.T) {
	objecttest.NeedsOstree(t)
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "os/stable", objecttest.Dir(0o755, map[string]*objecttest.Node{"a": objecttest.File(0o644, "a")}))
	objecttest.Ostree(t, repo, "refs", "--alias", "--create=os/current", "os/stable")
	other := objecttest.Commit(t, repo, "tmp", objecttest.Dir(0o755, map[string]*objecttest.Node{"b": objecttest.File(0o644, "b")}))
	objecttest.Ostree(t, repo, "remote", "add", "--no-gpg-verify", "origin", "http://localhost:1/")
	objecttest.Ostree(t, repo, "refs", "--create=origin:os/x", "tmp")
	objecttest.Ostree(t, repo, "refs", "--delete", "tmp")

	refs, err := repo.Refs("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(map[string]objectstore.Checksum{"os/stable": sum, "os/current": sum}, refs); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	if got, err := repo.Ref("os/current"); err != nil || got != sum {
		t.Errorf("alias: got %s, %v, want %s", got, err, sum)
	}
	plan, err := repo.PlanPrune(t.Context(), objectstore.PruneOptions{})
	if err != nil || plan.Stats().Objects != 0 {
		t.Errorf("plan: %+v, %v; the ref of a remote must keep commit %s", plan, err, other)
	}
	for name, target := range map[string]string{"escape": "../../../etc/passwd", "loop": "loop", "abs": "/etc/passwd"} {
		if err := repo.Dir().Symlink(target, "refs/heads/"+name); err != nil {
			t.Fatal(err)
		}
		if _, err := repo.Ref(name); !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("alias of %s: got %v, want ErrCorrupt", target, err)
		}
		if err := repo.Dir().Unlink("refs/heads/" + name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOddConfig opens repositories whose configuration requires unsupported behaviour.
func TestOddConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want any // nil, an error for errors.Is, or **T for errors.As
	}{
		"plain":          {"[core]\nrepo_version=1\nmode=bare\n", nil},
		"blanks":         {"# a comment\n\n [core] \n repo_version = 1 \n mode\t=\tbare\n[remote \"x\"]\nurl=a\\sb\n", nil},
		"no mode":        {"[core]\nrepo_version=1\n", nil},
		"version 2":      {"[core]\nrepo_version=2\nmode=bare\n", objectstore.ErrCorrupt},
		"no version":     {"[core]\nmode=bare\n", objectstore.ErrCorrupt},
		"unknown mode":   {"[core]\nrepo_version=1\nmode=bare-new\n", new(*objectstore.UnsupportedModeError)},
		"parent":         {"[core]\nrepo_version=1\nmode=bare\nparent=/ostree/repo\n", new(*objectstore.UnsupportedConfigError)},
		"no xattrs":      {"[core]\nrepo_version=1\nmode=bare\ndisable-xattrs=true\n", new(*objectstore.UnsupportedConfigError)},
		"no group":       {"repo_version=1\n", objectstore.ErrCorrupt},
		"no key":         {"[core]\n=1\n", objectstore.ErrCorrupt},
		"open group":     {"[core\nrepo_version=1\n", objectstore.ErrCorrupt},
		"not a boolean":  {"[core]\nrepo_version=1\nlocking=maybe\n", objectstore.ErrCorrupt},
		"not a number":   {"[core]\nrepo_version=1\nlock-timeout-secs=1h\n", objectstore.ErrCorrupt},
		"huge number":    {"[core]\nrepo_version=1\nlock-timeout-secs=99999999999999\n", objectstore.ErrCorrupt},
		"not UTF-8":      {"[core]\nrepo_version=1\nmode=\xff\n", objectstore.ErrCorrupt},
		"open backslash": {"[core]\nrepo_version=1\nmode=bare\\\n", objectstore.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			dir := objecttest.OpenDir(t, t.TempDir())
			repo, err := objectstore.Create(dir, objectstore.ModeBare)
			if err != nil {
				t.Fatal(err)
			}
			if err := repo.Close(); err != nil {
				t.Fatal(err)
			}
			if err := dir.WriteFile("config", []byte(tc.text), 0o644, false); err != nil {
				t.Fatal(err)
			}
			repo, err = objectstore.Open(dir)
			switch want := tc.want.(type) {
			case nil:
				if err != nil {
					t.Fatal(err)
				}
				err = repo.Close()
			case error:
				if errors.Is(err, want) {
					err = nil
				}
			default:
				if errors.As(err, want) {
					err = nil
				}
			}
			if err != nil {
				t.Errorf("got %v, want %T", err, tc.want)
			}
		})
	}
}

func TestCreateAndOpen(t *testing.T) {
	dir := objecttest.OpenDir(t, t.TempDir())
	if _, err := objectstore.Open(dir); !errors.Is(err, objectstore.ErrNoRepo) {
		t.Errorf("open an empty directory: got %v, want ErrNoRepo", err)
	}
	// A Create interrupted at any operation can be repeated.
	errStop := errors.New("stop")
	for i := 0; ; i++ {
		n := 0
		hooked, err := dir.WithHook(func(atfs.Op, string) error {
			if n++; n > i {
				return errStop
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		repo, err := objectstore.Create(hooked, objectstore.ModeBare)
		if err == nil {
			if i < 10 {
				t.Errorf("only %d operations were seen", i)
			}
			err = repo.Close()
		} else if !errors.Is(err, errStop) && !errors.Is(err, fs.ErrExist) {
			t.Fatalf("operation %d: %v", i, err)
		}
		if cerr := hooked.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			break
		}
	}
	repo, err := objectstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	objecttest.Fsck(t, repo)
	if _, err := objectstore.Create(dir, objectstore.ModeBare); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create twice: got %v, want fs.ErrExist", err)
	}
	full := objecttest.OpenDir(t, t.TempDir())
	if err := full.Mkdir("other", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := objectstore.Create(full, objectstore.ModeBare); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("create in a directory with other things: got %v, want ENOTEMPTY", err)
	}
}

// TestSizesAgreeWithOstree has directories and extended attributes of all sizes at which framing offsets grow: ostree
// must compute the same checksums.
func TestSizesAgreeWithOstree(t *testing.T) {
	testenv.NeedsRoot(t)
	objecttest.NeedsOstree(t)
	src := t.TempDir()
	for _, size := range []int{253, 254, 255, 256, 257, 65531, 65532, 65533, 65534, 65535, 65536, 65537} {
		dir := fmt.Sprintf("%s/%d", src, size)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range treeOfSize(t, size).Files {
			if err := os.WriteFile(dir+"/"+f.Name, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := 200; n < 270; n++ {
		path := fmt.Sprintf("%s/xattr-%d", src, n)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"user.long": strings.Repeat("x", n), "user.short": "y", "user.empty": ""} {
			if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
				testenv.Unsupported(t, "needs user xattrs in the temporary directory: %v", err)
			}
		}
	}
	theirs := ostreeRepo(t, "bare")
	run(t, "ostree", "--repo="+theirs, "commit", "-b", "x", src)
	want := commitOf(t, openRepo(t, theirs), "x")
	repo := objecttest.NewRepo(t)
	tree, meta, err := repo.WriteTree(t.Context(), begin(t, repo), objecttest.OpenDir(t, src))
	if err != nil || tree != want.Tree || meta != want.Meta {
		t.Errorf("got %s, %s, %v, ostree makes %s, %s", tree, meta, err, want.Tree, want.Meta)
	}
}

// Without refs/, or any directory in it, a repository opens, has no refs there, and accepts new ones, even if it was
// open when they were removed. ostree finds its own layout again.
func TestRefDirsAreMadeAgain(t *testing.T) {
	for _, name := range []string{"refs", "refs/heads", "refs/remotes", "refs/mirrors"} {
		t.Run(name, func(t *testing.T) {
			repo := objecttest.NewRepo(t)
			sum := objecttest.Commit(t, repo, "a/b", objecttest.OddTree())
			lost := 0
			if name == "refs" || name == "refs/heads" {
				lost = 1
			}
			check := func(r *objectstore.Repo) {
				t.Helper()
				refs, err := r.Refs("")
				if err != nil || len(refs) != 1-lost {
					t.Errorf("got refs %v, %v, want %d", refs, err, 1-lost)
				}
				if _, err := r.Ref("a/b"); lost == 1 && !errors.Is(err, objectstore.ErrNotExist) {
					t.Errorf("ref: got %v, want %v", err, objectstore.ErrNotExist)
				}
				txn, err := r.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				txn.SetRef("a/b", sum)
				if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err != nil {
					t.Fatal(err)
				}
				if got, err := r.Ref("a/b"); err != nil || got != sum {
					t.Errorf("ref that was written: got %v, %v, want %v", got, err, sum)
				}
			}
			remove := func() {
				t.Helper()
				if err := os.RemoveAll(repo.Dir().Path() + "/" + name); err != nil {
					t.Fatal(err)
				}
			}
			remove()
			check(repo)
			remove()
			again, err := objectstore.Open(repo.Dir())
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			for _, dir := range []string{"refs/heads", "refs/remotes", "refs/mirrors"} {
				if fi, err := os.Stat(repo.Dir().Path() + "/" + dir); err != nil || fi.Mode().Perm() != 0o755 {
					t.Errorf("%s: got %v, %v, want a directory of mode 755", dir, fi, err)
				}
			}
			check(again)
			if objecttest.HasOstree() {
				objecttest.Ostree(t, repo, "fsck", "--quiet")
			}
		})
	}
}
