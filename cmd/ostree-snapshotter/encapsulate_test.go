package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// signedCommit makes a commit with everything in it, with detached metadata, under the ref odd.
func signedCommit(t *testing.T) (*objectstore.Repo, objectstore.Checksum) {
	t.Helper()
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	sum := objecttest.Commit(t, repo, "odd", objecttest.OddTree())
	txn, err := repo.Begin(t.Context())
	testenv.Must(t, err)
	testenv.Must(t, txn.StoreCommitMeta(sum, gvariant.AppendDict(nil, []gvariant.Entry{{Key: "k", Value: gvariant.String("detached")}})))
	testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
	return repo, sum
}

// TestEncapsulate writes a commit twice, with other numbers of processors, into a layout and an archive.
func TestEncapsulate(t *testing.T) {
	repo, sum := signedCommit(t)
	dir := t.TempDir()
	var digests []digest.Digest
	for i, to := range []string{"oci:" + dir + "/a:1", "oci:" + dir + "/a:2", "oci:" + dir + "/b", "oci-archive:" + dir + "/c"} {
		old := runtime.GOMAXPROCS(1 + 3*(i%2))
		var r encapsulateReport
		decode(t, output(t, 0, "image", "encapsulate", "--repo", repo.Dir().Path(), "odd", to, "--json"), &r)
		runtime.GOMAXPROCS(old)
		if r.Commit != sum || len(r.Layers) != 1 {
			t.Errorf("%s: got commit %s in %d layers, want %s in one", to, r.Commit, len(r.Layers), sum)
		}
		digests = append(digests, r.Digest)
	}
	for _, d := range digests {
		if d != digests[0] {
			t.Errorf("got digests %s, want one", digests)
		}
	}
	text := output(t, 0, "image", "encapsulate", "--repo", repo.Dir().Path(), sum.String(), "oci:"+dir+"/a:3",
		"--format-version", "1", "--compression-level", "1", "--arch", "arm64", "--label", "a=b", "--copymeta-opt", "none")
	if !strings.HasPrefix(text, "commit   "+sum.String()+"\n") {
		t.Errorf("got %s", text)
	}
}

// TestEncapsulateErrors: one clear error, and nothing at the destination.
func TestEncapsulateErrors(t *testing.T) {
	repo, _ := signedCommit(t)
	path := repo.Dir().Path()
	fsys := objecttest.Dir(0o755, map[string]*objecttest.Node{"sysroot": objecttest.Dir(0o755, map[string]*objecttest.Node{"a": objecttest.File(0o644, "a")})})
	objecttest.Commit(t, repo, "filled", fsys)
	objecttest.Commit(t, repo, "lost", objecttest.Dir(0o755, map[string]*objecttest.Node{"only": objecttest.File(0o644, "only here")}))
	only := filepath.Join(path, "objects", objectOf(t, repo, "lost", "only"))
	testenv.Must(t, os.Rename(only, path+".only"))
	t.Cleanup(func() { testenv.Must(t, os.Rename(path+".only", only)) }) // the repository is checked at the end
	objecttest.Commit(t, repo, "damaged", objecttest.Dir(0o755, map[string]*objecttest.Node{"other": objecttest.File(0o644, "other")}))
	other := filepath.Join(path, "objects", objectOf(t, repo, "damaged", "other"))
	testenv.Must(t, os.WriteFile(other, []byte("OTHER"), 0o644))
	t.Cleanup(func() { testenv.Must(t, os.WriteFile(other, []byte("other"), 0o644)) })
	partial := objecttest.Commit(t, repo, "partial", objecttest.Dir(0o755, nil))
	mark := filepath.Join(path, "state", partial.String()+".commitpartial")
	testenv.Must(t, os.MkdirAll(filepath.Dir(mark), 0o755))
	testenv.Must(t, os.WriteFile(mark, []byte("f"), 0o644))
	t.Cleanup(func() { testenv.Must(t, os.Remove(mark)) })
	archive := filepath.Join(t.TempDir(), "archive")
	for _, name := range []string{"objects", "refs/heads", "tmp", "state"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(archive, name), 0o755))
	}
	testenv.Must(t, os.WriteFile(filepath.Join(archive, "config"), []byte("[core]\nrepo_version=1\nmode=archive-z2\n"), 0o644))
	dir := t.TempDir()
	for name, test := range map[string]struct {
		status int
		args   []string
		want   string
	}{
		"no ref":          {exitFailed, []string{"nowhere", "oci:" + dir + "/x"}, `ref "nowhere": does not exist`},
		"no commit":       {exitFailed, []string{strings.Repeat("0", 64), "oci:" + dir + "/x"}, "object " + strings.Repeat("0", 64) + ".commit: does not exist"},
		"sysroot":         {exitFailed, []string{"filled", "oci:" + dir + "/x"}, "/sysroot is not empty"},
		"missing object":  {exitFailed, []string{"lost", "oci:" + dir + "/x"}, ".file: does not exist"},
		"damaged object":  {exitCorrupt, []string{"damaged", "oci:" + dir + "/x"}, ".file: corrupt"},
		"partial":         {exitFailed, []string{"partial", "oci:" + dir + "/x"}, "the commit is incomplete"},
		"into an archive": {exitFailed, []string{"lost", "oci-archive:" + dir + "/x"}, ".file: does not exist"},
		"no metadata":     {exitFailed, []string{"odd", "oci:" + dir + "/x", "--copymeta", "none"}, `its metadata has no string "none"`},
		"no repository":   {exitNoRepo, []string{"odd", "oci:" + dir + "/x", "--repo", dir}, "not an ostree repository"},
		"archive":         {exitFailed, []string{"odd", "oci:" + dir + "/x", "--repo", archive}, "archive-z2"},
		"transport":       {exitUsage, []string{"odd", "docker://x"}, "is neither oci:DIR[:TAG] nor oci-archive:FILE[:TAG]"},
		"version":         {exitUsage, []string{"odd", "oci:" + dir + "/x", "--format-version", "3"}, "not 1 or 2"},
		"level":           {exitUsage, []string{"odd", "oci:" + dir + "/x", "--compression-level", "0"}, "not between 1 and 9"},
		"label":           {exitUsage, []string{"odd", "oci:" + dir + "/x", "--label", "x"}, "not KEY=VALUE"},
		"arguments":       {exitUsage, []string{"odd"}, "takes two arguments"},
	} {
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), append([]string{"image", "encapsulate", "--repo", path}, test.args...), &stdout, &stderr)
		if status != test.status || !strings.Contains(stderr.String(), test.want) || strings.Count(stderr.String(), "error:") != 1 {
			t.Errorf("%s: got status %d, want %d, and %s", name, status, test.status, stderr.String())
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// objectOf returns the path of a file's object below objects.
func objectOf(t *testing.T, repo *objectstore.Repo, ref, name string) string {
	t.Helper()
	sum, err := repo.Ref(ref)
	testenv.Must(t, err)
	c, err := repo.Commit(sum)
	testenv.Must(t, err)
	e, err := repo.Lookup(c.Root(), name)
	testenv.Must(t, err)
	return objectstore.LoosePath(e.Checksum, objectstore.TypeFile)
}
