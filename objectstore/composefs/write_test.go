package composefs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite the dumps in testdata/golden")

// ostree holds the options of ostree and mkcomposefs(1).
var ostree = Options{MaxVersion: 1}

func mustMarshal(tb testing.TB, root *Inode, opts Options) []byte {
	tb.Helper()
	b, err := Marshal(root, opts)
	if err != nil {
		tb.Fatalf("Marshal: %v", err)
	}
	return b
}

func parseFile(tb testing.TB, name string) *Inode {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	root, err := parseDump(f)
	if err != nil {
		tb.Fatalf("parseDump(%s): %v", name, err)
	}
	return root
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// The digests are those of images made by the reference implementation's rules.
func TestMarshalVectors(t *testing.T) {
	for _, v := range []struct {
		name    string
		root    *Inode
		opts    Options
		size    int
		sha256  string
		fsverit string
	}{
		{
			"empty v0", dir(),
			Options{},
			16384,
			"c3dc5b0fc4afb0693a95e017fe5815e1f88f204d485df617541b5ea659aefb8b",
			"8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682",
		},
		{
			"empty v1", dir(),
			Options{1, 1},
			16384,
			"18e13c704e2aae7f84be9fda89fdc4c5001c184d279b90a93434e872e5e7c190",
			"14a26c957c84f6eb774b91205476adc13196c7c33b9dd97d08d43725ecb90b63",
		},
		{
			"dump", parseFile(t, "testdata/small.dump"),
			Options{},
			16384,
			"c354e09f9a0a1fad0c1768d23f0fbb7a1e8babc513c1459ab7263aa96a17a642",
			"eb5170ac0b31e5d4d38cf04aca39836d18c2a03f036fc852a2a854b748a6e3d2",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			b := mustMarshal(t, v.root, v.opts)
			if len(b) != v.size {
				t.Errorf("got %d bytes, want %d", len(b), v.size)
			}
			if got := digest(b); got != v.sha256 {
				t.Errorf("got sha256 %s, want %s", got, v.sha256)
			}
			sum, err := VerityDigest(bytes.NewReader(b))
			if got := hex.EncodeToString(sum[:]); err != nil || got != v.fsverit {
				t.Errorf("got fs-verity digest %s (%v), want %s", got, err, v.fsverit)
			}
		})
	}
}

type namedTree struct {
	name string
	root *Inode
}

// allTrees returns the trees for this package's property tests in a fixed order.
func allTrees(tb testing.TB) (list []namedTree) {
	tb.Helper()
	for name, root := range namedTrees(tb) {
		list = append(list, namedTree{name, root})
	}
	slices.SortFunc(list, func(a, b namedTree) int { return strings.Compare(a.name, b.name) })
	for seed := range uint64(36) {
		list = append(list, namedTree{fmt.Sprintf("random %d", seed), randomTree(seed, 100+int(seed)*10)})
	}
	return list
}

var allOptions = []Options{{0, 0}, {0, 1}, {1, 1}}

func TestMarshalAgainstOracle(t *testing.T) {
	python := testenv.NeedsTool(t, "python3") // for testdata/cfsw.py, the second writer
	trees := allTrees(t)
	dir := t.TempDir()
	paths := make([]string, len(trees))
	for i, tree := range trees {
		paths[i] = filepath.Join(dir, fmt.Sprint(i))
		writeDumpFile(t, paths[i], tree.root)
	}
	for k, opts := range allOptions {
		args := []string{"testdata/cfsw.py", fmt.Sprint(opts.MinVersion), fmt.Sprint(opts.MaxVersion)}
		var with []int
		for i, tree := range trees {
			// Python is slow: a random tree is built in only one version.
			if !strings.HasPrefix(tree.name, "random") || i%len(allOptions) == k {
				with = append(with, i)
				args = append(args, paths[i])
			}
		}
		cmd := exec.CommandContext(t.Context(), python, args...)
		cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cfsw.py: %v\n%s", err, out)
		}
		for _, i := range with {
			want, err := os.ReadFile(paths[i] + ".img")
			if err != nil {
				t.Fatal(err)
			}
			compareImages(t, fmt.Sprintf("%s, versions %v", trees[i].name, opts), mustMarshal(t, trees[i].root, opts), want)
		}
	}
}

func compareImages(t *testing.T, name string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d of %d is %#x, want %#x of %d", name, i, len(got), got[i], want[i], len(want))
			return
		}
	}
	t.Errorf("%s: got %d bytes, want %d", name, len(got), len(want))
}

