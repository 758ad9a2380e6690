package encapsulate_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	oracle "github.com/ostree-snapshotter/ostree-snapshotter/integration/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// example returns the commit of an image that ostree-ext wrote.
func example(t *testing.T) *encapsulate.Commit {
	t.Helper()
	e, err := oracle.Example()
	testenv.Must(t, err)
	return read(t, signed{e.Objects(), nil}, e.Checksum)
}

func read(t *testing.T, objects encapsulate.Objects, sum objectstore.Checksum) *encapsulate.Commit {
	t.Helper()
	c, err := encapsulate.Read(t.Context(), objects, sum)
	testenv.Must(t, err)
	return c
}

// signed are the objects of a commit with detached metadata, or with none.
type signed struct {
	encapsulate.Objects
	commitMeta []byte
}

func (s signed) ReadMetadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error) {
	if t != objectstore.TypeCommitMeta {
		return s.Objects.ReadMetadata(t, sum)
	}
	if s.commitMeta == nil {
		return nil, objectstore.ErrNotExist
	}
	return s.commitMeta, nil
}

// split makes a chunk of the files in usr/bin and one of all others.
func split(c *encapsulate.Commit) encapsulate.Plan {
	plan := encapsulate.Plan{{Name: "bin", Components: []string{"bin"}}, {Name: "rest", Components: []string{"a", "b"}}}
	for _, f := range c.Files {
		i := 1
		if strings.HasPrefix(f.Path, "usr/bin/") {
			i = 0
		}
		plan[i].Files = append(plan[i].Files, f)
	}
	return plan
}

func tarOf(t *testing.T, l *encapsulate.Layer) []byte {
	t.Helper()
	var b bytes.Buffer
	testenv.Must(t, l.WriteTar(t.Context(), &b))
	return b.Bytes()
}

func layersOf(t *testing.T, c *encapsulate.Commit, plan encapsulate.Plan, v encapsulate.Version) []*encapsulate.Layer {
	t.Helper()
	layers, err := c.Layers(plan, v)
	testenv.Must(t, err)
	return layers
}

// TestVectors compares layers with sizes and hashes by a writer in another language, whose layers ostree accepted.
func TestVectors(t *testing.T) {
	c := example(t)
	plan := split(c)
	for _, test := range []struct {
		plan    encapsulate.Plan
		version encapsulate.Version
		want    string
	}{
		{plan, 1, "166400 92bdab38fdc47d3638cb2e21db01edf5f889967934d1bb0203005dcf111611c8\n" +
			"153600 cfd4d4eeb8f3dddae72d755bcd46ab34877c7a8a6c4cc6f4e69e3d8d6e95b62b\n" +
			"146432 2e3c54e97b4a5b3917e8d93899360b693a6825c4f9fb1911de0fa488886bad2f\n"},
		{plan, 2, "166400 92bdab38fdc47d3638cb2e21db01edf5f889967934d1bb0203005dcf111611c8\n" +
			"154624 97e687662f075910e71623d2ee9e8405d5f1c9d7a6223fbf0d327fb0c6ca5021\n" +
			"148480 592d42b2321f8ebb0fd85e16d1f274223c2c778be147d3f396d16be81b2cb57f\n"},
		{nil, 1, "187904 70d5d36ced82a5aa605a44beed69cead54bfc8dc3e9e9c5dd4d2c7317b1698c3\n"},
		{nil, 2, "190464 d0c5767f26106fb54a79c04b6ec86a1197988d70f5db2e121bb3ff7f9d2ed28d\n"},
	} {
		got := ""
		for _, l := range layersOf(t, c, test.plan, test.version) {
			data := tarOf(t, l)
			got += fmt.Sprintf("%d %s\n", len(data), digest.FromBytes(data).Encoded())
		}
		if got != test.want {
			t.Errorf("version %d, %d chunks: got\n%swant\n%s", test.version, len(test.plan), got, test.want)
		}
	}
}

