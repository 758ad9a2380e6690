package blob

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzDecompress decompresses any bytes, from a file and from containerd. A blob that starts like gzip must be accepted
// exactly if the standard library accepts it without the zeros at its end. A blob of unknown format must be passed through.
func FuzzDecompress(f *testing.F) {
	plain := text(2000)
	z, s := gzipped(plain), zstded(f, plain)
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	for _, blob := range [][]byte{
		nil, plain, z, s, gzipped(nil), zstded(f, nil), join(z, z), join(z, gzipped(nil), z), join(s, s),
		join(skippable, s), join(s, skippable), join(s, skippable, s), skippable,
		z[:len(z)/2], z[:len(z)-4], z[:5], s[:len(s)/2], s[:len(s)-2], s[:5], join(z, []byte("garbage")), join(s, []byte("garbage")),
		join(z, make([]byte, 512)), join(z, s), join(s, z),
		zstded(f, plain, zstd.WithWindowSize(zstd.MinWindowSize)), zstded(f, plain, zstd.WithSingleSegment(true)),
		{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00}, // a window of 2 GB
		{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00, 0x00},
	} {
		f.Add(blob)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) > 64<<10 {
			t.Skip("more would only be slower") //nolint:forbidigo // the input is refused, whatever the machine
		}
		source, desc := putBlob(t, dir, blob)
		defer os.Remove(filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded()))
		out, name, err := decompress(t, source, desc)
		again, _, aerr := decompress(t, providerOf(blob), desc)
		if (err == nil) != (aerr == nil) || err == nil && !bytes.Equal(out, again) {
			t.Fatalf("from a file: %d bytes, %v; from containerd: %d bytes, %v", len(out), err, len(again), aerr)
		}
		switch name {
		case "none":
			if err != nil || !bytes.Equal(out, blob) {
				t.Fatalf("not compressed: got %d bytes of %d, %v", len(out), len(blob), err)
			}
		case "gzip":
			want, werr := gunzip(blob)
			for b := blob; werr != nil && bytes.HasSuffix(b, []byte{0}); want, werr = gunzip(b) {
				b = b[:len(b)-1] // a trailer may end in zeros too
			}
			if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(out, want) {
				t.Fatalf("got %d bytes, %v; Go's gzip gives %d, %v", len(out), err, len(want), werr)
			}
		}
	})
}

// gunzip is the standard library's.
func gunzip(blob []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// FuzzFiles opens blobs by any digest. It must never open a file outside the place of the blob with this digest.
func FuzzFiles(f *testing.F) {
	dir := f.TempDir()
	_, desc := putBlob(f, dir, []byte("blob"))
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		desc.Digest.String(), "sha256:../../secret", "../..:secret", "..:secret", "", ":", "sha256:", "sha256", "a:b", "sha256:/etc/passwd",
		"sha512:" + strings.Repeat("0", 128), "sha256:" + strings.Repeat("A", 64), "sha256+b64:" + strings.Repeat("0", 64),
		desc.Digest.String() + "/../" + desc.Digest.Encoded(), "sha256:" + strings.Repeat("0", 62) + "/.", "sha256\x00:" + desc.Digest.Encoded(),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := Files(dir).ReaderAt(t.Context(), ocispec.Descriptor{Digest: digest.Digest(s)})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
				t.Fatalf("digest %q: got %v of another class", s, err)
			}
			return
		}
		name := b.(*FileBlob).Name()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if s != desc.Digest.String() || name != filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded()) {
			t.Fatalf("digest %q opens %s", s, name)
		}
	})
}
