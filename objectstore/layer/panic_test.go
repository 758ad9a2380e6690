package layer

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestPanic has goroutines of an import and a checkout panic. The call fails, and the same store does it the next time, with
// all its memory.
func TestPanic(t *testing.T) {
	b := makeTar(t, dir("d"), file("d/small", "small"), file("d/other", "other"), file("large", string(randomBytes(3<<20, 1))))
	for name, panicAt := range map[string]string{
		"small file": string(atfs.OpTmpFile) + " repo/tmp",
		"write":      string(atfs.OpWrite),
		"publish":    string(atfs.OpLink) + " repo/objects",
		"checkout":   string(atfs.OpLink) + " tmp",
	} {
		t.Run(name, func(t *testing.T) {
			_, root := newStore(t, Options{})
			var boom atomic.Bool
			s := hooked(t, root, Options{TotalMemory: 1 << 30}, func(op atfs.Op, name string) error {
				if boom.Load() && strings.HasPrefix(string(op)+" "+name, panicAt) {
					panic("boom")
				}
				return nil
			})
			free := s.budget.free
			run := func() error {
				h, err := s.Import(t.Context(), bytes.NewReader(b), ImportOptions{})
				if err != nil {
					return err
				}
				layer := h.ID
				if err := h.Release(); err != nil {
					return err
				}
				_, _, err = s.Checkout(t.Context(), []objectstore.Checksum{layer})
				return err
			}
			boom.Store(true)
			var p *panics.Error
			if err := panics.Call(run); !errors.As(err, &p) || p.Value != "boom" {
				t.Errorf("got error %v, want the panic", err)
			}
			boom.Store(false)
			testenv.Must(t, run())
			if s.budget.free != free || !s.budget.content.TryAcquire(1<<30/contentPart) {
				t.Errorf("%d bytes are free, want %d, and the memory for content", s.budget.free, free)
			}
		})
	}
}

// panickingReader is a decompressor with a defect.
type panickingReader struct{}

func (panickingReader) Read([]byte) (int, error) { panic("boom") }

// TestPanicOfSource has the source of an import panic, which another goroutine reads.
func TestPanicOfSource(t *testing.T) {
	s, _ := newStore(t, Options{})
	var p *panics.Error
	if err := importErr(t, s, panickingReader{}, ImportOptions{}); !errors.As(err, &p) {
		t.Errorf("got error %v, want the panic", err)
	}
}

// TestPanicInRecovery has the import of a damaged layer's blob panic, in the recovery of a store: in its own goroutine, and in
// one that it starts. The layer is lost and named, and the next start has nothing to recover.
func TestPanicInRecovery(t *testing.T) {
	for name, remake := range map[string]func(context.Context, *bed) error{
		"import": func(context.Context, *bed) error { panic("boom") },
		"source": func(ctx context.Context, b *bed) error {
			_, err := b.Import(ctx, panickingReader{}, ImportOptions{Blob: someBlob})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Options{Journal: true, Boot: "before"})
			l := b.importBlob(t, someTar(t), someBlob)
			b.crash(t)
			b.open(t, Options{Journal: true, Boot: "after"})
			truncate(t, b.objectFile(objectstore.TypeFile, l.Image))
			r, err := b.Recover(t.Context(), func(ctx context.Context, _ LostLayer) error { return remake(ctx, b) })
			testenv.Must(t, err)
			var p *panics.Error
			if len(r.Lost) != 1 || r.Lost[0].ID != l.ID || !errors.As(r.Lost[0].Cause, &p) {
				t.Errorf("got lost layers %+v, want %s with the panic", r.Lost, l.ID)
			}
			r, err = b.Recover(t.Context(), nil)
			if err != nil || r.Entries != 0 {
				t.Errorf("the next time: got %d entries (%v), want none", r.Entries, err)
			}
			if problems := b.problems(t); len(problems) > 0 {
				t.Errorf("fsck: %v", problems)
			}
		})
	}
	if err := unreadable(func() error { panic("boom") }); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("read that panics: got error %v, want %v", err, objectstore.ErrCorrupt)
	}
}