// TestOracle compares the layers of a tree with everything in it to those of a second writer.
func TestOracle(t *testing.T) {
	repo, sum := oddCommit(t)
	c := read(t, encapsulate.Repo(repo), sum)
	second, err := oracle.Read(oracle.Repo(repo), sum)
	testenv.Must(t, err)
	inBin := func(name string) int {
		if strings.HasPrefix(name, "usr/bin/") {
			return 0
		}
		return 1
	}
	for _, version := range []encapsulate.Version{1, 2} {
		for _, plan := range []encapsulate.Plan{nil, split(c)} {
			want := second.Layers(oracle.Options{Chunks: len(plan), Chunk: inBin, Parents: version == 2})
			for i, l := range layersOf(t, c, plan, version) {
				var b bytes.Buffer
				testenv.Must(t, want[i](&b))
				if got := tarOf(t, l); !bytes.Equal(got, b.Bytes()) {
					t.Errorf("version %d, %d chunks, layer %d: %d bytes, want other %d bytes", version, len(plan), i, len(got), b.Len())
				}
			}
		}
	}
}

// oddCommit makes a commit with everything in it.
func oddCommit(t *testing.T) (*objectstore.Repo, objectstore.Checksum) {
	t.Helper()
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	root := objecttest.OddTree()
	long := strings.Repeat("component/", 12)
	root.Entries["usr"] = objecttest.Dir(0o755, map[string]*objecttest.Node{
		"bin": objecttest.Dir(0o755, map[string]*objecttest.Node{
			"a": objecttest.File(0o755, "a"), "b": objecttest.File(0o755, "a"), "far": objecttest.Symlink(long + "x"), "odd": objecttest.Symlink("//a/./b/"),
		}),
		"etc": objecttest.Dir(0o750, map[string]*objecttest.Node{
			"conf": objecttest.File(0o600, "c"), "d": objecttest.Dir(0o711, map[string]*objecttest.Node{"e": objecttest.File(0o644, "c")}),
		}),
	})
	return repo, objecttest.Commit(t, repo, "odd", root)
}

// TestOSTree unpacks layers with tar: what is in them must be a repository that ostree accepts, with the same commit.
func TestOSTree(t *testing.T) {
	repo, sum := oddCommit(t)
	objecttest.NeedsOstree(t)
	const text = "detached"
	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	testenv.Must(t, txn.StoreCommitMeta(sum, gvariant.AppendDict(nil, []gvariant.Entry{{Key: "k", Value: gvariant.String(text)}})))
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	c := read(t, encapsulate.Repo(repo), sum)
	ls := func(repo *objectstore.Repo) string {
		return objecttest.Ostree(t, repo, "ls", "-R", "-X", "-C", sum.String())
	}
	for name, plan := range map[string]encapsulate.Plan{"one layer": nil, "chunks": split(c)} {
		for _, version := range []encapsulate.Version{1, 2} {
			dir := t.TempDir()
			for _, l := range layersOf(t, c, plan, version) {
				tar := exec.Command("tar", "-xpf", "-", "--xattrs", "--xattrs-include=*", "-C", dir)
				tar.Stdin = bytes.NewReader(tarOf(t, l))
				if out, err := tar.CombinedOutput(); err != nil {
					t.Fatalf("tar: %v\n%s", err, out)
				}
			}
			unpacked := filepath.Join(dir, format.RepoDir)
			if out, err := exec.Command("ostree", "--repo="+unpacked, "fsck").CombinedOutput(); err != nil {
				t.Errorf("%s, version %d: ostree fsck: %v\n%s", name, version, err, out)
			}
			to := objecttest.NewRepo(t)
			objecttest.Ostree(t, to, "pull-local", unpacked, sum.String())
			if got, want := ls(to), ls(repo); got != want {
				t.Errorf("%s, version %d: ostree ls: %s", name, version, testenv.Diff(want, got))
			}
			if got := objecttest.Ostree(t, to, "show", "--print-detached-metadata-key=k", sum.String()); got != "'"+text+"'\n" {
				t.Errorf("%s, version %d: detached metadata is %s", name, version, got)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "etc/d/e")); err != nil || string(b) != "c" {
				t.Errorf("%s, version %d: etc/d/e has %q, %v", name, version, b, err)
			}
		}
	}
}