// TestMarshalGolden compares with digests that testdata/cfsw.py made from the dumps, so that the format is checked even
// without Python:
//
//	cd testdata/golden
//	for v in 0:0 0:1 1:1; do
//		python3 ../cfsw.py ${v%:*} ${v#*:} *.dump
//		for f in *.dump; do echo $(sha256sum <$f.img | cut -c-64) ${v%:*} ${v#*:} $f; done
//	done >digests.txt; rm *.img
func TestMarshalGolden(t *testing.T) {
	const folder = "testdata/golden"
	if *update {
		writeGoldenDumps(t, folder)
	}
	list, err := os.ReadFile(filepath.Join(folder, "digests.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		var (
			want, name string
			opts       Options
		)
		if _, err := fmt.Sscan(line, &want, &opts.MinVersion, &opts.MaxVersion, &name); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		root := parseFile(t, filepath.Join(folder, name))
		if got := digest(mustMarshal(t, root, opts)); got != want {
			t.Errorf("%s, versions %v: got sha256 %s, want %s", name, opts, got, want)
		}
	}
}

func writeGoldenDumps(t *testing.T, folder string) {
	t.Helper()
	trees := namedTrees(t)
	for _, name := range []string{
		"around dots", "directory of 10240 bytes", "directory of 2049 bytes", "hard links",
		"labelled", "many shared", "own stubs", "sizes", "whiteouts",
	} {
		writeDumpFile(t, filepath.Join(folder, strings.ReplaceAll(name, " ", "-")+".dump"), trees[name])
	}
	for _, seed := range []uint64{11, 26, 30, 35} { // small ones
		writeDumpFile(t, filepath.Join(folder, fmt.Sprintf("random-%d.dump", seed)), randomTree(seed, 40))
	}
}

