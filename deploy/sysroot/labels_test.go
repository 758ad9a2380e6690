package sysroot_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// fileContexts is a small policy.
const fileContexts = `/.*                   u:r:default_t:s0
/                   -d  u:r:root_t:s0
/usr(/.*)?              u:r:usr_t:s0
/etc(/.*)?              u:r:etc_t:s0
/etc/selinux(/.*)?      u:r:policy_t:s0
/etc/.*\.key        --  u:r:key_t:s0
/etc/link           -l  u:r:link_t:s0
/etc/none               <<none>>
/var(/.*)?              u:r:var_t:s0
/var/lib(/.*)?          u:r:lib_t:s0
/boot(/.*)?             u:r:boot_t:s0
/boot/.*/initramfs-.* -- u:r:initrd_t:s0
/usr/lib/modules(/.*)?  u:r:modules_t:s0
`

// addPolicy adds a policy to a tree.
func addPolicy(tree *node) {
	at(tree, "usr/etc/selinux")["config"] = file(0o644, "SELINUX=enforcing\nSELINUXTYPE=x\n")
	at(tree, "usr/etc/selinux/x/policy")["policy.33"] = file(0o644, "binary")
	at(tree, "usr/etc/selinux/x/contexts/files")["file_contexts"] = file(0o644, fileContexts)
}

// labelTree gives the files of a tree the labels of its policy.
func labelTree(tb testing.TB, tree *node) {
	tb.Helper()
	policy := value(selinux.Load(func(name string) ([]byte, error) {
		dir, base := filepath.Split(name)
		n := at(tree, strings.TrimSuffix(dir, "/"))[base]
		if n == nil {
			return nil, fs.ErrNotExist
		}
		return n.Content, nil
	}, "usr/etc/selinux"))(tb)
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		typ := fs.FileMode(0)
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			typ = fs.ModeDir
		case unix.S_IFLNK:
			typ = fs.ModeSymlink
		}
		if label, ok := policy.Label(name, typ); ok {
			n.Xattr("security.selinux", label+"\x00")
		}
		for base, sub := range n.Entries {
			walk(filepath.Join(name, base), sub)
		}
	}
	walk("/", tree)
}

// labelledTree is an osTree with a policy and labels.
func labelledTree(tb testing.TB, version, kernel string, change ...func(tree *node)) *node {
	tb.Helper()
	tree := osTree(version, kernel)
	addPolicy(tree)
	maps.Copy(at(tree, "usr/etc"), names{
		"link": link("conf"), "none": file(0o600, "no label"), "host.key": file(0o600, "key"), "sub": dir(0o755, names{"a.key": dir(0o755, nil)}),
	})
	for _, f := range change {
		f(tree)
	}
	labelTree(tb, tree)
	return tree
}

// labels returns the labels below a directory by their paths: "" for none.
func labels(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	found := map[string]string{}
	testenv.Must(tb, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		found[value(filepath.Rel(dir, name))(tb)] = label(tb, name)
		return nil
	}))
	return found
}

// label returns the label of a file, or "".
func label(tb testing.TB, name string) string {
	tb.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(name, "security.selinux", buf)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	testenv.Must(tb, err)
	return strings.TrimSuffix(string(buf[:n]), "\x00")
}

// checkLabels compares the types of labels.
func checkLabels(tb testing.TB, what string, got, want map[string]string) {
	tb.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		full := want[name]
		if full != "" {
			full = "u:r:" + full + "_t:s0"
		}
		if got[name] != full {
			tb.Errorf("%s: %s has the label %q, want %q", what, name, got[name], full)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			tb.Errorf("%s: also has %s, with the label %q", what, name, got[name])
		}
	}
}

var (
	etcLabels = map[string]string{
		".": "etc", "conf": "etc", "same": "etc", "empty": "etc", "link": "link", "none": "usr", "host.key": "key", "sub": "etc", "sub/a.key": "etc",
		"selinux": "policy", "selinux/config": "policy", "selinux/x": "policy", "selinux/x/policy": "policy", "selinux/x/policy/policy.33": "policy",
		"selinux/x/contexts": "policy", "selinux/x/contexts/files": "policy", "selinux/x/contexts/files/file_contexts": "policy",
	}
	varLabels = map[string]string{".": "var", ".ostree-selabeled": "var", "lib": "lib", "lib/db": "lib"}
)

