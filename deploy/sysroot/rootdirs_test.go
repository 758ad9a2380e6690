package sysroot_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// addRootDirs adds what images of distributions have at the root, and an image's own directory. Of the links one leads to
// /var.
func addRootDirs(tree *node, config string) {
	tree.Entries[".marker"] = file(0o644, "marker")
	tree.Entries["srv"] = link("var/srv")
	at(tree, "home")
	at(tree, "mnt")
	at(tree, "opt/app")["program"] = file(0o755, "program")
	at(tree, "root")[".bashrc"] = file(0o600, "alias")
	at(tree, "root")["link"] = link("/opt/app/program")
	if config != "" {
		at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, config)
	}
}

// own reports whether a file of the first deployment has an inode of its own.
func (b *bed) own(t *testing.T, name string) bool {
	t.Helper()
	var st unix.Stat_t
	testenv.Must(t, unix.Lstat(filepath.Join(b.path, b.load().Default().Path(), name), &st))
	return st.Nlink == 1
}

// TestRootDirs: files that the running system can write to are not those of the repository, and what it writes outside of
// /etc and /var is lost.
func TestRootDirs(t *testing.T) {
	testenv.NeedsTool(t, "ostree")
	b := newSysroot(t)
	tree := osTree("1", "a")
	addRootDirs(tree, "")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	var p *sysroot.Plan
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		var err error
		p, err = b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
		return p, err
	})
	const note = "The directories /home, /opt and /root are part of the tree: what the running system writes there is lost with the next deployment."
	if got := strings.Join(p.Notes, "\n"); got != note {
		t.Errorf("got the notes %q, want %q", got, note)
	}
	for _, name := range []string{".marker", "opt/app/program", "root/.bashrc", "root/link"} {
		if !b.own(t, name) {
			t.Errorf("%s is a link to the object", name)
		}
	}
	if b.own(t, "usr/bin/sh") {
		t.Error("usr/bin/sh is a copy")
	}
	root := filepath.Join(b.path, b.load().Default().Path())
	st, err := os.Stat(root + "/opt/app/program")
	testenv.Must(t, err)
	if st.Mode().Perm() != 0o755 || st.ModTime().Unix() != 0 {
		t.Errorf("opt/app/program: got mode %v, mtime %v", st.Mode(), st.ModTime())
	}
	// What an administrator does with a shell.
	f, err := os.OpenFile(root+"/root/.bashrc", os.O_WRONLY|os.O_APPEND, 0)
	testenv.Must(t, err)
	_, err = f.WriteString("changed")
	testenv.Must(t, errors.Join(err, f.Close()))
	objecttest.Ostree(t, b.Repo(), "fsck")
}

// TestRootDirsComposefs: a composefs image has its files from the repository, and nobody can write to them. Whether an image
// that the tree does not demand becomes the root depends on its initramfs.
func TestRootDirsComposefs(t *testing.T) {
	const readOnly = "The directories /home and /root are part of the tree: the running system cannot write there."
	for name, tt := range map[string]struct {
		config, note string
		own          bool
	}{
		"read-only": {"[composefs]\nenabled=yes\n", readOnly, false},
		"transient": {"[composefs]\nenabled=yes\n[root]\ntransient=true\n", "", false},
		"maybe":     {"[composefs]\nenabled=maybe\n", readOnly, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newSysroot(t)
			tree := osTree("1", "a")
			addRootDirs(tree, tt.config)
			commitTree(t, b.Repo(), "os/1", "1", tree)
			var p *sysroot.Plan
			b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
				var err error
				p, err = b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
				return p, err
			})
			if got := strings.Join(p.Notes, "\n"); got != tt.note {
				t.Errorf("got the notes %q, want %q", got, tt.note)
			}
			if own := b.own(t, "opt/app/program"); own != tt.own {
				t.Errorf("opt/app/program is a copy: %v, want %v", own, tt.own)
			}
		})
	}
}

// TestRootDirsSpace: copies that do not fit are refused before anything is written.
func TestRootDirsSpace(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 48<<20, "-m", "0", "-b", "4096")
	initSysroot(t, disk.Dir)
	b := openSysroot(t, disk.Dir, sysroot.Options{})
	tree := osTree("1", "a")
	at(tree, "opt")["big"] = file(0o644, strings.Repeat("x", 6<<20))
	commitTree(t, b.Repo(), "os/1", "1", tree)
	fill(t, disk.Dir, 4<<20)
	before := snapshot(t, b.path)
	_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
	if !errors.Is(err, sysroot.ErrNoSpace) || !strings.Contains(err.Error(), "what the deployment has outside of /usr and /var needs 6") {
		t.Errorf("got error %v, want %v", err, sysroot.ErrNoSpace)
	}
	if snapshot(t, b.path) != before {
		t.Error("the sysroot was changed")
	}
}

// TestTransientEtc: local changes of /etc have no effect once the tree has a transient one.
func TestTransientEtc(t *testing.T) {
	const note = "/etc is the tree's at each boot (/usr/lib/ostree/prepare-root.conf): local changes of it are kept, without effect."
	b := newSysroot(t)
	tree := osTree("1", "a")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[etc]\ntransient=true\n")
	commitTree(t, b.Repo(), "os/2", "2", tree)
	b.deploy(ref(b, "1"))
	plan := func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default()})
	}
	if p := value(plan(b.load()))(t); len(p.Notes) != 0 {
		t.Errorf("without changes: got the notes %q", p.Notes)
	}
	testenv.Must(t, os.WriteFile(filepath.Join(b.path, b.load().Default().Path(), "etc/conf"), []byte("mine"), 0o644))
	if p := b.do(plan); strings.Join(p.Notes, "\n") != note {
		t.Errorf("got the notes %q, want %q", p.Notes, note)
	}
	if got, err := os.ReadFile(filepath.Join(b.path, b.load().Default().Path(), "etc/conf")); err != nil || string(got) != "mine" {
		t.Errorf("the change is not kept: %q, %v", got, err)
	}
}
