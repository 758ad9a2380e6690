package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func inodeOf(t testing.TB, p string) uint64 {
	t.Helper()
	n, err := stat(p)
	testenv.Must(t, err)
	return n.ino
}

// TestCheckoutMtime checks out two layers that share a file with different times.
func TestCheckoutMtime(t *testing.T) {
	for _, tt := range []struct {
		mtime Mtime
		same  bool
		want  time.Time // of the second file
	}{
		{MtimeExact, false, when.Add(time.Hour)},
		{MtimeCanonical, true, when},
	} {
		t.Run(string(tt.mtime), func(t *testing.T) {
			s, root := newStore(t, Options{Mtime: tt.mtime})
			first := importTar(t, s, makeTar(t, file("a", "content", mode(0o4755), owner(1, 2), withXattr("user.a", "1"))))
			second := importTar(t, s, makeTar(t, file("b", "content", mode(0o4755), owner(1, 2), withXattr("user.a", "1"), at(tt.want)), file("c", "x", at(tt.want))))
			a := filepath.Join(checkOut(t, s, root, first.ID), "a")
			p := checkOut(t, s, root, second.ID)
			wantTree(t, p, `b: file 4755 1:2 "content" user.a="1"`, `c: file 644 "x"`)
			b := filepath.Join(p, "b")
			if same := inodeOf(t, a) == inodeOf(t, b); same != tt.same {
				t.Errorf("one inode: got %t, want %t", same, tt.same)
			}
			if got, want := mtimeOf(t, b), unix.NsecToTimespec(tt.want.UnixNano()); got != want {
				t.Errorf("b: got mtime %v, want %v", got, want)
			}
			if got, want := mtimeOf(t, a), unix.NsecToTimespec(when.UnixNano()); got != want {
				t.Errorf("a: got mtime %v, want %v", got, want)
			}
		})
	}
}

// TestCheckoutLinks checks which files of a checkout share an inode.
func TestCheckoutLinks(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t,
		file("a", "same"), file("b", "same"), file("c", "same", mode(0o600)),
		file("e1", ""), file("e2", ""), file("e3", "", withXattr("user.a", "1")),
		file("x1", "x", withXattr("user.a", "")), file("x2", "x", withXattr("user.a", "")), file("x3", "x"),
	))
	p := checkOut(t, s, root, l.ID)
	wantTree(t, p, `a: file 644 "same" = a`, `b: file 644 "same" = a`, `c: file 600 "same"`,
		`e1: file 644 ""`, `e2: file 644 ""`, `e3: file 644 "" user.a="1"`,
		`x1: file 644 "x" user.a=""`, `x2: file 644 "x" user.a=""`, `x3: file 644 "x"`)
	objects, err := s.Objects(t.Context(), l.ID)
	testenv.Must(t, err)
	linked := make(map[uint64]bool)
	for _, sum := range objects {
		st, err := s.Repo().Stat(sum)
		testenv.Must(t, err)
		linked[st.Ino] = true
	}
	for name, want := range map[string]bool{"a": true, "b": true, "c": true, "x3": true, "x1": false, "e1": false} {
		if got := linked[inodeOf(t, filepath.Join(p, name))]; got != want {
			t.Errorf("%s is an object: got %t, want %t", name, got, want)
		}
	}
}

// TestCheckoutMaxLinks allows only a few hard links to an object. Further files are copies.
func TestCheckoutMaxLinks(t *testing.T) {
	s, root := newStore(t, Options{MaxLinks: 4, Workers: 1})
	var entries []tarEntry
	var want []string
	for i := range 8 {
		name := fmt.Sprintf("f%d", i)
		entries = append(entries, file(name, "content", owner(3, 4), mode(0o2755)))
		line := name + `: file 2755 3:4 "content"`
		if i < 3 { // the object itself is the fourth
			line += " = f0"
		}
		want = append(want, line)
	}
	l := importTar(t, s, makeTar(t, entries...))
	wantTree(t, checkOut(t, s, root, l.ID), want...)
}

