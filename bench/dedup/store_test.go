package dedup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// store is an empty layer store.
func store(t *testing.T) *layer.Store {
	t.Helper()
	testenv.NeedsRoot(t)
	root, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	s, err := layer.Open(root, objecttest.NewRepo(t), layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// objects imports layers and returns the number and bytes of their distinct content objects.
func objects(t *testing.T, s *layer.Store, layers []dedup.Layer) (n dedup.Sum) {
	t.Helper()
	seen := make(map[objectstore.Checksum]bool)
	for _, l := range layers {
		r, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, err := s.Import(t.Context(), r, layer.ImportOptions{})
		if err = errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		sums, err := s.Objects(t.Context(), held.ID)
		if err = errors.Join(err, held.Release()); err != nil {
			t.Fatal(err)
		}
		for _, c := range sums {
			if seen[c] {
				continue
			}
			seen[c] = true
			f, err := s.Repo().OpenFile(c)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			n = n.Plus(sum(st.Size))
		}
	}
	return n
}

// TestObjects compares a measurement with a store that has the same layers.
func TestObjects(t *testing.T) {
	check := func(t *testing.T, layers ...dedup.Layer) {
		t.Helper()
		r := measure(t, dedup.Image{Name: "i", Layers: layers})
		if len(r.Failed) > 0 {
			t.Fatal(r.Failed)
		}
		if got, want := r.Kinds[dedup.Metadata], objects(t, store(t), layers); got != want {
			t.Errorf("measured %+v, the store has %+v", got, want)
		}
	}
	t.Run("attributes", func(t *testing.T) {
		check(t, memoryLayer(makeTar(t,
			entry{name: "a", content: "content", xattr: "v"}, entry{name: "b", content: "content"},
			entry{name: "c", content: "content", mode: 0o4755}, entry{name: "d", content: "content", mtime: 99},
			entry{name: "a2", typ: tar.TypeLink, link: "a", mode: 0o640, uid: 5}, // changes a
			entry{name: "e"}, entry{name: "l", typ: tar.TypeSymlink, link: "a"}, entry{name: ".wh.x"},
			entry{name: "low", typ: tar.TypeLink, link: "below"},
		)))
	})
	t.Run("random", func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(1, 2))
		check(t, memoryLayer(makeTar(t, randomEntries(rnd)...)), memoryLayer(makeTar(t, randomEntries(rnd)...)))
	})
	for _, refs := range [][]string{{"odd:1"}, {"layers:1"}, {"base:1", "base:2", "app:1"}}[:testenv.Scale(2, 3)] {
		t.Run(strings.Join(refs, " "), func(t *testing.T) {
			var layers []dedup.Layer
			for _, ref := range refs {
				layers = append(layers, testImage(t, ref)...)
			}
			check(t, layers...)
		})
	}
}

// gzipTar returns the tar of a test image's layer.
type gzipTar struct {
	*gzip.Reader
	f *os.File
}

func (g gzipTar) Close() error             { return errors.Join(g.Reader.Close(), g.f.Close()) }
func (gzipTar) Accept(digest.Digest) error { return nil }

func testImage(t *testing.T, ref string) []dedup.Layer {
	t.Helper()
	testenv.NeedsRoot(t)
	dir, err := images.Layout(t.Context(), os.Stderr, ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var layers []dedup.Layer
	for i, desc := range img.Manifest.Layers {
		layers = append(layers, dedup.Layer{
			DiffID: img.Config.RootFS.DiffIDs[i], Blob: desc.Digest, BlobSize: desc.Size,
			Open: openGzip(img.Blob(desc.Digest)),
		})
	}
	return layers
}

func openGzip(name string) func(context.Context) (dedup.Tar, error) {
	return func(context.Context) (dedup.Tar, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return gzipTar{z, f}, nil
	}
}

// pages is a tar of one file with n distinct pages, generated while it is read.
type pages struct {
	n, at int
	rest  []byte
}

func (p *pages) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.at > p.n {
			return 0, io.EOF
		}
		p.rest = make([]byte, 4096)
		switch p.at++; {
		case p.at > p.n: // end of the tar
		default:
			binary.BigEndian.PutUint64(p.rest, uint64(p.at))
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pages) Close() error             { return nil }
func (*pages) Accept(digest.Digest) error { return nil }

// TestMemory checks the memory for a hash and for a chunk of a layer being read that the package documents.
func TestMemory(t *testing.T) {
	const n = 150_000 // 0.6 GB of content
	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "f", Size: n * 4096, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	open := func() *pages { return &pages{n: n, rest: header.Bytes()} }
	id, err := digest.FromReader(open())
	if err != nil {
		t.Fatal(err)
	}
	l := dedup.Layer{DiffID: id, Blob: id, Open: func(context.Context) (dedup.Tar, error) { return open(), nil }}
	// The program itself takes less than 32 MiB. Nothing is shared, so each hash is kept twice for a while.
	testenv.LimitMemory(t, 32<<20+n*(50+40), func() {
		r := measure(t, dedup.Image{Name: "i", Layers: []dedup.Layer{l}})
		if len(r.Failed) > 0 || r.Kinds[dedup.Fixed4K].Count != n {
			t.Errorf("report: %+v", r)
		}
	})
}
