package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadInvertsMarshal(t *testing.T) {
	trees := append(allTrees(t), namedTree{"deepest", deep(MaxDepth)})
	for _, tree := range trees {
		for _, opts := range allOptions {
			got, err := Read(mustMarshal(t, tree.root, opts), Limits{})
			if err != nil {
				t.Errorf("%s, versions %v: Read: %v", tree.name, opts, err)
				continue
			}
			if d := diffTrees(got, tree.root); d != "" {
				t.Errorf("%s, versions %v: %s", tree.name, opts, d)
			}
		}
	}
}

func TestReadInvertsMarshalManyTrees(t *testing.T) {
	seeds := 400
	if testing.Short() {
		seeds = 50
	}
	for seed := 1000; seed < 1000+seeds; seed++ {
		root := randomTree(uint64(seed), 50)
		opts := allOptions[seed%len(allOptions)]
		got, err := Read(mustMarshal(t, root, opts), Limits{})
		if err != nil {
			t.Fatalf("seed %d: Read: %v", seed, err)
		}
		if d := diffTrees(got, root); d != "" {
			t.Fatalf("seed %d: %s", seed, d)
		}
	}
}

func TestReadKeepsHardLinks(t *testing.T) {
	link := file(5, 5)
	root, err := Read(mustMarshal(t, dir(Entry{"a", dir(Entry{"x", link})}, Entry{"b", link}, Entry{"c", file(5, 5)}), ostree), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := root.Entries[0].Inode.Entries[0].Inode, root.Entries[1].Inode, root.Entries[2].Inode
	if a != b {
		t.Error("two names of one inode have become two inodes")
	}
	if a == c {
		t.Error("two equal inodes have become one")
	}
}

func TestReadLimits(t *testing.T) {
	image := mustMarshal(t, dir(Entry{"a", dir(Entry{"b", dir(Entry{"c", file(0, 0)})})}), ostree)
	for _, tt := range []struct {
		limits Limits
		want   error
	}{
		{Limits{}, nil},
		{Limits{Inodes: 4, Depth: 3}, nil},
		{Limits{Inodes: 3}, ErrLimit},
		{Limits{Depth: 2}, ErrLimit},
	} {
		if _, err := Read(image, tt.limits); !errors.Is(err, tt.want) {
			t.Errorf("%+v: got error %v, want %v", tt.limits, err, tt.want)
		}
	}
}

// image is an image for a test to damage.
type image []byte

// nodeAt returns the offset of the inode of a path.
func (m image) nodeAt(path ...string) int {
	at := int(le.Uint16(m[superOffset+14:])) << nidBits
	for _, name := range path {
		at = int(le.Uint64(m[m.direntAt(at, name):])) << nidBits
	}
	return at
}

// direntAt returns the offset of the entry of a name in the directory at.
func (m image) direntAt(at int, name string) int {
	d := m.direntsAt(at)
	for i := range int(le.Uint16(m[d+8:])) / direntSize {
		e := d + i*direntSize
		off := int(le.Uint16(m[e+8:]))
		if bytes.HasPrefix(m[d+off:], []byte(name)) {
			return e
		}
	}
	panic("no entry " + name)
}

// name returns the bytes of a name in the directory at.
func (m image) name(at int, name string) []byte {
	e := m.direntAt(at, name)
	return m[m.direntsAt(at)+int(le.Uint16(m[e+8:])):][:len(name)]
}

// direntsAt returns the offset of the only block of the directory at.
func (m image) direntsAt(at int) int {
	if le.Uint16(m[at:])>>1 == layoutPlain {
		return int(le.Uint32(m[at+16:])) * blockSize
	}
	size := compactSize
	if le.Uint16(m[at:])&1 == 1 {
		size = extendedSize
	}
	if n := int(le.Uint16(m[at+2:])); n > 0 {
		size += xattrHeaderSize + (n-1)*4
	}
	return at + size
}

func TestReadCorrupt(t *testing.T) {
	valid := mustMarshal(t, dir(
		Entry{"d", dir(Entry{"aa", file(5, 1)}, Entry{"bb", dir(Entry{"x", file(0, 0)})}, Entry{"cc", file(0, 0)})},
		Entry{"l", symlink("target")},
		Entry{"s", labelled()},
		Entry{"w", whiteout()},
	), ostree)
	for _, tt := range []struct {
		name   string
		change func(m image) image
		want   string
	}{
		{"empty", func(image) image { return nil }, "size 0"},
		{"half a block", func(m image) image { return m[:len(m)-2048] }, "size"},
		{"a block less", func(m image) image { return m[:len(m)-blockSize] }, "blocks in an image"},
		{"magic", func(m image) image { m[0]++; return m }, "magic"},
		{"superblock magic", func(m image) image { m[superOffset]++; return m }, "superblock magic"},
		{"version 2", func(m image) image { m[12] = 2; return m }, "composefs version 2"},
		{"block size", func(m image) image { m[superOffset+12] = 9; return m }, "block size 2^9"},
		{"incompatible feature", func(m image) image { m[superOffset+80] = 1; return m }, "superblock field at 80"},
		{"more inodes", func(m image) image { m[superOffset+16]++; return m }, "inodes found"},
		{"fewer inodes", func(m image) image { m[superOffset+16]--; return m }, "more than"},
		{"endless inodes", func(m image) image { le.PutUint64(m[superOffset+16:], math.MaxUint64); return m }, "inodes in an image of"},
		{"root is a file", func(m image) image { m[m.nodeAt()+5] = 0x81; return m }, "mode 0100755"},
		{"root elsewhere", func(m image) image { le.PutUint16(m[superOffset+14:], 0xffff); return m }, "read inode 0"},
		{"name with slash", func(m image) image {
			copy(m.name(m.nodeAt("d"), "aa"), "a/")
			return m
		}, `entry "a/": composefs: corrupt image: invalid name`},
		{"name with NUL", func(m image) image {
			m.name(m.nodeAt("d"), "aa")[1] = 0
			return m
		}, "invalid name"},
		{"second ..", func(m image) image {
			copy(m.name(m.nodeAt("d"), "aa"), "..")
			return m
		}, `".." not in order`},
		{"name twice", func(m image) image {
			copy(m.name(m.nodeAt("d"), "bb"), "aa")
			return m
		}, `"aa" not in order`},
		{"names unsorted", func(m image) image {
			copy(m.name(m.nodeAt("d"), "aa"), "zz")
			return m
		}, `"bb" not in order`},
		{"directory is its own child", func(m image) image {
			d := m.nodeAt("d")
			le.PutUint64(m[m.direntAt(d, "bb"):], uint64(d)>>nidBits)
			return m
		}, "has two names"},
		{"directory reached twice", func(m image) image {
			d, s := m.nodeAt("d"), m.nodeAt("s")
			le.PutUint64(m[m.direntAt(d, "bb"):], uint64(s)>>nidBits)
			return m
		}, "has two names"},
		{"wrong parent", func(m image) image {
			b := m.nodeAt("d", "bb")
			le.PutUint64(m[m.direntsAt(b)+direntSize:], uint64(b)>>nidBits)
			return m
		}, `entry ".."`},
		{"entry to nowhere", func(m image) image {
			le.PutUint64(m[m.direntAt(m.nodeAt("d"), "cc"):], math.MaxUint64)
			return m
		}, `entry "cc"`},
		{"entry into an inode", func(m image) image {
			le.PutUint64(m[m.direntAt(m.nodeAt("d"), "cc"):], uint64(m.nodeAt("s"))>>nidBits+1)
			return m
		}, "no inode at"},
		{"type of entry", func(m image) image {
			m[m.direntAt(m.nodeAt("d"), "cc")+10] = ftFifo
			return m
		}, "directory entry has type 5"},
		{"link count", func(m image) image { m[m.nodeAt("d", "cc")+6]++; return m }, "link count 2, 1 names"},
		{"inode number", func(m image) image { m[m.nodeAt("d", "cc")+20]++; return m }, "number"},
		{"directory size", func(m image) image { m[m.nodeAt("d")+8]++; return m }, "read inode"},
		{"endless directory", func(m image) image { m[m.nodeAt("d")+11] = 0xff; return m }, "data blocks"},
		{"symlink size", func(m image) image { le.PutUint32(m[m.nodeAt("l")+8:], maxTarget+1); return m }, "symlink target of"},
		{"symlink with NUL", func(m image) image { m[m.nodeAt("l")+compactSize+1] = 0; return m }, "symlink target"},
		{"compressed", func(m image) image { m[m.nodeAt("d", "cc")] = 3 << 1; return m }, "data layout 3"},
		{"xattr count", func(m image) image { m[m.nodeAt("d", "aa")+2]++; return m }, "read inode"},
		{"xattr filter", func(m image) image { m[m.nodeAt("d", "aa")+compactSize] ^= 1; return m }, "name filter"},
		{"shared xattr elsewhere", func(m image) image {
			le.PutUint32(m[m.nodeAt("d", "aa")+compactSize+xattrHeaderSize:], 0xffff)
			return m
		}, "no shared attribute"},
		{"redirect climbs", func(m image) image { return bytes.Replace(m, []byte("/01/0000"), []byte("/../0000"), 1) }, "redirect"},
		{"redirect is relative", func(m image) image { return bytes.Replace(m, []byte("/01/0000"), []byte("x01/0000"), 1) }, "redirect"},
		{"unknown overlay xattr", func(m image) image {
			return bytes.Replace(m, []byte("overlay.redirect"), []byte("overlay.redirecT"), 1)
		}, "overlay.redirecT"},
		{"stub with another name", func(m image) image {
			copy(m.name(m.nodeAt(), "7f"), "7g")
			return m
		}, `entry "7g" is a device 0:0`},
		{"no stub", func(m image) image {
			m[m.nodeAt("ff")+16] = 5
			copy(m.name(m.nodeAt(), "ff"), "fg")
			return m
		}, "root has no entry ff"},
		{"stub of another owner", func(m image) image { m[m.nodeAt("7f")+24] = 5; return m }, "device 0:0"},
		{"another 0:0", func(m image) image {
			m[m.nodeAt("d", "cc")+5] = 0x21
			m[m.direntAt(m.nodeAt("d"), "cc")+10] = ftChr
			return m
		}, "device 0:0"},
		{"ACL flag", func(m image) image { m[8] = 1; return m }, "ACL flag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, err := Read(tt.change(slices.Clone(valid)), Limits{})
			if root != nil || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, error %v, want ErrCorrupt with %q", root, err, tt.want)
			}
		})
	}
	if _, err := Read(valid, Limits{}); err != nil {
		t.Errorf("undamaged: %v", err)
	}
}

