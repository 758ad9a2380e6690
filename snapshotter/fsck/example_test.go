package fsck_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// The example unpacks a layer from a blob, damages one of its objects, and checks, repairs and checks the store.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	tar, err := snaptest.MakeTar([]snaptest.TarFile{{Name: "etc/motd", Content: "Hello, ostree!\n"}})
	if err != nil {
		log.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
	blobs := filepath.Join(dir, "content") // as containerd's content store
	if err := writeFile(filepath.Join(blobs, "blobs/sha256", desc.Digest.Encoded()), tar); err != nil {
		log.Fatal(err)
	}
	s, closeStore, err := openStore(filepath.Join(dir, "store"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := closeStore(); err != nil {
			log.Fatal(err)
		}
	}()
	from := blob.Files(blobs)
	if err := unpack(ctx, s, from, desc); err != nil {
		log.Fatal(err)
	}

	objects, err := filepath.Glob(filepath.Join(dir, "store/repo/objects/*/*.file"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range objects {
		if b, err := os.ReadFile(name); err == nil && string(b) == "Hello, ostree!\n" {
			if err := os.WriteFile(name, []byte("Hello, ostrich\n"), 0o644); err != nil {
				log.Fatal(err)
			}
		}
	}
	report, err := fsck.Check(ctx, s, fsck.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range report.Problems {
		fmt.Printf("%s damaged, affects %d layer and %d snapshot\n", p.Kind, len(p.Layers), len(p.Snapshots))
	}
	if err := fsck.Repair(ctx, s, report, from, fsck.Options{}, nil); err != nil {
		log.Fatal(err)
	}
	if report, err = fsck.Check(ctx, s, fsck.Options{Deep: true}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d problems, %d layer proved\n", len(report.Problems), report.Deep.Proved)
	// Prints: object damaged, affects 1 layer and 1 snapshot
	// 0 problems, 1 layer proved
}

// openStore makes a store, which no daemon uses.
func openStore(name string) (_ *inspect.Store, closeStore func() error, err error) {
	if err := os.MkdirAll(filepath.Join(name, "repo"), 0o700); err != nil {
		return nil, nil, err
	}
	root, err := atfs.Open(name)
	if err != nil {
		return nil, nil, err
	}
	dir, err := root.OpenDir("repo")
	if err != nil {
		return nil, nil, errors.Join(err, root.Close())
	}
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close(), root.Close())
	}
	layers, err := layer.Open(root, repo, layer.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, repo.Close(), dir.Close(), root.Close())
	}
	closeStore = func() error { return errors.Join(layers.Close(), repo.Close(), dir.Close(), root.Close()) }
	return &inspect.Store{Root: root, Repo: repo, Layers: layers}, closeStore, nil
}

// unpack commits a snapshot of one layer, as containerd does.
func unpack(ctx context.Context, s *inspect.Store, from content.Provider, desc ocispec.Descriptor) (err error) {
	sn, err := snapshotter.New(ctx, s.Root, s.Layers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()
	mounts, err := sn.Prepare(ctx, "default/1/extract-1", "")
	if err != nil {
		return err
	}
	held, err := blob.Import(ctx, s.Layers, from, desc, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	id, _, err := sn.Locate(ctx, mounts)
	if err != nil {
		return err
	}
	if err := sn.AddLayer(ctx, id, held, false); err != nil {
		return err
	}
	return sn.Commit(ctx, "default/2/"+desc.Digest.String(), "default/1/extract-1")
}

func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

// TestExample runs the example, which as such could not be skipped.
func TestExample(t *testing.T) {
	testenv.NeedsRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	Example()
	os.Stdout = stdout
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = "object damaged, affects 1 layer and 1 snapshot\n0 problems, 1 layer proved\n"
	if string(b) != want {
		t.Errorf("the example prints %q, want %q", b, want)
	}
}
