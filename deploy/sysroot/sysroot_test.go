package sysroot_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func TestInit(t *testing.T) {
	testenv.NeedsRoot(t)
	path := testenv.MemoryDir(t)
	testenv.Must(t, os.WriteFile(filepath.Join(path, "other"), nil, 0o600))
	testenv.Must(t, os.MkdirAll(filepath.Join(path, "ostree/repo/tmp"), 0o755)) // of an interrupted process
	d := objecttest.OpenDir(t, path)
	testenv.Must(t, sysroot.Init(d))
	if err := sysroot.Init(d); !errors.Is(err, sysroot.ErrExists) {
		t.Errorf("again: got error %v, want %v", err, sysroot.ErrExists)
	}
	b := openSysroot(t, path, sysroot.Options{})
	if st := b.load(); len(st.Deployments) != 0 || st.Default() != nil || st.Rollback() != nil || st.MergeDeployment("os") != nil {
		t.Errorf("got %+v", st)
	}
	testenv.Must(t, b.InitStateroot("os"))
	if err := b.InitStateroot("os"); !errors.Is(err, sysroot.ErrExists) {
		t.Errorf("stateroot again: got error %v, want %v", err, sysroot.ErrExists)
	}
	testenv.Must(t, b.InitStateroot("another-1.0_x"))
	for _, name := range []string{"", ".", "..", ".x", "-x", "a/b", "a b", "a\nb", "é", strings.Repeat("x", 65)} {
		if err := b.InitStateroot(name); !errors.Is(err, sysroot.ErrInvalid) {
			t.Errorf("stateroot %q: got error %v, want %v", name, err, sysroot.ErrInvalid)
		}
	}
	if names := value(b.Stateroots())(t); !slices.Equal(names, []string{"another-1.0_x", "os"}) {
		t.Errorf("stateroots: got %q", names)
	}
	if objecttest.HasOstree() {
		b.admin("status")
	}
}

