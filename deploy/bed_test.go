package deploy

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// A file is one of a layer's: a directory if its name ends in a slash, a symbolic link if it has a target.
type file struct {
	name, content, target string

	mode int64 // of a regular file; 0: 0644
	uid  int
}

// kib returns n KiB of content that depends on the seed.
func kib(seed string, n int) string {
	return strings.Repeat(fmt.Sprintf("%-63s\n", seed), n<<10/64)
}

// The layers of an operating system. Without osFiles it cannot boot.
var (
	baseFiles = []file{{name: "bin/sh", content: kib("shell", 96)}, {name: "etc/empty"}, {name: "etc/app.conf", content: "default\n"}}
	osFiles   = []file{
		{name: "boot/"},
		{name: "dev/"},
		{name: "proc/"},
		{name: "run/"},
		{name: "sys/"},
		{name: "sysroot/"},
		{name: "tmp/"},
		{name: "var/"},
		{name: "ostree", target: "sysroot/ostree"},
		{name: "dev/null", content: "not seen"},
		{name: "usr/lib/os-release", content: "ID=test\n"},
		{name: "usr/lib/modules/6.1.0/vmlinuz", content: kib("kernel", 100)},
		{name: "usr/lib/modules/6.1.0/initramfs.img", content: kib("initramfs", 200)},
	}
)

func makeTar(t *testing.T, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Uid: f.uid, Size: int64(len(f.content)), ModTime: time.Unix(1000, 0)}
		switch {
		case f.mode != 0:
			h.Mode = f.mode
		case f.target != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.target, 0o777
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		testenv.Must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, f.content)
		testenv.Must(t, err)
	}
	testenv.Must(t, w.Close())
	return b.Bytes()
}

// A bed is a layer store.
type bed struct {
	root   *atfs.Dir
	repo   *objectstore.Repo
	layers *layer.Store
}

func newBed(t *testing.T) *bed {
	t.Helper()
	testenv.NeedsRoot(t)
	b := &bed{root: objecttest.OpenDir(t, t.TempDir())}
	testenv.Must(t, b.root.Mkdir("repo", 0o700))
	b.repo = objecttest.NewRepoAt(t, objecttest.OpenDir(t, b.root.Path()+"/repo"))
	b.layers = openLayers(t, b.root, b.repo)
	return b
}

func openLayers(t *testing.T, root *atfs.Dir, repo *objectstore.Repo) *layer.Store {
	t.Helper()
	s, err := layer.Open(root, repo, layer.Options{})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, s.Close()) })
	return s
}

// image imports layers, and returns an image of them.
func (b *bed) image(t *testing.T, name string, layers ...[]file) *Image {
	t.Helper()
	img := &Image{
		Name: name, Version: "1", Created: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC),
		ManifestDigest: "sha256:" + "00", Manifest: []byte(`{"name": "` + name + `"}`), Config: []byte(`{}`),
	}
	for _, files := range layers {
		held, err := b.layers.Import(t.Context(), bytes.NewReader(makeTar(t, files)), layer.ImportOptions{})
		testenv.Must(t, err)
		testenv.Must(t, held.Release())
		img.Layers = append(img.Layers, held.ID)
	}
	return img
}

// osImage returns an image of an operating system, with more files.
func (b *bed) osImage(t *testing.T, more ...file) *Image {
	t.Helper()
	return b.image(t, "example.org/os:1", baseFiles, append(osFiles[:len(osFiles):len(osFiles)], more...))
}

// newSystem makes a sysroot with the stateroot os, and opens it.
func newSystem(t *testing.T) *System {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "sys")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { thaw(t, dir) })
	if missing, err := Init(dir, Options{}, false); err != nil || missing {
		t.Fatal(missing, err)
	}
	s, err := Open(dir, Options{})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, s.Close()) })
	_, _, err = s.EnsureStateroot("os", false)
	testenv.Must(t, err)
	return s
}

// thaw makes the deployments of a sysroot removable.
func thaw(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "ostree/deploy/*/deploy/*.[0-9]"))
	testenv.Must(t, err)
	for _, name := range names {
		d, err := atfs.Open(name)
		testenv.Must(t, err)
		testenv.Must(t, errors.Join(d.SetImmutable(false), d.Close()))
	}
}

func (b *bed) load(t *testing.T, s *System) *sysroot.State {
	t.Helper()
	st, err := s.Load(t.Context())
	testenv.Must(t, err)
	return st
}

// deploy plans a deployment and executes it.
func (b *bed) deploy(t *testing.T, s *System, r Request) *Plan {
	t.Helper()
	p, err := s.Plan(t.Context(), b.load(t, s), b.layers, r)
	testenv.Must(t, err)
	if p.Plan != nil {
		testenv.Must(t, p.Execute(t.Context()))
	}
	testenv.Must(t, p.Close())
	return p
}

// refs returns the refs of images in a repository.
func refs(t *testing.T, repo *objectstore.Repo) (names []string) {
	t.Helper()
	found, err := repo.Refs(imageRefs)
	testenv.Must(t, err)
	for name := range found {
		names = append(names, name)
	}
	return names
}

// bind mounts a directory at another place until the test ends.
func bind(t *testing.T, dir, at string) {
	t.Helper()
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// sysrootRepo makes the repository of a sysroot.
func sysrootRepo(t *testing.T, name string) *objectstore.Repo {
	t.Helper()
	testenv.Must(t, os.MkdirAll(name, 0o755))
	return objecttest.NewRepoAt(t, objecttest.OpenDir(t, name))
}

// sharedInodes returns how many content objects two repositories share as one inode, and how many they have twice.
func sharedInodes(t *testing.T, a, b *objectstore.Repo) (shared, apart int) {
	t.Helper()
	for _, obj := range contentObjects(t, a) {
		x, err := a.Stat(obj)
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Stat(obj)
		switch {
		case errors.Is(err, objectstore.ErrNotExist):
		case err != nil:
			t.Fatal(err)
		case x.Ino == y.Ino && x.Dev == y.Dev:
			shared++
		default:
			apart++
		}
	}
	return shared, apart
}

func contentObjects(t *testing.T, repo *objectstore.Repo) (sums []objectstore.Checksum) {
	t.Helper()
	names, err := filepath.Glob(repo.ObjectsDir().Path() + "/??/*.file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		rel, err := filepath.Rel(repo.ObjectsDir().Path(), name)
		if err != nil {
			t.Fatal(err)
		}
		obj, err := objectstore.ParseLoosePath(rel)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, obj.Checksum)
	}
	return sums
}