// and returns a map with more entries.
func and(m map[string]string, more map[string]string) map[string]string {
	m = maps.Clone(m)
	maps.Copy(m, more)
	return m
}

func (b *bed) etcLabels() map[string]string {
	b.t.Helper()
	return labels(b.t, filepath.Join(b.path, b.load().Default().Path(), "etc"))
}

// checkRepo has all objects compared with their checksums, which cover labels.
func (b *bed) checkRepo() {
	b.t.Helper()
	r := value(b.Repo().Fsck(b.t.Context(), objectstore.FsckOptions{}))(b.t)
	if len(r.Problems) > 0 {
		b.t.Errorf("the repository is damaged: %+v", r)
	}
}

// TestLabels deploys a tree with labels, and upgrades it with changes in /etc.
func TestLabels(t *testing.T) {
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	commitTree(t, b.Repo(), "os/2", "2", labelledTree(t, "2", "b"))
	b.deploy(ref(b, "1"))
	checkLabels(t, "/etc", b.etcLabels(), etcLabels)
	for _, name := range []string{"etc", "etc/link", "etc/sub", "etc/conf"} { // as the kernel writes them
		name = filepath.Join(b.path, b.load().Default().Path(), name)
		if n := value(unix.Lgetxattr(name, "security.selinux", nil))(t); n != len(label(t, name))+1 {
			t.Errorf("%s: the label does not end with a zero byte", name)
		}
	}
	stateroot := filepath.Join(b.path, "ostree/deploy/os")
	checkLabels(t, "/var", labels(t, stateroot+"/var"), varLabels)

	// Changes that no label follows, or a wrong one. The last is a local change of the policy.
	etc := filepath.Join(b.path, b.load().Deployments[0].Path(), "etc")
	b.changeEtc()
	for name, text := range map[string]string{"new.key": "k", "new": "n", "conf": "changed", "selinux/x/contexts/files/file_contexts.local": "/etc/new -- u:r:new_t:s0\n"} {
		testenv.Must(t, os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644))
		testenv.Must(t, unix.Lsetxattr(filepath.Join(etc, name), "security.selinux", []byte("u:r:wrong_t:s0"), 0))
	}
	testenv.Must(t, os.Symlink("conf", filepath.Join(etc, "second")))
	testenv.Must(t, unix.Mkfifo(filepath.Join(etc, "fifo"), 0o600))
	// What happened in /var stays.
	testenv.Must(t, os.WriteFile(stateroot+"/var/lib/new", nil, 0o644))

	b.deploy(ref(b, "2"))
	want := and(etcLabels, map[string]string{
		"new.key": "key", "new": "new", "added": "etc", "second": "etc", "fifo": "etc", "selinux/x/contexts/files/file_contexts.local": "policy",
	})
	delete(want, "same")
	checkLabels(t, "/etc after an upgrade", b.etcLabels(), want)
	checkLabels(t, "/var after an upgrade", labels(t, stateroot+"/var"), and(varLabels, map[string]string{"lib/new": ""}))
	b.checkRepo()
}

// TestLabelsOfStaged: a staged deployment gets its labels when it is finalized.
func TestLabelsOfStaged(t *testing.T) {
	b := newSysroot(t)
	b = openSysroot(t, b.path, sysroot.Options{})
	b.run = t.TempDir()
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	commitTree(t, b.Repo(), "os/2", "2", labelledTree(t, "2", "b"))
	b.deploy(ref(b, "1"))
	b.boot(0)
	b.deploy(ref(b, "2"), func(r *sysroot.Request) { r.Stage = true })
	etc := filepath.Join(b.path, b.load().Deployments[0].Path(), "etc")
	testenv.Must(t, os.WriteFile(filepath.Join(etc, "late.key"), []byte("k"), 0o600))
	testenv.Must(t, finalizeOnce(b))
	checkLabels(t, "/etc", b.etcLabels(), and(etcLabels, map[string]string{"late.key": "key"}))
	b.checkRepo()
}

