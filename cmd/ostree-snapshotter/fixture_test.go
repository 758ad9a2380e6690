package main

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// tarFile is a snaptest.TarFile.
type tarFile struct {
	name    string
	content string
	mtime   int64
	link    string
	target  string
}

func tarFiles(files []tarFile) []snaptest.TarFile {
	list := make([]snaptest.TarFile, len(files))
	for i, f := range files {
		list[i] = snaptest.TarFile{Name: f.name, Content: f.content, Mtime: f.mtime, Link: f.link, Target: f.target}
	}
	return list
}

func kib(seed string, n int) string { return snaptest.KiB(seed, n) }

func makeTar(files []tarFile) ([]byte, error) { return snaptest.MakeTar(tarFiles(files)) }

// fixture is a snaptest.Fixture.
type fixture struct {
	*snaptest.Fixture
	root          *atfs.Dir
	repo          *objectstore.Repo
	layers        *layer.Store
	sn            *snapshotter.Snapshotter
	base, a, b    objectstore.Checksum
	chainA, chain digest.Digest // of image a, of the base
	chainB        digest.Digest
}

func newFixtureOf(f *snaptest.Fixture, err error) (*fixture, error) {
	if err != nil {
		return nil, err
	}
	return &fixture{
		Fixture: f, root: f.Root, repo: f.Repo, layers: f.Store, sn: f.Snapshotter,
		base: f.Base, a: f.A, b: f.B, chain: f.Chain, chainA: f.ChainA, chainB: f.ChainB,
	}, nil
}

// makeFixture makes it in a directory that exists and is empty. The snapshotter of the result is open: metadata.db is
// locked, as by a daemon.
func makeFixture(ctx context.Context, dir string) (*fixture, error) {
	return newFixtureOf(snaptest.MakeFixture(ctx, dir))
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

// snapshotName returns containerd's key for a snapshot.
func snapshotName(name string) string { return snaptest.SnapshotName(name) }

// unpack unpacks one layer, as containerd and the differ do.
func (f *fixture) unpack(ctx context.Context, parent digest.Digest, files []tarFile) (id objectstore.Checksum, chain digest.Digest, err error) {
	return f.Unpack(ctx, parent, tarFiles(files))
}

// run creates the snapshot of a container and writes to it.
func (f *fixture) run(ctx context.Context, key string, chain digest.Digest, content string) error {
	return f.Run(ctx, key, chain, content)
}

// close closes everything, as a daemon that ends does.
func (f *fixture) close() error { return f.Close() }

func openDir(t *testing.T, name string) *atfs.Dir {
	t.Helper()
	d, err := atfs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// The layers of the fixture's images.
var (
	baseFiles = fixtureFiles(snaptest.BaseFiles)
	aFiles    = fixtureFiles(snaptest.AFiles)
	bFiles    = fixtureFiles(snaptest.BFiles)
)

func fixtureFiles(files []snaptest.TarFile) []tarFile {
	list := make([]tarFile, len(files))
	for i, f := range files {
		list[i] = tarFile{name: f.Name, content: f.Content, mtime: f.Mtime, link: f.Link, target: f.Target}
	}
	return list
}