func TestOpenWhatIsNoSysroot(t *testing.T) {
	testenv.NeedsRoot(t)
	dirs := func(t *testing.T, names ...string) string {
		t.Helper()
		path := t.TempDir()
		for _, n := range names {
			testenv.Must(t, os.MkdirAll(filepath.Join(path, n), 0o755))
		}
		return path
	}
	for _, tt := range []struct {
		name string
		path func(t *testing.T) string
		want error
		text string
	}{
		{"empty", func(t *testing.T) string { return dirs(t) }, sysroot.ErrNotSysroot, "there is no directory ostree/deploy"},
		{"no repository", func(t *testing.T) string { return dirs(t, "ostree/deploy", "ostree/repo") }, sysroot.ErrNotSysroot, "objects"},
		{"no boot", func(t *testing.T) string {
			path := dirs(t)
			initSysroot(t, path)
			testenv.Must(t, os.Remove(path+"/boot"))
			return path
		}, sysroot.ErrNotSysroot, "boot"},
		{"archive", func(t *testing.T) string {
			objecttest.NeedsOstree(t)
			path := dirs(t, "ostree/deploy", "boot")
			if out, err := exec.Command("ostree", "init", "--mode=archive", "--repo="+path+"/ostree/repo").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return path
		}, nil, `has mode "archive-z2"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := sysroot.Open(objecttest.OpenDir(t, tt.path(t)), sysroot.Options{})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %v, want %v, %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestLock(t *testing.T) {
	b := newSysroot(t)
	other := openSysroot(t, b.path, sysroot.Options{})
	unlock := value(b.Lock(t.Context()))(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := other.Lock(cancelled); !errors.Is(err, sysroot.ErrLocked) || !errors.Is(err, context.Canceled) {
		t.Errorf("locked by another: got error %v", err)
	}
	got := make(chan error)
	go func() {
		unlock, err := other.Lock(t.Context())
		if err == nil {
			err = unlock()
		}
		got <- err
	}()
	testenv.Must(t, unlock())
	testenv.Must(t, unlock()) // does nothing
	testenv.Must(t, <-got)
	if _, err := os.Stat(filepath.Join(b.path, "ostree/lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of the lock: got error %v", err)
	}
	// As in libostree.
	f := value(os.OpenFile(filepath.Join(b.path, "ostree/lock"), os.O_CREATE|os.O_RDWR, 0o600))(t)
	defer f.Close()
	testenv.Must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	if _, err := b.Lock(cancelled); !errors.Is(err, sysroot.ErrLocked) {
		t.Errorf("locked by libostree: got error %v, want %v", err, sysroot.ErrLocked)
	}
}

func TestReadOnly(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 32<<20)
	initSysroot(t, disk.Dir)
	b := openSysroot(t, disk.Dir, sysroot.Options{})
	b.commit("1", "a")
	b.commit("2", "b")
	b.deploy(ref(b, "1"))
	b.deploy(ref(b, "2"))
	testenv.Remount(t, disk.Dir, unix.MS_RDONLY, "")
	defer testenv.Remount(t, disk.Dir, 0, "")
	st := b.load()
	for name, f := range map[string]func() error{
		"lock":      func() error { _, err := b.Lock(t.Context()); return err },
		"stateroot": func() error { return b.InitStateroot("x") },
		"deploy": func() error {
			_, err := b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
			return err
		},
		"undeploy": func() error { _, err := b.PlanUndeploy(st, 1); return err },
		"rollback": func() error { _, err := b.PlanRollback(st); return err },
		"pin":      func() error { _, err := b.PlanPin(st, 0, true); return err },
		"cleanup":  func() error { _, err := b.PlanCleanup(t.Context(), st); return err },
	} {
		if err := f(); !errors.Is(err, sysroot.ErrReadOnly) || !strings.Contains(err.Error(), "is mounted read-only") {
			t.Errorf("%s: got error %v, want %v", name, err, sysroot.ErrReadOnly)
		}
	}
}

// TestLoadCorrupt: states that no tool leaves behind are refused, and nothing outside the sysroot is read.
func TestLoadCorrupt(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, path string)
	}{
		{"loader elsewhere", func(t *testing.T, path string) { relink(t, "loader.2", path+"/boot/loader") }},
		{"loader outside", func(t *testing.T, path string) { relink(t, "../../loader.0", path+"/boot/loader") }},
		{"boot.1 elsewhere", func(t *testing.T, path string) { relink(t, "boot.0.1", path+"/ostree/boot.1") }},
		{"loader no link", func(t *testing.T, path string) {
			testenv.Must(t, os.Remove(path+"/boot/loader"))
			testenv.Must(t, os.Mkdir(path+"/boot/loader", 0o755))
		}},
		{"no link", func(t *testing.T, path string) { testenv.Must(t, os.Remove(bootLink(t, path))) }},
		{"link to a sibling", func(t *testing.T, path string) {
			relink(t, "../../../deploy/other/deploy/"+strings.Repeat("0", 64)+".0", bootLink(t, path))
		}},
		{"link outside", func(t *testing.T, path string) { relink(t, "/etc", bootLink(t, path)) }},
		{"no deployment", func(t *testing.T, path string) {
			thaw(t, path)
			for _, name := range value(filepath.Glob(path + "/ostree/deploy/os/deploy/*.0"))(t) {
				testenv.Must(t, os.RemoveAll(name))
			}
		}},
		{"entry of zeros", func(t *testing.T, path string) {
			testenv.Must(t, os.WriteFile(entry(t, path), make([]byte, 100), 0o644))
		}},
		{"ostree= strange", func(t *testing.T, path string) {
			testenv.Must(t, os.WriteFile(entry(t, path), []byte("options ostree=/x\n"), 0o644))
		}},
		{"ostree= of the other version", func(t *testing.T, path string) {
			text := string(value(os.ReadFile(entry(t, path)))(t))
			testenv.Must(t, os.WriteFile(entry(t, path), []byte(strings.Replace(text, "boot.1", "boot.0", 1)), 0o644))
		}},
		{"origin", func(t *testing.T, path string) {
			for _, name := range value(filepath.Glob(path + "/ostree/deploy/os/deploy/*.origin"))(t) {
				testenv.Must(t, os.WriteFile(name, []byte("x"), 0o644))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newSysroot(t)
			b.commit("1", "a")
			b.deploy(ref(b, "1"))
			b.load()
			tt.damage(t, b.path)
			if st, err := b.Load(t.Context()); !errors.Is(err, sysroot.ErrCorrupt) {
				t.Errorf("got %+v, error %v, want %v", st, err, sysroot.ErrCorrupt)
			}
		})
	}
}

func relink(t *testing.T, target, name string) {
	t.Helper()
	testenv.Must(t, os.Remove(name))
	testenv.Must(t, os.Symlink(target, name))
}

func entry(t *testing.T, path string) string {
	t.Helper()
	return value(filepath.Glob(path + "/boot/loader/entries/*.conf"))(t)[0]
}

func bootLink(t *testing.T, path string) string {
	t.Helper()
	return value(filepath.Glob(path + "/ostree/boot.1.1/os/*/0"))(t)[0]
}

// TestChanged: a plan is not executed on a sysroot that has changed since.
func TestChanged(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.commit("2", "b")
	b.deploy(ref(b, "1"))
	p := value(b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "2")}))(t)
	b.deploy(ref(b, "2"))
	before := snapshot(t, b.path)
	if err := b.Execute(t.Context(), p); !errors.Is(err, sysroot.ErrChanged) {
		t.Errorf("got error %v, want %v", err, sysroot.ErrChanged)
	}
	if snapshot(t, b.path) != before {
		t.Error("the sysroot was changed")
	}
}

// TestVar: an empty /var gets the commit's contents, once, and the directories that systems expect and do not create.
func TestVar(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	tree := osTree("2", "a")
	delete(tree.Entries["usr"].Entries["lib"].Entries, "tmpfiles.d")
	tree.Entries["var"].Entries["lib"].Entries["db"] = file(0o640, "other").Own(3, 4)
	commitTree(t, b.Repo(), "os/2", "2", tree)
	list := func(name string) string {
		return strings.Join(list(t, filepath.Join(b.path, "ostree/deploy", name), "var", true), "\n")
	}
	b.deploy(ref(b, "1"))
	const want = "var/\nvar/.ostree-selabeled: \nvar/lib/\nvar/lib/db: data"
	if got := list("os"); got != want {
		t.Errorf("first:\ngot  %q\nwant %q", got, want)
	}
	// It is a copy: changing it does not change the object.
	testenv.Must(t, os.WriteFile(filepath.Join(b.path, "ostree/deploy/os/var/lib/db"), []byte("mine"), 0o644))
	testenv.Must(t, os.WriteFile(filepath.Join(b.path, "ostree/deploy/os/var/.updated"), nil, 0o644))
	b.deploy(ref(b, "2"))
	if got, want := list("os"), strings.Replace(want, "data", "mine", 1); got != want {
		t.Errorf("later:\ngot  %q\nwant %q", got, want)
	}
	testenv.Must(t, b.InitStateroot("other"))
	b.deploy(ref(b, "2"), func(r *sysroot.Request) { r.Stateroot = "other" })
	if got, want := list("other"), "var/\nvar/.ostree-selabeled: \nvar/lib/\nvar/lib/db: other\nvar/lock -> ../run/lock\nvar/log/\nvar/run -> ../run\nvar/tmp/"; got != want {
		t.Errorf("of a system without tmpfiles.d:\ngot  %q\nwant %q", got, want)
	}
	if fi := value(os.Stat(filepath.Join(b.path, "ostree/deploy/other/var/tmp")))(t); fi.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("var/tmp has mode %v", fi.Mode())
	}
	if left := value(filepath.Glob(filepath.Join(b.path, "ostree/deploy/*/var.*")))(t); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	objecttest.Fsck(t, b.Repo())
}

// TestSysrootLinks deploys a tree with /tmp and /boot as rpm-ostree makes them. The directories exist.
func TestSysrootLinks(t *testing.T) {
	b := newSysroot(t)
	tree := osTree("1", "a")
	tree.Entries["tmp"] = link("sysroot/tmp")
	tree.Entries["boot"] = link("sysroot/boot")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	for range 2 {
		b.deploy(ref(b, "1"))
	}
	root := filepath.Join(b.path, b.load().Deployments[0].Path())
	for name, want := range map[string]fs.FileMode{"tmp": fs.ModeDir | fs.ModeSticky | 0o777, "boot": fs.ModeDir | 0o755} {
		if target := value(os.Readlink(filepath.Join(root, name)))(t); target != "sysroot/"+name {
			t.Errorf("%s leads to %q", name, target)
		}
		if fi := value(os.Stat(filepath.Join(b.path, name)))(t); fi.Mode() != want {
			t.Errorf("%s of the sysroot has mode %v, want %v", name, fi.Mode(), want)
		}
	}
}

// TestPrune: objects of removed deployments go, those of the others stay, whatever refs the user has.
func TestPrune(t *testing.T) {
	b := newSysroot(t)
	for _, v := range []string{"1", "2", "3"} {
		b.commit(v, v)
	}
	one, two, three := ref(b, "1"), ref(b, "2"), ref(b, "3")
	b.deploy(one)
	testenv.Must(t, b.Repo().DeleteRefs(t.Context(), "os/1", "os/2", "os/3"))
	has := func(sum objectstore.Checksum) bool { return value(b.Repo().Has(objectstore.TypeCommit, sum))(t) }
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		p, err := b.PlanCleanup(t.Context(), st)
		if p != nil {
			p.NoPrune = true
		}
		return p, err
	})
	if !has(three) {
		t.Error("pruned though it was not to be")
	}
	b.deploy(two)
	if !has(one) || !has(two) || has(three) {
		t.Errorf("commits: got %t %t %t, want true true false", has(one), has(two), has(three))
	}
	objecttest.Fsck(t, b.Repo())
	if refs := value(b.Repo().Refs(""))(t); len(refs) != 2 || refs["ostree/0/1/0"] != two || refs["ostree/0/1/1"] != one {
		t.Errorf("refs: got %v", refs)
	}
}

// TestInodes: files of deployments are the repository's, except in /etc.
func TestInodes(t *testing.T) {
	b := newSysroot(t)
	b.commit("1", "a")
	b.deploy(ref(b, "1"))
	root := filepath.Join(b.path, b.load().Deployments[0].Path())
	links := func(name string) uint64 {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(filepath.Join(root, name), &st))
		return uint64(st.Nlink) //nolint:unconvert // arm64 has another type
	}
	if n := links("usr/bin/sh"); n != 2 {
		t.Errorf("usr/bin/sh has %d links, want 2", n)
	}
	if n := links("usr/lib/modules/6.1.0/vmlinuz"); n != 3 { // /boot is on the same file system
		t.Errorf("vmlinuz has %d links, want 3", n)
	}
	if n := links("etc/conf"); n != 1 {
		t.Errorf("etc/conf has %d links, want 1", n)
	}
	d := value(atfs.Open(root))(t)
	defer d.Close()
	if err := d.Mkdir("x", 0o755); !errors.Is(err, unix.EPERM) {
		t.Errorf("make a directory in the root of the deployment: got error %v, want %v", err, unix.EPERM)
	}
}