// TestCheckoutLinkLimit reaches the real limit of a file system, 65,000 links on ext4, in the middle of a file with two
// names.
func TestCheckoutLinkLimit(t *testing.T) {
	testenv.SkipShort(t, "makes 65,000 files")
	s, root := openStore(t, testenv.NewDisk(t, "ext4", 256<<20, "-q", "-b", "4096").Dir, Options{Workers: 1})
	const limit = 65000
	var entries []tarEntry
	for i := range limit - 2 { // minus the object and b/one
		entries = append(entries, file(fmt.Sprintf("a/%05d", i), "content"))
	}
	entries = append(entries, dir("b"), file("b/one", "content"), dir("c"), hardlink("c/two", "b/one"), file("d/more", "content"), dir("e"), hardlink("e/three", "b/one"))
	p := checkOut(t, s, root, importTar(t, s, makeTar(t, entries...)).ID)
	inodes := make(map[string]*node)
	for _, name := range []string{"a/00000", "a/64997", "b/one", "c/two", "e/three", "d/more"} {
		n, err := stat(filepath.Join(p, name))
		testenv.Must(t, err)
		if n.content != "content" || n.mtime != unix.NsecToTimespec(when.UnixNano()) {
			t.Errorf("%s: got %s, mtime %v", name, n, n.mtime)
		}
		inodes[name] = n
	}
	if a, z := inodes["a/00000"], inodes["a/64997"]; a.ino != z.ino || a.nlink < limit-1 {
		t.Errorf("got inodes %d and %d with %d links, want one with %d", a.ino, z.ino, a.nlink, limit-1)
	}
	one, two, three := inodes["b/one"], inodes["c/two"], inodes["e/three"]
	if one.ino != two.ino || one.ino != three.ino || one.nlink != 3 {
		t.Errorf("got inodes %d, %d and %d with %d links, want one with 3", one.ino, two.ino, three.ino, one.nlink)
	}
	for _, name := range []string{"b", "c", "e"} {
		if got, want := mtimeOf(t, filepath.Join(p, name)), unix.NsecToTimespec(when.UnixNano()); got != want {
			t.Errorf("%s: got mtime %v, want %v", name, got, want)
		}
	}
}

// TestCheckoutOtherFileSystem has the repository on another file system, from which nothing can be linked.
func TestCheckoutOtherFileSystem(t *testing.T) {
	path := t.TempDir()
	repo := filepath.Join(path, "repo")
	testenv.Must(t, os.Mkdir(repo, 0o700))
	if err := unix.Mount("tmpfs", repo, "tmpfs", 0, ""); err != nil {
		testenv.Unsupported(t, "needs tmpfs: %v", err)
	}
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(repo, 0)) })
	s, root := openStore(t, path, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x", mode(0o4711), owner(1, 2)), hardlink("b", "a", mode(0o4711), owner(1, 2)), file("c", "x", mode(0o4711), owner(1, 2)), file("e", "")))
	p := checkOut(t, s, root, l.ID)
	wantTree(t, p, `a: file 4711 1:2 "x" = a`, `b: file 4711 1:2 "x" = a`, `c: file 4711 1:2 "x"`, `e: file 644 ""`)
	if got, want := mtimeOf(t, filepath.Join(p, "c")), unix.NsecToTimespec(when.UnixNano()); got != want {
		t.Errorf("got mtime %v, want %v", got, want)
	}
}

// TestCheckoutReflink makes files with their own inodes on file systems that can share blocks.
func TestCheckoutReflink(t *testing.T) {
	for _, tt := range []struct {
		kind  string
		size  int64
		share bool
	}{
		{"xfs", 512 << 20, true},
		{"btrfs", 256 << 20, true},
		{"ext4", 64 << 20, false},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			s, path := openStore(t, testenv.NewDisk(t, tt.kind, tt.size, "-q").Dir, Options{})
			content := strings.Repeat("0123456789abcdef", 8192)
			importTar(t, s, makeTar(t, file("first", content)))
			l := importTar(t, s, makeTar(t, file("second", content, at(when.Add(time.Hour)))))
			var written atomic.Int32
			h := hooked(t, path, Options{}, func(op atfs.Op, name string) error {
				if op == atfs.OpWrite && strings.HasSuffix(name, "/second") {
					written.Add(1)
				}
				return nil
			})
			wantTree(t, checkOut(t, h, path, l.ID), fmt.Sprintf("second: file 644 %q", digestText(content)))
			if shared := written.Load() == 0; shared != tt.share {
				t.Errorf("blocks shared: got %t, want %t", shared, tt.share)
			}
		})
	}
}

