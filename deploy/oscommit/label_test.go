package oscommit_test

import (
	"archive/tar"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const fileContexts = `/.*  u:o:default
/  -d  u:o:root
/mnt  -d  u:o:mnt
/proc  -d  u:o:proc
/usr(/.*)?  u:o:usr
/usr/bin/.*  u:o:bin
/usr/bin/dash  --  u:o:dash
/usr/etc(/.*)?  u:o:usretc
/etc(/.*)?  u:o:etc
/etc/shadow  --  u:o:shadow
/usr/share/doc/c  <<none>>
/var/lib(/.*)?  u:o:var
`

// labelledLayers are those of an OS image with a policy, and with files that are hard to label.
func labelledLayers(tb testing.TB) [][]byte {
	tb.Helper()
	xattr := func(name, value string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr." + name: value} }
	}
	link := func(h *tar.Header) { h.Typeflag, h.Linkname, h.Mode = tar.TypeLink, "usr/bin/sh", 0o755 }
	policy := makeTar(tb,
		entry{"etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=x\n", nil},
		entry{"etc/selinux/x/policy/policy.33", "binary", nil},
		entry{"etc/selinux/x/contexts/files/file_contexts", fileContexts, nil},
		entry{"usr/share/of-builder", "builder", xattr(atfs.XattrSELinux, "u:o:builder\x00")}, // the layer drops it
		entry{"usr/share/doc/sh", "", link},
		entry{"usr/share/large", strings.Repeat("0123456789abcdef", 64<<10), nil},
		entry{"usr/bin/link -> sh", "", nil},
		entry{"usr/bin/empty", "", nil},
	)
	return append(osLayers(tb), policy)
}

// labelledTree returns a tree with labels of the policy inside it.
func (b bed) labelledTree(t *testing.T, epoch oscommit.Epoch, layers ...[]byte) *oscommit.Tree {
	t.Helper()
	tree, err := oscommit.NewTree(b.flatten(t, layers...))
	testenv.Must(t, err)
	policy, err := selinux.Load(func(name string) ([]byte, error) { return tree.ReadFile(b.repo, name, 1<<20) }, "etc/selinux")
	testenv.Must(t, err)
	tree.Label(policy, epoch)
	return tree
}

// TestLabelsAreThoseOfOSTree compares the commit with that of ostree commit --selinux-policy.
func TestLabelsAreThoseOfOSTree(t *testing.T) {
	objecttest.NeedsOstree(t)
	b := newBed(t)
	layers := labelledLayers(t)
	sum := b.store(t, b.labelledTree(t, oscommit.EpochUsrEtc, layers...), oscommit.Image{})
	dir := unpackOS(t, layers)
	b.compareWithOSTree(t, sum, dir, "--selinux-policy="+dir)
	objecttest.Fsck(t, b.repo)

	listing := objecttest.Ostree(t, b.repo, "ls", "-RX", "os")
	for path, want := range map[string]string{
		"/": "root", "/proc": "mnt", "/usr/bin/sh": "bin", "/usr/bin/dash": "dash", "/usr/share/doc/sh": "usr", "/usr/bin/link -> sh": "bin",
		"/usr/etc": "usretc", "/usr/etc/shadow": "usretc", "/usr/bin/empty": "bin", "/usr/share/of-builder": "usr", "/var/lib": "var",
	} {
		line := lineOf(listing, path)
		if !strings.Contains(line, "b'u:o:"+want+"')") {
			t.Errorf("%s: got %q, want label u:o:%s", path, line, want)
		}
	}
	if line := lineOf(listing, "/usr/share/doc/c"); line == "" || strings.Contains(line, "selinux") {
		t.Errorf("a file without label: got %q", line)
	}
}

// lineOf returns the line of a listing that ends with a path.
func lineOf(listing, path string) string {
	for line := range strings.Lines(listing) {
		if line = strings.TrimSuffix(line, "\n"); strings.HasSuffix(line, " "+path) {
			return line
		}
	}
	return ""
}

// TestEpoch labels /usr/etc as /etc.
func TestEpoch(t *testing.T) {
	objecttest.NeedsOstree(t)
	b := newBed(t)
	b.store(t, b.labelledTree(t, oscommit.EpochEtc, labelledLayers(t)...), oscommit.Image{})
	listing := objecttest.Ostree(t, b.repo, "ls", "-RX", "os")
	for path, want := range map[string]string{"/usr/etc": "etc", "/usr/etc/motd": "etc", "/usr/etc/shadow": "shadow", "/usr/bin/sh": "bin"} {
		if line := lineOf(listing, path); !strings.Contains(line, "b'u:o:"+want+"')") {
			t.Errorf("%s: got %q, want label u:o:%s", path, line, want)
		}
	}
}

// labelAt returns the label of a regular file of a commit, as its inode has it.
func labelAt(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum, path string) string {
	t.Helper()
	c, err := repo.Commit(commit)
	testenv.Must(t, err)
	tree := c.Tree
	for part := range strings.SplitSeq(filepath.Dir(path), "/") {
		if part == "." {
			break
		}
		d, err := repo.DirTree(tree)
		testenv.Must(t, err)
		i := slices.IndexFunc(d.Dirs, func(d objectstore.TreeDir) bool { return d.Name == part })
		tree = d.Dirs[i].Tree
	}
	d, err := repo.DirTree(tree)
	testenv.Must(t, err)
	i := slices.IndexFunc(d.Files, func(f objectstore.TreeFile) bool { return f.Name == filepath.Base(path) })
	m, err := repo.FileMeta(d.Files[i].Checksum)
	testenv.Must(t, err)
	for _, x := range m.Xattrs {
		if x.Name == atfs.XattrSELinux {
			return string(x.Value)
		}
	}
	return ""
}

// TestStoreLabelled stores labelled trees in another repository, with and without reflinks. The bytes are those that
// Need predicts, and the layers' objects are not touched.
func TestStoreLabelled(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			disk := testenv.NewDisk(t, fstype, 320<<20).Dir
			b := newBedAt(t, disk)
			tree := b.labelledTree(t, oscommit.EpochUsrEtc, labelledLayers(t)...)
			to := sysrootRepo(t, disk+"/sysroot", nil)
			for where, from := range map[string]*objectstore.Repo{"other": b.repo, "same": nil} {
				repo := to
				if from == nil {
					repo = b.repo
				}
				need, err := tree.Need(repo, from)
				testenv.Must(t, err)
				var last oscommit.Progress
				tree.Progress = func(p oscommit.Progress) { last = p }
				sum, err := storeInto(t, tree, repo, from)
				testenv.Must(t, err)
				if last.Bytes != need.Bytes || need.Bytes == 0 != (fstype == "xfs") || last.Objects != last.TotalObjects {
					t.Errorf("%s: %+v, progress ends with %+v, want no copies but on ext4", where, need, last)
				}
				if got := labelAt(t, repo, sum, "usr/bin/sh"); got != "u:o:bin\x00" {
					t.Errorf("%s: label %q", where, got)
				}
				objecttest.Fsck(t, repo)
				objecttest.Fsck(t, b.repo) // its objects are as they were
			}
		})
	}
}

