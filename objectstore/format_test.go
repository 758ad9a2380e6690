package objectstore_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func mustSum(tb testing.TB, s string) objectstore.Checksum {
	tb.Helper()
	c, err := objectstore.ParseChecksum(s)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func hashOf(b []byte) objectstore.Checksum { return sha256.Sum256(b) }

// Checksums and bytes of objects made by ostree 2022.7, with "ostree commit" of the files in the names.
const (
	sumHello     = "d6f58149fd47ec2be3fafef4fe767915f195e7ae67b9a0c090b842b156cd07f3"
	sumHi        = "73baaba0102e9154b8522687d33eedb8ed1bc78eadb82428b2616144ec502934"
	sumMeta755   = "446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488"
	sumHelloTree = "3b2faecc84a0d05ed901a7cf8b80a8d4e4f831be6f07cdf8a5ca45a96793d42f"
	sumCommit    = "fc1c805ef9891432df8b6c20acfb9d0954a37f77c60c49fbebafc34161d49b0e"
	sumTree      = "b8a53e49b9d66b32ad93f7c4e7dfdb49cd4f60d6df28b149da9a431c04bb4556"
)

func TestFileHeader(t *testing.T) {
	for _, tc := range []struct {
		name    string
		meta    objectstore.FileMeta
		content string
		header  string
		sum     string
	}{
		{
			"regular",
			objectstore.FileMeta{Mode: 0o100755},
			"hello\n",
			"00000012 00000000 00000000 00000000 000081ed 00000000 00 11", sumHello,
		},
		{
			"symbolic link",
			objectstore.FileMeta{Mode: 0o120777, Target: "hello"},
			"",
			"00000017 00000000 00000000 00000000 0000a1ff 00000000 68656c6c6f00 16", sumHi,
		},
		{
			"xattrs",
			objectstore.FileMeta{UID: 1000, GID: 1001, Mode: 0o100644, Xattrs: []objectstore.Xattr{
				{Name: "user.a", Value: []byte("11")}, {Name: "user.b", Value: []byte("2")},
			}},
			"x",
			"00000027 00000000 000003e8 000003e9 000081a4 00000000 00" +
				"757365722e6100 3131 07  757365722e6200 32 07  0a13 11",
			"cd3343dc2b472982f7d850fa07c3104bb6c475c2d03f114d96fc284cb61175b2",
		},
		{
			"empty",
			objectstore.FileMeta{Mode: 0o100644},
			"",
			"00000012 00000000 00000000 00000000 000081a4 00000000 00 11",
			"cc700d46f407c6c5ab2d5dde474366a928b7398277e61162e7f8ec06f469f07e",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header, err := tc.meta.Header()
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tc.header); !bytes.Equal(header, want) {
				t.Errorf("header\n got %x\nwant %x", header, want)
			}
			h, err := objectstore.NewContentHash(&tc.meta)
			if err != nil {
				t.Fatal(err)
			}
			h.Write([]byte(tc.content))
			if got := hex.EncodeToString(h.Sum(nil)); got != tc.sum {
				t.Errorf("checksum %s, want %s", got, tc.sum)
			}
		})
	}
}

func TestDirMetaVectors(t *testing.T) {
	for _, tc := range []struct {
		mode     uint32
		hex, sum string
	}{
		{0o40755, "00000000 00000000 000041ed", sumMeta755},
		{0o41777, "00000000 00000000 000043ff", "bbe8d5c22ca8a645068a1aa51a59e117f139319d9a791e4d4c0d27dae64cc8c7"},
	} {
		m := objectstore.DirMeta{Mode: tc.mode}
		b, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, unhex(t, tc.hex)) || hashOf(b).String() != tc.sum {
			t.Errorf("mode %o: got %x (%s), want %s (%s)", tc.mode, b, hashOf(b), tc.hex, tc.sum)
		}
	}
}

