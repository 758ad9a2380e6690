package layer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func importDir(t testing.TB, s *Store, p, name string) Layer {
	t.Helper()
	d, err := atfs.Open(p)
	testenv.Must(t, err)
	defer d.Close()
	h, err := s.ImportDir(t.Context(), d, nil, name)
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	return h.Layer
}

// An active snapshot: an upper directory changed through an overlay over checkouts.
type active struct {
	upper, merged string
	lower         []string
	umount        func()
}

// newActive mounts an overlay over checkouts. The upper directory is on the store's file system, beside it.
func newActive(t testing.TB, root string, lower ...string) *active {
	t.Helper()
	dir, err := os.MkdirTemp(root, "snapshot")
	testenv.Must(t, err)
	a := &active{upper: filepath.Join(dir, "fs"), lower: lower}
	testenv.Must(t, os.Mkdir(a.upper, 0o755))
	testenv.Must(t, os.Mkdir(filepath.Join(dir, "work"), 0o755))
	a.merged, a.umount = mountOverlay(t, lower, a.upper, filepath.Join(dir, "work"))
	return a
}

// shell runs a script in the merged directory.
func (a *active) shell(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = a.merged
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// baseTar is a small root file system to change.
func baseTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t,
		dir("etc", at(when.Add(-time.Hour))), file("etc/passwd", "root"), file("etc/group", "root"), file("etc/shadow", "x", mode(0o600)),
		dir("usr"), dir("usr/bin"), file("usr/bin/tool", "#!/bin/sh", mode(0o4755)), hardlink("usr/bin/tool2", "usr/bin/tool", mode(0o4755)),
		file("usr/bin/ping", "ping", mode(0o755), withXattr(xattrCaps, netRaw)),
		dir("var"), dir("var/cache"), file("var/cache/a", "a"), file("var/cache/b", "b"), dir("var/lib", mode(0o1777), owner(5, 6)), file("var/lib/db", strings.Repeat("db", 10000)),
		symlink("bin", "usr/bin"), dir("opt"), file("opt/old", "old"),
	)
}

// TestImportDir changes things in an overlay, makes a layer of the upper directory, and checks that a checkout of it
// shows the same over the same layers.
func TestImportDir(t *testing.T) {
	for name, script := range map[string]string{
		"nothing":               `:`,
		"create":                `echo new >etc/new; mkdir -p srv/a/b; echo x >srv/a/b/c; : >srv/empty`,
		"modify":                `echo more >>etc/passwd; touch -d @99.5 etc/group`,
		"delete":                `rm etc/passwd; rm -r var/cache; rm bin`,
		"delete many":           `rm etc/passwd etc/group etc/shadow usr/bin/tool`,
		"rename":                `mv etc/passwd etc/master; mv opt/old opt/new`,
		"replace directory":     `rm -r var/cache; mkdir var/cache; echo c >var/cache/c`,
		"replace by file":       `rm -r var/cache; echo c >var/cache; rm etc/group; mkdir etc/group; echo g >etc/group/g`,
		"chmod and chown":       `chmod 4711 etc/passwd; chown 7:8 etc/group; chmod 700 etc; chown 3:4 var/lib; chmod 1755 var/lib`,
		"hard link":             `ln etc/passwd etc/pw2; ln etc/passwd usr/pw3; echo n >n1; ln n1 n2; echo more >>n2`,
		"copy up of hard links": `echo more >>usr/bin/tool`,
		"symlink":               `ln -s /nowhere etc/l; ln -sfn /other bin; chown -h 5:5 etc/l`,
		"devices":               `mknod c c 1 3; mknod b b 7 1; mkfifo p; chmod 622 p; chown 9:9 c`,
		"attributes":            `echo a >a; setfacl -m u:5:rw a 2>/dev/null || :; touch -d @1.000000001 a; mkdir d; setfacl -d -m u:5:rwx d 2>/dev/null || :; echo f >d/f`,
		"capabilities":          `chmod 700 usr/bin/ping`,
		"large file":            `dd if=/dev/zero of=large bs=1M count=3 2>/dev/null; echo tail >>var/lib/db`,
		"mode of the root":      `chmod 700 .; chown 3:3 .`,
		"equal files":           `echo same >s1; echo same >s2; touch -d @5 s1 s2; echo same >s3; touch -d @6 s3`,
		"as in the base":        `cp -p etc/passwd etc/copy; printf root >etc/fresh`,
	} {
		t.Run(name, func(t *testing.T) {
			s, root := newStore(t, Options{})
			base := importTar(t, s, baseTar(t))
			lower := checkOut(t, s, root, base.ID)
			before := listTree(t, lower)
			a := newActive(t, root, lower)
			a.shell(t, script)
			a.umount()
			want := mergedTree(t, lower, a.upper)
			// Identical files may share an inode in a checkout; this test does not compare that.
			l := importDir(t, s, a.upper, "1")
			got := mergedTree(t, lower, checkOut(t, s, root, base.ID, l.ID))
			if diff := diffTrees(got, want, func(n string, _ *node) bool { return n == "." }); len(withoutGroups(diff, got, want)) > 0 {
				t.Errorf("differs from the upper directory:\n\t%s", strings.Join(diff, "\n\t"))
			}
			if diff := diffTrees(listTree(t, lower), before, never); diff != nil {
				t.Errorf("the layer below changed:\n\t%s", strings.Join(diff, "\n\t"))
			}
			if l.DiffID != "" || l.TarSize != 0 {
				t.Errorf("got diff ID %q of %d bytes, want none", l.DiffID, l.TarSize)
			}
			// The same directory is the same layer, whatever the first import did to it.
			if again := importDir(t, s, a.upper, "2"); again != l {
				t.Errorf("again: got %+v, want %+v", again, l)
			}
		})
	}
}

