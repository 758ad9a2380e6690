package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// newStore opens a store in a temporary directory. When the test ends, our own fsck and ostree(1) check the repository,
// and no temporary file may be left.
func newStore(t testing.TB, opts Options) (*Store, string) {
	t.Helper()
	testenv.NeedsRoot(t)
	return openStore(t, t.TempDir(), opts)
}

func openStore(t testing.TB, path string, opts Options) (*Store, string) {
	t.Helper()
	root, err := atfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll("repo", 0o700); err != nil {
		t.Fatal(err)
	}
	repoDir, err := root.OpenDir("repo")
	if err != nil {
		t.Fatal(err)
	}
	defer repoDir.Close()
	repo, err := objectstore.Open(repoDir)
	if errors.Is(err, objectstore.ErrNoRepo) {
		repo, err = objectstore.Create(repoDir, objectstore.ModeBare)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(root, repo, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkStore(t, path)
		if err := errors.Join(s.Close(), repo.Close()); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func checkStore(t testing.TB, path string) {
	t.Helper()
	for _, dir := range []string{"tmp", "repo/tmp"} {
		ents, err := os.ReadDir(filepath.Join(path, dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range ents {
			if e.Name() != "cache" {
				t.Errorf("%s/%s is left over", dir, e.Name())
			}
		}
	}
	checkOstree(t, path)
}

// checkOstree has ostree(1) check a store, where it is installed.
func checkOstree(t testing.TB, path string) {
	t.Helper()
	if _, err := exec.LookPath("ostree"); err != nil {
		return
	}
	if out, err := exec.Command("ostree", "fsck", "--repo="+filepath.Join(path, "repo")).CombinedOutput(); err != nil {
		t.Errorf("ostree fsck: %v\n%s", err, out)
	}
}

var when = time.Unix(1_700_000_000, 123_456_789)

// Constructors of tar entries, with defaults that tests override by f.
func entry(typ byte, name string, f ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: typ, Name: name, Mode: 0o644, ModTime: when, Format: tar.FormatPAX}
	if typ == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, f := range f {
		f(h)
	}
	return h
}

type tarEntry struct {
	*tar.Header
	content string
}

func file(name, content string, f ...func(*tar.Header)) tarEntry {
	h := entry(tar.TypeReg, name, f...)
	h.Size = int64(len(content))
	return tarEntry{h, content}
}

func dir(name string, f ...func(*tar.Header)) tarEntry {
	return tarEntry{entry(tar.TypeDir, name, f...), ""}
}

func symlink(name, target string) tarEntry {
	return tarEntry{entry(tar.TypeSymlink, name, func(h *tar.Header) { h.Linkname = target }), ""}
}

func hardlink(name, target string, f ...func(*tar.Header)) tarEntry {
	return tarEntry{entry(tar.TypeLink, name, append([]func(*tar.Header){func(h *tar.Header) { h.Linkname = target }}, f...)...), ""}
}

func whiteout(dir, name string) tarEntry { return file(filepath.Join(dir, ".wh."+name), "") }

func mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
func owner(u, g int) func(*tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid = u, g }
}
func at(t time.Time) func(*tar.Header) { return func(h *tar.Header) { h.ModTime = t } }
func withXattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = value
	}
}

func makeTar(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(e.Header); err != nil {
			t.Fatalf("write header of %q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// importErr imports a tar that must be rejected, and returns the error.
func importErr(t testing.TB, s *Store, r io.Reader, o ImportOptions) error {
	t.Helper()
	h, err := s.Import(t.Context(), r, o)
	if err == nil {
		if err := h.Release(); err != nil {
			t.Error(err)
		}
		t.Fatal("Import: got a layer, want an error")
	}
	return err
}

// wantNoRefs fails the test if the store has any ref.
func wantNoRefs(t testing.TB, s *Store) {
	t.Helper()
	refs, err := s.Repo().Refs("")
	if err != nil || len(refs) != 0 {
		t.Errorf("refs: got %v (%v), want none", refs, err)
	}
}

func importTar(t testing.TB, s *Store, b []byte) Layer {
	t.Helper()
	h, err := s.Import(t.Context(), bytes.NewReader(b), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := s.WriteTar(t.Context(), h.ID, &again); err != nil || !bytes.Equal(again.Bytes(), b) {
		t.Errorf("WriteTar: got %d bytes, %v, want the %d bytes that were imported", again.Len(), err, len(b))
	}
	return h.Layer
}

// checkOut returns the path of a layer's checkout over the layers below.
//
// If Checkout leaves out whiteouts that hide nothing, this makes another checkout, with all of them.
func checkOut(t testing.TB, s *Store, root string, chain ...objectstore.Checksum) string {
	t.Helper()
	name, _, err := s.Checkout(t.Context(), chain)
	testenv.Must(t, err)
	id := chain[len(chain)-1]
	tree, variant, err := s.resolved(t.Context(), id, chain[:len(chain)-1], false)
	testenv.Must(t, err)
	if dir := path.Dir(name); variant != path.Base(name) {
		testenv.Must(t, s.VerifyCheckout(t.Context(), name, chain))
		name = path.Join(dir, variant)
		if ok, err := s.HasCheckout(name); err != nil || !ok {
			testenv.Must(t, err)
			_, err := s.makeCheckout(t.Context(), id, tree, variant)
			testenv.Must(t, err)
		}
	}
	if err := s.VerifyCheckout(t.Context(), name, chain); err != nil {
		t.Errorf("checkout as it was made: %v", err)
	}
	return filepath.Join(root, name)
}
