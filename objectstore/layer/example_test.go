package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// A layer is imported, checked out, and found again by its diff ID.
func Example() {
	ctx := context.Background()
	path, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(path)
	s, err := openStore(path)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Repo().Close()
	defer s.Close()

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := "Hello, ostree!\n"
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc", Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/motd", Mode: 0o644, Size: int64(len(content))})
	_, _ = w.Write([]byte(content))
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}

	imported, err := s.Import(ctx, &b, layer.ImportOptions{})
	if err != nil {
		log.Fatal(err)
	}
	// Until it is released, no prune can remove the layer: record its ID now.
	if err := imported.Release(); err != nil {
		log.Fatal(err)
	}
	if _, _, err := s.Checkout(ctx, []objectstore.Checksum{imported.ID}); err != nil {
		log.Fatal(err)
	}
	checkouts, err := os.ReadDir(path + "/layers")
	if err != nil {
		log.Fatal(err)
	}
	known, err := s.Acquire(ctx, imported.DiffID)
	if err != nil {
		log.Fatal(err)
	}
	if err := known.Release(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d entries, %d bytes; known: %t; %d checkout\n", known.Entries, known.Size, known.ID == imported.ID, len(checkouts))
	// Prints: 2 entries, 15 bytes; known: true; 1 checkout
}

// TestExample runs the example, which could not be skipped by itself.
func TestExample(t *testing.T) {
	testenv.NeedsRoot(t)
	Example()
}

func openStore(path string) (*layer.Store, error) {
	root, err := atfs.Open(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := root.Mkdir("repo", 0o700); err != nil {
		return nil, err
	}
	dir, err := root.OpenDir("repo")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err != nil {
		return nil, err
	}
	return layer.Open(root, repo, layer.Options{})
}