func TestDirTreeVectors(t *testing.T) {
	hello, hi := mustSum(t, sumHello), mustSum(t, sumHi)
	for _, tc := range []struct {
		name     string
		tree     objectstore.DirTree
		hex, sum string
	}{
		{"empty", objectstore.DirTree{}, "00", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
		{
			"two files, unsorted",
			objectstore.DirTree{Files: []objectstore.TreeFile{{Name: "hi", Checksum: hi}, {Name: "hello", Checksum: hello}}},
			"68656c6c6f00" + sumHello + "06" + "686900" + sumHi + "03" + "274b 4d", sumHelloTree,
		},
		{
			"a directory",
			objectstore.DirTree{Dirs: []objectstore.TreeDir{{Name: "bin", Tree: mustSum(t, sumHelloTree), Meta: mustSum(t, sumMeta755)}}},
			"62696e00" + sumHelloTree + sumMeta755 + "2404 46 00",
			"e7c9fb74476c5e2db58340f86ba6b26a34c22ba5eb380b02865a25876cb0f1fb",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := tc.tree.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, unhex(t, tc.hex)) || hashOf(b).String() != tc.sum {
				t.Errorf("got %x (%s), want %s (%s)", b, hashOf(b), tc.hex, tc.sum)
			}
			back, err := objectstore.ParseDirTree(b)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := back.Marshal(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("after parsing: %x, %v", again, err)
			}
		})
	}
}

const commitHex = `6f73747265652e7265662d62696e64696e6700 0000000000 746573742f7800 07 00 6173 13 24
	7375626a00 00 0000000000 000000006553f100` + sumTree + sumMeta755 + `58 2b 2a 25 25 25`

func TestCommitVector(t *testing.T) {
	want := unhex(t, commitHex)
	c := &objectstore.Commit{
		Metadata: []objectstore.MetaEntry{{Key: "ostree.ref-binding", Value: gvariant.Strings([]string{"test/x"})}},
		Subject:  "subj", Timestamp: 1700000000, Tree: mustSum(t, sumTree), Meta: mustSum(t, sumMeta755),
	}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) || hashOf(b).String() != sumCommit {
		t.Errorf("got\n%x (%s), want\n%x", b, hashOf(b), want)
	}
	back, err := objectstore.ParseCommit(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(c, back); diff != "" {
		t.Errorf("parsed commit (-want +got):\n%s", diff)
	}
}

func TestCommitMetadata(t *testing.T) {
	parent := mustSum(t, sumCommit)
	c := &objectstore.Commit{
		Metadata: []objectstore.MetaEntry{
			{Key: "s", Value: gvariant.String("grüße")},
			{Key: "n", Value: gvariant.Uint64(1 << 40)},
			{Key: "b", Value: gvariant.Bool(true)},
			{Key: "ay", Value: gvariant.Bytes([]byte{1, 2})},
			{Key: "as", Value: gvariant.Strings([]string{"a", "b"})},
		},
		Parent: &parent, Subject: "ß", Body: "several\nlines", Tree: mustSum(t, sumTree), Meta: mustSum(t, sumMeta755),
	}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := objectstore.ParseCommit(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(c, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s, ok := got.MetaString("s"); !ok || s != "grüße" {
		t.Errorf("s: got %q, %v", s, ok)
	}
	if n, ok := got.MetaUint64("n"); !ok || n != 1<<40 {
		t.Errorf("n: got %d, %v", n, ok)
	}
	if v, ok := metadata(got, "b").Bool(); !ok || !v {
		t.Errorf("b: got %v, %v", v, ok)
	}
	if v, ok := metadata(got, "ay").Bytes(); !ok || !bytes.Equal(v, []byte{1, 2}) {
		t.Errorf("ay: got %v, %v", v, ok)
	}
	if v, ok := metadata(got, "as").Strings(); !ok || !reflect.DeepEqual(v, []string{"a", "b"}) {
		t.Errorf("as: got %v, %v", v, ok)
	}
	if _, ok := got.MetaString("n"); ok {
		t.Error("n was taken for a string")
	}
	if _, ok := got.MetaString("absent"); ok {
		t.Error("an absent key has a value")
	}
}

// TestTreeSizes covers the sizes at which the offsets of a dirtree grow.
func TestTreeSizes(t *testing.T) {
	for _, want := range []int{254, 255, 256, 257, 258, 65533, 65534, 65535, 65536, 65537, 65540} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			tree := treeOfSize(t, want)
			b, err := tree.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			got, err := objectstore.ParseDirTree(b)
			if err != nil {
				t.Fatalf("%d bytes: %v", len(b), err)
			}
			if diff := testenv.Diff(tree, got); diff != "" {
				t.Errorf("%d bytes (-want +got):\n%s", len(b), diff)
			}
		})
	}
}