// TestCheckoutOnce has 20 concurrent callers of one checkout.
func TestCheckoutOnce(t *testing.T) {
	plain, path := newStore(t, Options{})
	l := importTar(t, plain, mixedTarWithout(t))
	var made atomic.Int32
	s := hooked(t, path, Options{}, func(op atfs.Op, name string) error {
		if op == atfs.OpMkdir && strings.HasPrefix(name, "tmp/checkout-") && strings.Count(name, "/") == 1 {
			made.Add(1)
		}
		return nil
	})
	var g errgroup.Group
	var added atomic.Int32
	for range 20 {
		g.Go(func() error {
			name, u, err := s.Checkout(t.Context(), []objectstore.Checksum{l.ID})
			if u.Inodes > 0 {
				added.Add(1)
			}
			if ok, herr := s.HasCheckout(name); herr != nil || !ok {
				err = errors.Join(err, fmt.Errorf("checkout %s is not there: %w", name, herr))
			}
			return err
		})
	}
	testenv.Must(t, g.Wait())
	if made.Load() != 1 || added.Load() != 1 {
		t.Errorf("got %d checkouts made and %d callers who added something, want 1 and 1", made.Load(), added.Load())
	}
}

// mixedTarWithout is a tar of several files, without hard links to other layers.
func mixedTarWithout(t testing.TB) []byte {
	t.Helper()
	var entries []tarEntry
	for i := range 200 {
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i%20, i), fmt.Sprint(i)))
	}
	return makeTar(t, entries...)
}

// TestCheckoutTwoProcesses makes a checkout from two stores over the same directories that do not know of each other.
func TestCheckoutTwoProcesses(t *testing.T) {
	s, path := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x")))
	var name string
	var once sync.Once
	second := hooked(t, path, Options{}, func(op atfs.Op, p string) error {
		if op == atfs.OpRename && strings.HasPrefix(p, LayersDir) {
			once.Do(func() { name, _, _ = s.Checkout(t.Context(), []objectstore.Checksum{l.ID}) })
		}
		return nil
	})
	got, added, err := second.Checkout(t.Context(), []objectstore.Checksum{l.ID})
	if err != nil || got != name || added != (Usage{}) {
		t.Errorf("got %q, %+v added (%v), want %q and nothing", got, added, err, name)
	}
	wantTree(t, filepath.Join(path, name), `a: file 644 "x"`)
}

