package blob

import (
	"bytes"
	"errors"
	"hash"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestOpen(t *testing.T) {
	plain := text(100_000)
	dir := t.TempDir()
	files, gz := putBlob(t, dir, gzipped(plain))
	_, raw := putBlob(t, dir, plain)
	_, cut := putBlob(t, dir, gzipped(plain)[:1000])
	gz.MediaType, raw.MediaType, cut.MediaType = ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip
	absent, alien, short := gz, gz, gz
	absent.Digest = digest.FromString("absent")
	alien.MediaType = ocispec.MediaTypeImageManifest
	short.Size--
	for _, tt := range []struct {
		name       string
		desc       ocispec.Descriptor
		open, read error
	}{
		{name: "gzip", desc: gz},
		{name: "plain", desc: raw},
		{name: "truncated", desc: cut, read: io.ErrUnexpectedEOF},
		{name: "absent", desc: absent, open: errdefs.ErrNotFound},
		{name: "no layer", desc: alien, open: errdefs.ErrNotImplemented},
		{name: "no digest", desc: ocispec.Descriptor{MediaType: gz.MediaType, Digest: "x"}, open: errdefs.ErrInvalidArgument},
		{name: "wrong size", desc: short, open: errdefs.ErrFailedPrecondition},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tar, err := Open(t.Context(), files, tt.desc)
			if !errors.Is(err, tt.open) {
				t.Fatalf("open: got %v, want %v", err, tt.open)
			}
			if err != nil {
				return
			}
			b, err := io.ReadAll(tar)
			if !errors.Is(err, tt.read) {
				t.Errorf("read: got %v, want %v", err, tt.read)
			}
			if err == nil && !bytes.Equal(b, plain) {
				t.Errorf("read %d bytes of %d", len(b), len(plain))
			}
			if err == nil {
				if err := tar.Accept(digest.FromBytes(b)); err != nil {
					t.Error(err)
				}
			}
			if err := tar.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A blob that does not have the descriptor's digest is not accepted.
func TestOpenDigest(t *testing.T) {
	plain := text(1000)
	blob := gzipped(plain)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("other")}
	tar, err := Open(t.Context(), providerOf(blob), desc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, tar); err != nil {
		t.Fatal(err)
	}
	if err := tar.Accept(digest.FromBytes(plain)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v, want a failed precondition", err)
	}
	if err := tar.Close(); err != nil {
		t.Error(err)
	}
}

// panickingHash is a hash with a defect.
type panickingHash struct{ hash.Hash }

func (panickingHash) Write([]byte) (int, error) { panic("boom") }

// TestPanicOfHash has the goroutine that hashes a file panic. Closing does not wait for it.
func TestPanicOfHash(t *testing.T) {
	files, desc := putBlob(t, t.TempDir(), text(1<<20))
	b, err := files.ReaderAt(t.Context(), desc)
	testenv.Must(t, err)
	defer b.Close()
	v, err := newVerifier(t.Context(), b, desc)
	testenv.Must(t, err)
	v.hash = panickingHash{v.hash}
	v.startHash()
	var p *panics.Error
	if err := v.verify(); !errors.As(err, &p) {
		t.Errorf("got error %v, want the panic", err)
	}
	v.stop()
}
