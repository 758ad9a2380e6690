package composefs

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// diffTrees returns the first difference between two trees, including hard links, or "".
func diffTrees(got, want *Inode) string {
	type pair struct {
		got, want *Inode
		path      string
	}
	seen := map[*Inode]*Inode{}
	reverse := map[*Inode]*Inode{}
	queue := []pair{{got, want, "/"}}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		other, known := seen[p.got]
		back, knownBack := reverse[p.want]
		if known != knownBack || known && (other != p.want || back != p.got) {
			return p.path + ": hard links differ"
		}
		if known {
			continue
		}
		seen[p.got] = p.want
		reverse[p.want] = p.got
		if d := diffInodes(p.got, p.want); d != "" {
			return p.path + ": " + d
		}
		for i, e := range p.got.Entries {
			w := p.want.Entries[i]
			if e.Name != w.Name {
				return fmt.Sprintf("%s: got entry %q, want %q", p.path, e.Name, w.Name)
			}
			queue = append(queue, pair{e.Inode, w.Inode, p.path + e.Name + "/"})
		}
	}
	return ""
}

func diffInodes(got, want *Inode) string {
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"mode", got.Mode, want.Mode},
		{"uid", got.UID, want.UID},
		{"gid", got.GID, want.GID},
		{"rdev", got.Rdev, want.Rdev},
		{"mtime", got.Mtime, want.Mtime},
		{"size", got.Size, want.Size},
		{"target", got.Target, want.Target},
		{"payload", got.Payload, want.Payload},
		{"content", string(got.Content), string(want.Content)},
		{"inline", got.Content != nil, want.Content != nil},
		{"verity", string(got.Verity), string(want.Verity)},
		{"has verity", got.Verity != nil, want.Verity != nil},
		{"xattrs", len(got.Xattrs), len(want.Xattrs)},
		{"entries", len(got.Entries), len(want.Entries)},
	} {
		if f.got != f.want {
			return fmt.Sprintf("got %s %v, want %v", f.name, f.got, f.want)
		}
	}
	for i, x := range got.Xattrs {
		if w := want.Xattrs[i]; x.Name != w.Name || !bytes.Equal(x.Value, w.Value) {
			return fmt.Sprintf("got xattr %s=%q, want %s=%q", x.Name, x.Value, w.Name, w.Value)
		}
	}
	return ""
}

// dir makes a directory of the entries, sorted.
func dir(entries ...Entry) *Inode {
	d := &Inode{Mode: unix.S_IFDIR | 0o755, Entries: entries}
	sortEntries(d)
	return d
}

func sortEntries(d *Inode) {
	slices.SortFunc(d.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
}

func file(size int64, n int) *Inode {
	i := &Inode{Mode: unix.S_IFREG | 0o644, Size: size}
	if size > 0 {
		i.Payload = fmt.Sprintf("%02x/%062x.file", n&0xff, n)
	}
	return i
}

func symlink(target string) *Inode {
	return &Inode{Mode: unix.S_IFLNK | 0o777, Target: target}
}

func whiteout() *Inode { return &Inode{Mode: unix.S_IFCHR | 0o600} }

func xattrs(pairs ...string) (list []Xattr) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Xattr{pairs[i], []byte(pairs[i+1])})
	}
	slices.SortFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// gen makes random trees near the limits of the format.
type gen struct {
	*rand.Rand
	left  int // inodes still to make
	files []*Inode
	next  int
}

func randomTree(seed uint64, size int) *Inode {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 1)), left: size}
	root := g.dir(0)
	for _, name := range []string{"00", "7f", "ff", "a0", "F0"} {
		if g.IntN(3) == 0 && !hasEntry(root, name) {
			root.Entries = append(root.Entries, Entry{name, g.leaf()})
		}
	}
	dropOpaque(root)
	sortEntries(root)
	return root
}

// dropOpaque removes attributes that a directory with whiteouts cannot have.
func dropOpaque(d *Inode) {
	if slices.ContainsFunc(d.Entries, func(e Entry) bool { return e.Inode.IsWhiteout() }) {
		d.Xattrs = slices.DeleteFunc(d.Xattrs, func(x Xattr) bool {
			return x.Name == "trusted.overlay.opaque" || x.Name == "user.overlay.opaque"
		})
	}
}

func hasEntry(d *Inode, name string) bool {
	return slices.ContainsFunc(d.Entries, func(e Entry) bool { return e.Name == name })
}

func (g *gen) one(choices ...int) int { return choices[g.IntN(len(choices))] }

// bytes returns n bytes; most of a long run are letters, which keeps dumps short.
func (g *gen) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		if b[i] = byte(g.Uint32()); i > 40 && i%64 != 0 {
			b[i] = 'a' + b[i]%26
		}
	}
	return b
}

// text returns n bytes that are valid in a name.
func (g *gen) text(n int) string {
	b := g.bytes(n)
	for i, c := range b {
		if c == 0 || c == '/' {
			b[i] = "-=\\\n\t %~"[g.IntN(8)]
		}
	}
	return string(b)
}

