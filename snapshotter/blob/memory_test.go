package blob

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// repeated provides one blob, many copies of a piece, without keeping it in memory.
type repeated struct {
	piece []byte
	size  int64
}

func (r repeated) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return r, nil
}
func (r repeated) Size() int64  { return r.size }
func (r repeated) Close() error { return nil }

func (r repeated) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < r.size {
		c := copy(p[n:], r.piece[off%int64(len(r.piece)):])
		n += c
		off += int64(c)
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// gzipBomb returns a gzip member that holds size MiB of zeros.
func gzipBomb(tb testing.TB, size int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range size {
		if _, err := w.Write(zeros); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// zstdBomb returns a zstd frame that holds size MiB of zeros and has a window of 1<<windowLog bytes.
func zstdBomb(windowLog, size int) []byte {
	const blockLog, runLength = 17, 1 // the largest block has 128 KiB
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(windowLog-10) << 3}
	for i := range size << (20 - blockLog) {
		header := uint32(1<<blockLog<<3 | runLength<<1)
		if i == size<<(20-blockLog)-1 {
			header |= 1 // last block
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 0)
	}
	return b
}

// TestMemoryOfDecompression decompresses tiny blobs that become very long.
func TestMemoryOfDecompression(t *testing.T) {
	const fixed, pieceSize = 48, 256 // MiB
	pieces := testenv.Scale(2, 40)   // 10 GiB
	for _, tt := range []struct {
		name  string
		piece []byte
		limit int64 // MiB
	}{
		{"gzip", gzipBomb(t, pieceSize), fixed},
		{"zstd", zstdBomb(20, pieceSize), fixed},
		{"zstd with the largest window", zstdBomb(27, pieceSize), fixed + 2*zstdMaxWindow>>20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testenv.LimitMemory(t, tt.limit<<20, func() {
				source := repeated{tt.piece, int64(len(tt.piece)) * int64(pieces)}
				desc := ocispec.Descriptor{Digest: digest.FromString("whatever"), Size: source.size}
				tar, err := Open(t.Context(), source, desc)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, tar)
				if want := int64(pieces) * pieceSize << 20; n != want || err != nil {
					t.Errorf("got %d bytes, %v, want %d", n, err, want)
				}
				if err := tar.Close(); err != nil {
					t.Error(err)
				}
			})
			t.Logf("%d KiB became %d MiB", len(tt.piece)*pieces>>10, pieceSize*pieces)
		})
	}
}

// A small blob takes no buffers for a large one.
func TestMemoryOfSmallBlobs(t *testing.T) {
	small := gzipped([]byte("small"))
	files, desc := putBlob(t, t.TempDir(), small)
	for kind, provider := range map[string]content.Provider{"file": files, "provider": providerOf(small)} {
		got := testing.Benchmark(func(b *testing.B) {
			b.Helper()
			for b.Loop() {
				if _, _, err := decompress(b, provider, desc); err != nil {
					b.Fatal(err)
				}
			}
		}).AllocedBytesPerOp()
		if got > 512<<10 {
			t.Errorf("%s: %d bytes allocated, want at most 512 KiB", kind, got)
		}
	}
}
