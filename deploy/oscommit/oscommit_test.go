package oscommit_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// An entry is a tar entry. Its name tells its type, as in "d/" and "l -> target".
type entry struct {
	name, content string
	change        func(*tar.Header)
}

func makeTar(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(e.content)), ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if name, target, ok := strings.Cut(e.name, " -> "); ok {
			h.Name, h.Linkname, h.Typeflag, h.Mode = name, target, tar.TypeSymlink, 0o777
		}
		if e.change != nil {
			e.change(h)
		}
		testenv.Must(tb, w.WriteHeader(h))
		_, err := io.WriteString(w, e.content)
		testenv.Must(tb, err)
	}
	testenv.Must(tb, w.Close())
	return b.Bytes()
}

// osLayers returns the layers of an OS image with one of everything that a commit handles in its own way.
func osLayers(tb testing.TB) [][]byte {
	tb.Helper()
	owner := func(uid, gid int, mode int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid, h.Mode = uid, gid, mode }
	}
	typ := func(t byte) func(*tar.Header) {
		return func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = t, 1, 3 }
	}
	base := []entry{
		{"bin -> usr/bin", "", nil},
		{"ostree -> sysroot/ostree", "", nil},
		{"boot/", "", nil},
		{"boot/config-6.1.0", "y", nil},
		{"dev/", "", nil},
		{"dev/null", "", typ(tar.TypeChar)},
		{"dev/shm/", "", nil},
		{"proc/", "", nil},
		{"run/", "", nil},
		{"run/lock/", "", nil},
		{"sys/", "", nil},
		{"sysroot/", "", nil},
		{"tmp/", "", owner(0, 0, 0o1777)},
		{"tmp/x", "x", nil},
		{"etc/", "", nil},
		{"etc/hostname", "", nil},
		{"etc/resolv.conf", "", nil},
		{"etc/passwd", "root:x:0:0\n", nil},
		{"etc/shadow", "root:*\n", owner(0, 42, 0o640)},
		{"etc/pipe", "", typ(tar.TypeFifo)},
		{"etc/empty", "", nil},
		{"etc/localtime -> ../usr/share/zoneinfo/UTC", "", nil},
		{"usr/", "", nil},
		{"usr/bin/", "", nil},
		{"usr/bin/su", "set-id", owner(0, 0, 0o4755)},
		{"usr/bin/sh", "shell", owner(0, 0, 0o755)},
		{"usr/bin/ping", "ping", func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}},
		{"usr/bin/ash", "", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Mode = tar.TypeLink, "usr/bin/sh", 0o755 }},
		{"usr/lib/", "", nil},
		{"usr/lib/os-release", "ID=test\n", nil},
		{"usr/lib/modules/", "", nil},
		{"usr/lib/modules/6.1.0/", "", nil},
		{"usr/lib/modules/6.1.0/vmlinuz", "kernel", nil},
		{"usr/lib/modules/6.1.0/initramfs.img", "initramfs", nil},
		{"usr/share/doc/a", "a", nil},
		{"usr/share/doc/b", "b", nil},
		{"var/", "", nil},
		{"var/lib/", "", owner(5, 6, 0o700)},
		{"var/lib/db", "data", nil},
		{"usr/lib/node", "", typ(tar.TypeBlock)},
	}
	derived := []entry{
		{"etc/motd", "hello\n", nil},
		{"etc/.wh.passwd", "", nil},
		{"usr/share/doc/", "", owner(0, 0, 0o750)},
		{"usr/share/doc/.wh..wh..opq", "", nil},
		{"usr/share/doc/c", "c", nil},
		{"usr/bin/.wh.ash", "", nil},
		{"var/lib/more", "", nil},
		{"usr/bin/dash", "", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Mode = tar.TypeLink, "usr/bin/sh", 0o755 }},
	}
	return [][]byte{makeTar(tb, base...), makeTar(tb, derived...)}
}

// bed is a layer store.
type bed struct {
	*layer.Store
	repo *objectstore.Repo
}

func newBed(t *testing.T) bed {
	t.Helper()
	return newBedAt(t, t.TempDir())
}