// checkHostile checks what holds for any input.
func checkHostile(t *testing.T, b []byte) {
	t.Helper()
	root, err := Read(b, Limits{})
	if err != nil {
		if root != nil || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("got %v, error %v", root, err)
		}
		return
	}
	again, err := Marshal(root, Options{MinVersion: le.Uint32(b[12:]), MaxVersion: le.Uint32(b[12:])})
	if err != nil {
		t.Fatalf("Marshal of what Read accepted: %v", err)
	}
	back, err := Read(again, Limits{})
	if err != nil {
		t.Fatalf("Read of the new image: %v", err)
	}
	if d := diffTrees(back, root); d != "" {
		t.Fatalf("trees differ: %s", d)
	}
}

// smallImages are seeds for damage.
func smallImages(tb testing.TB) (list [][]byte) {
	tb.Helper()
	trees := []*Inode{dir(), parseFile(tb, "testdata/small.dump"), parseFile(tb, "testdata/golden/types.dump")}
	for _, name := range []string{"hard links", "whiteouts", "own stubs", "labelled", "many shared", "around dots"} {
		trees = append(trees, namedTrees(tb)[name])
	}
	for _, seed := range []uint64{11, 26, 30, 35} {
		trees = append(trees, randomTree(seed, 40))
	}
	for i, tree := range trees {
		list = append(list, mustMarshal(tb, tree, allOptions[i%len(allOptions)]))
	}
	return list
}