func (g *gen) dir(depth int) *Inode {
	d := g.attributes(unix.S_IFDIR)
	if g.IntN(6) == 0 {
		d.Xattrs = append(d.Xattrs, Xattr{"trusted.overlay.opaque", []byte("y")})
	}
	count := g.one(0, 1, 2, 5, 20, 60)
	if depth == 0 {
		count = 30 + g.IntN(30)
	}
	if g.IntN(8) == 0 {
		count = g.one(140, 168, 292, 400)
	}
	length := g.one(0, 0, 1, 8, 255)
	g.left -= count
	used := map[string]bool{}
	for range count {
		name := g.text(max(length, 1+g.IntN(12)))
		if used[name] || !validName(name) {
			continue
		}
		used[name] = true
		var i *Inode
		switch {
		case g.left > 0 && g.IntN(8) == 0 && depth < 40:
			i = g.dir(depth + 1)
		case len(g.files) > 0 && g.IntN(9) == 0:
			i = g.files[g.IntN(len(g.files))]
		default:
			i = g.leaf()
		}
		d.Entries = append(d.Entries, Entry{name, i})
	}
	dropOpaque(d)
	slices.SortFunc(d.Xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	d.Xattrs = slices.CompactFunc(d.Xattrs, func(a, b Xattr) bool { return a.Name == b.Name })
	sortEntries(d)
	return d
}

// attributes makes an inode without the fields that depend on its type.
func (g *gen) attributes(kind uint32) *Inode {
	i := &Inode{Mode: kind | g.Uint32N(0o10000)}
	if g.IntN(4) == 0 {
		i.UID = uint32(g.one(1, 1000, 65534, 65535, 65536, math.MaxUint32))
		i.GID = uint32(g.one(1, 1000, 65535, 65536, math.MaxUint32))
	}
	switch g.IntN(5) {
	case 0:
		i.Mtime = unix.Timespec{Sec: g.Int64() >> g.IntN(40), Nsec: g.Int64N(1e9)}
	case 1:
		i.Mtime = unix.Timespec{Sec: -1 - g.Int64N(1e6), Nsec: g.Int64N(1e9)}
	}
	names := []string{
		"user.a", "user.b", "trusted.x", "security.capability", "security.selinux", "security.ima",
		"trusted.overlay.metacopy", "trusted.overlay.redirect", "trusted.overlay.overlay.opaque", "user.overlay.opaque",
		"system.posix_acl_access", "system.posix_acl_default", "lustre.lov", "user.", "system.posix_acl_accessory",
		"trusted.overlay.", "user." + strings.Repeat("n", 250), overlayPrefix + strings.Repeat("m", 239),
	}
	count := g.one(0, 0, 0, 1, 2, 4)
	if g.IntN(50) == 0 {
		count = g.one(100, 200)
		for k := range count {
			names = append(names, fmt.Sprintf("user.many%d", k))
		}
	}
	large := 0
	for range count {
		x := Xattr{Name: names[g.IntN(len(names))]}
		x.Value = []byte("common")[:g.one(0, 1, 6)]
		switch g.IntN(12) {
		case 0:
			x.Value = g.bytes(g.IntN(300))
		case 1:
			if large++; large <= 3 { // an inode has room for 256 KiB
				x.Value = g.bytes(g.one(1000, 2047, 4096, 9000))
				if g.IntN(20) == 0 {
					x.Value = g.bytes(65535)
				}
			}
		}
		i.Xattrs = append(i.Xattrs, x)
	}
	slices.SortFunc(i.Xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	i.Xattrs = slices.CompactFunc(i.Xattrs, func(a, b Xattr) bool { return a.Name == b.Name })
	return i
}

func (g *gen) leaf() *Inode {
	i := g.attributes(uint32(g.one(unix.S_IFREG, unix.S_IFREG, unix.S_IFREG, unix.S_IFLNK, unix.S_IFLNK,
		unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK)))
	switch i.kind() {
	case unix.S_IFREG:
		g.data(i)
	case unix.S_IFLNK:
		i.Target = g.text(g.one(1, 7, 30, 200, 2000, 4000, 4063, 4064, 4065, 4095, 1+g.IntN(4095)))
	case unix.S_IFCHR:
		i.Rdev = unix.Mkdev(uint32(g.one(0, 1, 4095)), uint32(g.one(0, 3, 0xfffff)))
	case unix.S_IFBLK:
		i.Rdev = unix.Mkdev(uint32(g.one(0, 8, 259)), uint32(g.one(0, 16, 300)))
	}
	if !i.IsWhiteout() || g.IntN(3) == 0 {
		g.files = append(g.files, i)
	}
	return i
}

func (g *gen) data(i *Inode) {
	switch g.IntN(10) {
	case 0:
		return
	case 1:
		i.Content = g.bytes(g.one(1, 15, 2047, 2048, 2049, 4095, 4096, 4097, 5000, 6143, 6144, 6145, 20000))
		i.Size = int64(len(i.Content))
		return
	case 2:
		i.Size = 1 + g.Int64()>>g.IntN(62)
	default:
		i.Size = int64(g.one(1, 4095, 4096, 4097, 1<<20, 1<<32-1, 1<<32))
	}
	g.next++
	i.Payload = fmt.Sprintf("%02x/%062x.file", g.next%7, g.next/2)
	if g.IntN(3) == 0 {
		i.Verity = g.bytes(digestSize)
	}
}

// trees are the shapes that random trees may miss.
func namedTrees(tb testing.TB) map[string]*Inode {
	tb.Helper()
	shared := file(7, 1)
	trees := map[string]*Inode{
		"empty": dir(),
		"one":   dir(Entry{"x", file(0, 0)}),
		"hard links": dir(Entry{"z", shared}, Entry{"a", dir(Entry{"deep", shared}, Entry{"self", shared})},
			Entry{"w", dir(Entry{"wh", whiteout()})}),
		"whiteouts":   dir(Entry{"a", whiteout()}, Entry{"d", dir(Entry{"b", whiteout()}, Entry{"c", file(3, 2)})}),
		"only stubs":  allStubs(),
		"own stubs":   dir(Entry{"00", dir()}, Entry{"0", file(0, 0)}, Entry{"fe", whiteout()}, Entry{"ff", symlink("ff")}),
		"not a stub":  dir(Entry{"000", file(1, 1)}, Entry{"FF", file(1, 2)}, Entry{"0g", file(1, 3)}),
		"around dots": dir(Entry{"!", file(0, 0)}, Entry{"-", file(0, 0)}, Entry{"...", file(0, 0)}, Entry{"..a", file(0, 0)}, Entry{".-", file(0, 0)}),
		"labelled":    labelled(),
		"many shared": manyShared(),
		"deep":        deep(300),
		"acl":         dir(Entry{"a", &Inode{Mode: unix.S_IFREG, Xattrs: xattrs("system.posix_acl_access", "acl")}}),
		"epoch":       {Mode: unix.S_IFDIR, Mtime: unix.Timespec{Sec: math.MinInt64, Nsec: 999999999}},
		"far future":  {Mode: unix.S_IFDIR, Mtime: unix.Timespec{Sec: math.MaxInt64, Nsec: 999999999}},
	}
	for _, used := range []int{2047, 2048, 2049, 4095, 4096, 4097, 2 * 4096, 2*4096 + 2048, 2*4096 + 2049} {
		trees[fmt.Sprintf("directory of %d bytes", used)] = dir(Entry{"d", dirOfSize(used)}, Entry{"e", dirOfSize(used)})
	}
	links := dir()
	for n := 1; n <= maxTarget; n += 61 {
		links.Entries = append(links.Entries, Entry{fmt.Sprintf("%05d", n), symlink(strings.Repeat("t", n))})
	}
	trees["symlinks"] = links
	sizes := dir()
	for bit := range 63 {
		for d := range int64(3) {
			size := max(int64(1)<<bit+d-1, 0)
			sizes.Entries = append(sizes.Entries, Entry{fmt.Sprintf("s%d.%d", bit, d), file(size, bit)})
		}
	}
	sizes.Entries = append(sizes.Entries, Entry{"max", file(math.MaxInt64, 1)})
	sortEntries(sizes)
	trees["sizes"] = sizes
	return trees
}

func allStubs() *Inode {
	d := dir()
	for i := range stubs {
		d.Entries = append(d.Entries, Entry{stubName(i), file(int64(i), i)})
	}
	return d
}

func labelled() *Inode {
	d := dir(Entry{"bin", dir()}, Entry{"f", file(9, 9)})
	d.Xattrs = xattrs("security.selinux", "system_u:object_r:root_t:s0\x00", "user.x", "")
	d.Entries[0].Inode.Xattrs = xattrs("security.selinux", "system_u:object_r:bin_t:s0\x00")
	return d
}

// manyShared has inodes with more shared attributes than can be references.
func manyShared() *Inode {
	d := dir()
	for k := range 3 {
		f := file(1, k)
		for n := range 200 - k {
			f.Xattrs = append(f.Xattrs, Xattr{fmt.Sprintf("user.%03d", n), []byte{byte(n)}})
		}
		d.Entries = append(d.Entries, Entry{fmt.Sprint(k), f})
	}
	return d
}

func deep(depth int) *Inode {
	root := dir()
	for range depth {
		root = dir(Entry{"d", root})
	}
	return root
}

// dirOfSize makes a directory whose entries need that many bytes, as if no block ended early.
func dirOfSize(used int) *Inode {
	d := dir()
	left := used - 2*direntSize - len(".") - len("..")
	for n := 0; left > 0; n++ {
		length := min(left-direntSize, 52)
		if rest := left - direntSize - length; rest > 0 && rest < direntSize+4 {
			length -= 16
		}
		d.Entries = append(d.Entries, Entry{fmt.Sprintf("%04d", n) + strings.Repeat("n", length-4), file(0, 0)})
		left -= direntSize + length
	}
	return d
}
