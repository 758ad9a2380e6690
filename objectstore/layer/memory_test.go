package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// memoryFixed is what an import may take beyond the content in flight and what its entries take, with what any process takes.
const memoryFixed = 48 << 20

// A tarGenerator is a tar of n entries, generated as it is read.
type tarGenerator struct {
	n     int
	entry func(i int) []byte
	i     int
	rest  []byte
}

func (g *tarGenerator) Read(b []byte) (int, error) {
	if len(g.rest) == 0 {
		switch {
		case g.i > g.n:
			return 0, io.EOF
		case g.i == g.n:
			g.rest = endOfTar
		default:
			g.rest = g.entry(g.i)
		}
		g.i++
	}
	n := copy(b, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// nthName returns a unique name, in directories of a thousand.
func nthName(i int) string { return fmt.Sprintf("d%05d/f%08d", i/1000, i) }

func nthLink(typ byte, target string) func(i int) []byte {
	return func(i int) []byte {
		if i == 0 {
			return rawHeader(tar.TypeReg, "f", 0, nil)
		}
		return rawHeader(typ, nthName(i), 0, func(h []byte) { copy(h[157:257], target) })
	}
}

// TestMemoryOfEntries imports layers with the maximal number of entries of one type, and layers with ten times as many,
// which end with an error.
func TestMemoryOfEntries(t *testing.T) {
	const levels = 2000
	deep := func(i int) []byte {
		name := fmt.Sprintf("%07d/%sf", i, strings.Repeat("d/", levels-2))
		return append(rawPAX("path", name), rawHeader(tar.TypeReg, "x", 0, nil)...)
	}
	limit := testenv.Scale(1<<15, 1<<20)
	for _, tt := range []struct {
		name  string
		entry func(i int) []byte
	}{
		{"deep directories", deep},
		{"empty files", func(i int) []byte { return rawHeader(tar.TypeReg, nthName(i), 0, nil) }},
		{"empty files in one directory", func(i int) []byte { return rawHeader(tar.TypeReg, fmt.Sprint("f", i), 0, nil) }},
		{"equal files", func(i int) []byte { return append(rawHeader(tar.TypeReg, nthName(i), 3, nil), pad([]byte("abc"))...) }},
		{"directories", func(i int) []byte { return rawHeader(tar.TypeDir, nthName(i), 0, nil) }},
		{"hard links", nthLink(tar.TypeLink, "f")},
		{"hard links to lower layers", nthLink(tar.TypeLink, "x")},
		{"symbolic links", nthLink(tar.TypeSymlink, "f")},
		{"whiteouts", func(i int) []byte { return rawHeader(tar.TypeReg, fmt.Sprintf("d%05d/.wh.f%08d", i/1000, i), 0, nil) }},
	} {
		for _, factor := range []int{1, 10} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, factor), func(t *testing.T) {
				n := limit * 99 / 100 * factor // directories count too
				if tt.name == "deep directories" {
					n = limit / levels * factor
				}
				testenv.LimitMemory(t, memoryFixed+memoryPerEntry*int64(limit), func() {
					importBomb(t, Options{MaxEntries: limit}, n, tt.entry, map[int]error{10: errTooMany}[factor])
				})
			})
		}
	}
}

// importBomb imports a tar generated as it is read, and reads the layer's image.
func importBomb(t *testing.T, o Options, n int, entry func(i int) []byte, want error) {
	t.Helper()
	s, _ := newStore(t, o)
	h, err := s.Import(t.Context(), &tarGenerator{n: n, entry: entry}, ImportOptions{})
	if want != nil {
		if !errors.Is(err, want) || !errors.Is(err, ErrInvalid) {
			t.Errorf("Import: got error %v, want %v", err, want)
		}
		return
	}
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	_, err = s.Image(t.Context(), h.ID)
	testenv.Must(t, err)
}