func newBedAt(t *testing.T, path string) bed {
	t.Helper()
	testenv.NeedsRoot(t)
	root, err := atfs.Open(path)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, root.Close()) })
	testenv.Must(t, root.Mkdir("repo", 0o700))
	dir, err := root.OpenDir("repo")
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, dir.Close()) })
	repo := objecttest.NewRepoAt(t, dir)
	s, err := layer.Open(root, repo, layer.Options{})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, s.Close()) })
	return bed{s, repo}
}

// flatten imports layers and returns their tree.
func (b bed) flatten(t *testing.T, tars ...[]byte) *composefs.Inode {
	t.Helper()
	var chain []objectstore.Checksum
	for _, data := range tars {
		h, err := b.Import(t.Context(), bytes.NewReader(data), layer.ImportOptions{})
		testenv.Must(t, err)
		testenv.Must(t, h.Release())
		chain = append(chain, h.ID)
	}
	root, err := b.Flatten(t.Context(), chain)
	testenv.Must(t, err)
	return root
}

func (b bed) store(t *testing.T, tree *oscommit.Tree, img oscommit.Image) objectstore.Checksum {
	t.Helper()
	txn, err := b.repo.Begin(t.Context())
	testenv.Must(t, err)
	stored, err := tree.Store(t.Context(), txn, nil, img)
	testenv.Must(t, err)
	txn.SetRef("os", stored.Commit)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	return stored.Commit
}

// TestCommitIsThatOfOSTree compares the commit of an image with ostree's commit of the same layers, unpacked by
// containerd's applier and rearranged as for a deployment.
func TestCommitIsThatOfOSTree(t *testing.T) {
	objecttest.NeedsOstree(t)
	b := newBed(t)
	layers := osLayers(t)
	tree, err := oscommit.NewTree(b.flatten(t, layers...))
	testenv.Must(t, err)
	b.compareWithOSTree(t, b.store(t, tree, oscommit.Image{}), unpackOS(t, layers))
}