// TestNoLabels: a tree without labels gets none. Without a policy, /var counts as labelled; with one, that is left to a
// deployment that has labels.
func TestNoLabels(t *testing.T) {
	b := newSysroot(t)
	tree := osTree("1", "a")
	addPolicy(tree)
	commitTree(t, b.Repo(), "os/1", "1", tree)
	none := func(what string, got map[string]string) {
		t.Helper()
		for name, label := range got {
			if label != "" {
				t.Errorf("%s: %s has the label %q", what, name, label)
			}
		}
	}
	b.deploy(ref(b, "1"), func(r *sysroot.Request) { r.NoSELinux = true })
	stateroot := filepath.Join(b.path, "ostree/deploy/os")
	none("system without labels", labels(t, b.path))
	if _, err := os.Lstat(stateroot + "/var/.ostree-selabeled"); !os.IsNotExist(err) {
		t.Errorf("/var of a system without labels: got error %v, want no record", err)
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(t.Context(), st, st.Default(), []string{"quiet"}, nil)
	})
	none("/etc with other kernel arguments", b.etcLabels())
	commitTree(t, b.Repo(), "os/2", "2", labelledTree(t, "2", "b"))
	b.deploy(ref(b, "2"))
	checkLabels(t, "/var", labels(t, stateroot+"/var"), varLabels)
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(t.Context(), st, st.Default(), []string{"quiet"}, nil)
	})
	checkLabels(t, "/etc with other kernel arguments", b.etcLabels(), etcLabels)

	testenv.Must(t, b.InitStateroot("other"))
	commitTree(t, b.Repo(), "os/3", "3", osTree("3", "c"))
	b.deploy(ref(b, "3"), func(r *sysroot.Request) { r.Stateroot = "other" })
	other := filepath.Join(b.path, "ostree/deploy/other/var")
	none("/var without a policy", labels(t, other))
	if st := value(os.Lstat(other + "/.ostree-selabeled"))(t); st.Size() != 0 || st.Mode() != 0o644 {
		t.Errorf("record: %d bytes, mode %v", st.Size(), st.Mode())
	}
}

// TestLabelsOfLinks: another name of a file in /var may be an object, whose label is part of its checksum.
func TestLabelsOfLinks(t *testing.T) {
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	dir := filepath.Join(b.path, "ostree/deploy/os/var/store")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	sum := value(b.Repo().Lookup(value(b.Repo().Commit(ref(b, "1")))(t).Root(), "usr/bin/sh"))(t).Checksum.String()
	object := filepath.Join(b.path, "ostree/repo/objects", sum[:2], sum[2:]+".file")
	testenv.Must(t, os.Link(object, dir+"/object"))
	testenv.Must(t, os.Symlink(object, dir+"/symlink"))
	b.deploy(ref(b, "1"))
	checkLabels(t, "/var", labels(t, dir), map[string]string{".": "var", "symlink": "var", "object": "usr"})
	b.checkRepo()
}

// TestLabelsOfStore: the objects of a repository in /var, such as the store of containers, may have one name each.
func TestLabelsOfStore(t *testing.T) {
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	lib := filepath.Join(b.path, "ostree/deploy/os/var/lib")
	testenv.Must(t, os.MkdirAll(lib+"/store/repo", 0o755))
	testenv.Must(t, os.MkdirAll(lib+"/git/objects", 0o755))
	testenv.Must(t, os.WriteFile(lib+"/git/config", []byte("[core]\n\trepositoryformatversion = 0\n"), 0o644))
	store := objecttest.NewRepoAt(t, objecttest.OpenDir(t, lib+"/store/repo"))
	commitTree(t, store, "layer", "1", osTree("1", "b"))
	b.deploy(ref(b, "1"))
	objecttest.Fsck(t, store)
	objects, err := filepath.Glob(filepath.Join(lib, "store/repo/objects/*/*.file"))
	testenv.Must(t, err)
	if len(objects) == 0 {
		t.Error("the store has no objects")
	}
	for _, name := range objects {
		if got := label(t, name); got != "" {
			t.Errorf("object %s has the label %q", name, got)
		}
	}
	for _, name := range []string{"store/repo/config", "store/repo/objects", "git/objects"} {
		if got := label(t, filepath.Join(lib, name)); got != "u:r:lib_t:s0" {
			t.Errorf("%s has the label %q", name, got)
		}
	}
}