// TestMemoryOfText imports layers whose names, targets and attributes have the maximal total length, and longer ones.
func TestMemoryOfText(t *testing.T) {
	limit := testenv.Scale(1<<15, 1<<20)
	budget := limit * textPerEntry
	long := strings.Repeat("x", 4000)
	attribute := func(i int, name, value string) []byte {
		return append(rawPAX(paxXattr+name, value), rawHeader(tar.TypeReg, nthName(i), 0, nil)...)
	}
	const name = 9 // bytes of the variable end of nthName
	for _, tt := range []struct {
		name  string
		text  int // of one entry
		entry func(i int) []byte
	}{
		{"names", 200, func(i int) []byte {
			return append(rawPAX("path", fmt.Sprintf("%s%08d", long[:192], i)), rawHeader(tar.TypeReg, "x", 0, nil)...)
		}},
		{"targets", name + 4000, func(i int) []byte {
			return append(rawPAX("linkpath", long), rawHeader(tar.TypeSymlink, nthName(i), 0, nil)...)
		}},
		{"targets in lower layers", name + 3999, func(i int) []byte {
			return append(rawPAX("linkpath", strings.Repeat("xxx/", 1000)), rawHeader(tar.TypeLink, nthName(i), 0, nil)...)
		}},
		{"attributes", name + xattrCost + 4006, func(i int) []byte { return attribute(i, "user.a", long) }},
		{"names of attributes", name + 20*(xattrCost+15), func(i int) []byte {
			var records []string
			for j := range 20 {
				records = append(records, fmt.Sprintf("%suser.%07d%02d", paxXattr, i, j), "1")
			}
			return append(rawPAX(records...), rawHeader(tar.TypeReg, nthName(i), 0, nil)...)
		}},
	} {
		for _, factor := range []int{1, 10} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, factor), func(t *testing.T) {
				n := budget / tt.text * 98 / 100
				most := memoryFixed + memoryPerEntry*int64(n) + memoryPerText*int64(budget)
				testenv.LimitMemory(t, most, func() {
					importBomb(t, Options{MaxEntries: limit}, n*factor, tt.entry, map[int]error{10: errTooMuch}[factor])
				})
			})
		}
	}
}

// TestMemoryOfStream imports very long streams with hardly any content.
func TestMemoryOfStream(t *testing.T) {
	zeros := make([]byte, 1<<20)
	size := int64(testenv.Scale(256<<20, 10<<30))
	claim := func(typ byte, name string) []byte {
		return rawHeader(typ, name, 0, func(h []byte) { binarySize(h, size) })
	}
	for _, tt := range []struct {
		name string
		head []byte
		want error
	}{
		{"behind the end", endOfTar, nil},
		{"file", claim(tar.TypeReg, "f"), nil},
		{"whiteout", claim(tar.TypeReg, ".wh.f"), nil},
		{"extended attribute", claim(tar.TypeXHeader, "pax"), tar.ErrFieldTooLong},
		{"long name", claim(tar.TypeGNULongName, "././@LongLink"), tar.ErrFieldTooLong},
		{"long target", claim(tar.TypeGNULongLink, "././@LongLink"), tar.ErrFieldTooLong},
		{"global header", claim(tar.TypeXGlobalHeader, "pax"), tar.ErrFieldTooLong},
		{"sparse file", slices.Concat(rawPAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0"), claim(tar.TypeReg, "f"), []byte("1000000000\n")), ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testenv.LimitMemory(t, memoryFixed, func() {
				s, _ := newStore(t, Options{})
				n := int(size/int64(len(zeros))) + 1
				tar := &tarGenerator{n: n, entry: func(i int) []byte {
					if i == 0 {
						return tt.head
					}
					return zeros
				}}
				h, err := s.Import(t.Context(), tar, ImportOptions{})
				if tt.want != nil {
					if !errors.Is(err, tt.want) || !errors.Is(err, ErrInvalid) {
						t.Errorf("Import: got error %v, want %v", err, tt.want)
					}
					return
				}
				testenv.Must(t, err)
				testenv.Must(t, h.Release())
			})
		})
	}
}

// binarySize writes a size that does not fit into octal digits, as GNU tar does.
func binarySize(h []byte, size int64) {
	copy(h[124:128], "\x80\x00\x00\x00")
	binary.BigEndian.PutUint64(h[128:], uint64(size))
}