// unpackOS unpacks the layers of an OS image with containerd's applier, and rearranges the files as for a deployment.
func unpackOS(t *testing.T, layers [][]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	testenv.Must(t, os.Chmod(dir, 0o755))
	for _, data := range layers {
		_, err := archive.Apply(t.Context(), dir, bytes.NewReader(data))
		testenv.Must(t, err)
	}
	script := `set -e; cd "$1"; rm -rf boot/* dev/* run/* tmp/*; rm etc/hostname etc/resolv.conf; mv etc usr/etc; find . ! -type f ! -type d ! -type l -delete`
	if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// compareWithOSTree compares the tree of a commit with that of ostree's commit of a directory.
func (b bed) compareWithOSTree(t *testing.T, sum objectstore.Checksum, dir string, args ...string) {
	t.Helper()
	objecttest.Ostree(t, b.repo, append([]string{"commit", "--branch=oracle", "--tree=dir=" + dir, "--timestamp=@0"}, args...)...)
	id, err := b.repo.Ref("oracle")
	testenv.Must(t, err)
	want, err := b.repo.Commit(id)
	testenv.Must(t, err)
	got, err := b.repo.Commit(sum)
	testenv.Must(t, err)
	if got.Tree != want.Tree || got.Meta != want.Meta {
		t.Errorf("tree %s, meta %s; ostree has %s and %s\n%s", got.Tree, got.Meta, want.Tree, want.Meta,
			diff(objecttest.Ostree(t, b.repo, "ls", "-RCX", "os"), objecttest.Ostree(t, b.repo, "ls", "-RCX", "oracle")))
	}
}

// diff returns the lines that only one of two texts has.
func diff(a, b string) string {
	var out strings.Builder
	for _, line := range strings.Split(a, "\n") {
		if !strings.Contains(b, line) {
			fmt.Fprintln(&out, "+ "+line)
		}
	}
	for _, line := range strings.Split(b, "\n") {
		if !strings.Contains(a, line) {
			fmt.Fprintln(&out, "- "+line)
		}
	}
	return out.String()
}

func TestDropped(t *testing.T) {
	b := newBed(t)
	tree, err := oscommit.NewTree(b.flatten(t, osLayers(t)...))
	testenv.Must(t, err)
	var got []string
	for _, d := range tree.Dropped {
		got = append(got, d.Path+": "+d.Reason)
	}
	want := []string{
		"/boot/config-6.1.0: is hidden by /boot of the running system",
		"/dev/null: is populated at run time", "/dev/shm: is populated at run time",
		"/etc/hostname: is an empty file of the build container", "/etc/pipe: is a fifo", "/etc/resolv.conf: is an empty file of the build container",
		"/run/lock: is populated at run time", "/tmp/x: is populated at run time", "/usr/lib/node: is a device",
	}
	if !slices.Equal(got, want) {
		t.Errorf("dropped:\ngot  %q\nwant %q", got, want)
	}
	if missing := tree.Missing(); len(missing) != 0 || tree.Kernel() != "6.1.0" {
		t.Errorf("missing: %q; kernel %q", missing, tree.Kernel())
	}
}

// TestCommitIsPure makes the commit twice, in two repositories. Both are the same, with all metadata of the image.
func TestCommitIsPure(t *testing.T) {
	img := oscommit.Image{ManifestDigest: "sha256:abc", Manifest: `{"layers":[]}`, Config: `{"os":"linux"}`, Version: "12.1", Created: time.Unix(1700000000, 5)}
	var sums []objectstore.Checksum
	for range 2 {
		b := newBed(t)
		tree, err := oscommit.NewTree(b.flatten(t, osLayers(t)...))
		testenv.Must(t, err)
		sum := b.store(t, tree, img)
		sums = append(sums, sum)
		c, err := b.repo.Commit(sum)
		testenv.Must(t, err)
		for key, want := range map[string]string{
			"version": "12.1", "ostree.linux": "6.1.0", "ostree.manifest-digest": img.ManifestDigest, "ostree.manifest": img.Manifest,
			"ostree.container.image-config": img.Config,
		} {
			if got, _ := c.MetaString(key); got != want {
				t.Errorf("%s: got %q, want %q", key, got, want)
			}
		}
		v, _ := c.Lookup("ostree.bootable")
		if bootable, _ := v.Bool(); !bootable || c.Timestamp != 1700000000 {
			t.Errorf("bootable: %t, timestamp %d", bootable, c.Timestamp)
		}
	}
	if sums[0] != sums[1] {
		t.Errorf("commits differ: %s and %s", sums[0], sums[1])
	}
}

// TestComposefsDigest: the commit of an image that asks for a composefs image states that one's digest, the same in the
// repository of the layers and in another one.
func TestComposefsDigest(t *testing.T) {
	for _, tt := range []struct {
		config string
		want   bool
		err    error
	}{
		{config: "[composefs]\nenabled=yes\n", want: true},
		{config: "[composefs]\nenabled=maybe\n", want: true},
		{config: "[composefs]\nenabled=signed\n", want: true},
		{config: "[composefs]\nenabled=no\n"},
		{config: "[etc]\ntransient=true\n"},
		{config: "[composefs]\nenabled=on\n", err: oscommit.ErrInvalid},
	} {
		t.Run(tt.config, func(t *testing.T) {
			b := newBed(t)
			config := makeTar(t, entry{"etc/ostree/", "", nil}, entry{"etc/ostree/prepare-root.conf", tt.config, nil})
			tree, err := oscommit.NewTree(b.flatten(t, append(osLayers(t), config)...))
			testenv.Must(t, err)
			to := sysrootRepo(t, filepath.Dir(b.repo.Dir().Path())+"/sysroot/ostree/repo", nil)
			sum, err := storeInto(t, tree, to, b.repo)
			if tt.err != nil {
				if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), "/etc/ostree/prepare-root.conf") {
					t.Errorf("got %v, want an error that names the file", err)
				}
				return
			}
			testenv.Must(t, err)
			if again := b.store(t, tree, oscommit.Image{}); again != sum {
				t.Errorf("commit %s, in the store it is %s", sum, again)
			}
			c, err := to.Commit(sum)
			testenv.Must(t, err)
			v, ok := c.Lookup(cfs.DigestKey)
			if !ok || !tt.want {
				if ok != tt.want {
					t.Errorf("states a digest: %t, want %t", ok, tt.want)
				}
				return
			}
			want, err := cfs.Digest(t.Context(), to, c.Root())
			testenv.Must(t, err)
			if got, _ := v.Bytes(); !bytes.Equal(got, want[:]) {
				t.Errorf("states the digest %x, want %s", got, want)
			}
		})
	}
}