// TestBadPolicy: a policy that nobody can use is refused with the file and line.
func TestBadPolicy(t *testing.T) {
	b := newSysroot(t)
	tree := labelledTree(t, "1", "a")
	at(tree, "usr/etc/selinux/x/contexts/files")["file_contexts.local"] = file(0o644, "\n/x\n")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	commitTree(t, b.Repo(), "os/2", "2", labelledTree(t, "2", "a"))
	st := b.load()
	_, err := b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
	if !errors.Is(err, selinux.ErrInvalid) || !strings.Contains(err.Error(), "/usr/etc/selinux/x/contexts/files/file_contexts.local: line 2: ") {
		t.Errorf("got error %v, want %v with file and line", err, selinux.ErrInvalid)
	}

	commitTree(t, b.Repo(), "os/dir", "1", labelledTree(t, "1", "a", func(tree *node) {
		at(tree, "usr/etc/selinux/x/contexts/files")["file_contexts.local"] = dir(0o755, nil)
	}))
	_, err = b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "dir")})
	if !errors.Is(err, selinux.ErrInvalid) || !strings.Contains(err.Error(), "/usr/etc/selinux/x/contexts/files/file_contexts.local: is a directory") {
		t.Errorf("a directory: got error %v, want %v with the path", err, selinux.ErrInvalid)
	}

	// The administrator's own, which only the merge of /etc brings into the deployment, broken after it was planned.
	b.deploy(ref(b, "2"))
	local := filepath.Join(b.path, b.load().Default().Path(), "etc/selinux/x/contexts/files/file_contexts.local")
	testenv.Must(t, os.WriteFile(local, []byte("/y u:r:y_t:s0\n"), 0o644))
	st = b.load()
	p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default()}))(t)
	testenv.Must(t, os.WriteFile(local, []byte("/y\n"), 0o644))
	before := snapshot(t, b.path)
	if err := b.Execute(t.Context(), p); !errors.Is(err, selinux.ErrInvalid) || !strings.Contains(err.Error(), "/etc/selinux/x/contexts/files/file_contexts.local: line 1: ") {
		t.Errorf("got error %v, want %v with file and line", err, selinux.ErrInvalid)
	}
	if snapshot(t, b.path) != before {
		t.Error("the sysroot was changed")
	}
}

// TestLabelsAsOSTree compares the labels of a sysroot that we write, on a host without SELinux, with those that ostree(1)
// writes on one with it, as far as a preloaded library can make it believe that.
func TestLabelsAsOSTree(t *testing.T) {
	objecttest.NeedsOstree(t)
	lib := testenv.SELinuxHost(t)
	for name, ownBoot := range map[string]bool{"one file system": false, "own boot": true} {
		t.Run(name, func(t *testing.T) {
			var got [2]map[string]string
			for i := range got {
				got[i] = deployLabelled(t, ownBoot, i == 0, lib)
			}
			for _, name := range slices.Sorted(maps.Keys(and(got[0], got[1]))) {
				want, ok := got[0][name]
				if kernel := bootFile.FindStringSubmatch(name); kernel != nil {
					// Without a file system of its own, ostree links the kernel, and has the label of the object. Else it
					// looks up another path.
					want = map[string]string{"vmlinuz": "u:r:boot_t:s0", "initramfs": "u:r:initrd_t:s0"}[kernel[1]]
				}
				switch {
				case strings.HasPrefix(name, "ostree/repo"):
					// Checksums cover labels of objects; the rest is the repository's.
				case ok && want != got[1][name]:
					t.Errorf("%s: ostree %q, ours %q", name, want, got[1][name])
				case !ok && got[1][name] == "": // such as /var, and directories that later versions of ostree create
					t.Errorf("%s: ours has no label", name)
				}
			}
		})
	}
}

