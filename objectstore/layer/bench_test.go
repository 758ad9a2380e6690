package layer

import (
	"io"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// BenchmarkImport measures a plain tar, named by LAYER_TAR, into an empty store and into one that has every file.
func BenchmarkImport(b *testing.B) {
	name := os.Getenv("LAYER_TAR")
	if name == "" {
		b.Skip("set LAYER_TAR to a plain layer tar")
	}
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