// treeOfSize makes a tree whose list of files has a body of exactly n bytes before its offsets.
func treeOfSize(tb testing.TB, n int) *objectstore.DirTree {
	tb.Helper()
	tree := &objectstore.DirTree{}
	const overhead, maxName = 1 + 32 + 1, 200
	for i := 0; n > 0; i++ {
		size := overhead + maxName
		switch {
		case n < size:
			size = n
		case n < size+overhead+10:
			size = n / 2
		}
		name := fmt.Sprintf("%04d", i)
		name += strings.Repeat("x", max(0, size-overhead-len(name)))
		tree.Files = append(tree.Files, objectstore.TreeFile{Name: name, Checksum: hashOf([]byte(name))})
		n -= size
	}
	return tree
}

func TestInvalid(t *testing.T) {
	file := func(change func(*objectstore.FileMeta)) error {
		m := &objectstore.FileMeta{Mode: unix.S_IFREG | 0o644}
		change(m)
		_, err := m.Header()
		return err
	}
	xattrs := func(x ...objectstore.Xattr) error {
		return file(func(m *objectstore.FileMeta) { m.Xattrs = x })
	}
	link := func(mode uint32, target string) error {
		return file(func(m *objectstore.FileMeta) { m.Mode, m.Target = mode, target })
	}
	tree := func(files []string, dirs ...string) error {
		var dt objectstore.DirTree
		for _, n := range files {
			dt.Files = append(dt.Files, objectstore.TreeFile{Name: n})
		}
		for _, n := range dirs {
			dt.Dirs = append(dt.Dirs, objectstore.TreeDir{Name: n})
		}
		_, err := dt.Marshal()
		return err
	}
	commit := func(change func(*objectstore.Commit)) error {
		c := &objectstore.Commit{Tree: objectstore.Checksum{1}, Meta: objectstore.Checksum{2}}
		change(c)
		_, err := c.Marshal()
		return err
	}
	one := []byte{1}
	for name, err := range map[string]error{
		"device":            file(func(m *objectstore.FileMeta) { m.Mode = unix.S_IFCHR | 0o644 }),
		"no type":           file(func(m *objectstore.FileMeta) { m.Mode = 0o644 }),
		"directory":         file(func(m *objectstore.FileMeta) { m.Mode = unix.S_IFDIR | 0o755 }),
		"high bits":         file(func(m *objectstore.FileMeta) { m.Mode |= 1 << 20 }),
		"owner -1":          file(func(m *objectstore.FileMeta) { m.UID = 1<<32 - 1 }),
		"group -1":          file(func(m *objectstore.FileMeta) { m.GID = 1<<32 - 1 }),
		"file with target":  file(func(m *objectstore.FileMeta) { m.Target = "x" }),
		"link mode":         link(unix.S_IFLNK|0o755, "x"),
		"link to nothing":   link(unix.S_IFLNK|0o777, ""),
		"link not UTF-8":    link(unix.S_IFLNK|0o777, "\xff"),
		"link with NUL":     link(unix.S_IFLNK|0o777, "a\x00b"),
		"link too long":     link(unix.S_IFLNK|0o777, strings.Repeat("x", 4096)),
		"xattr empty name":  xattrs(objectstore.Xattr{Value: one}),
		"xattr NUL":         xattrs(objectstore.Xattr{Name: "user.\x00", Value: one}),
		"xattr empty value": xattrs(objectstore.Xattr{Name: "user.a"}),
		"xattr long name":   xattrs(objectstore.Xattr{Name: strings.Repeat("x", 256), Value: one}),
		"xattr large":       xattrs(objectstore.Xattr{Name: "user.a", Value: make([]byte, 65537)}),
		"xattrs unsorted":   xattrs(objectstore.Xattr{Name: "user.b", Value: one}, objectstore.Xattr{Name: "user.a", Value: one}),
		"xattrs twice":      xattrs(objectstore.Xattr{Name: "user.a", Value: one}, objectstore.Xattr{Name: "user.a", Value: one}),
		"name empty":        tree([]string{""}),
		"name dot":          tree([]string{"."}),
		"name dot dot":      tree(nil, ".."),
		"name slash":        tree([]string{"a/b"}),
		"name NUL":          tree([]string{"a\x00"}),
		"name not UTF-8":    tree(nil, "\xc3"),
		"name too long":     tree([]string{strings.Repeat("x", 256)}),
		"name twice":        tree([]string{"a", "a"}),
		"dir twice":         tree(nil, "a", "a"),
		"file and dir":      tree([]string{"b", "c"}, "a", "b"),
		"commit, no tree":   commit(func(c *objectstore.Commit) { c.Tree = objectstore.Checksum{} }),
		"commit, subject":   commit(func(c *objectstore.Commit) { c.Subject = "\xff" }),
		"commit, empty key": commit(func(c *objectstore.Commit) { c.Metadata = []objectstore.MetaEntry{{Value: gvariant.String("")}} }),
		"commit, bad value": commit(func(c *objectstore.Commit) { c.Metadata = []objectstore.MetaEntry{{Key: "k"}} }),
		"commit, key twice": commit(func(c *objectstore.Commit) {
			c.Metadata = []objectstore.MetaEntry{{Key: "k", Value: gvariant.Bool(true)}, {Key: "k", Value: gvariant.Bool(true)}}
		}),
		"checksum short":     parseSum("ab"),
		"checksum upper":     parseSum(strings.ToUpper(sumHello)),
		"checksum not hex":   parseSum(strings.Repeat("g", 64)),
		"ref, checksum":      objectstore.ValidateRef(sumHello),
		"ref, empty":         objectstore.ValidateRef(""),
		"ref, dot":           objectstore.ValidateRef("a/../b"),
		"ref, hidden":        objectstore.ValidateRef(".a"),
		"ref, slash at end":  objectstore.ValidateRef("a/"),
		"ref, slash first":   objectstore.ValidateRef("/a"),
		"ref, two slashes":   objectstore.ValidateRef("a//b"),
		"ref, colon":         objectstore.ValidateRef("remote:a"),
		"ref, not UTF-8":     objectstore.ValidateRef("a\xff"),
		"ref, NUL":           objectstore.ValidateRef("a\x00"),
		"ref, long part":     objectstore.ValidateRef(strings.Repeat("a", 256)),
		"ref, long":          objectstore.ValidateRef(strings.Repeat("a/", 2000) + "a"),
		"dirmeta, not a dir": func() error { _, err := (&objectstore.DirMeta{Mode: 0o100755}).Marshal(); return err }(),
	} {
		if !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	for _, ref := range []string{"a", "oci/diff/" + sumHello, "fedora/x86_64/core-os.1", "ostree/0/1/0", "übung/日本", "_", "a-", "2"} {
		if err := objectstore.ValidateRef(ref); err != nil {
			t.Errorf("ref %q: %v", ref, err)
		}
	}
}

func parseSum(s string) error {
	_, err := objectstore.ParseChecksum(s)
	return err
}

// TestParseDamaged truncates valid objects and flips each of their bits: accepted data must be what the encoder makes
// of the parsed value, everything else must be ErrCorrupt.
func TestParseDamaged(t *testing.T) {
	tree, err := (&objectstore.DirTree{
		Files: []objectstore.TreeFile{{Name: "a", Checksum: hashOf(nil)}, {Name: "b", Checksum: hashOf(nil)}},
		Dirs:  []objectstore.TreeDir{{Name: "d", Tree: hashOf(nil), Meta: hashOf(nil)}},
	}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	meta, err := (&objectstore.DirMeta{Mode: 0o40755, Xattrs: []objectstore.Xattr{{Name: "user.a", Value: []byte("1")}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data  []byte
		check func(testing.TB, []byte) bool
	}{
		"dirtree": {tree, checkDirTree}, "dirmeta": {meta, checkDirMeta}, "commit": {unhex(t, commitHex), checkCommit},
	} {
		t.Run(name, func(t *testing.T) {
			if !tc.check(t, tc.data) {
				t.Error("the undamaged object was refused")
			}
			for n := range tc.data {
				if tc.check(t, tc.data[:n]) && n > 0 && name != "dirmeta" {
					t.Errorf("%d of %d bytes were taken", n, len(tc.data))
				}
			}
			for i := range len(tc.data) * 8 {
				b := bytes.Clone(tc.data)
				b[i/8] ^= 1 << (i % 8)
				tc.check(t, b)
			}
		})
	}
}

// The checks report whether data was parsed. They fail the test for an error of another class, or if the encoder does
// not reproduce data from the parsed value.
func checkDirTree(tb testing.TB, data []byte) bool {
	tb.Helper()
	v, err := objectstore.ParseDirTree(data)
	if err != nil {
		return checkCorrupt(tb, v == nil, err)
	}
	again, err := v.Marshal()
	return checkSame(tb, data, again, err)
}

func checkDirMeta(tb testing.TB, data []byte) bool {
	tb.Helper()
	v, err := objectstore.ParseDirMeta(data)
	if err != nil {
		return checkCorrupt(tb, v == nil, err)
	}
	again, err := v.Marshal()
	if errors.Is(err, objectstore.ErrInvalid) { // lists written by older ostree are read but not written
		return true
	}
	return checkSame(tb, data, again, err)
}

func checkCommit(tb testing.TB, data []byte) bool {
	tb.Helper()
	v, err := objectstore.ParseCommit(data)
	if err != nil {
		return checkCorrupt(tb, v == nil, err)
	}
	again, err := v.Marshal()
	return checkSame(tb, data, again, err)
}

func checkCorrupt(tb testing.TB, isNil bool, err error) bool {
	tb.Helper()
	if !isNil || !errors.Is(err, objectstore.ErrCorrupt) || errors.Is(err, objectstore.ErrInvalid) {
		tb.Errorf("got %v (value nil: %v), want nothing and ErrCorrupt", err, isNil)
	}
	return false
}

func checkSame(tb testing.TB, data, again []byte, err error) bool {
	tb.Helper()
	if err != nil || !bytes.Equal(data, again) {
		tb.Errorf("%x is parsed, but encoded as %x, %v", data, again, err)
	}
	return true
}

func FuzzParseDirTree(f *testing.F) {
	f.Add([]byte{0})
	for _, n := range []int{50, 256, 65536} {
		b, err := treeOfSize(f, n).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(unhex(f, "62696e00"+sumHelloTree+sumMeta755+"2404 46 00"))
	f.Fuzz(func(t *testing.T, data []byte) { checkDirTree(t, data) })
}

func FuzzParseDirMeta(f *testing.F) {
	f.Add(unhex(f, "00000000 00000000 000041ed"))
	f.Add(unhex(f, "000003e8 000003e9 000041ed 757365722e6100 3131 07 757365722e6200 32 07 0a 13"))
	f.Fuzz(func(t *testing.T, data []byte) { checkDirMeta(t, data) })
}

func FuzzParseCommit(f *testing.F) {
	f.Add(unhex(f, commitHex))
	f.Fuzz(func(t *testing.T, data []byte) { checkCommit(t, data) })
}

// metadata returns a metadata entry of a commit, the zero Variant if it is absent.
func metadata(c *objectstore.Commit, key string) gvariant.Variant {
	v, _ := c.Lookup(key)
	return v
}
