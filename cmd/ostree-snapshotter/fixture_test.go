package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// tarFile is a file of a test's layer: a directory of the root if its name ends in a slash, else a regular file unless it is a link.
type tarFile struct {
	name    string
	content string
	mtime   int64
	link    string // hard link to this name, if not ""
	target  string // of a symbolic link, if not ""
}

// kib is n KiB of content that is not the same for two values of seed.
func kib(seed string, n int) string {
	return strings.Repeat(fmt.Sprintf("%-63s\n", seed), n<<10/64)
}

func makeTar(files []tarFile) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := make(map[string]bool)
	for _, f := range files {
		if dir, _, ok := strings.Cut(f.name, "/"); ok && !dirs[dir] {
			dirs[dir] = true
			h := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(1, 0)}
			if err := w.WriteHeader(h); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), ModTime: time.Unix(f.mtime, 0)}
		switch {
		case strings.HasSuffix(f.name, "/"):
			continue // made above
		case f.target != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.target, 0o777
		case f.link != "":
			h = &tar.Header{Typeflag: tar.TypeLink, Name: f.name, Linkname: f.link, Mode: 0o644, ModTime: time.Unix(f.mtime, 0)}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(f.content)); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// The layers of the images that makeFixture makes. "lib/common" is one file in both upper layers; "lib/sh" has the
// content of the base's "bin/sh" and another mtime, so that a checkout needs a copy of it.
var (
	baseFiles = []tarFile{
		{name: "bin/sh", content: kib("shell", 96), mtime: 1000},
		{name: "bin/ash", link: "bin/sh", mtime: 1000},
		{name: "etc/empty", mtime: 1000},
	}
	aFiles = []tarFile{
		{name: "app/a", content: kib("a", 48), mtime: 2000},
		{name: "lib/common", content: kib("common", 200), mtime: 3000},
	}
	bFiles = []tarFile{
		{name: "app/b", content: kib("b", 32), mtime: 2000},
		{name: "lib/common", content: kib("common", 200), mtime: 3000},
		{name: "lib/sh", content: kib("shell", 96), mtime: 5000},
	}
)

// fixture is a store with two images: a is base and a layer, b is base and another. A container runs on a.
type fixture struct {
	root          *atfs.Dir
	repo          *objectstore.Repo
	layers        *layer.Store
	sn            *snapshotter.Snapshotter
	base, a, b    objectstore.Checksum
	chainA, chain digest.Digest // of image a, of the base
	chainB        digest.Digest
}

// makeFixture makes it in a directory that exists and is empty. The snapshotter of the result is open: metadata.db is
// locked, as by a daemon.
func makeFixture(ctx context.Context, dir string) (_ *fixture, err error) {
	unix.Umask(0) // as the daemon does
	if err := createRepo(filepath.Join(dir, "repo")); err != nil {
		return nil, err
	}
	f, err := openFixture(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.base, f.chain, err = f.unpack(ctx, "", baseFiles); err != nil {
		return nil, err
	}
	if f.a, f.chainA, err = f.unpack(ctx, f.chain, aFiles); err != nil {
		return nil, err
	}
	if f.b, f.chainB, err = f.unpack(ctx, f.chain, bFiles); err != nil {
		return nil, err
	}
	return f, f.run(ctx, "container", f.chainA, "written by a container\n")
}

func createRepo(name string) error {
	if err := os.Mkdir(name, 0o700); err != nil {
		return err
	}
	dir, err := atfs.Open(name)
	if err != nil {
		return err
	}
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err == nil {
		err = repo.Close()
	}
	return errors.Join(err, dir.Close())
}

// openFixture opens a store as a daemon does.
func openFixture(ctx context.Context, dir string) (_ *fixture, err error) {
	f := &fixture{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.root, err = atfs.Open(dir); err != nil {
		return nil, err
	}
	repoDir, err := f.root.OpenDir("repo")
	if err != nil {
		return nil, err
	}
	f.repo, err = objectstore.Open(repoDir)
	if err = errors.Join(err, repoDir.Close()); err != nil {
		return nil, err
	}
	if f.layers, err = layer.Open(f.root, f.repo, layer.Options{}); err != nil {
		return nil, err
	}
	f.sn, err = snapshotter.New(ctx, f.root, f.layers)
	return f, err
}

// snapshotName is what containerd calls a snapshot here.
func snapshotName(name string) string { return "default/1/" + name }

// unpack does what containerd and the differ do for one layer.
func (f *fixture) unpack(ctx context.Context, parent digest.Digest, files []tarFile) (id objectstore.Checksum, chain digest.Digest, err error) {
	data, err := makeTar(files)
	if err != nil {
		return id, "", err
	}
	chain = digest.FromBytes(data)
	parentName := ""
	if parent != "" {
		chain = digest.FromString(parent.String() + " " + chain.String())
		parentName = snapshotName(parent.String())
	}
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String()})
	key := snapshotName("extract-1 " + chain.String())
	mounts, err := f.sn.Prepare(ctx, key, parentName, labels)
	if err != nil {
		return id, "", err
	}
	held, err := f.layers.Import(ctx, bytes.NewReader(data), layer.ImportOptions{Blob: digest.FromBytes(data)})
	if err != nil {
		return id, "", err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	number, _, err := f.sn.Locate(ctx, mounts)
	if err == nil {
		err = f.sn.AddLayer(ctx, number, held, false)
	}
	if err == nil {
		err = f.sn.Commit(ctx, snapshotName(chain.String()), key, labels)
	}
	return held.ID, chain, err
}

// run makes the snapshot of a container and writes to it.
func (f *fixture) run(ctx context.Context, key string, chain digest.Digest, content string) error {
	mounts, err := f.sn.Prepare(ctx, snapshotName(key), snapshotName(chain.String()))
	if err != nil {
		return err
	}
	for _, o := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			return os.WriteFile(upper+"/data", []byte(content), 0o600)
		}
	}
	return fmt.Errorf("mounts %v have no upper directory", mounts)
}

// close closes everything, as a daemon that ends does.
func (f *fixture) close() error {
	var err error
	if f.sn != nil {
		err = errors.Join(err, f.sn.Close())
	}
	if f.layers != nil {
		err = errors.Join(err, f.layers.Close())
	}
	if f.repo != nil {
		err = errors.Join(err, f.repo.Close())
	}
	if f.root != nil {
		err = errors.Join(err, f.root.Close())
	}
	return err
}

func openDir(t *testing.T, name string) *atfs.Dir {
	t.Helper()
	d, err := atfs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}
