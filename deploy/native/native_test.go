package native_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const fixtureCommit = "3cb6170b6945065c2475bc16d7bebcc84f96b4c677811a6751e479b89f8c3770"

// newLayers makes a layer store.
func newLayers(t *testing.T) *layer.Store {
	t.Helper()
	testenv.NeedsRoot(t)
	root := objecttest.OpenDir(t, t.TempDir())
	testenv.Must(t, root.Mkdir("repo", 0o700))
	s, err := layer.Open(root, objecttest.NewRepoAt(t, objecttest.OpenDir(t, root.Path()+"/repo")), layer.Options{})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, s.Close()) })
	return s
}

// importTars imports layers.
func importTars(t *testing.T, layers *layer.Store, tars ...[]byte) (ids []objectstore.Checksum) {
	t.Helper()
	for _, data := range tars {
		held, err := layers.Import(t.Context(), bytes.NewReader(data), layer.ImportOptions{})
		testenv.Must(t, err)
		testenv.Must(t, held.Release())
		ids = append(ids, held.ID)
	}
	return ids
}

// An image is an image in a layer store.
type image struct {
	layers *layer.Store
	ids    []objectstore.Checksum
	config []byte
}

// newImage imports layers and labels the image as builders do, with label as the label ostree.commit.
func newImage(t *testing.T, label objectstore.Checksum, layers ...nativetest.Layer) *image {
	t.Helper()
	return labelImage(t, newLayers(t), label, layers...)
}

// labelImage is newImage in an existing store.
func labelImage(t *testing.T, store *layer.Store, label objectstore.Checksum, layers ...nativetest.Layer) *image {
	t.Helper()
	i := &image{layers: store}
	var diffIDs []digest.Digest
	for _, l := range layers {
		data, diffID := l.Tar(t)
		i.ids = append(i.ids, importTars(t, i.layers, data)...)
		diffIDs = append(diffIDs, diffID)
	}
	i.config = nativetest.Config(t, diffIDs, map[string]string{
		"ostree.commit": label.String(), "ostree.final-diffid": diffIDs[len(diffIDs)-1].String(),
	})
	return i
}

func (i *image) read(t *testing.T) (*native.Base, error) {
	t.Helper()
	place, err := native.Find(i.config)
	if err != nil {
		return nil, err
	}
	return native.Read(t.Context(), i.layers, i.ids, place)
}

// storeBase stores a commit with a ref.
func storeBase(t *testing.T, base *native.Base, to, from *objectstore.Repo) error {
	t.Helper()
	txn, err := to.Begin(t.Context())
	if err != nil {
		return err
	}
	if _, err := base.Store(t.Context(), txn, from, nil); err != nil {
		return errors.Join(err, txn.Abort())
	}
	txn.SetRef("base", base.Sum)
	return txn.Commit(t.Context(), objectstore.CommitOptions{Sync: true})
}

// labelled is a tree as an OS commit has it, with labels and other attributes.
func labelled() *objecttest.Node {
	const label = "security.selinux"
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	odd := objecttest.OddTree()
	odd.Entries["selinux"] = objecttest.File(0o755, "shell").Xattr(label, "system_u:object_r:shell_exec_t:s0\x00")
	odd.Entries["same"] = objecttest.File(0o755, "shell").Xattr(label, "system_u:object_r:bin_t:s0\x00")
	odd.Entries["plain"] = objecttest.File(0o755, "shell")
	odd.Entries["none"] = objecttest.File(0o644, "").Xattr(label, "system_u:object_r:usr_t:s0\x00")
	odd.Entries["cap"] = objecttest.File(0o755, "cap").Xattr(label, "system_u:object_r:ping_t:s0\x00").Xattr("security.capability", capability)
	odd.Entries["link2"] = objecttest.Symlink("selinux").Xattr(label, "system_u:object_r:bin_t:s0\x00")
	dir := func(entries map[string]*objecttest.Node) *objecttest.Node {
		return objecttest.Dir(0o755, entries).Xattr(label, "system_u:object_r:usr_t:s0\x00")
	}
	return dir(map[string]*objecttest.Node{
		"usr": dir(map[string]*objecttest.Node{
			"odd": odd,
			"etc": dir(map[string]*objecttest.Node{"conf": objecttest.File(0o600, "conf"), "empty": objecttest.File(0o644, "")}),
		}),
		"sysroot": dir(nil),
		"root":    objecttest.Dir(0o700, nil).Xattr(label, "system_u:object_r:admin_home_t:s0\x00"),
	})
}

