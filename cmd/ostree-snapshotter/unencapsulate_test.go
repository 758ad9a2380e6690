package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

// encapsulated writes the signed commit as an image in a layout.
func encapsulated(t *testing.T) (repo *objectstore.Repo, sum objectstore.Checksum, dir string) {
	t.Helper()
	repo, sum = signedCommit(t)
	dir = filepath.Join(t.TempDir(), "layout")
	output(t, 0, "image", "encapsulate", "--repo", repo.Dir().Path(), "odd", "oci:"+dir)
	return repo, sum, dir
}

// sameCommit compares a commit, with all that is in it and beside it, in two repositories.
func sameCommit(t *testing.T, want, got *objectstore.Repo, sum objectstore.Checksum) {
	t.Helper()
	a, err := want.ReadMetadata(objectstore.TypeCommitMeta, sum)
	testenv.Must(t, err)
	b, err := got.ReadMetadata(objectstore.TypeCommitMeta, sum)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("detached metadata: got %q, %v, want %q", b, err, a)
	}
	report, err := got.Fsck(t.Context(), objectstore.FsckOptions{})
	testenv.Must(t, err)
	if err := report.Err(); err != nil || report.Commits != 1 {
		t.Errorf("fsck: %d commits, %v", report.Commits, err)
	}
	if !objecttest.HasOstree() {
		return
	}
	ls := func(repo *objectstore.Repo) string {
		return objecttest.Ostree(t, repo, "ls", "-R", "-X", "-C", sum.String())
	}
	if a, b := ls(want), ls(got); a != b {
		t.Errorf("ostree ls: %s", testenv.Diff(a, b))
	}
}