// TestReadDamaged flips bits, overwrites words and truncates, in the parts that matter most: everything but zeros.
func TestReadDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	rounds := 800
	if testing.Short() {
		rounds = 100
	}
	for _, valid := range smallImages(t) {
		var used []int
		for i, c := range valid {
			if c != 0 {
				used = append(used, i)
			}
		}
		for range rounds {
			b := slices.Clone(valid)
			for range 1 + rng.IntN(3) {
				at := used[rng.IntN(len(used))]
				switch rng.IntN(4) {
				case 0:
					b[at] ^= 1 << rng.IntN(8)
				case 1:
					b[at] = byte(rng.Uint32())
				case 2:
					le.PutUint32(b[min(at&^3, len(b)-4):], []uint32{0, 1, math.MaxUint32, 1 << 31, rng.Uint32N(1 << 14)}[rng.IntN(5)])
				case 3:
					from := used[rng.IntN(len(used))]
					copy(b[at:min(at+12, len(b))], valid[from:])
				}
			}
			checkHostile(t, b)
		}
		for cut := 0; cut < len(valid); cut += 1 + rng.IntN(blockSize) {
			checkHostile(t, valid[:cut])
		}
		for cut := blockSize; cut < len(valid); cut += blockSize {
			b := slices.Clone(valid[:cut])
			le.PutUint32(b[superOffset+36:], uint32(cut/blockSize))
			checkHostile(t, b)
		}
	}
}

