package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// hooked opens the store again, with a hook on all its disk operations.
func hooked(t testing.TB, path string, opts Options, hook atfs.Hook) *Store {
	t.Helper()
	plain, err := atfs.Open(path)
	testenv.Must(t, err)
	defer plain.Close()
	root, err := plain.WithHook(hook)
	testenv.Must(t, err)
	defer root.Close()
	repoDir, err := root.OpenDir("repo")
	testenv.Must(t, err)
	defer repoDir.Close()
	repo, err := objectstore.Open(repoDir)
	testenv.Must(t, err)
	s, err := Open(root, repo, opts)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, errors.Join(s.Close(), repo.Close())) })
	return s
}

// mixedTar has small, large, many, equal, empty and relabelled files.
func mixedTar(t testing.TB) []byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	large := make([]byte, 3<<20+12345)
	for i := range large {
		large[i] = byte(rnd.Uint32())
	}
	entries := []tarEntry{
		dir("usr"), file("usr/large", string(large)), file("usr/large2", string(large), mode(0o755)),
		file("usr/exact", string(large[:smallFile])), file("usr/above", string(large[:smallFile+1])),
		hardlink("usr/link", "usr/large", mode(0o600), at(when.Add(time.Hour))),
		file("usr/empty", ""), symlink("bin", "usr"), hardlink("outside", "below/this"),
	}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprintf("usr/share/%d/f", i), strings.Repeat(fmt.Sprint(i/2), 1+i*7)))
	}
	for i := 0; i < 300; i += 10 {
		entries = append(entries, hardlink(fmt.Sprintf("links/%d", i), fmt.Sprintf("usr/share/%d/f", i), owner(i, i)))
	}
	return makeTar(t, entries...)
}

// setHashOnRead makes a test's imports hash where this machine would, or elsewhere.
func setHashOnRead(t testing.TB, on bool) {
	t.Helper()
	before := hashOnRead
	t.Cleanup(func() { hashOnRead = before })
	hashOnRead = on
}

// TestImportHashes imports a tar with both ways to hash. The results are equal, and every object has its checksum: newStore
// checks the store at the end.
func TestImportHashes(t *testing.T) {
	b := mixedTar(t)
	sparse := sparsePAX("sparse", sparseMap)
	b = append(b[:len(b)-len(endOfTar)], sparse[:len(sparse)-len(endOfTar)]...)
	b = append(b, makeTar(t, file("behind", "sparse"), file("attributes", "x", withXattr("user.a", "b"), mode(0o4755), owner(1, 2)))...)
	var want Layer
	for i, on := range []bool{false, true} {
		setHashOnRead(t, on)
		s, _ := newStore(t, Options{})
		got := importTar(t, s, b)
		if i == 0 {
			want = got
		}
		if got != want {
			t.Errorf("hash on read: %v: got layer %+v, want %+v", on, got, want)
		}
		if again := importTar(t, s, b); again != want {
			t.Errorf("hash on read: %v: got layer %+v again, want %+v", on, again, want)
		}
	}
}

// TestImportTruncatedFile cuts a tar off inside files, with both ways to hash: nothing is left.
func TestImportTruncatedFile(t *testing.T) {
	b := makeTar(t, file("small", strings.Repeat("s", 5000)), file("large", strings.Repeat("l", 3<<20)))
	for _, on := range []bool{false, true} {
		for _, n := range []int{2000, 6000, 9000, 1 << 20, 3 << 20} {
			setHashOnRead(t, on)
			s, _ := newStore(t, Options{})
			if err := importErr(t, s, bytes.NewReader(b[:n]), ImportOptions{}); !errors.Is(err, ErrInvalid) {
				t.Errorf("hash on read: %v, the first %d bytes: got %v, want ErrInvalid", on, n, err)
			}
			wantNoRefs(t, s)
		}
	}
}

