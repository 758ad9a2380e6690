package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	rnd := rand.New(rand.NewPCG(seed, seed))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func TestDigester(t *testing.T) {
	broken := errors.New("broken")
	wrapped := fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	data := randomBytes(3*blockSize+17, 1)
	for _, tt := range []struct {
		name string
		src  func() io.Reader
		read int // bytes to read before Finish
		want []byte
		err  error
	}{
		{"empty", func() io.Reader { return bytes.NewReader(nil) }, 0, nil, nil},
		{"empty, read", func() io.Reader { return bytes.NewReader(nil) }, 1, nil, nil},
		{"nothing read", func() io.Reader { return bytes.NewReader(data) }, 0, data, nil},
		{"some read", func() io.Reader { return bytes.NewReader(data) }, 1000, data, nil},
		{"a block read", func() io.Reader { return bytes.NewReader(data) }, blockSize, data, nil},
		{"all read", func() io.Reader { return bytes.NewReader(data) }, len(data), data, nil},
		{"more read", func() io.Reader { return bytes.NewReader(data) }, len(data) + 1, data, nil},
		{"one whole block", func() io.Reader { return bytes.NewReader(data[:blockSize]) }, 5, data[:blockSize], nil},
		{"byte by byte", func() io.Reader { return iotest.OneByteReader(bytes.NewReader(data)) }, 10, data, nil},
		{"data with EOF", func() io.Reader { return iotest.DataErrReader(bytes.NewReader(data)) }, 10, data, nil},
		{"error at once", func() io.Reader { return iotest.ErrReader(broken) }, 0, nil, broken},
		{"error behind data", func() io.Reader { return &errReader{bytes.NewReader(data), broken} }, 0, nil, broken},
		{"error behind data, all read", func() io.Reader { return &errReader{bytes.NewReader(data), broken} }, len(data), nil, broken},
		{"error with a whole block", func() io.Reader {
			return iotest.DataErrReader(&errReader{bytes.NewReader(data[:blockSize]), broken})
		}, 0, nil, broken},
		{"truncated source", func() io.Reader { return &errReader{bytes.NewReader(data), io.ErrUnexpectedEOF} }, 0, nil, io.ErrUnexpectedEOF},
		{"truncated source at once", func() io.Reader { return iotest.ErrReader(wrapped) }, 0, nil, wrapped},
		{"source without progress", func() io.Reader { return emptyReader{} }, 0, nil, io.ErrNoProgress},
	} {
		for _, files := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, files=%v", tt.name, files), func(t *testing.T) {
				d := newDigester(t.Context(), tt.src(), scanBlocks, files)
				defer d.Close()
				got := make([]byte, tt.read)
				n, err := io.ReadFull(digesterReader{d}, got)
				if tt.err == nil && !bytes.Equal(got[:n], tt.want[:min(tt.read, len(tt.want))]) {
					t.Errorf("read %d bytes (%v), not those of the source", n, err)
				}
				sum, size, err := d.Finish()
				if tt.err != nil {
					if !errors.Is(err, tt.err) {
						t.Errorf("Finish: got error %v, want %v", err, tt.err)
					}
					return
				}
				if want := digest.FromBytes(tt.want); err != nil || sum != want || size != int64(len(tt.want)) {
					t.Errorf("Finish: got %s of %d bytes (%v), want %s of %d", sum, size, err, want, len(tt.want))
				}
			})
		}
	}
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, nil }

// TestDigesterRandom reads pieces of random size from a source that returns pieces of random size. Some of them are files.
func TestDigesterRandom(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		data := randomBytes(rnd.IntN(4*blockSize), seed)
		d := newDigester(t.Context(), &pieces{rnd: rand.New(rand.NewPCG(seed, 8)), data: data}, scanBlocks, seed%2 == 0)
		var got []byte
		for len(got) < len(data) && rnd.IntN(50) > 0 {
			p := make([]byte, rnd.IntN(blockSize))
			if d.files && rnd.IntN(2) == 0 {
				n := digestFile(t, d, p)
				got = append(got, p[:n]...)
				continue
			}
			n, err := digesterReader{d}.Read(p)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			got = append(got, p[:n]...)
		}
		if !bytes.Equal(got, data[:len(got)]) {
			t.Errorf("seed %d: read %d bytes that are not the source's", seed, len(got))
		}
		sum, size, err := d.Finish()
		if want := digest.FromBytes(data); err != nil || sum != want || size != int64(len(data)) {
			t.Errorf("seed %d: got %s of %d bytes (%v), want %s of %d", seed, sum, size, err, want, len(data))
		}
		d.Close()
	}
}

type digesterReader struct{ d *digester }

// Read implements io.Reader.
func (r digesterReader) Read(p []byte) (int, error) {
	b, err := r.d.take(int64(len(p)))
	return copy(p, b), err
}

// digestFile reads p as the content of a file, and checks its checksum. It returns how much could be read.
func digestFile(t *testing.T, d *digester, p []byte) int {
	t.Helper()
	m := objectstore.FileMeta{Mode: unix.S_IFREG | 0o640, UID: uint32(len(p))}
	testenv.Must(t, d.beginFile(&m))
	n, err := io.ReadFull(digesterReader{d}, p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	h, err := objectstore.NewContentHash(&m)
	testenv.Must(t, err)
	h.Write(p[:n])
	if got, want := d.endFile(), objectstore.Checksum(h.Sum(nil)); got != want {
		t.Errorf("a file of %d bytes has checksum %s, want %s", n, got, want)
	}
	return n
}

// pieces is a reader that returns pieces of random size, sometimes nothing, and io.EOF with the last or behind it.
type pieces struct {
	rnd  *rand.Rand
	data []byte
}

func (r *pieces) Read(p []byte) (int, error) {
	n := copy(p, r.data[:min(len(r.data), r.rnd.IntN(100_000))])
	r.data = r.data[n:]
	if len(r.data) == 0 && (n == 0 || r.rnd.IntN(2) == 0) {
		return n, io.EOF
	}
	return n, nil
}

// TestDigesterClose drops digesters at different times. No goroutine is left: synctest reports each that would wait for ever.
func TestDigesterClose(t *testing.T) {
	data := randomBytes(2*scanBlocks*blockSize, 3) // more than all blocks hold
	for i, read := range []int{0, 1, blockSize, 5 * blockSize, len(data), 0, 1, blockSize, 5 * blockSize, len(data)} {
		synctest.Test(t, func(t *testing.T) {
			d := newDigester(t.Context(), bytes.NewReader(data), scanBlocks, i < 5)
			if _, err := io.CopyN(io.Discard, digesterReader{d}, int64(read)); err != nil {
				t.Fatal(err)
			}
			d.Close()
			d.Close()
		})
	}
}
