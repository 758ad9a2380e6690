package sysroot

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// tarOf makes a layer of a tree on disk: of all of it, or of the named files.
func tarOf(t *testing.T, dir string, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.Walk(dir, func(file string, info os.FileInfo, err error) error {
		name, relErr := filepath.Rel(dir, file)
		if err != nil || relErr != nil || name == "." {
			return err
		}
		if len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return n == name || strings.HasPrefix(n, name+"/") }) {
			return nil
		}
		target := ""
		if info.Mode()&os.ModeSymlink != 0 {
			if target, err = os.Readlink(file); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name = name
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		t.Fatalf("make a layer of %s: %v", dir, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A store is a store of image layers, like the snapshotter's.
type store struct {
	*layer.Store
	repo *objectstore.Repo
	dir  string
}

func newStore(t *testing.T, dir string) *store {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "repo"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := atfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	repoDir, err := root.OpenDir("repo")
	if err != nil {
		t.Fatal(err)
	}
	defer repoDir.Close()
	repo, err := objectstore.Create(repoDir, objectstore.ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	s, err := layer.Open(root, repo, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return &store{s, repo, dir}
}

func (s *store) pull(t *testing.T, data []byte) objectstore.Checksum {
	t.Helper()
	h, err := s.Import(t.Context(), bytes.NewReader(data), layer.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	return h.ID
}

// inodes returns the inodes of a repository's content objects.
func inodes(t *testing.T, repo string) map[uint64]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(repo, "objects/*/*.file"))
	if err != nil || len(names) == 0 {
		t.Fatalf("objects of %s: %q, %v", repo, names, err)
	}
	found := make(map[uint64]string)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			t.Fatal(err)
		}
		found[st.Ino] = name
	}
	return found
}

// TestOneInode promotes an image to the OS of a host whose other images share files with it. Each file exists once.
// Images and deployment can be removed independently, and the other keeps its files.
func TestOneInode(t *testing.T) {
	needs(t)
	disk, systems := newSystems(t, ostreehost.Trixie, false, "sysroot")
	s := systems[0]
	s.initEmpty()
	for _, ref := range []string{"os/v1", "os/v2"} {
		trees[ref].write(t, filepath.Join(disk, "tree", ref))
	}
	const shared = "usr/share/shared"
	osLayer := tarOf(t, filepath.Join(disk, "tree/os/v1"))
	appLayer := tarOf(t, filepath.Join(disk, "tree/os/v2"), shared, "usr/share/version")

	images := newStore(t, filepath.Join(disk, "images"))
	images.pull(t, appLayer)
	root, err := images.Flatten(t.Context(), []objectstore.Checksum{images.pull(t, osLayer)})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := oscommit.NewTree(root)
	if err != nil {
		t.Fatal(err)
	}
	const ref = "ostree/container/image/test"
	promote := func() {
		t.Helper()
		err := s.locked(t.Context(), func(sr *sysroot.Sysroot) error {
			txn, err := sr.Repo().Begin(t.Context())
			if err != nil {
				return err
			}
			stored, err := tree.Store(t.Context(), txn, images.repo, oscommit.Image{Version: "1"})
			if err != nil {
				return err
			}
			txn.SetRef(ref, stored.Commit)
			return txn.Commit(t.Context(), objectstore.CommitOptions{})
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := (&deployOp{ref: ref, stateroot: osName}).ours(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	promote()

	deployed := filepath.Join(s.root, s.deploymentOf(s.entries()[0]))
	stored, own := inodes(t, filepath.Join(images.dir, "repo")), inodes(t, filepath.Join(s.root, "ostree/repo"))
	files := 0
	err = filepath.WalkDir(filepath.Join(deployed, "usr"), func(file string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st := stat(t, file)
		if st.Size == 0 {
			return nil // ostree does not link these
		}
		files++
		ino := st.Ino
		one := st.Mode&0o022 == 0 && st.Mode&0o6000 == 0 && st.Uid == 0 // nobody but root can change it
		if (stored[ino] != "") != one || own[ino] == "" {
			t.Errorf("%s is the inode of the objects %q and %q of the two repositories, of both: want %t", file, stored[ino], own[ino], one)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("read %s: %d files, %v", deployed, files, err)
	}

	// The deployment is removed, the images stay.
	object := stored[stat(t, filepath.Join(deployed, shared)).Ino]
	for _, do := range []func() error{
		func() error { return undeploy(0).ours(t.Context(), s) },
		func() error { s.ostree("refs", "--delete", ref); return nil },
		func() error { return cleanup().ours(t.Context(), s) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(deployed); !os.IsNotExist(err) {
		t.Errorf("%s is there still: %v", deployed, err)
	}
	if text, err := os.ReadFile(object); err != nil || string(text) != sharedText {
		t.Errorf("the object of the images: %q, %v", text, err)
	}
	fsck(t, images.repo)

	// The images are removed, the deployment stays.
	promote()
	if err := os.RemoveAll(images.dir); err != nil {
		t.Fatal(err)
	}
	deployed = filepath.Join(s.root, s.deploymentOf(s.entries()[0]))
	if text, err := os.ReadFile(filepath.Join(deployed, shared)); err != nil || string(text) != sharedText {
		t.Errorf("the deployment's file: %q, %v", text, err)
	}
	s.check(t, s)
}
