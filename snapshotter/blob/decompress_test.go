package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
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

// decompress reads a blob to its end, verifies it, and returns the name of the decompressor.
func decompress(tb testing.TB, d *Decompressor, provider content.Provider, desc ocispec.Descriptor) (out []byte, name string, err error) {
	tb.Helper()
	tar, err := Open(tb.Context(), provider, d, desc)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	if out, err = io.ReadAll(tar); err != nil {
		return out, tar.stream.name, err
	}
	return out, tar.stream.name, tar.Accept(digest.FromBytes(out))
}

// igzip and the built-in gzip must accept the same blobs, so that an image does not depend on the host.
func TestIgzipIsLikeGzip(t *testing.T) {
	path := testenv.NeedsTool(t, "igzip") // from the package isal
	fast, err := NewDecompressor(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := NewDecompressor(t.Context(), GzipOff)
	if err != nil {
		t.Fatal(err)
	}
	one, two := text(4<<20), text(1<<20)
	z1, z2 := gzipped(one), gzipped(two)
	small := gzipped([]byte("small"))
	flipped := func(at int) []byte {
		b := bytes.Clone(z1)
		b[(at+len(b))%len(b)] ^= 0x55
		return b
	}
	var many []byte
	for i := range 2000 {
		many = append(many, gzipped(text(300+i))...)
	}
	// Garbage that ends like a trailer with the length of the output.
	tricky := join(z1, []byte("garbage"), z1[len(z1)-4:])
	for _, c := range []struct {
		name  string
		blob  []byte
		igzip bool // igzip decompresses it
		fails bool
		want  []byte // the content, if not nil
		says  string // part of both errors
		same  bool   // igzip may fail, but must not return anything else
	}{
		{name: "one member", blob: z1, igzip: true},
		{name: "two members", blob: join(z1, z2), igzip: true},
		{name: "empty member at the end", blob: join(z1, gzipped(nil)), igzip: true},
		{name: "empty member between", blob: join(z1, gzipped(nil), z2), igzip: true},
		{name: "many small members, as in eStargz", blob: many},
		{name: "small member first", blob: join(small, z1)},
		{name: "small blob", blob: small},
		{name: "nothing inside", blob: gzipped(nil)},
		{name: "text behind", blob: join(z1, []byte("trailing garbage")), igzip: true, fails: true, says: "data after the last gzip member"},
		{name: "zeros behind", blob: join(z1, make([]byte, 512)), igzip: true, want: one},
		{name: "one zero behind", blob: join(z1, []byte{0}), igzip: true, want: one},
		{name: "many zeros behind two members", blob: join(z1, z2, make([]byte, 1<<20)), igzip: true, want: join(one, two)},
		{name: "zeros behind a small blob", blob: join(small, make([]byte, 10000)), want: []byte("small")},
		{name: "text behind zeros", blob: join(z1, make([]byte, 512), []byte("x")), igzip: true, fails: true, says: "data after the last gzip member"},
		{name: "member behind zeros", blob: join(z1, make([]byte, 512), z2), igzip: true, fails: true, says: "data after the last gzip member"},
		{name: "one byte behind", blob: join(z1, []byte{0x1f}), igzip: true, fails: true},
		{name: "garbage between", blob: join(z1, []byte("garbage"), z2), igzip: true, fails: true},
		{name: "truncated", blob: z1[:len(z1)/2], igzip: true, fails: true},
		{name: "truncated in the trailer", blob: z1[:len(z1)-3], igzip: true, fails: true},
		{name: "without trailer", blob: z1[:len(z1)-8], igzip: true, fails: true},
		{name: "truncated second member", blob: join(z1, z2[:len(z2)/2]), igzip: true, fails: true},
		{name: "second member is a header", blob: join(z1, z2[:10]), igzip: true, fails: true},
		{name: "flipped byte in the middle", blob: flipped(len(z1) / 2), igzip: true, fails: true},
		{name: "flipped checksum", blob: flipped(-6), igzip: true, fails: true},
		{name: "flipped length", blob: flipped(-2), igzip: true, fails: true},
		{name: "garbage that looks like a trailer", blob: tricky, igzip: true, same: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, desc := putBlob(t, t.TempDir(), c.blob)
			want, _, wantErr := decompress(t, slow, source, desc)
			got, name, err := decompress(t, fast, source, desc)
			if (name == path) != c.igzip {
				t.Errorf("decompressed by %s, want igzip: %v", name, c.igzip)
			}
			if c.same {
				if err == nil && !bytes.Equal(got, one) {
					t.Error("igzip's output is not what is in the blob")
				}
				return
			}
			if (wantErr != nil) != c.fails {
				t.Fatalf("built-in gzip: error is %v, want one: %v", wantErr, c.fails)
			}
			if (err != nil) != c.fails {
				t.Fatalf("igzip: error is %v, want one: %v", err, c.fails)
			}
			if c.want != nil && !bytes.Equal(want, c.want) {
				t.Errorf("built-in gzip gives %d bytes, want %d others", len(want), len(c.want))
			}
			if c.fails && (!strings.Contains(wantErr.Error(), c.says) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got errors %v and %v, want both to contain %q", wantErr, err, c.says)
			}
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("igzip gives %d bytes, built-in gzip %d others", len(got), len(want))
			}
		})
	}
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
			d := &Decompressor{}
			files, desc := putBlob(t, t.TempDir(), c.blob)
			for kind, provider := range map[string]content.Provider{"file": files, "provider": providerOf(c.blob)} {
				for _, desc.MediaType = range c.mediaTypes {
					got, by, err := decompress(t, d, provider, desc)
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
		for _, igzip := range []string{GzipOff, GzipAuto} {
			t.Run(name+" with gzip "+igzip, func(t *testing.T) {
				d, err := NewDecompressor(t.Context(), igzip)
				if err != nil {
					t.Fatal(err)
				}
				desc := ocispec.Descriptor{Digest: other, Size: int64(len(blob))}
				if _, _, err := decompress(t, d, providerOf(blob), desc); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("provider: got %v, want a failed precondition", err)
				}
				dir := t.TempDir()
				files, good := putBlob(t, dir, blob)
				blobs := filepath.Join(dir, "blobs", "sha256")
				if err := os.Rename(filepath.Join(blobs, good.Digest.Encoded()), filepath.Join(blobs, other.Encoded())); err != nil {
					t.Fatal(err)
				}
				if _, _, err := decompress(t, d, files, desc); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("file: got %v, want a failed precondition", err)
				}
				desc.Size++
				if _, _, err := decompress(t, d, files, desc); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("size: got %v, want a failed precondition", err)
				}
			})
		}
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