// TestClaimedSize imports files that claim to be larger than the file system, with hardly any data. They fail before
// any of it is written.
func TestClaimedSize(t *testing.T) {
	path := t.TempDir()
	testenv.NeedsRoot(t)
	testenv.Must(t, unix.Mount("tmpfs", path, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	b := &bed{path: path}
	b.open(t, Options{Workers: 1})
	t.Cleanup(func() { b.close(t) })
	var wrote atomic.Bool
	b.hook = func(op atfs.Op, _ string) error {
		if op == atfs.OpWrite {
			wrote.Store(true)
		}
		return nil
	}
	gnuSparse := func(size int64) []byte {
		return sparseGNU(func(h []byte) {
			copy(h[483:487], "\x80\x00\x00\x00")
			binary.BigEndian.PutUint64(h[487:], uint64(size))
		})
	}
	for _, tt := range []struct {
		name string
		tar  []byte
	}{
		{"GNU sparse, 8 EiB", gnuSparse(math.MaxInt64)},
		{"GNU sparse, 1 TB", gnuSparse(1e12)},
		{"GNU sparse, a little more than there is", gnuSparse(9 << 20)},
		{"plain, 8 EiB", rawHeader(tar.TypeReg, "f", 0, func(h []byte) { binarySize(h, math.MaxInt64) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := importErr(t, b.Store, bytes.NewReader(tt.tar), ImportOptions{})
			if !errors.Is(err, unix.ENOSPC) || wrote.Load() {
				t.Errorf("got error %v, %t that something was written; want %v and nothing", err, wrote.Load(), unix.ENOSPC)
			}
		})
	}
	importTar(t, b.Store, gnuSparse(3<<20))
}

// TestTooManyObjects imports the maximal number of different files of a layer commit, and one more.
func TestTooManyObjects(t *testing.T) {
	s, _ := newStore(t, Options{maxObjects: 3})
	entries := []tarEntry{file("a", "1"), file("b", "2"), file("b2", "2"), file("c", "3"), file("empty", "")}
	importTar(t, s, makeTar(t, entries...))
	err := importErr(t, s, bytes.NewReader(makeTar(t, append(entries, file("d", "4"))...)), ImportOptions{})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "4 different files, at most 3") {
		t.Errorf("got %v, want %v with the numbers", err, ErrInvalid)
	}
}

// TestMaxObjects checks that ostree reads a dirtree of that many objects, and not of many more.
func TestMaxObjects(t *testing.T) {
	size := func(n int) int {
		var set objectstore.DirTree
		for i := range n {
			var sum objectstore.Checksum
			binary.BigEndian.PutUint64(sum[:], uint64(i))
			set.Files = append(set.Files, objectstore.TreeFile{Name: sum.String(), Checksum: sum})
		}
		b, err := set.Marshal()
		testenv.Must(t, err)
		return len(b)
	}
	// Offsets have 4 bytes from 64 KiB on, whatever the size: growth is linear.
	const some = 10_000
	perObject := size(some+1) - size(some)
	got := size(some) + perObject*(maxObjects-some)
	if got > objectstore.MaxMetadataSize || got+2*perObject <= objectstore.MaxMetadataSize {
		t.Errorf("%d objects make a dirtree of %d bytes, want what fits into %d", maxObjects, got, objectstore.MaxMetadataSize)
	}
}

// TestHugeImage reads layers whose image's inode claims an excessive size, as on a damaged file system.
func TestHugeImage(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x")))
	name := filepath.Join(root, "repo/objects", objectstore.LoosePath(l.Image, objectstore.TypeFile))
	st, err := os.Stat(name)
	testenv.Must(t, err)
	for _, size := range []int64{maxImage + 4096, 1 << 40} {
		testenv.Must(t, os.Truncate(name, size))
		if _, err := s.Image(t.Context(), l.ID); !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("%d bytes: got %v, want %v", size, err, objectstore.ErrCorrupt)
		}
	}
	testenv.Must(t, os.Truncate(name, st.Size()))
}

// TestRelabelMany changes the attributes of a file by many hard links: its object is rebuilt once, not each time.
func TestRelabelMany(t *testing.T) {
	b := newBed(t, Options{Workers: 1})
	made := 0
	b.hook = func(op atfs.Op, _ string) error {
		if op == atfs.OpTmpFile {
			made++
		}
		return nil
	}
	entries := []tarEntry{file("a", "x")}
	for i := range 100 {
		entries = append(entries, hardlink(fmt.Sprint("l", i), "a", mode(int64(0o600+i%2))))
	}
	l := importTar(t, b.Store, makeTar(t, entries...))
	b.hook = nil
	if made > 10 { // the object twice, the image, metadata
		t.Errorf("made %d files, want two for the object", made)
	}
	image, err := b.Image(t.Context(), l.ID)
	testenv.Must(t, err)
	if got := child(image, "a").Mode; got != unix.S_IFREG|0o601 {
		t.Errorf("got mode %o, want that of the last link", got)
	}
}

// TestLimitOfText counts up to the limit and one more, also for the maximal limit.
func TestLimitOfText(t *testing.T) {
	for _, tt := range []struct {
		limit, text int
		want        error
	}{
		{1, 0, nil}, {1, 128, nil}, {1, 129, errTooMuch}, {1000, 128_000, nil}, {1000, 128_001, errTooMuch}, {math.MaxInt, 1 << 40, nil},
	} {
		if err := newTree(tt.limit).charge(tt.text); !errors.Is(err, tt.want) {
			t.Errorf("%d bytes where %d entries are allowed: got %v, want %v", tt.text, tt.limit, err, tt.want)
		}
	}
}