// TestCheckoutCancelled cancels the caller that makes a checkout. A waiting caller gets it all the same.
func TestCheckoutCancelled(t *testing.T) {
	plain, path := newStore(t, Options{})
	l := importTar(t, plain, mixedTarWithout(t))
	cause := errors.New("first caller went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	waiting := make(chan error, 1)
	var once sync.Once
	var s *Store
	s = hooked(t, path, Options{}, func(op atfs.Op, name string) error {
		if op == atfs.OpMkdir && strings.HasPrefix(name, "tmp/checkout-") {
			once.Do(func() {
				go func() {
					_, _, err := s.Checkout(t.Context(), []objectstore.Checksum{l.ID})
					waiting <- err
				}()
				cancel(cause)
			})
		}
		return nil
	})
	if _, _, err := s.Checkout(ctx, []objectstore.Checksum{l.ID}); !errors.Is(err, cause) {
		t.Errorf("first caller: got error %v, want %v", err, cause)
	}
	if err := <-waiting; err != nil {
		t.Errorf("second caller: %v", err)
	}
}

// TestCheckoutLost removes checkouts. They are rebuilt.
func TestCheckoutLost(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x")))
	for _, lost := range []string{"fs", "."} {
		p := checkOut(t, s, root, l.ID)
		testenv.Must(t, os.RemoveAll(filepath.Join(filepath.Dir(p), lost)))
		wantTree(t, checkOut(t, s, root, l.ID), `a: file 644 "x"`)
	}
}

// TestCheckoutCollision has the directory of a layer belong to another layer, whose ID has the same beginning.
func TestCheckoutCollision(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x")))
	other := objectstore.Checksum{1, 2, 3}
	planted := filepath.Join(root, LayersDir, l.ID.String()[:shortID])
	writeTree(t, planted, [2]string{"./", ""}, [2]string{"commit", other.String() + "\n"})
	for _, there := range []string{"commit", "checkout"} {
		if there == "checkout" {
			writeTree(t, planted, [2]string{"fs/", ""})
		}
		if _, _, err := s.Checkout(t.Context(), []objectstore.Checksum{l.ID}); !errors.Is(err, objectstore.ErrCorrupt) || !strings.Contains(err.Error(), other.String()) {
			t.Errorf("the other's %s is there: got error %v, want %v with its ID", there, err, objectstore.ErrCorrupt)
		}
	}
}

// TestCheckoutBadChain asks for checkouts of an empty chain, and of missing layers.
func TestCheckoutBadChain(t *testing.T) {
	s, _ := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a/b", "x")))
	if _, _, err := s.Checkout(t.Context(), nil); err == nil {
		t.Error("empty chain: got a checkout, want an error")
	}
	unknown := objectstore.Checksum{9}
	for name, chain := range map[string][]objectstore.Checksum{"last": {unknown}, "below": {unknown, l.ID}} {
		if _, _, err := s.Checkout(t.Context(), chain); !errors.Is(err, ErrNotExist) {
			t.Errorf("unknown layer %s: got error %v, want %v", name, err, ErrNotExist)
		}
	}
}

// TestCheckoutObjectMissing removes an object. Importing the layer again restores it.
func TestCheckoutObjectMissing(t *testing.T) {
	s, root := newStore(t, Options{})
	b := makeTar(t, file("a", "x"), file("d/b", "y"))
	l := importTar(t, s, b)
	objects, err := s.Objects(t.Context(), l.ID)
	testenv.Must(t, err)
	testenv.Must(t, os.Remove(filepath.Join(root, "repo/objects", objectstore.LoosePath(objects[0], objectstore.TypeFile))))
	_, _, err = s.Checkout(t.Context(), []objectstore.Checksum{l.ID})
	var e *objectstore.ObjectError
	if !errors.Is(err, objectstore.ErrNotExist) || !errors.As(err, &e) || e.Checksum != objects[0] {
		t.Errorf("got error %v, want that object %s does not exist", err, objects[0])
	}
	importTar(t, s, b)
	wantTree(t, checkOut(t, s, root, l.ID), `a: file 644 "x"`, "d: dir 755", `d/b: file 644 "y"`)
}

// TestCheckoutChain checks out the last of several layers whose tar depends on those below: for the attributes of
// directories without an entry, and for hard links to files of a lower layer.
func TestCheckoutChain(t *testing.T) {
	tmp := dir("tmp", mode(0o1777), owner(1, 2), withXattr("user.a", "1"))
	for _, tt := range []struct {
		name   string
		layers [][]tarEntry
		tree   []string
		err    error
	}{
		{"nothing below", [][]tarEntry{{file("tmp/f", "x")}}, []string{"tmp: dir 755", `tmp/f: file 644 "x"`}, nil},
		{"directory below", [][]tarEntry{{tmp}, {file("tmp/f", "x")}}, []string{`tmp: dir 1777 1:2 user.a="1"`, `tmp/f: file 644 "x"`}, nil},
		{"directory far below", [][]tarEntry{{tmp}, {file("a", "")}, {file("tmp/g", "x")}, {file("tmp/f", "x")}}, []string{`tmp: dir 1777 1:2 user.a="1"`, `tmp/f: file 644 "x"`}, nil},
		{"topmost directory counts", [][]tarEntry{{tmp}, {dir("tmp", mode(0o700))}, {file("tmp/f", "x")}}, []string{"tmp: dir 700", `tmp/f: file 644 "x"`}, nil},
		{"directory removed between", [][]tarEntry{{tmp}, {whiteout("", "tmp")}, {file("tmp/f", "x")}}, []string{"tmp: dir 755", `tmp/f: file 644 "x"`}, nil},
		{"directory replaced between", [][]tarEntry{{tmp}, {file("tmp", "x")}, {file("tmp/f", "x")}}, []string{"tmp: dir 755", `tmp/f: file 644 "x"`}, nil},
		{"parent removed between", [][]tarEntry{{dir("a", mode(0o711)), dir("a/b", mode(0o700))}, {whiteout("", "a")}, {file("a/b/f", "x")}}, []string{"a: dir 755", "a/b: dir 755", `a/b/f: file 644 "x"`}, nil},
		{"parent opaque between", [][]tarEntry{{dir("a", mode(0o711)), dir("a/b", mode(0o700))}, {dir("a", mode(0o710)), whiteout("a", ".wh..opq")}, {file("a/b/f", "x")}}, []string{"a: dir 710", "a/b: dir 755", `a/b/f: file 644 "x"`}, nil},
		{"root opaque between", [][]tarEntry{{tmp}, {whiteout("", ".wh..opq")}, {file("tmp/f", "x")}}, []string{"tmp: dir 755", `tmp/f: file 644 "x"`}, nil},
		{"nested directories", [][]tarEntry{{dir("a", mode(0o711)), dir("a/b", mode(0o700))}, {dir("a", mode(0o777)), file("a/b/c/f", "x")}}, []string{"a: dir 777", "a/b: dir 700", "a/b/c: dir 755", `a/b/c/f: file 644 "x"`}, nil},
		{"opaque without entry", [][]tarEntry{{tmp}, {whiteout("tmp", ".wh..opq")}}, []string{`tmp: dir 1777 1:2 trusted.overlay.opaque="y" user.a="1"`}, nil},

		{"link below", [][]tarEntry{{file("a", "x", mode(0o4755), owner(1, 2))}, {hardlink("b", "a")}}, []string{`b: file 4755 1:2 "x"`}, nil},
		{"two links to one file below", [][]tarEntry{{file("a", "")}, {hardlink("b", "a"), hardlink("c", "a"), hardlink("d", "b")}}, []string{`b: file 644 "" = b`, `c: file 644 "" = b`, `d: file 644 "" = b`}, nil},
		{"chain of links below", [][]tarEntry{{file("a", "x")}, {hardlink("b", "a")}, {hardlink("c", "b")}}, []string{`c: file 644 "x"`}, nil},
		{"link to a link below", [][]tarEntry{{symlink("l", "/etc")}, {hardlink("b", "l")}}, []string{`b: link "/etc"`}, nil},
		{"link to a device below", [][]tarEntry{{device(tar.TypeChar, "c", 1, 3)}, {hardlink("b", "c")}}, []string{"b: chr 644 1,3"}, nil},
		{"link through a link of its layer", [][]tarEntry{{file("d/a", "x")}, {symlink("l", "d"), hardlink("b", "l/a")}}, []string{`b: file 644 "x"`, `l: link "d"`}, nil},
		{"link to the name it takes", [][]tarEntry{{file("a", "x")}, {hardlink("a", "a")}}, []string{`a: file 644 "x"`}, nil},
		{"link to the topmost", [][]tarEntry{{file("a", "1")}, {file("a", "2")}, {hardlink("b", "a")}}, []string{`b: file 644 "2"`}, nil},
		{"link to a removed file", [][]tarEntry{{file("a", "x")}, {whiteout("", "a")}, {hardlink("h", "a")}}, nil, errNoLinkTarget},
		{"link below a removed directory", [][]tarEntry{{file("d/a", "x")}, {whiteout("", "d")}, {hardlink("h", "d/a")}}, nil, errNoLinkTarget},
		{"link below an opaque directory", [][]tarEntry{{file("d/a", "x")}, {whiteout("d", ".wh..opq")}, {hardlink("h", "d/a")}}, nil, errNoLinkTarget},
		{"link below an opaque root", [][]tarEntry{{file("d/a", "x")}, {whiteout("", ".wh..opq")}, {hardlink("h", "d/a")}}, nil, errNoLinkTarget},
		{"link below a replaced directory", [][]tarEntry{{file("d/a", "x")}, {file("d", "x")}, {hardlink("h", "d/a")}}, nil, errNoLinkTarget},
		{"link to a directory below", [][]tarEntry{{dir("d")}, {hardlink("h", "d")}}, nil, errLinkDir},
		{"link to a file above", [][]tarEntry{{hardlink("h", "a")}}, nil, errNoLinkTarget},
		{"chain of links to nothing", [][]tarEntry{{hardlink("b", "a")}, {hardlink("h", "b")}}, nil, errNoLinkTarget},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, root := newStore(t, Options{})
			var chain []objectstore.Checksum
			for _, entries := range tt.layers {
				chain = append(chain, importTar(t, s, makeTar(t, entries...)).ID)
			}
			err := s.Resolve(t.Context(), chain)
			if tt.err == nil {
				testenv.Must(t, err)
				wantTree(t, checkOut(t, s, root, chain...), tt.tree...)
				return
			}
			_, _, cerr := s.Checkout(t.Context(), chain)
			for _, err := range []error{err, cerr} {
				var e *EntryError
				if !errors.Is(err, tt.err) || !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || e.Name != "h" {
					t.Errorf("got error %v, want %v about entry h", err, tt.err)
				}
			}
		})
	}
}