// TestSharedInode checks that a container and the OS share the inode of a file.
func TestSharedInode(t *testing.T) {
	b := newBed(t)
	objects := func() int {
		names, err := filepath.Glob(b.repo.ObjectsDir().Path() + "/*/*.file")
		testenv.Must(t, err)
		return len(names)
	}
	root := b.flatten(t, osLayers(t)...)
	before := objects()
	tree, err := oscommit.NewTree(root)
	testenv.Must(t, err)
	b.store(t, tree, oscommit.Image{})
	// Only layer images hold symbolic links and empty files: bin, ostree, localtime, and the two empty files, which are
	// one object.
	if got := objects() - before; got != 4 {
		t.Errorf("%d objects were added, want 4", got)
	}
}

func TestMissing(t *testing.T) {
	b := newBed(t)
	for _, tt := range []struct {
		name    string
		entries []entry
		want    []string // some of the missing files
	}{
		{"everything", nil, []string{"kernel: /usr/lib/modules/<version>/vmlinuz", "directory: /boot", "directory: /etc", "directory: /sysroot", "directory: /usr", "symbolic link: /ostree -> sysroot/ostree", "file: /usr/lib/os-release"}},
		{"kernel in /boot", []entry{{"boot/vmlinuz-6.1.0", "k", nil}}, []string{"kernel: /usr/lib/modules/<version>/vmlinuz (/boot/vmlinuz-6.1.0 belongs there)"}},
		{"kernel in /boot with a strange name", []entry{{"boot/vmlinuz-6 \x1b[2J", "k", nil}}, []string{"kernel: /usr/lib/modules/<version>/vmlinuz"}},
		{"initramfs", []entry{{"usr/lib/modules/6/vmlinuz", "k", nil}}, []string{"initramfs: /usr/lib/modules/6/initramfs.img"}},
		{"two kernels", []entry{{"usr/lib/modules/6/vmlinuz", "k", nil}, {"usr/lib/modules/7/vmlinuz", "k", nil}}, []string{"a single kernel: /usr/lib/modules has 6, 7"}},
		{"kernel version", []entry{{"usr/lib/modules/6 \x1b[2J/vmlinuz", "k", nil}}, []string{`kernel: "6 \x1b[2J" is not the name of a version`}},
		{"/etc is a link", []entry{{"etc -> usr/etc", "", nil}, {"usr/etc/b", "b", nil}}, []string{"directory: /etc, which is a symbolic link"}},
		{"/etc is a file", []entry{{"etc", "x", nil}}, []string{"directory: /etc, which is a file"}},
		{"link elsewhere", []entry{{"ostree -> elsewhere", "", nil}}, []string{"symbolic link: /ostree -> sysroot/ostree"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := oscommit.NewTree(b.flatten(t, makeTar(t, tt.entries...)))
			testenv.Must(t, err)
			got := tree.Missing()
			for _, want := range tt.want {
				if !slices.Contains(got, want) {
					t.Errorf("got %q, want %q among it", got, want)
				}
			}
		})
	}
}

