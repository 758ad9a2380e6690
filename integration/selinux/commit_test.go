package selinux

import (
	"archive/tar"
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func TestMain(m *testing.M) {
	if status, done := ostreehost.Main(); done {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// TestCommitLikeOSTree labels a tree of odd files, and compares it with ostree commit --selinux-policy of three releases,
// in both epochs where ostree has them. ostree 2022.7 puts a label behind user attributes, and cannot read that back.
func TestCommitLikeOSTree(t *testing.T) {
	testenv.SkipShort(t, "needs a policy, and ostree of several releases")
	testenv.NeedsRoot(t)
	for release, tt := range map[ostreehost.Release]struct {
		epochs    []oscommit.Epoch
		userXattr bool
	}{
		ostreehost.Bookworm: {[]oscommit.Epoch{0}, false},
		ostreehost.Trixie:   {[]oscommit.Epoch{0, 1}, true},
		ostreehost.Forky:    {[]oscommit.Epoch{0, 1}, true},
	} {
		t.Run(string(release), func(t *testing.T) {
			top := objecttest.OpenDir(t, t.TempDir())
			testenv.Must(t, top.Mkdir("repo", 0o700))
			repo := objecttest.NewRepoAt(t, objecttest.OpenDir(t, top.Path()+"/repo"))
			layers, err := layer.Open(top, repo, layer.Options{})
			testenv.Must(t, err)
			t.Cleanup(func() { testenv.Must(t, layers.Close()) })
			held, err := layers.Import(t.Context(), oddTree(t, tt.userXattr), layer.ImportOptions{})
			testenv.Must(t, err)
			testenv.Must(t, held.Release())
			img := &deploy.Image{Name: "odd", ManifestDigest: digest.FromString("odd"), Layers: []objectstore.Checksum{held.ID}}

			plain := storeTree(t, layers, img, deploy.Flatten(layers))
			dir := filepath.Join(t.TempDir(), "tree")
			host := ostreehost.Start(t, release, ostreehost.Options{Binds: []ostreehost.Bind{
				{From: filepath.Dir(dir), To: "/in"}, {From: repo.Dir().Path(), To: "/repo"},
			}})
			ostree := func(args ...string) string {
				t.Helper()
				out, err := host.Run(append([]string{"ostree", "--repo=/repo"}, args...)...)
				testenv.Must(t, err)
				return out
			}
			ostree("checkout", plain.String(), "/in/tree")
			for _, epoch := range tt.epochs {
				ours := storeTree(t, layers, img, deploy.Labelled(layers, epoch))
				args := []string{"commit", "--branch=theirs/" + epoch.String(), "--tree=dir=/in/tree", "--selinux-policy=/in/tree", "--timestamp=@0"}
				if epoch != 0 {
					args = append(args, "--selinux-labeling-epoch="+epoch.String())
				}
				ostree(args...)
				theirs, err := repo.Ref("theirs/" + epoch.String())
				testenv.Must(t, err)
				compareTrees(t, repo, ours, theirs)
				checkOdd(t, ostree("ls", "-RX", ours.String()), epoch)
			}
			ostree("fsck", "--quiet")
		})
	}
}

// oddTree returns a tar of files that are hard to label, and of Debian's policy with local lines.
func oddTree(t *testing.T, userXattr bool) *bytes.Buffer {
	t.Helper()
	built, err := testhost.SELinuxPolicy(t.Context(), t.Output())
	testenv.Must(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name, content string, change func(*tar.Header)) {
		t.Helper()
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(content)), ModTime: time.Unix(1700000000, 0), PAXRecords: make(map[string]string)}
		switch name, target, ok := strings.Cut(name, " -> "); {
		case ok:
			h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeSymlink
		case strings.HasSuffix(name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if change != nil {
			change(h)
		}
		testenv.Must(t, w.WriteHeader(h))
		_, err := w.Write([]byte(content))
		testenv.Must(t, err)
	}
	xattr := func(name, value string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+name] = value }
	}
	link := func(to string) func(*tar.Header) {
		return func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeLink, to }
	}
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, name := range []string{
		"proc/", "dev/", "run/", "sys/", "tmp/", "boot/", "sysroot/", "home/", "root/", "srv/", "opt/", "var/", "var/log/", "usr/", "usr/bin/", "usr/sbin/", "usr/lib/",
		"bin -> usr/bin", "lib -> usr/lib", "usr/bin/sh -> dash", "usr/lib/dangling -> /nowhere/at/all",
		"usr/bin/empty", "etc/empty", "usr/share/with blank", "usr/share/ünïcode", "usr/share/new\nline", "usr/lib/x.so.1", "usr/lib/modules/6/x.ko",
	} {
		add(name, "", nil)
	}
	add("usr/bin/dash", "shell", nil)
	add("usr/bin/passwd", "passwd", func(h *tar.Header) { h.Mode = 0o4755 })
	add("usr/share/passwd", "", link("usr/bin/passwd"))
	add("usr/lib/passwd.so", "", link("usr/bin/passwd"))
	add("usr/bin/passwd2", "", link("usr/bin/passwd"))
	add("usr/bin/ping", "ping", xattr("security.capability", capability))
	add("usr/lib/of-builder", "builder", xattr("security.selinux", "builder_u:object_r:builder_t:s0\x00"))
	add("usr/lib/large", strings.Repeat("0123456789abcdef", 64<<10), nil)
	add("etc/shadow", "root:*\n", func(h *tar.Header) { h.Mode, h.Gid = 0o640, 42 })
	add("var/log/x.log", "log", nil)
	add("srv/none", "no label", nil)
	if userXattr {
		add("usr/bin/attributes", "attributes", func(h *tar.Header) {
			for name, value := range map[string]string{"security.capability": capability, "user.a": "1", "user.z": strings.Repeat("z", 300)} {
				h.PAXRecords["SCHILY.xattr."+name] = value
			}
		})
		add("usr/lib/attributes/", "", xattr("user.a", "1"))
	}
	testenv.Must(t, w.AddFS(os.DirFS(built)))
	add("etc/selinux/default/contexts/files/file_contexts.local", "/srv/none -- <<none>>\n/usr/share/with.* system_u:object_r:httpd_sys_content_t:s0\n", nil)
	testenv.Must(t, w.Close())
	return &b
}