func writeDumpFile(t *testing.T, name string, root *Inode) {
	t.Helper()
	var dump bytes.Buffer
	if err := WriteDump(&dump, root); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, dump.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestMarshalLeavesTreeAlone(t *testing.T) {
	for seed := range uint64(5) {
		root, same := randomTree(seed, 300), randomTree(seed, 300)
		first := mustMarshal(t, root, ostree)
		if d := diffTrees(root, same); d != "" {
			t.Errorf("seed %d: tree changed: %s", seed, d)
		}
		if !bytes.Equal(first, mustMarshal(t, root, ostree)) {
			t.Errorf("seed %d: second image differs", seed)
		}
	}
}

func TestMarshalVersion(t *testing.T) {
	opaque := dir(Entry{"d", dir(Entry{"w", whiteout()})})
	for _, tt := range []struct {
		name string
		root *Inode
		opts Options
		want uint32
	}{
		{"no whiteouts", dir(Entry{"x", file(1, 1)}), ostree, 0},
		{"whiteouts", opaque, ostree, 1},
		{"whiteouts, not permitted", opaque, Options{}, 0},
		{"forced", dir(), Options{1, 1}, 1},
	} {
		if got := le.Uint32(mustMarshal(t, tt.root, tt.opts)[12:]); got != tt.want {
			t.Errorf("%s: got version %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestMarshalInvalid(t *testing.T) {
	loop := dir()
	loop.Entries = []Entry{{"loop", loop}}
	twice := dir()
	in := func(name string, i *Inode) *Inode { return &Inode{Mode: unix.S_IFDIR, Entries: []Entry{{name, i}}} }
	with := func(i *Inode, change func(*Inode)) *Inode {
		change(i)
		return in("x", i)
	}
	long := strings.Repeat("n", maxName+1)
	for _, tt := range []struct {
		name string
		root *Inode
		opts Options
	}{
		{"no root", nil, ostree},
		{"root is a file", file(0, 0), ostree},
		{"nil inode", in("x", nil), ostree},
		{"name empty", in("", file(0, 0)), ostree},
		{"name .", in(".", file(0, 0)), ostree},
		{"name ..", in("..", file(0, 0)), ostree},
		{"name with slash", in("a/b", file(0, 0)), ostree},
		{"name with NUL", in("a\x00", file(0, 0)), ostree},
		{"name too long", in(long, file(0, 0)), ostree},
		{"names unsorted", &Inode{Mode: unix.S_IFDIR, Entries: []Entry{{"b", dir()}, {"a", dir()}}}, ostree},
		{"name twice", &Inode{Mode: unix.S_IFDIR, Entries: []Entry{{"a", dir()}, {"a", dir()}}}, ostree},
		{"directory twice", dir(Entry{"a", twice}, Entry{"b", twice}), ostree},
		{"loop", loop, ostree},
		{"too deep", deep(MaxDepth + 1), ostree},
		{"no type", in("x", &Inode{Mode: 0o644}), ostree},
		{"wide mode", with(file(0, 0), func(i *Inode) { i.Mode |= 1 << 16 }), ostree},
		{"nanoseconds", with(file(0, 0), func(i *Inode) { i.Mtime.Nsec = 1e9 }), ostree},
		{"negative nanoseconds", with(file(0, 0), func(i *Inode) { i.Mtime.Nsec = -1 }), ostree},
		{"device number", with(whiteout(), func(i *Inode) { i.Rdev = math.MaxUint32 + 1 }), ostree},
		{"device number on file", with(file(0, 0), func(i *Inode) { i.Rdev = 1 }), ostree},
		{"size on directory", with(dir(), func(i *Inode) { i.Size = 4096 }), ostree},
		{"entries on file", with(file(0, 0), func(i *Inode) { i.Entries = []Entry{{"a", dir()}} }), ostree},
		{"target on file", with(file(0, 0), func(i *Inode) { i.Target = "a" }), ostree},
		{"target empty", in("x", symlink("")), ostree},
		{"target too long", in("x", symlink(strings.Repeat("t", maxTarget+1))), ostree},
		{"target with NUL", in("x", symlink("a\x00")), ostree},
		{"negative size", with(file(0, 0), func(i *Inode) { i.Size = -1 }), ostree},
		{"size without data", with(file(0, 0), func(i *Inode) { i.Size = 1 }), ostree},
		{"payload without size", with(file(0, 0), func(i *Inode) { i.Payload = "a" }), ostree},
		{"payload and content", with(file(1, 1), func(i *Inode) { i.Content = []byte{1} }), ostree},
		{"content too short", with(file(0, 0), func(i *Inode) { i.Size, i.Content = 2, []byte{1} }), ostree},
		{"payload absolute", with(file(1, 1), func(i *Inode) { i.Payload = "/a" }), ostree},
		{"payload climbs", with(file(1, 1), func(i *Inode) { i.Payload = "a/../../b" }), ostree},
		{"payload with //", with(file(1, 1), func(i *Inode) { i.Payload = "a//b" }), ostree},
		{"short digest", with(file(1, 1), func(i *Inode) { i.Verity = []byte{1} }), ostree},
		{"xattr without name", with(dir(), func(i *Inode) { i.Xattrs = xattrs("", "") }), ostree},
		{"xattr name too long", with(dir(), func(i *Inode) { i.Xattrs = xattrs(long, "") }), ostree},
		{"xattr name with NUL", with(dir(), func(i *Inode) { i.Xattrs = xattrs("a\x00", "") }), ostree},
		{"xattr twice", with(dir(), func(i *Inode) { i.Xattrs = xattrs("a", "", "a", "") }), ostree},
		{"xattr too large", with(dir(), func(i *Inode) { i.Xattrs = []Xattr{{"a", make([]byte, 65536)}} }), ostree},
		{"xattrs too large", with(dir(), func(i *Inode) {
			for c := 'a'; c < 'f'; c++ {
				i.Xattrs = append(i.Xattrs, Xattr{string(c), bytes.Repeat([]byte{byte(c)}, 65535)})
			}
		}), ostree},
		{"reserved xattr", with(dir(), func(i *Inode) { i.Xattrs = xattrs("trusted.overlay.whiteout", "") }), ostree},
		{"reserved user xattr", with(dir(), func(i *Inode) { i.Xattrs = xattrs("user.overlay.whiteouts", "") }), ostree},
		{"opaque with whiteouts", with(in("w", whiteout()), func(i *Inode) { i.Xattrs = xattrs("trusted.overlay.opaque", "y") }), ostree},
		{"versions", dir(), Options{1, 0}},
		{"future version", dir(), Options{0, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Marshal(tt.root, tt.opts); !errors.Is(err, ErrInvalid) {
				t.Errorf("got error %v, want ErrInvalid", err)
			}
		})
	}
}

func TestMarshalErrorNamesPath(t *testing.T) {
	root := dir(Entry{"a", dir(Entry{"b", dir(Entry{"c", symlink("")})})})
	_, err := Marshal(root, ostree)
	const want = `write "/a/b/c": composefs: invalid tree: symlink target of 0 bytes`
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

// TestMarshalMemory measures the memory for making an image, apart from the image itself. The bounds are those that
// Marshal documents.
func TestMarshalMemory(t *testing.T) {
	const perName, perAttr = 300, 600
	for _, attrs := range []int{0, 10} {
		root := dir()
		names := 0
		for d := range 200 {
			sub := dir()
			for n := range 200 {
				f := file(0, 0)
				for a := range attrs {
					f.Xattrs = append(f.Xattrs, Xattr{Name: fmt.Sprintf("user.%03d.%03d.%d", d, n, a)})
				}
				sub.Entries = append(sub.Entries, Entry{fmt.Sprintf("%03d", n), f})
				names++
			}
			root.Entries = append(root.Entries, Entry{fmt.Sprintf("d%03d", d), sub})
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b := mustMarshal(t, root, ostree)
		runtime.ReadMemStats(&after)
		got := (int(after.TotalAlloc-before.TotalAlloc) - len(b)) / names
		t.Logf("%d attributes: %d bytes for each name, beside an image of %d for each", attrs, got, len(b)/names)
		if got > perName+attrs*perAttr {
			t.Errorf("%d attributes: allocated %d bytes for each name, want at most %d", attrs, got, perName+attrs*perAttr)
		}
	}
}