// FuzzRead needs -fuzzminimizetime=10x: the seeds are large, and by default one of them may take a minute.
func FuzzRead(f *testing.F) {
	for _, b := range smallImages(f) {
		f.Add(b)
		f.Add(b[:len(b)-blockSize])
	}
	f.Fuzz(checkHostile)
}

// maxAmplification is the memory bound in the documentation of Read.
const maxAmplification = 48

// TestReadMemory measures the cost of the most expensive kinds of image.
func TestReadMemory(t *testing.T) {
	short := dir()
	for d := range 200 {
		sub := dir()
		for n := range 200 {
			sub.Entries = append(sub.Entries, Entry{fmt.Sprintf("%03d", n), file(0, 0)})
		}
		short.Entries = append(short.Entries, Entry{fmt.Sprintf("d%03d", d), sub})
	}
	attrs := dir()
	for d := range 30 {
		i := file(0, 0)
		for n := range 20_000 {
			i.Xattrs = append(i.Xattrs, Xattr{Name: fmt.Sprintf("user.%c%03x", rune('0'+d), n)})
		}
		slices.SortFunc(i.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
		attrs.Entries = append(attrs.Entries, Entry{fmt.Sprintf("x%02d", d), i})
	}
	refs := dir()
	for d := range 2000 {
		i := file(0, 0)
		for n := range maxShared {
			i.Xattrs = append(i.Xattrs, Xattr{Name: fmt.Sprintf("user.%03d", n)})
		}
		refs.Entries = append(refs.Entries, Entry{fmt.Sprintf("r%04d", d), i})
	}
	links := dir()
	for n, link := 0, file(0, 0); n < 100_000; n++ {
		links.Entries = append(links.Entries, Entry{fmt.Sprintf("l%05d", n), link})
	}
	for _, tt := range []struct {
		name string
		root *Inode
	}{{"inodes", short}, {"distinct attributes", attrs}, {"shared attributes", refs}, {"hard links", links}} {
		b := mustMarshal(t, tt.root, ostree)
		checkAllocation(t, tt.name, b, nil)
	}
	claim := make([]byte, 1<<20)
	copy(claim, mustMarshal(t, dir(), ostree)[:2*blockSize])
	le.PutUint32(claim[superOffset+36:], uint32(len(claim)/blockSize))
	le.PutUint64(claim[superOffset+16:], uint64(len(claim)/compactSize))
	checkAllocation(t, "claimed inodes", claim, ErrCorrupt)
}

func checkAllocation(t *testing.T, name string, b []byte, want error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Read(b, Limits{})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", name, err, want)
	}
	got := float64(after.TotalAlloc-before.TotalAlloc) / float64(len(b))
	t.Logf("%s: %.1f times the image", name, got)
	if got > maxAmplification {
		t.Errorf("%s: allocated %.1f times the image of %d bytes, documented are %d", name, got, len(b), maxAmplification)
	}
}

func TestReadReturnsOwnEntries(t *testing.T) {
	b := mustMarshal(t, parseFile(t, "testdata/golden/types.dump"), ostree)
	first, err := Read(b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range first.Entries {
		first.Entries[i].Inode.Mode = unix.S_IFIFO
	}
	first.Entries = append(first.Entries[:1], Entry{"new", dir()})
	second, err := Read(b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if d := diffTrees(second, parseFile(t, "testdata/golden/types.dump")); d != "" {
		t.Errorf("changing one result changed another: %s", d)
	}
}
