package blob

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// text returns n bytes that compress to about half their size.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(r.IntN(16))
	}
	return b
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(b) // writing to a bytes.Buffer does not fail
	_ = w.Close()
	return buf.Bytes()
}

func zstded(tb testing.TB, b []byte, opts ...zstd.EOption) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// putBlob creates a content store with one blob.
func putBlob(tb testing.TB, dir string, blob []byte) (Files, ocispec.Descriptor) {
	tb.Helper()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	path := filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		tb.Fatal(err)
	}
	return Files(dir), desc
}

// decompress reads a blob to its end, verifies it, and returns its format.
func decompress(tb testing.TB, provider content.Provider, desc ocispec.Descriptor) (out []byte, format string, err error) {
	tb.Helper()
	tar, err := Open(tb.Context(), provider, desc)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	if out, err = io.ReadAll(tar); err != nil {
		return out, tar.stream.format, err
	}
	return out, tar.stream.format, tar.Accept(digest.FromBytes(out))
}

func TestDecompress(t *testing.T) {
	plain := text(2 << 20)
	// The format of a blob does not depend on its media type.
	compressed := []string{"", ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2Layer}
	for _, c := range []struct {
		name       string
		blob       []byte
		mediaTypes []string
		want       []byte // nil: an error
		by         string
	}{
		{"gzip", gzipped(plain), compressed, plain, "gzip"},
		{"gzip in several members", join(gzipped(plain), gzipped(nil), gzipped(plain)), compressed, join(plain, plain), "gzip"},
		{"gzip in many small members, as in eStargz", bytes.Repeat(gzipped([]byte("small")), 2000), compressed, bytes.Repeat([]byte("small"), 2000), "gzip"},
		{"gzip and zeros", join(gzipped(plain), make([]byte, 1<<20)), compressed, plain, "gzip"},
		{"gzip and text", join(gzipped(plain), []byte("text")), compressed, nil, "gzip"},
		{"gzip, zeros and gzip", join(gzipped(plain), make([]byte, 512), gzipped(plain)), compressed, nil, "gzip"},
		{"gzip truncated", gzipped(plain)[:1<<20], compressed, nil, "gzip"},
		{"gzip without its trailer", gzipped(plain)[:len(gzipped(plain))-8], compressed, nil, "gzip"},
		{"zstd", zstded(t, plain), compressed, plain, "zstd"},
		{"zstd in several frames", join(zstded(t, plain), zstded(t, plain)), compressed, join(plain, plain), "zstd"},
		{"zstd behind a skippable frame", join([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zstded(t, plain)), compressed, plain, "zstd"},
		{"zstd, large window", zstded(t, plain, zstd.WithWindowSize(64<<20)), compressed, plain, "zstd"},
		{"plain that may be compressed", plain, compressed, plain, "none"},
		{"plain", plain, plainTypes, plain, "none"},
		{"gzip that is called plain", gzipped(plain), plainTypes, gzipped(plain), "none"},
		{"nothing", nil, compressed, []byte{}, "none"},
		{"zstd truncated", zstded(t, plain)[:1<<20], compressed, nil, "zstd"},
		{"zstd, window of 512 MiB", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x98, 0x01, 0x00, 0x00}, compressed, nil, "zstd"},
		{"zstd and garbage", join(zstded(t, plain), []byte("garbage")), compressed, nil, "zstd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files, desc := putBlob(t, t.TempDir(), c.blob)
			for kind, provider := range map[string]content.Provider{"file": files, "provider": providerOf(c.blob)} {
				for _, desc.MediaType = range c.mediaTypes {
					got, by, err := decompress(t, provider, desc)
					if (err != nil) != (c.want == nil) || err == nil && !bytes.Equal(got, c.want) {
						t.Errorf("%s, %q: got %d bytes, %v, want %d", kind, desc.MediaType, len(got), err, len(c.want))
					}
					if by != c.by {
						t.Errorf("%s, %q: decompressed by %q, want %q", kind, desc.MediaType, by, c.by)
					}
				}
			}
		})
	}
}

// A blob that does not have the descriptor's digest is refused, even if it can be decompressed.
func TestDigestIsVerified(t *testing.T) {
	plain := text(2 << 20)
	other := digest.FromString("other")
	for name, blob := range map[string][]byte{"gzip": gzipped(plain), "zstd": zstded(t, plain), "plain": plain} {
		t.Run(name, func(t *testing.T) {
			desc := ocispec.Descriptor{Digest: other, Size: int64(len(blob))}
			if _, _, err := decompress(t, providerOf(blob), desc); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("provider: got %v, want a failed precondition", err)
			}
			dir := t.TempDir()
			files, good := putBlob(t, dir, blob)
			blobs := filepath.Join(dir, "blobs", "sha256")
			if err := os.Rename(filepath.Join(blobs, good.Digest.Encoded()), filepath.Join(blobs, other.Encoded())); err != nil {
				t.Fatal(err)
			}
			if _, _, err := decompress(t, files, desc); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("file: got %v, want a failed precondition", err)
			}
			desc.Size++
			if _, _, err := decompress(t, files, desc); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("size: got %v, want a failed precondition", err)
			}
		})
	}
}

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		mediaType string
		tar       bool
		unknown   bool
	}{
		{mediaType: "application/vnd.oci.image.layer.v1.tar", tar: true},
		{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip"},
		{mediaType: "application/vnd.oci.image.layer.v1.tar+zstd"},
		{mediaType: "application/vnd.docker.image.rootfs.diff.tar"},
		{mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", unknown: true},
		{mediaType: "application/vnd.oci.image.layer.v1.tar+encrypted", unknown: true},
		{mediaType: "application/vnd.erofs.layer.v1", unknown: true},
		{mediaType: "application/vnd.oci.image.manifest.v1+json", unknown: true},
		{mediaType: "", unknown: true},
		{mediaType: strings.Repeat("+", 1<<16), unknown: true},
	} {
		if err := CheckType(c.mediaType); errdefs.IsNotImplemented(err) != c.unknown || (err != nil) != c.unknown {
			t.Errorf("%.60q: got %v, want it to be unknown: %v", c.mediaType, err, c.unknown)
		}
		if got := IsTar(c.mediaType); got != c.tar {
			t.Errorf("%.60q: is a tar: %v, want %v", c.mediaType, got, c.tar)
		}
	}
}

func BenchmarkGzip(b *testing.B) {
	blob := gzipped(text(64 << 20))
	files, desc := putBlob(b, b.TempDir(), blob)
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, _, err := decompress(b, files, desc); err != nil {
			b.Fatal(err)
		}
	}
}