// withoutGroups drops differences in the names that share a file's inode, provided that names that shared one still do:
// equal files of a checkout are links to their object.
func withoutGroups(diff []string, got, want map[string]*node) []string {
	return slices.DeleteFunc(slices.Clone(diff), func(line string) bool {
		name, _, _ := strings.Cut(line, ": ")
		g, w := got[name], want[name]
		if g == nil || w == nil || g.mtime != w.mtime && name != "." {
			return false
		}
		a, b := *g, *w
		a.group, b.group = "", ""
		return a.String() == b.String() && (w.group == "" || got[w.group].ino == g.ino)
	})
}

// TestImportDirCopies checks that no inode of the upper directory becomes an object, and that nothing that is done to one
// afterwards changes the layer: not by a descriptor from before, and not by one that is opened again by way of it.
func TestImportDirCopies(t *testing.T) {
	s, root := newStore(t, Options{})
	base := importTar(t, s, baseTar(t))
	a := newActive(t, root, checkOut(t, s, root, base.ID))
	a.shell(t, `echo new >new; chmod 600 etc/passwd; echo more >>etc/group; echo x >etc/fresh; echo linked >l1; ln l1 l2; : >empty`)
	a.umount()
	testenv.Must(t, unix.Setxattr(filepath.Join(a.upper, "new"), "trusted.overlay.origin", []byte("x"), 0))
	testenv.Must(t, unix.Setxattr(filepath.Join(a.upper, "new"), "user.overlay.uuid", []byte("x"), 0))
	testenv.Must(t, unix.Setxattr(filepath.Join(a.upper, "etc/fresh"), "user.empty", nil, 0))
	names := []string{"new", "etc/passwd", "etc/group", "etc/fresh", "l1", "empty"}
	var open []*os.File
	for i, name := range names {
		flags := []int{os.O_RDONLY, os.O_RDWR}[i%2]
		f, err := os.OpenFile(filepath.Join(a.upper, name), flags, 0)
		testenv.Must(t, err)
		defer f.Close()
		open = append(open, f)
	}
	upper := listTree(t, a.upper)

	l := importDir(t, s, a.upper, "x")
	if diff := diffTrees(listTree(t, a.upper), upper, nil); diff != nil {
		t.Errorf("the upper directory was changed:\n\t%s", strings.Join(diff, "\n\t"))
	}
	inodes := make(map[uint64]bool)
	objects, err := s.Objects(t.Context(), l.ID)
	testenv.Must(t, err)
	for _, sum := range objects {
		st, err := s.Repo().Stat(sum)
		testenv.Must(t, err)
		inodes[st.Ino] = true
	}
	for name, n := range upper {
		if inodes[n.ino] {
			t.Errorf("%s is an object", name)
		}
	}
	for _, f := range open {
		again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
		testenv.Must(t, err)
		_, err = again.WriteAt([]byte("changed"), 0)
		testenv.Must(t, errors.Join(err, again.Chmod(0o777), again.Chown(5, 5), again.Close()))
	}
	want := []string{
		`new: file 644 "new\n"`, `etc: dir 755`, `etc/passwd: file 600 "root"`, `etc/group: file 644 "rootmore\n"`,
		`etc/fresh: file 644 "x\n" user.empty=""`, `l1: file 644 "linked\n" = l1`, `l2: file 644 "linked\n" = l1`, `empty: file 644 ""`,
	}
	wantTree(t, checkOut(t, s, root, base.ID, l.ID), want...)
	testenv.Must(t, s.Verify(t.Context(), l.ID))
}