// TestImportPure imports a tar in different ways: the layer ID depends only on its bytes.
func TestImportPure(t *testing.T) {
	b := mixedTar(t)
	var want Layer
	for i, opts := range []Options{{}, {Workers: 1}, {Workers: 16}, {MaxInFlight: 1}, {Workers: 3, MaxInFlight: 5 << 20, Mtime: MtimeCanonical}} {
		s, _ := newStore(t, opts)
		got := importTar(t, s, b)
		if i == 0 {
			want = got
			continue
		}
		if got != want {
			t.Errorf("%+v: got layer %+v, want %+v", opts, got, want)
		}
	}
	s, _ := newStore(t, Options{})
	importTar(t, s, makeTar(t, file("other", "7777777", at(when.Add(time.Hour)))))
	h, err := s.Import(t.Context(), iotest.OneByteReader(bytes.NewReader(b)), ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	if h.Layer != want {
		t.Errorf("in a store with other files: got layer %+v, want %+v", h.Layer, want)
	}
}

// TestImportKnown imports a tar twice. A file that the store has is not written again: not at all if it fits in memory,
// and otherwise only to an unnamed file.
func TestImportKnown(t *testing.T) {
	s, path := newStore(t, Options{})
	b := mixedTar(t)
	want := importTar(t, s, b)

	var mu sync.Mutex
	ops := make(map[string]int)
	h, err := hooked(t, path, Options{}, func(op atfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(name, "repo/refs/") {
			name = "repo/refs"
		}
		ops[string(op)+" "+name]++
		return nil
	}).Import(t.Context(), bytes.NewReader(b), ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	if h.Layer != want {
		t.Errorf("got layer %+v, want %+v", h.Layer, want)
	}
	if h.Added != (Usage{}) {
		t.Errorf("got %+v added, want nothing", h.Added)
	}
	for op, n := range ops {
		name := strings.Fields(op)[1]
		switch {
		case strings.HasPrefix(name, "repo/objects"):
			t.Errorf("%s: %d times", op, n)
		case op == "tmpfile repo/tmp" && n > 3+31: // large files, and files that a link changes
			t.Errorf("%s: got %d times, want no more than for large and changed files", op, n)
		}
	}
}

// TestImportAdded checks the space that an import reports as added.
func TestImportAdded(t *testing.T) {
	s, root := newStore(t, Options{})
	h, err := s.Import(t.Context(), bytes.NewReader(makeTar(t, file("a", strings.Repeat("a", 5000)), file("b", strings.Repeat("a", 5000)), file("c", "c"))), ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	objects := int64(0)
	for name, n := range listTree(t, filepath.Join(root, "repo/objects")) {
		if n.mode&unix.S_IFMT == unix.S_IFREG && name != "." {
			objects++
		}
	}
	if h.Added.Inodes != objects || h.Added.Bytes < 8192+4096 {
		t.Errorf("got %+v added, want %d inodes", h.Added, objects)
	}
	if h.Size != 10001 || h.Entries != 3 {
		t.Errorf("got %d entries of %d bytes, want 3 of 10001", h.Entries, h.Size)
	}
}

// TestImportConcurrently imports the same tar and different ones at once.
func TestImportConcurrently(t *testing.T) {
	s, root := newStore(t, Options{Workers: 2, MaxInFlight: 8 << 20})
	same := mixedTar(t)
	ids := make([]objectstore.Checksum, 8)
	g, ctx := errgroup.WithContext(t.Context())
	for i := range ids {
		b := same
		if i%2 == 1 {
			b = makeTar(t, file("f", fmt.Sprint(i)), file("shared", strings.Repeat("s", 2<<20)))
		}
		g.Go(func() error {
			h, err := s.Import(ctx, bytes.NewReader(b), ImportOptions{})
			if err != nil {
				return err
			}
			ids[i] = h.ID
			return h.Release()
		})
	}
	testenv.Must(t, g.Wait())
	for i, id := range ids {
		if (id == ids[0]) != (i%2 == 0) {
			t.Errorf("layer %d: got %s, the first is %s", i, id, ids[0])
		}
	}
	wantTree(t, checkOut(t, s, root, ids[3]), `f: file 644 "3"`, "shared: "+(&node{mode: 0o100644, content: digestText(strings.Repeat("s", 2<<20))}).String())
}

func digestText(s string) string {
	return fmt.Sprintf("%d bytes %s", len(s), digest.FromString(s).Encoded())
}

// TestRelabel changes attributes of files by the header of a hard link. Their objects are rebuilt.
func TestRelabel(t *testing.T) {
	s, root := newStore(t, Options{})
	large := strings.Repeat("large", 500_000)
	l := importTar(t, s, makeTar(t,
		file("a", "small", mode(0o644)), file("l", large, owner(1, 1)), file("same", "same"),
		hardlink("b", "a", mode(0o4750), owner(5, 6), at(when.Add(time.Second)), withXattr("user.a", "1")),
		hardlink("m", "l", mode(0o600), owner(7, 8)),
		hardlink("m2", "l", mode(0o640), owner(9, 9)),
		hardlink("same2", "same"),
	))
	p := checkOut(t, s, root, l.ID)
	wantTree(t, p,
		`a: file 4750 5:6 "small" user.a="1" = a`, `b: file 4750 5:6 "small" user.a="1" = a`,
		fmt.Sprintf(`l: file 640 9:9 %q = l`, digestText(large)), fmt.Sprintf(`m: file 640 9:9 %q = l`, digestText(large)), fmt.Sprintf(`m2: file 640 9:9 %q = l`, digestText(large)),
		`same: file 644 "same" = same`, `same2: file 644 "same" = same`)
	if got, want := mtimeOf(t, filepath.Join(p, "a")), unix.NsecToTimespec(when.Add(time.Second).UnixNano()); got != want {
		t.Errorf("a: got mtime %v, want %v", got, want)
	}
}

// TestAccept rejects a layer after reading it.
func TestAccept(t *testing.T) {
	s, _ := newStore(t, Options{})
	b := makeTar(t, file("a", "x"))
	refused := errors.New("refused")
	err := importErr(t, s, bytes.NewReader(b), ImportOptions{Accept: func(d digest.Digest, size int64) error {
		if d != digest.FromBytes(b) || size != int64(len(b)) {
			t.Errorf("Accept: got %s of %d bytes, want %s of %d", d, size, digest.FromBytes(b), len(b))
		}
		return refused
	}})
	if !errors.Is(err, refused) || errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want %v", err, refused)
	}
	wantNoRefs(t, s)
}

// TestReaderError has the stream fail at different places. The error keeps its class.
func TestReaderError(t *testing.T) {
	b := makeTar(t, file("a", strings.Repeat("a", 3000)), file("large", strings.Repeat("l", 3<<20)), file("z", "z"))
	broken := errors.New("broken pipe")
	for name, n := range map[string]int{
		"at once": 0, "in the first header": 100, "in a small file": 2000, "in a large file": 2 << 20, "at the end": len(b), "in the last blocks": len(b) - 100,
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newStore(t, Options{})
			err := importErr(t, s, iotest.DataErrReader(&errReader{r: bytes.NewReader(b[:n]), err: broken}), ImportOptions{})
			if !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
				t.Errorf("got error %v, want %v, which is not the layer's fault", err, broken)
			}
			wantNoRefs(t, s)
			importTar(t, s, b)
		})
	}
}