// TestSysroot has an empty directory sysroot and no other empty directory: its dirtree must be in the image all the same.
func TestSysroot(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"sysroot": objecttest.Dir(0o755, nil), "usr": objecttest.Dir(0o755, map[string]*objecttest.Node{"a": objecttest.File(0o644, "a")}),
	}))
	data := tarOf(t, layersOf(t, read(t, encapsulate.Repo(repo), sum), nil, 2)[0])
	found := make(map[string]int)
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		found[h.Name]++
	}
	for _, name := range []string{"sysroot", format.ObjectPath(format.EmptyTree.Checksum, objectstore.TypeDirTree)} {
		if found[name] != 1 {
			t.Errorf("the layer has %s %d times, want once", name, found[name])
		}
	}
}

// TestInvalid reads commits that no image can hold.
func TestInvalid(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := func(entries map[string]*objecttest.Node) *objecttest.Node { return objecttest.Dir(0o755, entries) }
	file := objecttest.File(0o644, "a")
	for name, test := range map[string]struct {
		root *objecttest.Node
		want string
	}{
		"sysroot":        {dir(map[string]*objecttest.Node{"sysroot": dir(map[string]*objecttest.Node{"a": file})}), "/sysroot is not empty; images have their own files there"},
		"etc and usretc": {dir(map[string]*objecttest.Node{"etc": dir(nil), "usr": dir(map[string]*objecttest.Node{"etc": dir(nil)})}), "it has both /etc and /usr/etc"},
	} {
		repo := objecttest.NewRepo(t)
		sum := objecttest.Commit(t, repo, "r", test.root)
		_, err := encapsulate.Read(t.Context(), encapsulate.Repo(repo), sum)
		want := fmt.Sprintf("read commit %s: commit cannot be encapsulated: %s", sum, test.want)
		if !errors.Is(err, encapsulate.ErrInvalid) || err.Error() != want {
			t.Errorf("%s: got error %v, want %s", name, err, want)
		}
	}
}

// replaced are objects of which one is another one.
type replaced struct {
	encapsulate.Objects
	name objectstore.ObjectName
	data []byte // nil: the object is absent
}

func (r replaced) ReadMetadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error) {
	if (objectstore.ObjectName{Type: t, Checksum: sum}) != r.name {
		return r.Objects.ReadMetadata(t, sum)
	}
	if r.data == nil {
		return nil, objectstore.ErrNotExist
	}
	return r.data, nil
}

func (r replaced) Open(sum objectstore.Checksum) (io.ReadCloser, int64, error) {
	if (objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: sum}) != r.name {
		return r.Objects.Open(sum)
	}
	if r.data == nil {
		return nil, 0, objectstore.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(r.data)), int64(len(r.data)), nil
}