// TestImportDirGrowing has a file that grows while it is copied. The layer has what was read.
func TestImportDirGrowing(t *testing.T) {
	_, path := newStore(t, Options{})
	upper := t.TempDir()
	testenv.Must(t, os.Chmod(upper, 0o755))
	begin := strings.Repeat("begin", 100_000) // more than is read at once
	writeTree(t, upper, [2]string{"log", begin})
	w, err := os.OpenFile(filepath.Join(upper, "log"), os.O_WRONLY|os.O_APPEND, 0)
	testenv.Must(t, err)
	defer w.Close()
	var once sync.Once
	s := hooked(t, path, Options{}, func(op atfs.Op, _ string) error {
		var err error
		if op == atfs.OpTmpFile {
			once.Do(func() { _, err = w.WriteString(" more") })
		}
		return err
	})
	l := importDir(t, s, upper, "x")
	if want := int64(len(begin) + 5); l.Size != want {
		t.Errorf("got a layer of %d bytes, want %d", l.Size, want)
	}
	got, err := os.ReadFile(filepath.Join(checkOut(t, s, path, l.ID), "log"))
	testenv.Must(t, err)
	if string(got) != begin+" more" {
		t.Errorf("the file has %d bytes, want the %d that it had and the 5 that came", len(got), len(begin))
	}
}

// TestImportDirOtherFileSystem has an upper directory whose files cannot become objects by a link.
func TestImportDirOtherFileSystem(t *testing.T) {
	s, root := newStore(t, Options{})
	upper := t.TempDir()
	if err := unix.Mount("tmpfs", upper, "tmpfs", 0, ""); err != nil {
		testenv.Unsupported(t, "needs tmpfs: %v", err)
	}
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(upper, 0)) })
	writeTree(t, upper, [2]string{"d/", ""}, [2]string{"d/f", "content"}, [2]string{"empty", ""})
	testenv.Must(t, unix.Mknod(filepath.Join(upper, "sock"), unix.S_IFSOCK|0o600, 0))
	testenv.Must(t, os.Chmod(upper, 0o755))
	l := importDir(t, s, upper, "x")
	p := checkOut(t, s, root, l.ID)
	wantTree(t, p, "d: dir 755", `d/f: file 644 "content"`, `empty: file 644 ""`, "sock: sock 600")
	if diff := diffTrees(listTree(t, p), listTree(t, upper), func(n string, _ *node) bool { return n == "." }); diff != nil {
		t.Errorf("differs from the upper directory:\n\t%s", strings.Join(diff, "\n\t"))
	}
}

// TestImportDirWhiteouts makes the forms of deletion by hand.
func TestImportDirWhiteouts(t *testing.T) {
	s, root := newStore(t, Options{})
	upper := t.TempDir()
	writeTree(t, upper, [2]string{"d/", ""}, [2]string{"o/", ""}, [2]string{"o/f", "x"}, [2]string{"n/", ""})
	for _, name := range []string{"a", "d/w", "o/hidden"} {
		testenv.Must(t, unix.Mknod(filepath.Join(upper, name), unix.S_IFCHR, 0))
	}
	testenv.Must(t, os.Link(filepath.Join(upper, "a"), filepath.Join(upper, "b"))) // as overlayfs does
	testenv.Must(t, unix.Setxattr(filepath.Join(upper, "o"), xattrOpaque, []byte("y"), 0))
	testenv.Must(t, unix.Setxattr(filepath.Join(upper, "n"), "trusted.overlay.overlay.opaque", []byte("y"), 0)) // of an overlay inside
	testenv.Must(t, unix.Setxattr(filepath.Join(upper, "d"), "user.overlay.opaque", []byte("x"), 0))
	testenv.Must(t, unix.Setxattr(filepath.Join(upper, "d"), "trusted.overlay.impure", []byte("y"), 0))
	testenv.Must(t, os.Chmod(upper, 0o700))
	l := importDir(t, s, upper, "x")
	wantTree(t, checkOut(t, s, root, l.ID), ".: dir 700", "a: whiteout", "b: whiteout", "d: dir 755", "d/w: whiteout",
		`o: dir 755 trusted.overlay.opaque="y"`, `o/f: file 644 "x"`, `n: dir 755 trusted.overlay.overlay.opaque="y"`)
}