// TestOSRelease finds os-release as a running system would: through links, and in /etc.
func TestOSRelease(t *testing.T) {
	b := newBed(t)
	for _, tt := range []struct {
		name    string
		entries []entry
		found   bool
	}{
		{"file", []entry{{"usr/lib/os-release", "ID=x\n", nil}}, true},
		{"Fedora", []entry{{"usr/lib/os-release -> os-release-silverblue", "", nil}, {"usr/lib/os-release-silverblue", "ID=x\n", nil}}, true},
		{"links", []entry{
			{"usr/lib/os-release -> /../usr/./share//release", "", nil}, {"usr/share -> lib/d", "", nil}, {"usr/lib/d/release", "ID=x\n", nil},
		}, true},
		{"in /etc", []entry{{"usr/lib/", "", nil}, {"etc/os-release", "ID=x\n", nil}}, true},
		{"leads to /etc", []entry{{"usr/lib/os-release -> ../../etc/release", "", nil}, {"etc/release", "ID=x\n", nil}}, true},
		{"leads nowhere", []entry{{"usr/lib/os-release -> absent", "", nil}, {"etc/os-release", "ID=x\n", nil}}, true},
		{"both lead nowhere", []entry{{"usr/lib/os-release -> absent", "", nil}, {"etc/os-release -> ../usr/lib/os-release", "", nil}}, false},
		{"loop", []entry{{"usr/lib/os-release -> os-release", "", nil}}, false},
		{"directory", []entry{{"usr/lib/os-release -> /", "", nil}}, false},
		{"outside", []entry{{"usr/lib/os-release -> ../../../../../../etc/hostname", "", nil}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := oscommit.NewTree(b.flatten(t, makeTar(t, tt.entries...)))
			testenv.Must(t, err)
			if missing := tree.Missing(); slices.Contains(missing, "file: /usr/lib/os-release") == tt.found {
				t.Errorf("missing: %q, want os-release to be found: %t", missing, tt.found)
			}
		})
	}
}

// TestSysrootLinks accepts /tmp and /boot as rpm-ostree makes them, and no other links.
func TestSysrootLinks(t *testing.T) {
	b := newBed(t)
	for link, want := range map[string]bool{
		"tmp -> sysroot/tmp": true, "boot -> sysroot/boot": true, "tmp -> var/tmp": false, "boot -> sysroot/tmp": false, "run -> sysroot/run": false,
	} {
		tree, err := oscommit.NewTree(b.flatten(t, makeTar(t, entry{link, "", nil})))
		testenv.Must(t, err)
		name, _, _ := strings.Cut(link, " ")
		if missing := tree.Missing(); slices.Contains(missing, "directory: /"+name) == want {
			t.Errorf("%s: missing: %q, want it accepted: %t", link, missing, want)
		}
	}
}

func TestInvalidTree(t *testing.T) {
	b := newBed(t)
	for name, entries := range map[string][]entry{
		"two etc":       {{"etc/a", "a", nil}, {"usr/etc/b", "b", nil}},
		"name":          {{"usr/\xff", "x", nil}},
		"target":        {{"usr/l -> \xff", "", nil}},
		"name in a dir": {{"usr/\xff/f", "x", nil}},
	} {
		if _, err := oscommit.NewTree(b.flatten(t, makeTar(t, entries...))); !errors.Is(err, oscommit.ErrInvalid) {
			t.Errorf("%s: got error %v, want %v", name, err, oscommit.ErrInvalid)
		}
	}
	for name, entries := range map[string][]entry{
		"empty /etc":     {{"etc/", "", nil}, {"usr/etc/b", "b", nil}},
		"empty /usr/etc": {{"etc/b", "b", nil}, {"usr/etc/", "", nil}},
		"no /usr":        {{"etc/b", "b", nil}},
		"/etc is a link": {{"etc -> usr/etc", "", nil}, {"usr/etc/b", "b", nil}},
	} {
		if _, err := oscommit.NewTree(b.flatten(t, makeTar(t, entries...))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStoreWithoutObject(t *testing.T) {
	b := newBed(t)
	missing := objectstore.Checksum{1, 2, 3}
	tree, err := oscommit.NewTree(&composefs.Inode{Mode: unix.S_IFDIR | 0o755, Entries: []composefs.Entry{{Name: "f", Inode: &composefs.Inode{
		Mode: unix.S_IFREG | 0o644, Size: 1, Payload: objectstore.LoosePath(missing, objectstore.TypeFile),
	}}}})
	testenv.Must(t, err)
	txn, err := b.repo.Begin(t.Context())
	testenv.Must(t, err)
	defer func() { testenv.Must(t, txn.Abort()) }()
	if _, err := tree.Store(t.Context(), txn, nil, oscommit.Image{}); !errors.Is(err, objectstore.ErrNotExist) || !strings.Contains(err.Error(), "/f") {
		t.Errorf("got error %v, want that the object of /f does not exist", err)
	}
}