// TestResolveReadsForLinks resolves over a layer that is lost: Resolve reads it for a hard link, and not for a directory.
func TestResolveReadsForLinks(t *testing.T) {
	s, _ := newStore(t, Options{})
	below := objectstore.Checksum{1}
	implicit := importTar(t, s, makeTar(t, file("tmp/f", "x"))).ID
	link := importTar(t, s, makeTar(t, hardlink("h", "a"))).ID
	testenv.Must(t, s.Resolve(t.Context(), []objectstore.Checksum{below, implicit}))
	if err := s.Resolve(t.Context(), []objectstore.Checksum{below, link}); !errors.Is(err, ErrNotExist) {
		t.Errorf("with a hard link to a layer that is lost: got error %v, want %v", err, ErrNotExist)
	} else if errors.Is(err, ErrInvalid) {
		t.Errorf("a layer above one that is lost is called invalid: %v", err)
	}
}

// TestResolveStops looks for targets of hard links after the call was cancelled.
func TestResolveStops(t *testing.T) {
	s, _ := newStore(t, Options{})
	below := importTar(t, s, makeTar(t, file("a", "x"))).ID
	top, err := s.Image(t.Context(), importTar(t, s, makeTar(t, hardlink("h", "a"))).ID)
	testenv.Must(t, err)
	r := s.newResolver([]objectstore.Checksum{below})
	ctx, cancel := context.WithCancel(t.Context())
	testenv.Must(t, r.checkLinks(ctx, top, "")) // reads the layers
	cancel()
	if err := r.checkLinks(ctx, top, ""); !errors.Is(err, context.Canceled) || errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}