// TestImportDirRefused has upper directories that do not hold the whole layer.
func TestImportDirRefused(t *testing.T) {
	for name, xattr := range map[string]string{"d": overlayRedirect, "f": overlayMetacopy} {
		s, _ := newStore(t, Options{})
		upper := t.TempDir()
		writeTree(t, upper, [2]string{"d/", ""}, [2]string{"f", "x"})
		testenv.Must(t, unix.Setxattr(filepath.Join(upper, name), xattr, []byte("/x"), 0))
		d, err := atfs.Open(upper)
		testenv.Must(t, err)
		_, err = s.ImportDir(t.Context(), d, nil, "x")
		testenv.Must(t, d.Close())
		var e *EntryError
		if !errors.As(err, &e) || filepath.Base(e.Name) != name {
			t.Errorf("%s: got error %v, want one about %s", xattr, err, name)
		}
		wantNoRefs(t, s)
	}
}

// TestImportDirName has names that are no valid refs.
func TestImportDirName(t *testing.T) {
	s, root := newStore(t, Options{})
	d, err := atfs.Open(t.TempDir())
	testenv.Must(t, err)
	defer d.Close()
	for _, name := range []string{"", "../../../../escape", "a b", "/"} {
		if _, err := s.ImportDir(t.Context(), d, nil, name); !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("%q: got error %v, want %v", name, err, objectstore.ErrInvalid)
		}
	}
	wantNoRefs(t, s)
	if _, err := os.Lstat(filepath.Join(root, "escape")); err == nil {
		t.Error("a ref was written outside")
	}
}

// TestImportDirStops has one file fail, and checks for leaked descriptors.
func TestImportDirStops(t *testing.T) {
	s, path := newStore(t, Options{})
	upper := t.TempDir()
	for i := range 200 {
		writeTree(t, upper, [2]string{fmt.Sprintf("f%d", i), fmt.Sprint(i)})
	}
	injected := errors.New("injected")
	h := hooked(t, path, Options{Workers: 2}, func(op atfs.Op, name string) error {
		if op == atfs.OpMkdir && strings.HasPrefix(name, "repo/objects/") {
			return injected
		}
		return nil
	})
	d, err := atfs.Open(upper)
	testenv.Must(t, err)
	defer d.Close()
	before := descriptors(t)
	if _, err := h.ImportDir(t.Context(), d, nil, "x"); !errors.Is(err, injected) {
		t.Errorf("got error %v, want %v", err, injected)
	}
	if after := descriptors(t); after > before {
		t.Errorf("got %d descriptors open, before there were %d", after, before)
	}
	wantNoRefs(t, s)
	importDir(t, s, upper, "x")
}

func descriptors(t testing.TB) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	testenv.Must(t, err)
	return len(ents)
}

// TestImportDirOverTar imports a tar and the directory that it unpacks to: both layers have the same objects.
func TestImportDirOverTar(t *testing.T) {
	s, _ := newStore(t, Options{})
	b := makeTar(t, file("a", "x", mode(0o640), withXattr("user.a", "1"), withXattr(aclAccess, userACL(5, 7, 7, 7, 7))),
		file("caps", "y", withXattr(xattrCaps, caps(capsRevision3, 1, 0, 0, 0, 0))), file("d/setuid", "z", mode(0o4711), owner(1, 2)))
	l := importTar(t, s, b)
	unpacked := t.TempDir()
	testenv.Must(t, apply(t.Context(), unpacked, b))
	d := importDir(t, s, unpacked, "x")
	want, err := s.Objects(t.Context(), l.ID)
	testenv.Must(t, err)
	got, err := s.Objects(t.Context(), d.ID)
	testenv.Must(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("got objects %v, want %v", got, want)
	}
}