func TestNewDecompressor(t *testing.T) {
	for _, c := range []struct {
		name, gzip, want string
	}{
		{"relative", "igzip", "neither"},
		{"missing", "/nonexistent/igzip", "no such file"},
		{"fails", program(t, "a", "exit 3"), "exit status 3"},
		{"says why", program(t, "b", "echo out of cheese >&2; exit 1"), "out of cheese"},
		{"reads the first member only", program(t, "c", "head -c 100000000 >/dev/null; echo x"), "wrong output"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := NewDecompressor(t.Context(), c.gzip); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
	t.Run("gzip(1) ignores garbage like igzip", func(t *testing.T) {
		path := testenv.NeedsTool(t, "gzip")
		if _, err := NewDecompressor(t.Context(), path); err != nil {
			t.Error(err)
		}
	})
	t.Run("auto takes no program that is wrong", func(t *testing.T) {
		dir := filepath.Dir(program(t, "igzip", "cat"))
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		d, err := NewDecompressor(t.Context(), GzipAuto)
		if err != nil || d.Gzip() != "" {
			t.Errorf("got %q, %v, want none", d.Gzip(), err)
		}
	})
}

// TestIgzipLimits runs a program in the place of igzip, which must not be able to do much.
func TestIgzipLimits(t *testing.T) {
	testenv.NeedsRoot(t)
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	testenv.Must(t, err)
	score := "0"
	if !strings.HasPrefix(string(own), "-") {
		score = strings.TrimSpace(string(own))
	}
	cmd, stderr := igzipCommand(t.Context(), program(t, "igzip", `for r in v t f n c; do ulimit -H -$r; done; id -u; cat /proc/self/oom_score_adj`))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err, stderr.prefix())
	}
	if got, want := strings.Fields(string(out)), "[131072 3600 0 16 0 65534 "+score+"]"; fmt.Sprint(got) != want {
		t.Errorf("got memory, time, file size, files, core, user and OOM score %v, want %s", got, want)
	}
}

// program makes a shell script that every user can run, and returns its path.
func program(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testenv.Must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	for dir := filepath.Dir(path); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		testenv.Must(t, os.Chmod(dir, 0o755))
	}
	return path
}

// The process must not outlive the call.
func TestIgzipEndsWithItsContext(t *testing.T) {
	path := testenv.NeedsTool(t, "igzip") // from the package isal
	files, desc := putBlob(t, t.TempDir(), gzipped(text(8<<20)))
	for _, c := range []struct {
		name string
		end  func(cancel func(), s *tarStream) error
	}{
		{"context", func(cancel func(), s *tarStream) error {
			cancel()
			_, err := io.Copy(io.Discard, s)
			return err
		}},
		{"close", func(_ func(), s *tarStream) error {
			err := s.Close()
			if _, rerr := s.Read(make([]byte, 1)); rerr == nil {
				return errors.New("read after close")
			}
			if err != nil {
				return fmt.Errorf("close: %w", err)
			}
			return context.Canceled
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			blob, err := files.ReaderAt(ctx, desc)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			v, err := newVerifier(ctx, blob, desc)
			if err != nil {
				t.Fatal(err)
			}
			defer v.stop()
			s, err := startIgzip(ctx, path, v)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if err := c.end(cancel, s); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want the context's error", err)
			}
			r := s.Reader.(*igzipReader)
			if r.cmd.ProcessState == nil {
				t.Error("process was not waited for")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func BenchmarkGzip(b *testing.B) {
	blob := gzipped(text(64 << 20))
	files, desc := putBlob(b, b.TempDir(), blob)
	for _, g := range []string{GzipOff, GzipAuto} {
		d, err := NewDecompressor(b.Context(), g)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("gzip="+g, func(b *testing.B) {
			b.SetBytes(64 << 20)
			for b.Loop() {
				if _, _, err := decompress(b, d, files, desc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
