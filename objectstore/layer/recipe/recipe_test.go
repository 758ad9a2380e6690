package recipe

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// makeRecipe writes the recipe of a stream cut into pieces. Positive lengths are raw bytes, negative ones contents.
func makeRecipe(t testing.TB, stream []byte, pieces []int) (recipe []byte, contents [][]byte) {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out)
	for _, size := range pieces {
		if size < 0 {
			contents = append(contents, stream[:-size])
			testenv.Must(t, w.Content(int64(-size)))
			stream = stream[-size:]
			continue
		}
		testenv.Must(t, w.Record(stream[:size]))
		stream = stream[size:]
	}
	testenv.Must(t, w.Record(stream))
	testenv.Must(t, w.Finish())
	testenv.Must(t, w.WriteTable(func(yield func(int) bool) {
		for i := range contents {
			if !yield(i) {
				return
			}
		}
	}))
	return out.Bytes(), contents
}

func cookAll(recipe []byte, contents [][]byte) ([]byte, error) {
	var out bytes.Buffer
	err := Cook(bytes.NewReader(recipe), int64(len(recipe)), &out, func(i int, size int64, w io.Writer) error {
		if i >= len(contents) || int64(len(contents[i])) != size {
			return ErrMalformed
		}
		_, err := w.Write(contents[i])
		return err
	})
	return out.Bytes(), err
}

// TestRecipe cuts random streams anywhere and expects the same stream back.
func TestRecipe(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var stream []byte
		var pieces []int
		for range rnd.IntN(30) {
			size := rnd.IntN(3000)
			if rnd.IntN(2) == 0 {
				size = size / blockSize * blockSize
			}
			b := make([]byte, size)
			if rnd.IntN(4) > 0 { // else zeros
				for i := range b {
					if rnd.IntN(1+int(seed%7)) == 0 {
						b[i] = byte(rnd.Uint32())
					}
				}
			}
			stream = append(stream, b...)
			if rnd.IntN(2) == 0 && size > 0 {
				size = -size
			}
			pieces = append(pieces, size)
		}
		recipe, contents := makeRecipe(t, stream, pieces)
		got, err := cookAll(recipe, contents)
		if err != nil || !bytes.Equal(got, stream) {
			t.Errorf("seed %d: got %d bytes, %v, want the %d bytes that went in", seed, len(got), err, len(stream))
		}
	}
}

// FuzzCook cooks arbitrary bytes. The result is ErrMalformed, or a tar not much longer than recipe and contents allow.
func FuzzCook(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, c := range []string{"", "content", strings.Repeat("x", 700)} {
		h := &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}
		if c != "" {
			h = &tar.Header{Name: "d/" + c[:1], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(c))}
		}
		testenv.Must(f, w.WriteHeader(h))
		_, err := io.WriteString(w, c)
		testenv.Must(f, err)
	}
	testenv.Must(f, w.Close())
	stream := b.Bytes()
	recipe, contents := makeRecipe(f, stream, []int{1024, -7, 512*2 - 7, -700, len(stream) - 2048 - 700})
	f.Add(recipe)
	for i := 0; i < len(recipe); i += 7 {
		b := slices.Clone(recipe)
		b[i] ^= 0x11
		f.Add(b)
	}
	f.Add(append([]byte(magic), opEnd, 0, 0, 0, 0, 0, 0, 0, 26))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := cookAll(b, contents)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("got error %v, want ErrMalformed", err)
		}
		if len(got) > 700*(len(b)+1) { // at most, two bytes make a block, or one and its entry in the table a content
			t.Errorf("%d bytes became %d", len(b), len(got))
		}
	})
}
