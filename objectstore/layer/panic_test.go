package layer

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

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
			if s.budget.free != free {
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

// TestAttemptsOfRecovery has the process of a recovery end each time that a damaged layer's blob is imported, as when the kernel
// kills it for using up all memory. The third recovery gives the layer up and names it, and rebuilds the other one. The next
// start has nothing to recover.
func TestAttemptsOfRecovery(t *testing.T) {
	const variable = "OSTREE_SNAPSHOTTER_TEST_RECOVER"
	options := Options{Journal: true, Boot: "after"}
	other, otherTar := digest.FromString("another blob"), makeTar(t, file("other", "other content"))
	remake := func(b *bed, ended func()) func(context.Context, LostLayer) error {
		return func(ctx context.Context, l LostLayer) error {
			if l.Blob == someBlob {
				ended()
			}
			_, err := b.Import(ctx, bytes.NewReader(otherTar), ImportOptions{Blob: other})
			return err
		}
	}
	if root := os.Getenv(variable); root != "" {
		b := &bed{path: root}
		b.open(t, options)
		_, err := b.Recover(t.Context(), remake(b, func() { os.Exit(9) }))
		t.Fatalf("the process did not end: %v", err)
	}

	b := newBed(t, Options{Journal: true, Boot: "before"})
	bad := b.importBlob(t, someTar(t), someBlob)
	good := b.importBlob(t, otherTar, other)
	b.crash(t)
	for _, l := range []Layer{bad, good} {
		truncate(t, b.objectFile(objectstore.TypeFile, l.Image))
	}
	for range maxAttempts {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAttemptsOfRecovery$")
		cmd.Env = append(os.Environ(), variable+"="+b.path)
		var exit *exec.ExitError
		if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
			t.Fatalf("a recovery ended with %v, want exit status 9\n%s", err, out)
		}
	}
	b.open(t, options)
	r, err := b.Recover(t.Context(), remake(b, func() { t.Error("the layer was rebuilt once more") }))
	testenv.Must(t, err)
	if len(r.Lost) != 1 || r.Lost[0].ID != bad.ID || !strings.Contains(r.Lost[0].Cause.Error(), "ended 2 times") {
		t.Errorf("got lost layers %+v, want %s because the process ended twice", r.Lost, bad.ID)
	}
	if !slices.Equal(r.Remade, []objectstore.Checksum{good.ID}) {
		t.Errorf("got rebuilt layers %v, want %s", r.Remade, good.ID)
	}
	r, err = b.Recover(t.Context(), nil)
	if err != nil || r.Entries != 0 {
		t.Errorf("the next time: got %d entries (%v), want none", r.Entries, err)
	}
	if problems := b.problems(t); len(problems) > 0 {
		t.Errorf("fsck: %v", problems)
	}
}
