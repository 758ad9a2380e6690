package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer/recipe"
)

// BenchmarkImport measures importing a plain tar, named by LAYER_TAR, into an empty store and into one that has every
// file.
func BenchmarkImport(b *testing.B) {
	name := testenv.NeedsEnv(b, "LAYER_TAR", "a plain layer tar")
	run := func(b *testing.B, s *Store) Layer {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(st.Size())
		h, err := s.Import(b.Context(), io.Reader(f), ImportOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Release(); err != nil {
			b.Fatal(err)
		}
		return h.Layer
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s, _ := openStore(b, b.TempDir(), Options{})
			b.StartTimer()
			run(b, s)
		}
	})
	b.Run("cold+checkout", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s, _ := openStore(b, b.TempDir(), Options{})
			b.StartTimer()
			l := run(b, s)
			if _, _, err := s.Checkout(b.Context(), []objectstore.Checksum{l.ID}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("known", func(b *testing.B) {
		s, _ := openStore(b, b.TempDir(), Options{})
		run(b, s)
		b.ResetTimer()
		for b.Loop() {
			run(b, s)
		}
	})
}

// BenchmarkImportTogether measures importing four copies of a plain tar, named by LAYER_TAR, at once into an empty store,
// without a budget of memory, and with the default of a machine with 4 GB.
func BenchmarkImportTogether(b *testing.B) {
	data, err := os.ReadFile(testenv.NeedsEnv(b, "LAYER_TAR", "a plain layer tar"))
	testenv.Must(b, err)
	for _, total := range []int64{0, 1 << 30} {
		b.Run(fmt.Sprintf("total=%dMiB", total>>20), func(b *testing.B) {
			b.SetBytes(4 * int64(len(data)))
			for b.Loop() {
				b.StopTimer()
				s, _ := openStore(b, b.TempDir(), Options{TotalMemory: total})
				b.StartTimer()
				var g errgroup.Group
				for range 4 {
					g.Go(func() error {
						h, err := s.Import(b.Context(), bytes.NewReader(data), ImportOptions{})
						if err != nil {
							return err
						}
						return h.Release()
					})
				}
				testenv.Must(b, g.Wait())
			}
		})
	}
}

// BenchmarkRecipe measures reading a plain tar, named by LAYER_TAR, with and without recording its recipe, and writing
// it again. The recipe's size is a metric.
func BenchmarkRecipe(b *testing.B) {
	name := testenv.NeedsEnv(b, "LAYER_TAR", "a plain layer tar")
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	read := func(b *testing.B, record bool) []byte {
		b.Helper()
		contents := 0
		var out bytes.Buffer
		w := recipe.NewWriter(&out)
		d := newDigester(b.Context(), bytes.NewReader(data), scanBlocks, false)
		defer d.Close()
		t := &tarEntries{src: d}
		if record {
			t.record = w.Record
		}
		for {
			hdr, err := t.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if t.left == 0 {
				continue
			}
			for t.left > 0 {
				if _, err := t.take(t.left); err != nil {
					b.Fatal(err)
				}
			}
			testenv.Must(b, w.Content(hdr.Size))
			contents++
		}
		if record {
			testenv.Must(b, errors.Join(t.rest(), w.Finish(), w.WriteTable(slices.Values(slices.Repeat([]int{contents}, contents)))))
		}
		return out.Bytes()
	}
	for _, record := range []bool{false, true} {
		b.Run(fmt.Sprintf("record=%t", record), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var out []byte
			for b.Loop() {
				out = read(b, record)
			}
			b.ReportMetric(float64(len(out)), "recipe-bytes")
		})
	}
	b.Run("prove", func(b *testing.B) {
		s, _ := openStore(b, b.TempDir(), Options{})
		id := importTar(b, s, data).ID
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			testenv.Must(b, s.Prove(b.Context(), id))
		}
	})
}