// TestLabelKeepsLabels leaves labels alone for which the policy has no other: the objects are those of the layers.
func TestLabelKeepsLabels(t *testing.T) {
	b := newBed(t)
	own := []composefs.Xattr{{Name: atfs.XattrSELinux, Value: []byte("u:o:own\x00")}}
	stored := objecttest.File(0o644, "content").Xattr(atfs.XattrSELinux, "u:o:own\x00")
	txn, err := b.repo.Begin(t.Context())
	testenv.Must(t, err)
	defer txn.Abort() //nolint:errcheck // nothing to lose
	object, err := txn.StoreFile(stored.FileMeta(), unix.Timespec{}, stored.Content)
	testenv.Must(t, err)
	file := func() *composefs.Inode {
		return &composefs.Inode{Mode: stored.Mode, Size: int64(len(stored.Content)), Xattrs: own, Payload: objectstore.LoosePath(object.Checksum, objectstore.TypeFile)}
	}
	tree, err := oscommit.NewTree(&composefs.Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: own, Entries: []composefs.Entry{
		{Name: "none", Inode: file()}, {Name: "other", Inode: file()}, {Name: "same", Inode: file()},
	}})
	testenv.Must(t, err)
	tree.Label(labels{"/": "u:o:root", "/other": "u:o:other", "/same": "u:o:own"}, 0)
	made, err := tree.Store(t.Context(), txn, nil, oscommit.Image{})
	testenv.Must(t, err)
	c, err := b.repo.Commit(made.Commit)
	testenv.Must(t, err)
	if m, err := b.repo.DirMeta(c.Meta); err != nil || len(m.Xattrs) != 1 || string(m.Xattrs[0].Value) != "u:o:root\x00" {
		t.Errorf("root: got %+v, %v, want label u:o:root", m, err)
	}
	for path, want := range map[string]string{"none": "u:o:own", "same": "u:o:own", "other": "u:o:other"} {
		if got := labelAt(t, b.repo, made.Commit, path); got != want+"\x00" {
			t.Errorf("%s: got %q, want %s", path, got, want)
		}
	}
	if n := len(contentObjects(t, b.repo)); n != 2 {
		t.Errorf("%d objects, want one for each label", n)
	}
}

// labels are labels by path.
type labels map[string]string

func (l labels) Label(name string, _ fs.FileMode) (string, bool) {
	label, ok := l[name]
	return label, ok
}
