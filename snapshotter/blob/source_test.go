package blob

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// providerOf returns a content service that has one blob, for any digest.
func providerOf(blob []byte) content.Provider { return &memory{Reader: bytes.NewReader(blob)} }

type memory struct {
	*bytes.Reader
	reads, smallest int
}

func (m *memory) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return m, nil
}
func (m *memory) Close() error { return nil }

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	m.reads++
	if off > 0 && len(b) > 0 {
		m.smallest = min(m.smallest, len(b))
	}
	return m.Reader.ReadAt(b, off)
}

// Each read from the content service is a call, so reads must be large.
func TestProviderIsReadInLargePieces(t *testing.T) {
	plain := text(32 << 20)
	for name, blob := range map[string][]byte{"gzip": gzipped(plain), "zstd": zstded(t, plain), "plain": plain} {
		t.Run(name, func(t *testing.T) {
			m := &memory{Reader: bytes.NewReader(blob)}
			desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
			if _, _, err := decompress(t, m, desc); err != nil {
				t.Fatal(err)
			}
			if limit := 4 + len(blob)/(1<<20); m.reads > limit {
				t.Errorf("%d reads for %d bytes, want at most %d", m.reads, len(blob), limit)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	files, desc := putBlob(t, dir, []byte("blob"))
	blobs := filepath.Join(dir, "blobs", "sha256")
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	link, fifo, sub := digest.FromString("link"), digest.FromString("fifo"), digest.FromString("dir")
	if err := os.Symlink(secret, filepath.Join(blobs, link.Encoded())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(blobs, fifo.Encoded()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(blobs, sub.Encoded()), 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := files.ReaderAt(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size())); err != nil || string(got) != "blob" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, c := range []struct {
		name   string
		digest digest.Digest
		is     func(error) bool
	}{
		{"not there", digest.FromString("?"), errdefs.IsNotFound},
		{"empty digest", "", errdefs.IsInvalidArgument},
		{"path", "sha256:../../secret", errdefs.IsInvalidArgument},
		{"path as algorithm", "../..:" + digest.Digest(desc.Digest.Encoded()), errdefs.IsInvalidArgument},
		{"symbolic link", link, func(err error) bool { return err != nil }},
		{"fifo", fifo, func(err error) bool { return err != nil }},
		{"directory", sub, func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := files.ReaderAt(t.Context(), ocispec.Descriptor{Digest: c.digest})
			if !c.is(err) {
				t.Errorf("got %v of another class", err)
			}
			if err == nil {
				t.Error(b.Close())
			}
		})
	}
}

func TestFirst(t *testing.T) {
	empty := Files(t.TempDir())
	files, desc := putBlob(t, t.TempDir(), []byte("blob"))
	b, err := First{empty, files}.ReaderAt(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (First{empty, empty}).ReaderAt(t.Context(), desc); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}