// leftovers returns what a repository has in tmp.
func leftovers(t *testing.T, repo *objectstore.Repo) (names []string) {
	t.Helper()
	list, err := os.ReadDir(repo.Dir().Path() + "/tmp")
	testenv.Must(t, err)
	for _, e := range list {
		if e.Name() != "cache" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestUnencapsulateLayout(t *testing.T) {
	from, sum, dir := encapsulated(t)
	to := objecttest.NewRepo(t)
	mark := filepath.Join(to.Dir().Path(), "state", sum.String()+".commitpartial") // of a pull that was interrupted
	testenv.Must(t, os.MkdirAll(filepath.Dir(mark), 0o755))
	for range 2 {
		testenv.Must(t, os.WriteFile(mark, nil, 0o644))
		var r unencapsulateReport
		decode(t, output(t, 0, "image", "unencapsulate", "oci:"+dir, "--repo", to.Dir().Path(), "--ref", "out/odd", "--json"), &r)
		if want := (unencapsulateReport{Commit: sum, Ref: "out/odd"}); r != want {
			t.Errorf("got %+v, want %+v", r, want)
		}
		if got, err := to.Ref("out/odd"); got != sum || err != nil {
			t.Errorf("the ref is %s, %v, want %s", got, err, sum)
		}
		sameCommit(t, from, to, sum)
		if left := leftovers(t, to); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
	again := filepath.Join(t.TempDir(), "again")
	output(t, 0, "image", "encapsulate", "--repo", to.Dir().Path(), "out/odd", "oci:"+again)
	for _, name := range []string{dir, again} {
		if data, err := os.ReadFile(filepath.Join(name, "index.json")); err != nil || !bytes.Contains(data, []byte(targetOf(t, dir).Digest)) {
			t.Errorf("%s: the image of the commit that was taken out is another one: %s, %v", name, data, err)
		}
	}
}

// targetOf returns the manifest of a layout's only image.
func targetOf(t *testing.T, dir string) ocispec.Descriptor {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	testenv.Must(t, err)
	var index ocispec.Index
	testenv.Must(t, json.Unmarshal(data, &index))
	if len(index.Manifests) != 1 {
		t.Fatalf("the layout has %d images", len(index.Manifests))
	}
	return index.Manifests[0]
}

// blobOf returns a blob of a layout, and its file.
func blobOf(t *testing.T, dir string, d digest.Digest) (data []byte, name string) {
	t.Helper()
	name = filepath.Join(dir, "blobs/sha256", d.Encoded())
	data, err := os.ReadFile(name)
	testenv.Must(t, err)
	return data, name
}

// imageOf returns the manifest and the configuration of a layout's image.
func imageOf(t *testing.T, dir string) (m ocispec.Manifest, c ocispec.Image) {
	t.Helper()
	data, _ := blobOf(t, dir, targetOf(t, dir).Digest)
	testenv.Must(t, json.Unmarshal(data, &m))
	data, _ = blobOf(t, dir, m.Config.Digest)
	testenv.Must(t, json.Unmarshal(data, &c))
	return m, c
}

// TestUnencapsulateUnpacked takes a commit out of layers that the store has, without their blobs.
func TestUnencapsulateUnpacked(t *testing.T) {
	from, sum, dir := encapsulated(t)
	m, config := imageOf(t, dir)
	blob, _ := blobOf(t, dir, m.Layers[0].Digest)
	f, s := newFixture(t)
	f.stopDaemon(t)
	plain, err := gzip.NewReader(bytes.NewReader(blob))
	testenv.Must(t, err)
	held, err := f.layers.Import(t.Context(), plain, layer.ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, held.Release())
	above, err := f.layers.Layer(t.Context(), f.a)
	testenv.Must(t, err)
	c := newContainerd(t)
	c.Tag("default", "example.org/native:1", c.Manifest(containerdtest.Image{
		Labels: config.Config.Labels, DiffIDs: append(config.RootFS.DiffIDs, above.DiffID),
	}))
	c.Tag("default", "example.org/plain:1", c.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{above.DiffID}}))
	to := objecttest.NewRepo(t)
	args := []string{"--repo", to.Dir().Path(), "--root", s.Root.Path(), "-a", c.Address}
	got := output(t, 0, append([]string{"image", "unencapsulate", "example.org/native:1", "--ref", "r"}, args...)...)
	if want := "commit        " + sum.String() + "\nref           r\nlayers above  1, left out\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	sameCommit(t, from, to, sum)

	var stdout, stderr bytes.Buffer
	status := execute(t.Context(), append([]string{"image", "unencapsulate", "example.org/plain:1"}, args...), &stdout, &stderr)
	if want := "image example.org/plain:1: it has no ostree commit inside\n"; status != exitFailed || !strings.HasSuffix(stderr.String(), want) {
		t.Errorf("an ordinary image: status %d, %s", status, stderr.String())
	}
}

// TestUnencapsulateErrors: one clear error, no ref and nothing in tmp.
func TestUnencapsulateErrors(t *testing.T) {
	_, _, dir := encapsulated(t)
	m, _ := imageOf(t, dir)
	blob, name := blobOf(t, dir, m.Layers[0].Digest)
	to := objecttest.NewRepo(t)
	for test, want := range map[string]struct {
		status int
		change func()
		args   []string
		text   string
	}{
		"no layout":    {exitFailed, nil, []string{"oci:" + dir + "-none"}, "is no OCI layout"},
		"bad ref":      {exitUsage, nil, []string{"oci:" + dir, "--ref", "a//b"}, "--ref"},
		"bad platform": {exitUsage, nil, []string{"oci:" + dir, "--platform", "/"}, "--platform"},
		"no such":      {exitFailed, nil, []string{"oci:" + dir, "--platform", "linux/s390x"}, "image " + dir},
		"damaged blob": {exitFailed, func() { testenv.Must(t, os.WriteFile(name, append([]byte("x"), blob[1:]...), 0o644)) }, []string{"oci:" + dir}, "layer 0"},
		"cut blob":     {exitFailed, func() { testenv.Must(t, os.WriteFile(name, blob[:len(blob)/2], 0o644)) }, []string{"oci:" + dir}, "layer 0"},
		"no blob":      {exitFailed, func() { testenv.Must(t, os.Remove(name)) }, []string{"oci:" + dir}, "layer 0"},
	} {
		if want.change != nil {
			want.change()
		}
		var stdout, stderr bytes.Buffer
		args := append([]string{"image", "unencapsulate", "--repo", to.Dir().Path(), "--ref", "r"}, want.args...)
		status := execute(t.Context(), args, &stdout, &stderr)
		if status != want.status || !strings.Contains(stderr.String(), want.text) {
			t.Errorf("%s: got status %d, want %d, and %s", test, status, want.status, stderr.String())
		}
		testenv.Must(t, os.WriteFile(name, blob, 0o644))
		refs, err := to.Refs("")
		if left := leftovers(t, to); len(left) > 0 || len(refs) > 0 || err != nil {
			t.Errorf("%s: left %v and refs %v, %v", test, left, refs, err)
		}
	}
}