// deployLabelled makes two deployments, the second with local changes, and one in another stateroot, and returns the labels of
// the whole sysroot.
func deployLabelled(t *testing.T, ownBoot, byOSTree bool, lib string) map[string]string {
	t.Helper()
	b := newSysroot(t)
	testenv.Must(t, b.InitStateroot("other"))
	boot := filepath.Join(b.path, "boot")
	if ownBoot {
		bind(t, testenv.MemoryDir(t), boot)
		b = openSysroot(t, b.path, sysroot.Options{})
	}
	change := func(tree *node) {
		delete(at(tree, "usr/etc"), "none") // ostree 2022.7 crashes
	}
	for _, v := range []string{"1", "2"} {
		commitTree(t, b.Repo(), "os/"+v, v, labelledTree(t, v, v, change))
	}
	deploy := func(version, stateroot string) {
		b.deploy(ref(b, version), func(r *sysroot.Request) { r.Stateroot = stateroot })
	}
	if byOSTree {
		// The labels that the administrator gave the file systems.
		for name := range labels(t, b.path) {
			if strings.HasPrefix(name, "ostree") && !strings.HasPrefix(name, "ostree/repo") || name == "." {
				setLabel(t, filepath.Join(b.path, name), "u:r:root_t:s0")
			}
		}
		setLabel(t, boot, "u:r:boot_t:s0")
		t.Setenv("LD_PRELOAD", lib)
		defer func() { testenv.Must(t, os.Unsetenv("LD_PRELOAD")) }()
		deploy = func(version, stateroot string) { b.admin("deploy", "--os="+stateroot, "os/"+version) }
	}
	deploy("1", "os")
	b.changeEtc()
	etc := filepath.Join(b.path, b.load().Default().Path(), "etc")
	testenv.Must(t, os.WriteFile(etc+"/new.key", []byte("k"), 0o600))
	testenv.Must(t, os.MkdirAll(etc+"/dir/sub", 0o755))
	testenv.Must(t, os.Symlink("conf", etc+"/dir/sub/symlink"))
	for _, name := range []string{"conf", "added", "dir", "dir/sub", "dir/sub/symlink"} { // as the kernel does
		setLabel(t, filepath.Join(etc, name), "u:r:etc_t:s0")
	}
	setLabel(t, etc+"/new.key", "u:r:key_t:s0")
	deploy("2", "os")
	deploy("2", "other")
	b.checkRepo()
	return labels(t, b.path)
}

var bootFile = regexp.MustCompile(`^boot/ostree/[^/]*/(vmlinuz|initramfs)-`)

func setLabel(tb testing.TB, name, label string) {
	tb.Helper()
	testenv.Must(tb, unix.Lsetxattr(name, "security.selinux", []byte(label), 0))
}

// TestLabelsOfBoot: kernels get their own inodes where the labels differ, new entries and links get labels whatever changes,
// and an origin file keeps its label.
func TestLabelsOfBoot(t *testing.T) {
	b := newSysroot(t)
	for _, v := range []string{"1", "2"} {
		commitTree(t, b.Repo(), "os/"+v, v, labelledTree(t, v, v))
		b.deploy(ref(b, v))
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanRollback(st) })
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 0, true) })
	for name, label := range labels(t, filepath.Join(b.path, "boot")) {
		want := "u:r:boot_t:s0"
		if strings.HasPrefix(filepath.Base(name), "initramfs-") {
			want = "u:r:initrd_t:s0"
		}
		if label != want {
			t.Errorf("/boot/%s has the label %q, want %q", name, label, want)
		}
	}
	for _, link := range value(filepath.Glob(b.path + "/ostree/boot.*"))(t) {
		for name, label := range labels(t, link) {
			if label != "u:r:root_t:s0" {
				t.Errorf("%s/%s has the label %q", link, name, label)
			}
		}
	}
	origin := filepath.Join(b.path, b.load().Default().Path()+".origin")
	if got := label(t, origin); got != "u:r:etc_t:s0" {
		t.Errorf("origin file: label %q", got)
	}
	b.checkRepo()
}

// TestLabelsNotSupported: /boot is on a file system without labels.
func TestLabelsNotSupported(t *testing.T) {
	b := newSysroot(t)
	bind(t, testenv.NewDisk(t, "ext4", 16<<20, "-O", "^ext_attr").Dir, filepath.Join(b.path, "boot"))
	b = openSysroot(t, b.path, sysroot.Options{})
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	b.deploy(ref(b, "1"))
	checkLabels(t, "/etc", b.etcLabels(), etcLabels)
}

// TestRefusedLabel: a kernel with SELinux refuses labels that its own policy does not know.
func TestRefusedLabel(t *testing.T) {
	b := newSysroot(t)
	b.run = t.TempDir()
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	before := snapshot(t, b.path)
	times := 0
	b.reopen(func(op atfs.Op, name string) error {
		if op != atfs.OpSetxattr || !strings.HasSuffix(name, ".0/etc/host.key") {
			return nil
		}
		if times++; times == 1 {
			return nil // the label of /usr/etc
		}
		return unix.EINVAL
	})
	st := b.load()
	p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}))(t)
	err := b.Execute(t.Context(), p)
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), `label /etc: the running kernel's policy does not know the label "u:r:key_t:s0", and refuses it: `) {
		t.Errorf("got error %v, want %v with the label", err, unix.EINVAL)
	}
	if snapshot(t, b.path) != before {
		t.Error("the sysroot was changed")
	}
}