// TestDamage has each object missing, and each content object with other content, longer than its size, or shorter.
func TestDamage(t *testing.T) {
	e, err := oracle.Example()
	testenv.Must(t, err)
	good := example(t)
	write := func(objects encapsulate.Objects) error {
		c, err := encapsulate.Read(t.Context(), signed{objects, nil}, e.Checksum)
		if err != nil {
			return err
		}
		layers, err := c.Layers(nil, 2)
		testenv.Must(t, err)
		return layers[0].WriteTar(t.Context(), io.Discard)
	}
	names := []objectstore.ObjectName{{Type: objectstore.TypeCommit, Checksum: e.Checksum}, {Type: objectstore.TypeDirTree, Checksum: good.Object.Tree}, {Type: objectstore.TypeDirMeta, Checksum: good.Object.Meta}}
	for _, name := range names {
		if err := write(replaced{e.Objects(), name, nil}); !errors.Is(err, objectstore.ErrNotExist) {
			t.Errorf("without %s: got error %v, want an ErrNotExist", name, err)
		}
	}
	notUTF8, err := e.Objects().ReadMetadata(objectstore.TypeDirTree, good.Object.Tree)
	testenv.Must(t, err)
	notUTF8 = bytes.Replace(notUTF8, []byte("usr\x00"), []byte("us\xff\x00"), 1)
	err = write(replaced{e.Objects(), names[1], notUTF8})
	if !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("with a name that is not UTF-8: got error %v, want an ErrCorrupt", err)
	}
	for _, f := range good.Files {
		m, err := e.Objects().FileMeta(f.Sum)
		testenv.Must(t, err)
		if m.IsSymlink() {
			continue
		}
		name := objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: f.Sum}
		for _, data := range []string{"", "other content", "x"} {
			err := write(replaced{e.Objects(), name, []byte(data)})
			var object *objectstore.ObjectError
			if !errors.Is(err, objectstore.ErrCorrupt) || !errors.As(err, &object) || object.Checksum != f.Sum {
				t.Errorf("with %q in %s: got error %v, want an ErrCorrupt of it", data, f.Path, err)
			}
		}
		if err := write(replaced{e.Objects(), name, nil}); !errors.Is(err, objectstore.ErrNotExist) {
			t.Errorf("without %s: got error %v, want an ErrNotExist", f.Path, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	c := example(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("cause")
	cancel(cause)
	if err := layersOf(t, c, nil, 2)[0].WriteTar(ctx, io.Discard); !errors.Is(err, cause) {
		t.Errorf("got error %v, want %v", err, cause)
	}
}

func TestPlan(t *testing.T) {
	c := example(t)
	f := c.Files[0]
	for want, plan := range map[string]encapsulate.Plan{
		"plan layers: /" + f.Path + " is in two chunks":     {{Files: []encapsulate.File{f}}, {Files: []encapsulate.File{f}}},
		"plan layers: /nowhere is not in the commit":        {{Files: []encapsulate.File{{Path: "nowhere", Sum: f.Sum}}}},
		"plan layers: /" + f.Path + " is not in the commit": {{Files: []encapsulate.File{{Path: f.Path}}}},
	} {
		if _, err := c.Layers(plan, 2); err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
}

func TestImage(t *testing.T) {
	c := example(t)
	var blobs []encapsulate.Blob
	for i, l := range layersOf(t, c, split(c), 1) {
		d := digest.FromString(fmt.Sprint("blob ", i))
		blobs = append(blobs, encapsulate.Blob{Layer: l, DiffID: digest.FromString(fmt.Sprint("plain ", i)), Descriptor: ocispec.Descriptor{Digest: d, Size: int64(i)}})
	}
	img, err := c.Image(encapsulate.Options{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		Labels:   map[string]string{"own": "<&>", "ostree.commit": "no"}, CopyMeta: []string{"version"}, CopyMetaOpt: []string{"absent"},
	}, blobs)
	testenv.Must(t, err)
	labels := `{"containers.bootc":"1","org.opencontainers.image.version":"42.0","ostree.bootable":"true","ostree.commit":"` + oracle.ExampleCommit +
		`","ostree.final-diffid":"` + blobs[2].DiffID.String() + `","ostree.linux":"5.10.18-200.x86_64","own":"<&>","version":"42.0"}`
	history := func(by string) string { return `{"created":"1970-01-01T00:00:00Z","created_by":"` + by + `"}` }
	want := `{"architecture":"amd64","config":{"Labels":` + labels + `},"created":"2021-09-17T18:31:29Z","history":[` +
		history("ostree export of commit "+oracle.ExampleCommit) + `,` + history("bin") + `,` + history("rest") + `],"os":"linux","rootfs":{"diff_ids":["` +
		blobs[0].DiffID.String() + `","` + blobs[1].DiffID.String() + `","` + blobs[2].DiffID.String() + `"],"type":"layers"}}`
	if string(img.Config) != want {
		t.Errorf("configuration: %s", testenv.Diff(want, string(img.Config)))
	}
	layer := func(i int, annotations string) string {
		return `{` + annotations + `"digest":"` + blobs[i].Digest.String() + `","mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":` + fmt.Sprint(i) + `}`
	}
	want = `{"annotations":` + labels + `,"config":{"digest":"` + digest.FromBytes(img.Config).String() +
		`","mediaType":"application/vnd.oci.image.config.v1+json","size":` + fmt.Sprint(len(img.Config)) + `},"layers":[` + layer(0, "") + `,` +
		layer(1, `"annotations":{"ostree.components":"bin"},`) + `,` + layer(2, `"annotations":{"ostree.components":"a,b"},`) +
		`],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}`
	if string(img.Manifest) != want {
		t.Errorf("manifest: %s", testenv.Diff(want, string(img.Manifest)))
	}
	if !json.Valid(img.Config) || !json.Valid(img.Manifest) {
		t.Error("not JSON")
	}
	if _, err := c.Image(encapsulate.Options{CopyMeta: []string{"absent"}}, blobs); !errors.Is(err, encapsulate.ErrInvalid) {
		t.Errorf("a label from absent metadata: got error %v", err)
	}
}
