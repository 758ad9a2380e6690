package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func promoteTo(t *testing.T, layers *layer.Store, to *objectstore.Repo, img *Image, dryRun bool) *Promoted {
	t.Helper()
	p, err := Promote(t.Context(), layers, to, img, PromoteOptions{DryRun: dryRun})
	testenv.Must(t, err)
	return p
}

func TestPromote(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t)
	to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")

	dry := promoteTo(t, b.layers, to, img, true)
	if dry.Repo == to || dry.Need.Shared == 0 || dry.Need.Objects != 0 {
		t.Errorf("dry run: need %+v in the sysroot's repository: %t, want links in another one", dry.Need, dry.Repo == to)
	}
	if n := len(contentObjects(t, to)); n != 0 {
		t.Errorf("dry run: %d objects are in the sysroot's repository", n)
	}
	testenv.Must(t, dry.Close())
	testenv.Must(t, dry.Close())
	if names, err := os.ReadDir(b.root.Path() + "/tmp"); err != nil || len(names) != 0 {
		t.Errorf("dry run: %v, %v are left in tmp/, want nothing", names, err)
	}

	p := promoteTo(t, b.layers, to, img, false)
	testenv.Must(t, p.Close())
	if p.Commit != dry.Commit {
		t.Errorf("commit %s, that of the dry run is %s", p.Commit, dry.Commit)
	}
	if got, err := to.Ref("ostree/container/image/docker_3A__2F__2F_example_2E_org/os_3A_1"); err != nil || got != p.Commit {
		t.Errorf("ref: got %s, %v, want %s", got, err, p.Commit)
	}
	commit, err := to.Commit(p.Commit)
	testenv.Must(t, err)
	for key, want := range map[string]string{
		"version": "1", "ostree.linux": "6.1.0", "ostree.manifest-digest": img.ManifestDigest.String(),
		"ostree.manifest": string(img.Manifest), "ostree.container.image-config": string(img.Config),
	} {
		if got, _ := commit.MetaString(key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if commit.Timestamp != uint64(img.Created.Unix()) {
		t.Errorf("time %d, want %d", commit.Timestamp, img.Created.Unix())
	}
	// bin/sh, app.conf, os-release, vmlinuz and initramfs.img; the others are layer images and recipes.
	if shared, apart := sharedInodes(t, to, b.repo); shared != 5 || apart != 0 {
		t.Errorf("%d files are one inode in both repositories, %d are two, want 5 and none", shared, apart)
	}
	if len(p.Dropped) != 1 || p.Dropped[0].Path != "/dev/null" {
		t.Errorf("dropped: %v, want /dev/null", p.Dropped)
	}
	again := promoteTo(t, b.layers, to, img, false)
	if again.Commit != p.Commit || again.Need.Shared+again.Need.Objects != 0 {
		t.Errorf("again: commit %s, need %+v, want %s and nothing", again.Commit, again.Need, p.Commit)
	}
}

// TestPromoteApart: users of the host reach the sysroot's repository, and not the store. What they can change in the one
// is not the other's.
func TestPromoteApart(t *testing.T) {
	b := newBed(t)
	open := map[string]file{ // by content
		"user":    {mode: 0o644, uid: 1000},
		"all":     {mode: 0o666},
		"group":   {mode: 0o664},
		"set-uid": {mode: 0o4755},
		"set-gid": {mode: 0o2755},
	}
	var more []file
	for content, f := range open {
		f.name, f.content = "usr/share/"+content, content
		more = append(more, f)
	}
	img := b.osImage(t, append(more, file{name: "usr/share/root", content: "root", mode: 0o755})...)
	// An ordinary user must reach it.
	dir, err := os.MkdirTemp("", "promote-apart-")
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(dir)) })
	testenv.Must(t, os.Chmod(dir, 0o755))
	if st, from := statOf(t, dir), statOf(t, b.root.Path()); st.Dev != from.Dev {
		t.Fatalf("%s and %s are two file systems", dir, b.root.Path())
	}
	to := sysrootRepo(t, dir+"/ostree/repo")

	check := func(t *testing.T, p *Promoted) {
		t.Helper()
		// bin/sh, app.conf, os-release, vmlinuz, initramfs.img and root.
		if shared, apart := sharedInodes(t, to, b.repo); shared != 6 || apart != len(open) {
			t.Errorf("%d files are one inode in both repositories, %d are two, want 6 and %d", shared, apart, len(open))
		}
		for _, sum := range contentObjects(t, to) {
			st, err := to.Stat(sum)
			testenv.Must(t, err)
			from, err := b.repo.Stat(sum)
			if errors.Is(err, objectstore.ErrNotExist) { // created there
				continue
			}
			testenv.Must(t, err)
			_, others := open[contentOf(t, to, sum)]
			if same := st.Ino == from.Ino; same == others {
				t.Errorf("object of mode %o and user %d: the same inode: %t", st.Mode, st.Uid, same)
			}
			if st.Mode != from.Mode || st.Uid != from.Uid || st.Mtim != from.Mtim {
				t.Errorf("copy of mode %o, user %d, time %v: original %o, %d, %v", st.Mode, st.Uid, st.Mtim, from.Mode, from.Uid, from.Mtim)
			}
		}
		objecttest.Fsck(t, to)
		testenv.Must(t, p.Close())
	}
	p := promoteTo(t, b.layers, to, img, false)
	if p.Need.Shared != 6 || p.Need.Objects != len(open) || p.Need.Bytes != int64(len(open))*to.Allocated(1) {
		t.Errorf("need %+v, want 6 links and %d copies of a block", p.Need, len(open))
	}
	check(t, p)
	if again := promoteTo(t, b.layers, to, img, false); again.Need.Shared+again.Need.Objects != 0 {
		t.Errorf("again: need %+v, want nothing", again.Need)
	}

	// What an earlier version linked becomes an inode of its own.
	for _, sum := range contentObjects(t, to) {
		if _, ok := open[contentOf(t, to, sum)]; !ok {
			continue
		}
		name := objectstore.LoosePath(sum, objectstore.TypeFile)
		testenv.Must(t, os.Remove(to.ObjectsDir().Path()+"/"+name))
		testenv.Must(t, os.Link(b.repo.ObjectsDir().Path()+"/"+name, to.ObjectsDir().Path()+"/"+name))
	}
	p = promoteTo(t, b.layers, to, img, false)
	if p.Need.Shared != 0 || p.Need.Objects != len(open) {
		t.Errorf("with links of an earlier version: need %+v, want %d copies", p.Need, len(open))
	}
	check(t, p)

	written := 0
	for _, sum := range contentObjects(t, to) {
		name := to.ObjectsDir().Path() + "/" + objectstore.LoosePath(sum, objectstore.TypeFile)
		write := exec.Command("sh", "-c", `echo changed >"$0"`, name)
		write.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		if write.Run() == nil {
			written++
		}
	}
	if written != 2 { // his own, and the one that is writable for all
		t.Errorf("a user changed %d objects of the system, want 2", written)
	}
	for _, sum := range contentObjects(t, b.repo) {
		testenv.Must(t, b.repo.Verify(objectstore.TypeFile, sum))
	}
	// Both repositories are checked when the test ends.
	for _, sum := range contentObjects(t, to) {
		if contentOf(t, to, sum) == "changed\n" {
			testenv.Must(t, os.Remove(to.ObjectsDir().Path()+"/"+objectstore.LoosePath(sum, objectstore.TypeFile)))
		}
	}
	testenv.Must(t, promoteTo(t, b.layers, to, img, false).Close())
}