// chunks puts files into layers 1 and 2 by the length of their names, and some into the lowest.
func chunks(name string) int { return len(name) % 3 }

// inLowest puts all files into the lowest layer.
func inLowest(string) int { return 0 }

// TestRebuild rebuilds commits from layers.
func TestRebuild(t *testing.T) {
	for name, change := range map[string]func(nativetest.Layer) nativetest.Layer{
		"format": func(l nativetest.Layer) nativetest.Layer { return l },
		"lists of attributes that are hard links": func(l nativetest.Layer) (linked nativetest.Layer) {
			seen := make(map[string]string)
			for _, e := range l {
				if rest, ok := strings.CutSuffix(e.Name, ".file-xattrs-link"); ok {
					if seen[e.Content] == "" {
						sum := digest.FromString(e.Content).Encoded()
						seen[e.Content] = nativetest.Repo + "objects/" + sum[:2] + "/" + sum[2:] + ".file-xattrs"
						linked = append(linked, nativetest.File(seen[e.Content], e.Content, 0o644))
					}
					e = nativetest.Link(rest+".file-xattrs-link", seen[e.Content])
				}
				linked = append(linked, e)
			}
			return linked
		},
		"files without attributes of their own": func(l nativetest.Layer) nativetest.Layer {
			for i := range l {
				l[i].PAXRecords = nil
			}
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			from := objecttest.NewRepo(t)
			want := objecttest.Commit(t, from, "os", labelled())
			layers := nativetest.Encapsulate(t, from, want, 3, chunks)
			for i := range layers {
				layers[i] = change(layers[i])
			}
			img := newImage(t, want, layers...)
			base, err := img.read(t)
			testenv.Must(t, err)
			to := objecttest.NewRepo(t)
			need, err := base.Need(to, img.layers.Repo())
			testenv.Must(t, err)
			if need.Objects+need.Shared == 0 || need.Metadata == 0 {
				t.Errorf("need: got %+v, want files and metadata", need)
			}
			testenv.Must(t, storeBase(t, base, to, img.layers.Repo())) // and the repository is checked when the test ends
			if base.Sum != want {
				t.Errorf("commit %s, want %s", base.Sum, want)
			}
			need, err = base.Need(to, img.layers.Repo())
			testenv.Must(t, err)
			if need.Objects+need.Shared != 0 || need.Bytes+need.Metadata != 0 {
				t.Errorf("need again: got %+v, want nothing", need)
			}
			if objecttest.HasOstree() {
				list := func(repo *objectstore.Repo) string { return objecttest.Ostree(t, repo, "ls", "-RXC", want.String()) }
				if got, want := list(to), list(from); got != want {
					t.Errorf("the trees differ:\n%s", testenv.Diff(got, want))
				}
			}
		})
	}
}

// TestRebuildTree makes the commit anew from its tree: it has the same directories.
func TestRebuildTree(t *testing.T) {
	from := objecttest.NewRepo(t)
	want := objecttest.Commit(t, from, "os", labelled())
	img := newImage(t, want, nativetest.Encapsulate(t, from, want, 3, chunks)...)
	base, err := img.read(t)
	testenv.Must(t, err)
	tree := base.Tree()
	flat, err := oscommit.NewTree(tree.Root)
	testenv.Must(t, err)
	flat.Give(tree.Given)
	txn, err := from.Begin(t.Context())
	testenv.Must(t, err)
	stored, err := flat.Store(t.Context(), txn, img.layers.Repo(), oscommit.Image{Parent: &base.Sum})
	testenv.Must(t, err)
	testenv.Must(t, txn.Abort())
	got, err := from.Commit(stored.Commit)
	testenv.Must(t, err)
	if got.Tree != base.Commit.Tree || got.Meta != base.Commit.Meta || got.Parent == nil || *got.Parent != want {
		t.Errorf("got root %s, %s over %v, want %s, %s over %s", got.Tree, got.Meta, got.Parent, base.Commit.Tree, base.Commit.Meta, want)
	}
}