// errReader returns an error at the end of its source.
type errReader struct {
	r   *bytes.Reader
	err error
}

func (r *errReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil {
		err = r.err
	}
	return n, err
}

// TestImportCancelled cancels an import while it waits for a worker, and before it begins.
func TestImportCancelled(t *testing.T) {
	cause := errors.New("client went away")
	s, path := newStore(t, Options{})
	b := mixedTar(t)

	ctx, cancel := context.WithCancelCause(t.Context())
	var once sync.Once
	h := hooked(t, path, Options{Workers: 1}, func(op atfs.Op, _ string) error {
		if op == atfs.OpTmpFile {
			once.Do(func() { cancel(cause) })
		}
		return nil
	})
	if _, err := h.Import(ctx, bytes.NewReader(b), ImportOptions{}); !errors.Is(err, cause) || errors.Is(err, ErrInvalid) {
		t.Errorf("cancelled in the middle: got error %v, want %v", err, cause)
	}
	if _, err := s.Import(ctx, bytes.NewReader(b), ImportOptions{}); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: got error %v, want %v", err, cause)
	}
	wantNoRefs(t, s)
	importTar(t, s, b)
}

// TestRefs finds layers by their digests.
func TestRefs(t *testing.T) {
	s, _ := newStore(t, Options{})
	ctx := t.Context()
	b := makeTar(t, file("a", "x"))
	blob := digest.FromString("blob")
	h, err := s.Import(ctx, bytes.NewReader(b), ImportOptions{Blob: blob})
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	testenv.Must(t, h.Release())
	for name, acquire := range map[string]func() (*Held, error){
		"by diff ID": func() (*Held, error) { return s.Acquire(ctx, h.DiffID) },
		"by blob":    func() (*Held, error) { return s.AcquireBlob(ctx, blob) },
		"by further blob": func() (*Held, error) {
			further := digest.FromString("further")
			testenv.Must(t, s.AddBlob(ctx, further, h.ID))
			return s.AcquireBlob(ctx, further)
		},
	} {
		got, err := acquire()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Layer != h.Layer || !got.Known {
			t.Errorf("%s: got %+v, want %+v", name, got.Layer, h.Layer)
		}
		testenv.Must(t, got.Release())
	}
	if layers, err := s.Layers(ctx); err != nil || len(layers) != 1 || layers[0] != h.Layer {
		t.Errorf("Layers: got %v (%v), want one", layers, err)
	}
	if objects, err := s.Objects(ctx, h.ID); err != nil || len(objects) != 1 {
		t.Errorf("Objects: got %v (%v), want one", objects, err)
	}

	if _, err := s.Acquire(ctx, digest.FromString("unknown")); !errors.Is(err, ErrNotExist) {
		t.Errorf("Acquire of an unknown layer: got error %v, want %v", err, ErrNotExist)
	}
	if _, err := s.Layer(ctx, objectstore.Checksum{1}); !errors.Is(err, ErrNotExist) {
		t.Errorf("Layer of an unknown ID: got error %v, want %v", err, ErrNotExist)
	}
	for _, d := range []digest.Digest{"", "sha256:../../../etc", "sha512:" + digest.Digest(strings.Repeat("0", 128)), "sha256:" + digest.Digest(strings.Repeat("A", 64))} {
		if _, err := s.AcquireBlob(ctx, d); !errors.Is(err, ErrInvalid) {
			t.Errorf("AcquireBlob(%q): got error %v, want %v", d, err, ErrInvalid)
		}
		if d == "" {
			continue
		}
		err := importErr(t, s, bytes.NewReader(b), ImportOptions{Blob: d})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("Import of blob %q: got error %v, want %v", d, err, ErrInvalid)
		}
	}
}

// TestErrorClasses checks the marks by which errdefs classifies errors.
func TestErrorClasses(t *testing.T) {
	var invalid interface{ InvalidParameter() }
	if err := error(&EntryError{Name: "x", Err: errNotDir}); !errors.As(err, &invalid) || err.Error() != `layer entry "x": parent is not a directory` {
		t.Errorf("EntryError: got %v", err)
	}
	var notFound interface{ NotFound() }
	if !errors.As(fmt.Errorf("layer: %w", ErrNotExist), &notFound) {
		t.Error("ErrNotExist is not marked")
	}
}

// TestXattrLimit has a worker detect that a file system cannot hold a valid attribute.
func TestXattrLimit(t *testing.T) {
	s, path := newStore(t, Options{})
	var st unix.Statfs_t
	testenv.Must(t, unix.Statfs(path, &st))
	if st.Type != unix.EXT4_SUPER_MAGIC {
		testenv.Unsupported(t, "needs ext4 for temporary files: it holds no extended attribute of more than a block")
	}
	err := importErr(t, s, bytes.NewReader(makeTar(t, file("a", "x", withXattr("user.a", strings.Repeat("x", 20<<10))))), ImportOptions{})
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want %v", err, unix.ENOSPC)
	}
}