// TestOrdinaryUser runs ostree's tools as an ordinary user in a sysroot that Init has made. They open the directory of the
// objects, whatever they are asked for, so that it must not have mode 0700.
func TestOrdinaryUser(t *testing.T) {
	objecttest.NeedsOstree(t)
	b := newBed(t)
	s := newSystem(t)
	p := b.deploy(t, s, Request{Image: b.osImage(t)})
	for _, dir := range []string{filepath.Dir(s.Path), filepath.Dir(filepath.Dir(s.Path))} { // of the test
		testenv.Must(t, os.Chmod(dir, 0o755))
	}
	commit := p.OS.Commit.String()
	for _, args := range [][]string{
		{"admin", "status", "--sysroot=" + s.Path},
		{"show", "--repo=" + s.Repo().Dir().Path(), commit},
		{"ls", "-R", "--repo=" + s.Repo().Dir().Path(), commit},
	} {
		cmd := exec.Command("ostree", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("%s: %v\n%s", cmd, err, out)
		}
	}
}

func statOf(t *testing.T, name string) (st unix.Stat_t) {
	t.Helper()
	testenv.Must(t, unix.Lstat(name, &st))
	return st
}

// contentOf returns the content of a small regular file among the objects, "" for anything else.
func contentOf(t *testing.T, repo *objectstore.Repo, sum objectstore.Checksum) string {
	t.Helper()
	name := repo.ObjectsDir().Path() + "/" + objectstore.LoosePath(sum, objectstore.TypeFile)
	if st := statOf(t, name); st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > 100 {
		return ""
	}
	content, err := os.ReadFile(name)
	testenv.Must(t, err)
	return string(content)
}