// TestMergeRoot: layers have no attributes for the root directory.
func TestMergeRoot(t *testing.T) {
	from := objecttest.NewRepo(t)
	root := objecttest.Dir(0o711, nil).Own(3, 4).Xattr("user.root", "r")
	want := objecttest.Commit(t, from, "os", root)
	img := newImage(t, want, nativetest.Encapsulate(t, from, want, 1, inLowest)...)
	base, err := img.read(t)
	testenv.Must(t, err)
	data, _ := nativetest.Layer{nativetest.File("new", "new", 0o644)}.Tar(t)
	tree, err := base.Merge(t.Context(), img.layers, append(img.ids, importTars(t, img.layers, data)...))
	testenv.Must(t, err)
	if got := tree.Root; got.Mode != root.Mode || got.UID != 3 || got.GID != 4 || len(got.Xattrs) != 1 || got.Entries[0].Name != "new" {
		t.Errorf("root: got %+v, want that of the commit, with a new file", got)
	}
}

// TestRebuildFixture rebuilds the commit of an image that ostree's own builder made in 2021, in the first version of the
// format.
func TestRebuildFixture(t *testing.T) {
	files := fixture(t)
	config := files["5b8c0b844df89b0e6e2ed7e9917cdd2476f35819d3fce7cefc3882c42f696c38"]
	z, err := gzip.NewReader(bytes.NewReader(files["ee02768e65e6fb2bb7058282338896282910f3560de3e0d6cd9b1d5985e8360d"]))
	testenv.Must(t, err)
	data, err := io.ReadAll(z)
	testenv.Must(t, err)
	place, err := native.Find(config)
	testenv.Must(t, err)
	if !place.Unmarked || place.Commit.String() != fixtureCommit || len(place.DiffIDs) != 1 {
		t.Fatalf("place: got %+v, want commit %s in one layer that no label names", place, fixtureCommit)
	}
	layers := newLayers(t)
	ids := importTars(t, layers, data)
	root, err := layers.Image(t.Context(), ids[0])
	testenv.Must(t, err)
	if !native.HasCommit(root, place.Commit) || native.HasCommit(root, objectstore.Checksum{}) {
		t.Error("has commit: want the one of the label, and no other")
	}
	base, err := native.Read(t.Context(), layers, ids, place)
	testenv.Must(t, err)
	to := objecttest.NewRepo(t)
	testenv.Must(t, storeBase(t, base, to, layers.Repo()))
	if got, err := to.Ref("base"); err != nil || got.String() != fixtureCommit {
		t.Errorf("ref: got %s, %v, want %s", got, err, fixtureCommit)
	}
	if !objecttest.HasOstree() {
		return
	}
	if got := objecttest.Ostree(t, to, "ls", "-X", "base", "/usr/bin/sh"); !strings.Contains(got, "bin_t") || !strings.Contains(got, "-> bash") {
		t.Errorf("ostree ls: got %q, want a link to bash with its label", got)
	}
	if got := objecttest.Ostree(t, to, "show", "--print-metadata-key=version", "base"); got != "'42.0'\n" {
		t.Errorf("version: got %q, want 42.0", got)
	}
}

// fixture returns the blobs of the fixture by their digests.
func fixture(t *testing.T) map[string][]byte {
	t.Helper()
	f, err := os.Open("testdata/exampleos-derive-v2.ociarchive")
	testenv.Must(t, err)
	defer f.Close()
	files := make(map[string][]byte)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		testenv.Must(t, err)
		data, err := io.ReadAll(r)
		testenv.Must(t, err)
		files[h.Name[strings.LastIndexByte(h.Name, '/')+1:]] = data
	}
}

// signatures are the detached metadata {'k': <'v'>}.
var signatures = string([]byte{'k', 0, 0, 0, 0, 0, 0, 0, 'v', 0, 0, 's', 2, 13})

// TestCommitMeta: signatures come with the commit.
func TestCommitMeta(t *testing.T) {
	from := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, from, "os", objecttest.Dir(0o755, nil))
	layers := nativetest.Encapsulate(t, from, sum, 1, inLowest)
	layers[0] = append(layers[0], nativetest.File(nativetest.ObjectPath(sum, objectstore.TypeCommitMeta), signatures, 0o644))
	img := newImage(t, sum, layers...)
	base, err := img.read(t)
	testenv.Must(t, err)
	to := objecttest.NewRepo(t)
	testenv.Must(t, storeBase(t, base, to, img.layers.Repo()))
	objecttest.NeedsOstree(t)
	if got := objecttest.Ostree(t, to, "show", "--print-detached-metadata-key=k", "base"); got != "'v'\n" {
		t.Errorf("detached metadata: got %q, want v", got)
	}
}