// storeTree stores the OS commit of an image into the repository of its layers.
func storeTree(t *testing.T, layers *layer.Store, img *deploy.Image, src deploy.Source) objectstore.Checksum {
	t.Helper()
	found, err := src.OS(t.Context(), img)
	testenv.Must(t, err)
	txn, err := layers.Repo().Begin(t.Context())
	testenv.Must(t, err)
	stored, err := found.Store(t.Context(), txn, layers.Repo(), nil)
	testenv.Must(t, err)
	txn.SetRef("ours/"+stored.Commit.String(), stored.Commit)
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	return stored.Commit
}

// compareTrees compares the trees of two commits of one repository, whose metadata differ.
func compareTrees(t *testing.T, repo *objectstore.Repo, ours, theirs objectstore.Checksum) {
	t.Helper()
	got, err := repo.Commit(ours)
	testenv.Must(t, err)
	want, err := repo.Commit(theirs)
	testenv.Must(t, err)
	if got.Tree == want.Tree && got.Meta == want.Meta {
		return
	}
	lines := func(sum objectstore.Checksum) map[string]bool {
		set := make(map[string]bool)
		for line := range strings.Lines(objecttest.Ostree(t, repo, "ls", "-RCX", sum.String())) {
			set[line] = true
		}
		return set
	}
	a, b := lines(ours), lines(theirs)
	maps.DeleteFunc(a, func(line string, _ bool) bool { return b[line] })
	for line := range a {
		t.Errorf("not in the tree of ostree: %s", line)
	}
	t.Errorf("tree %s, meta %s; ostree has %s and %s", got.Tree, got.Meta, want.Tree, want.Meta)
}

// checkOdd checks the labels of some files, to see that the comparison compares them.
func checkOdd(t *testing.T, listing string, epoch oscommit.Epoch) {
	t.Helper()
	want := map[string]string{
		"/": "root_t", "/proc": "mnt_t", "/usr/bin/passwd": "passwd_exec_t", "/usr/share/passwd": "usr_t", "/usr/lib/passwd.so": "lib_t",
		"/usr/bin/passwd2": "bin_t", "/usr/bin/sh -> dash": "bin_t", "/usr/bin/empty": "bin_t", "/usr/share/with blank": "httpd_sys_content_t",
		"/usr/lib/of-builder": "lib_t", "/usr/etc/shadow": "etc_t", "/var/log/x.log": "var_log_t", "/srv/none": "", "/usr/etc": "etc_t",
	}
	if epoch == oscommit.EpochEtc {
		want["/usr/etc/shadow"] = "shadow_t"
	}
	lines := strings.Split(listing, "\n")
	for path, label := range want {
		i := slices.IndexFunc(lines, func(line string) bool { return strings.HasSuffix(line, " "+path) })
		switch {
		case i < 0:
			t.Errorf("%s: not in the commit", path)
		case label == "" && strings.Contains(lines[i], "selinux"), !strings.Contains(lines[i], label):
			t.Errorf("%s: got %q, want label %q", path, lines[i], label)
		}
	}
}