// TestPromoteInOneRepo: the store and the sysroot share one repository.
func TestPromoteInOneRepo(t *testing.T) {
	b := newBed(t)
	to, err := objectstore.Open(b.repo.Dir())
	testenv.Must(t, err)
	defer to.Close()
	img := b.osImage(t)
	before := len(contentObjects(t, to))
	p := promoteTo(t, b.layers, to, img, false)
	if p.Need.Objects+p.Need.Shared != 0 {
		t.Errorf("need %+v, want no objects", p.Need)
	}
	// The symbolic link and the empty file.
	if n := len(contentObjects(t, to)) - before; n != 2 {
		t.Errorf("%d objects were added, want 2", n)
	}
	objecttest.Fsck(t, to)
}

// TestPromoteAcrossMounts: the store is on a mount of its own, as /var is on a host that ostree has booted. The kernel
// makes no links from there to the sysroot.
func TestPromoteAcrossMounts(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t)
	// One file system, with the store's root as the var of a stateroot.
	dir := t.TempDir()
	bind(t, filepath.Dir(b.root.Path()), dir+"/sysroot")
	bind(t, b.root.Path(), dir+"/var")
	to := sysrootRepo(t, dir+"/sysroot/ostree/repo")
	root := objecttest.OpenDir(t, dir+"/var")
	repo, err := objectstore.Open(objecttest.OpenDir(t, dir+"/var/repo"))
	testenv.Must(t, err)
	defer repo.Close()
	if how, err := to.Transfers(repo); err != nil || how.Exclusive == objectstore.TransferLink {
		t.Fatalf("transfer: got %v, %v, want that it cannot be linked", how, err)
	}
	p := promoteTo(t, openLayers(t, root, repo), to, img, false)
	if p.Need.Objects != 0 || p.Need.Transfers.Exclusive != objectstore.TransferLink {
		t.Errorf("need %+v, want links", p.Need)
	}
	if shared, apart := sharedInodes(t, to, repo); shared != 5 || apart != 0 {
		t.Errorf("%d files are one inode in both repositories, %d are two, want 5 and none", shared, apart)
	}
}

// TestPromoteElsewhere: the sysroot is on another file system.
func TestPromoteElsewhere(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t)
	to := sysrootRepo(t, testenv.NewDisk(t, "ext4", 16<<20).Dir+"/ostree/repo")
	p := promoteTo(t, b.layers, to, img, false)
	if p.Need.Transfers.Exclusive != objectstore.TransferCopy || p.Need.Objects != 5 || p.Need.Bytes < 396<<10 {
		t.Errorf("need %+v, want copies of 5 files", p.Need)
	}
	small := sysrootRepo(t, testenv.NewDisk(t, "ext4", 256<<10, "-O", "^has_journal").Dir+"/ostree/repo")
	_, err := Promote(t.Context(), b.layers, small, img, PromoteOptions{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "are free") {
		t.Errorf("got error %v, want one with the free space", err)
	}
}

func TestPromoteNotBootable(t *testing.T) {
	b := newBed(t)
	to := sysrootRepo(t, t.TempDir())
	_, err := Promote(t.Context(), b.layers, to, b.image(t, "example.org/app:1", baseFiles), PromoteOptions{})
	if !errors.Is(err, ErrNotBootable) {
		t.Fatalf("got error %v, want %v", err, ErrNotBootable)
	}
	for _, want := range []string{"example.org/app:1", "kernel: ", "directory: /usr", "symbolic link: /ostree", "os-release"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q in it", err, want)
		}
	}
	if n := len(contentObjects(t, to)); n != 0 {
		t.Errorf("%d objects were stored", n)
	}
}

func TestImageCheck(t *testing.T) {
	layers := []objectstore.Checksum{{1}}
	for _, tt := range []struct {
		img  Image
		want string // in the error, "" for none
	}{
		{Image{Layers: layers}, ""},
		{Image{Layers: layers, Version: strings.Repeat("1", maxVersion)}, ""},
		{Image{Layers: layers, Version: strings.Repeat("1", maxVersion+1)}, "too long"},
		{Image{Layers: layers, Version: "1\noptions init=/bin/sh"}, "control characters"},
		{Image{}, "no layers"},
	} {
		err := tt.img.Check()
		if errors.Is(err, oscommit.ErrInvalid) != (tt.want != "") || tt.want != "" && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("version %.20q, %d layers: got error %v, want %q in it", tt.img.Version, len(tt.img.Layers), err, tt.want)
		}
	}
}

// TestPromotePruned: a layer is pruned after the image was found.
func TestPromotePruned(t *testing.T) {
	b := newBed(t)
	img := b.osImage(t)
	img.Layers = append(img.Layers, objectstore.Checksum{1})
	_, err := Promote(t.Context(), b.layers, sysrootRepo(t, t.TempDir()), img, PromoteOptions{})
	if !errors.Is(err, layer.ErrNotExist) || !strings.Contains(err.Error(), "no such layer") {
		t.Errorf("got error %v, want that there is no such layer", err)
	}
}