// TestCheckoutVariants checks out one layer over different ones. The name of the checkout depends on its content.
func TestCheckoutVariants(t *testing.T) {
	s, root := newStore(t, Options{})
	upper := importTar(t, s, makeTar(t, file("tmp/f", "x")))
	low1 := importTar(t, s, makeTar(t, dir("tmp", mode(0o1777))))
	low2 := importTar(t, s, makeTar(t, dir("tmp", mode(0o700))))
	low3 := importTar(t, s, makeTar(t, dir("tmp", mode(0o1777)), file("other", "")))
	alone := checkOut(t, s, root, upper.ID)
	over1, over2, over3 := checkOut(t, s, root, low1.ID, upper.ID), checkOut(t, s, root, low2.ID, upper.ID), checkOut(t, s, root, low3.ID, upper.ID)
	if over1 == over2 || over1 == alone || over1 != over3 {
		t.Errorf("got checkouts %s, %s, %s and %s, want the first three different and the last as the second", alone, over1, over2, over3)
	}
	wantTree(t, over1, "tmp: dir 1777", `tmp/f: file 644 "x"`)
	wantTree(t, over2, "tmp: dir 700", `tmp/f: file 644 "x"`)
	if inodeOf(t, filepath.Join(over1, "tmp/f")) != inodeOf(t, filepath.Join(over2, "tmp/f")) {
		t.Error("variants do not share their files")
	}
	again, added, err := s.Checkout(t.Context(), []objectstore.Checksum{low1.ID, upper.ID})
	if err != nil || filepath.Join(root, again) != over1 || added != (Usage{}) {
		t.Errorf("again: got %s, %+v (%v), want %s and nothing added", again, added, err, over1)
	}
}

// TestSweepTmp leaves an unfinished checkout, like a killed process.
func TestSweepTmp(t *testing.T) {
	s, root := newStore(t, Options{})
	writeTree(t, root, [2]string{"tmp/checkout-X/fs/d/", ""}, [2]string{"tmp/checkout-X/fs/d/f", "x"}, [2]string{"tmp/other", ""})
	testenv.Must(t, s.SweepTmp())
	wantTree(t, filepath.Join(root, "tmp"), ".: dir 700", `other: file 644 ""`)
	testenv.Must(t, os.Remove(filepath.Join(root, "tmp/other")))
}
