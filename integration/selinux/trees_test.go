package selinux

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestWholeTrees labels whole systems, each by the policy inside it, and compares their trees with those that ostree
// commit --selinux-policy makes of the same files.
func TestWholeTrees(t *testing.T) {
	testenv.SkipShort(t, "needs systems with a policy")
	testenv.NeedsRoot(t) // to build them, and to own their files
	objecttest.NeedsOstree(t)
	for _, ref := range []string{images.PolicyBookworm, images.SELinuxBase, images.PolicyLocal, images.PolicyForky} {
		t.Run(ref, func(t *testing.T) {
			layers, img := importImage(t, ref)
			repo := layers.Repo()
			commit := storeTree(t, layers, img, deploy.Labelled(layers, oscommit.EpochUsrEtc))
			tree, meta := root(t, repo, commit)

			unlabelled := storeTree(t, layers, img, deploy.Flatten(layers))
			dir := filepath.Join(t.TempDir(), "tree")
			objecttest.Ostree(t, repo, "checkout", unlabelled.String(), dir)
			// Before the checksum the host's libselinux says that it cannot read a compiled policy of a newer one.
			lines := strings.Fields(objecttest.Ostree(t, repo, "commit", "--orphan", "--tree=dir="+dir, "--selinux-policy="+dir))
			theirs, err := objectstore.ParseChecksum(lines[len(lines)-1])
			testenv.Must(t, err)
			if theirTree, theirMeta := root(t, repo, theirs); theirTree != tree || theirMeta != meta {
				t.Errorf("got the tree %s %s, want that of ostree, %s %s", tree, meta, theirTree, theirMeta)
				diff(t, repo, commit, theirs)
			}
			if ref == images.PolicyLocal {
				wantLocal(t, repo, commit)
			}
		})
	}
}

// importImage imports the layers of a test image into a new store.
func importImage(t *testing.T, ref string) (*layer.Store, *deploy.Image) {
	t.Helper()
	top := objecttest.OpenDir(t, t.TempDir())
	testenv.Must(t, top.Mkdir("repo", 0o700))
	layers, err := layer.Open(top, objecttest.NewRepoAt(t, objecttest.OpenDir(t, top.Path()+"/repo")), layer.Options{})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, layers.Close()) })
	img := &deploy.Image{Name: ref, ManifestDigest: digest.FromString(ref)}
	for _, name := range tars(t, ref) {
		img.Layers = append(img.Layers, importTar(t, layers, name))
	}
	return layers, img
}

func root(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum) (tree, meta objectstore.Checksum) {
	t.Helper()
	c, err := repo.Commit(commit)
	testenv.Must(t, err)
	return c.Tree, c.Meta
}

// diff reports the first files in which two commits differ.
func diff(t *testing.T, repo *objectstore.Repo, ours, theirs objectstore.Checksum) {
	t.Helper()
	got := strings.Split(objecttest.Ostree(t, repo, "ls", "-RXC", ours.String()), "\n")
	want := strings.Split(objecttest.Ostree(t, repo, "ls", "-RXC", theirs.String()), "\n")
	if len(got) != len(want) {
		t.Errorf("the commit has %d files, that of ostree %d", len(got), len(want))
		return
	}
	shown := 0
	for i := range got {
		if got[i] != want[i] && shown < 20 {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
			shown++
		}
	}
}

// wantLocal checks labels by local changes: that they are in the tree at all.
func wantLocal(t *testing.T, repo *objectstore.Repo, commit objectstore.Checksum) {
	t.Helper()
	for path, want := range map[string]string{
		"/srv/www/site/index.html":             "system_u:object_r:httpd_sys_content_t:s0",
		"/usr/bin/env":                         "system_u:object_r:httpd_sys_script_exec_t:s0",
		"/home/alice/.ssh/authorized_keys":     "staff_u:object_r:ssh_home_t:s0",
		"/home/alice/public_html/index.html":   "staff_u:object_r:httpd_user_content_t:s0",
		"/srv/people/bob/.ssh/authorized_keys": "unconfined_u:object_r:ssh_home_t:s0",
	} {
		if line := objecttest.Ostree(t, repo, "ls", "-X", commit.String(), path); !strings.Contains(line, "b'"+want+"'") {
			t.Errorf("%s: got %q, want the label %s", path, strings.TrimSpace(line), want)
		}
	}
}
