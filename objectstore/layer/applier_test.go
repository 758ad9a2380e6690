package layer

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestLikeApplier imports random tars, and compares the checkout with the result of containerd's applier. Tars that the
// applier rejects or treats differently on purpose are in the table of TestTars; here both must agree.
func TestLikeApplier(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s, root := newStore(t, Options{Workers: 1 + int(seed%4)})
			b := makeTar(t, randomLayer(rand.New(rand.NewPCG(seed, 1)), 120)...)
			l := importTar(t, s, b)
			want := t.TempDir()
			testenv.Must(t, apply(t.Context(), want, b))
			skip := timeless(t, s)
			if diff := diffTrees(listTree(t, checkOut(t, s, root, l.ID)), withoutHidden(listTree(t, want)), skip); diff != nil {
				t.Errorf("differs from containerd's applier:\n\t%s", strings.Join(diff, "\n\t"))
			}
		})
	}
}

// TestLikeApplierWithParents does the same for a layer over another, from which directories that the tar only implies
// take their attributes.
func TestLikeApplierWithParents(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			s, root := newStore(t, Options{})
			lower := makeTar(t, randomDirs(rnd)...)
			// Directories with an entry come first: the applier lets a directory that was implied before keep the
			// extended attributes it got from below, and its ACL changes the mode of the entry.
			g := newLayerGen(rnd)
			g.add("d1", dir("d1", mode(0o700), withXattr("user.own", "1")))
			g.add("d3/d2", dir("d3/d2", mode(0o1777), owner(3, 4)))
			g.noDirs = true
			upper := makeTar(t, g.run(60)...)
			below, l := importTar(t, s, lower), importTar(t, s, upper)

			lowerDir, upperDir := t.TempDir(), t.TempDir()
			testenv.Must(t, apply(t.Context(), lowerDir, lower))
			testenv.Must(t, apply(t.Context(), upperDir, upper, lowerDir))
			skip := timeless(t, s)
			got := checkOut(t, s, root, below.ID, l.ID)
			if diff := diffTrees(listTree(t, got), withoutHidden(listTree(t, upperDir)), skip); diff != nil {
				t.Errorf("differs from containerd's applier:\n\t%s", strings.Join(diff, "\n\t"))
			}
		})
	}
}

// withoutHidden removes the whiteouts below opaque directories, which the store drops on purpose: see TestTars.
func withoutHidden(nodes map[string]*node) map[string]*node {
	for name, n := range nodes {
		if n.mode&unix.S_IFMT != unix.S_IFCHR || n.rdev != 0 {
			continue
		}
		for d := path.Dir(name); ; d = path.Dir(d) {
			if nodes[d].xattrs[xattrOpaque] != "" {
				delete(nodes, name)
				break
			}
			if d == "." {
				break
			}
		}
	}
	return nodes
}

// randomDirs are directories, with attributes, for the names that randomLayer uses.
func randomDirs(rnd *rand.Rand) []tarEntry {
	var entries []tarEntry
	for a := range 4 {
		for b := range 4 {
			name := fmt.Sprintf("d%d/d%d", a, b)
			if b == 0 {
				name = fmt.Sprintf("d%d", a)
			}
			entries = append(entries, dir(name, mode(int64(rnd.IntN(0o2000))), owner(rnd.IntN(9), rnd.IntN(9)),
				withXattr("user.below", name), withXattr(aclAccess, userACL(uint32(rnd.IntN(9)), 7, 7, 7, 7))))
		}
	}
	return entries
}

// layerGen generates a tar, and tracks the type of each name.
type layerGen struct {
	*rand.Rand
	entries []tarEntry
	noDirs  bool // no more entries for directories
	kinds   map[string]byte
	caps    map[string]bool // files with capabilities, which the applier removes when it makes a hard link
}

func newLayerGen(rnd *rand.Rand) *layerGen {
	return &layerGen{Rand: rnd, kinds: map[string]byte{"": tar.TypeDir}, caps: map[string]bool{}}
}

func randomLayer(rnd *rand.Rand, n int) []tarEntry { return newLayerGen(rnd).run(n) }

func (g *layerGen) run(n int) []tarEntry {
	for len(g.entries) < n {
		g.step(len(g.entries))
	}
	return g.entries
}

// pick returns a name of the given type, or "".
func (g *layerGen) pick(kind byte) string {
	var names []string
	for name, k := range g.kinds {
		if k == kind && name != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	// Map order does not depend on the seed.
	best := names[0]
	salt := g.Uint64()
	score := func(s string) uint64 {
		h := salt
		for _, c := range []byte(s) {
			h = (h ^ uint64(c)) * 1099511628211
		}
		return h
	}
	for _, n := range names {
		if score(n) > score(best) || score(n) == score(best) && n > best {
			best = n
		}
	}
	return best
}

// parent returns a directory for a new name: an existing or an implied one.
func (g *layerGen) parent() string {
	var p string
	for range g.IntN(4) {
		next := path.Join(p, fmt.Sprintf("d%d", g.IntN(4)))
		if k, ok := g.kinds[next]; ok && k != tar.TypeDir {
			break
		}
		p = next
	}
	for d := p; d != "." && d != ""; d = path.Dir(d) {
		g.kinds[d] = tar.TypeDir
	}
	return p
}

func (g *layerGen) attributes() []func(*tar.Header) {
	f := []func(*tar.Header){
		mode(int64(g.IntN(0o10000))), owner(g.IntN(5), g.IntN(70000)), at(time.Unix(g.Int64N(1<<32), g.Int64N(1e9))),
	}
	if g.IntN(5) == 0 {
		f = append(f, withXattr(fmt.Sprintf("user.x%d", g.IntN(3)), strings.Repeat("v", g.IntN(20))))
	}
	if g.IntN(6) == 0 {
		f = append(f, withXattr(aclAccess, userACL(uint32(g.IntN(9)), uint32(g.IntN(8)), uint32(g.IntN(8)), uint32(g.IntN(8)), uint32(g.IntN(8)))))
	}
	return f
}

func (g *layerGen) add(name string, e tarEntry) {
	for old := range g.kinds {
		if e.Typeflag != tar.TypeDir && strings.HasPrefix(old, name+"/") {
			delete(g.kinds, old)
		}
	}
	delete(g.caps, name)
	g.kinds[name] = e.Typeflag
	g.entries = append(g.entries, e)
}

func (g *layerGen) step(i int) {
	name := path.Join(g.parent(), fmt.Sprintf("f%d", g.IntN(12)))
	via := name
	if l := g.pick(tar.TypeSymlink); l != "" && g.IntN(4) == 0 { // the same name through a link to the root
		via = path.Join(l, name)
	}
	a := g.attributes()
	kind, taken := g.kinds[name]
	if kind == tar.TypeSymlink { // at the end the applier sets times of directories by their old names
		return
	}
	switch g.IntN(12) {
	case 0, 1, 2:
		content := fmt.Sprintf("%d %s", i, strings.Repeat("x", g.IntN(3000)))
		if g.IntN(6) == 0 {
			content = ""
		}
		e := file(via, content, a...)
		g.add(name, e)
		if content != "" && g.IntN(4) == 0 {
			withXattr(xattrCaps, netRaw)(e.Header)
			g.caps[name] = true
		}
	case 3:
		d := path.Dir(name)
		if d != "." && !g.noDirs {
			e := dir(path.Dir(via), a...)
			e.Mode &^= 0o2000 // see TestTars: the applier's implied directories inherit the group
			g.add(d, e)
		}
	case 4:
		if !taken {
			g.add(name, symlinkWith(via, []string{"/", "../../../..", "/.//"}[g.IntN(3)], a[1:3]...))
		}
	case 5, 6:
		target := g.pick(tar.TypeReg)
		if target != "" && target != name && !g.caps[target] {
			g.add(name, hardlink(via, target, a...))
			g.kinds[name] = tar.TypeLink
		}
	case 7:
		e := fifo(via, a[:3]...)
		g.add(name, e)
	case 8:
		e := device(tar.TypeChar, via, 1+g.Int64N(500), g.Int64N(1000))
		g.add(name, e)
	case 9:
		if !taken {
			g.add(name, whiteout(path.Dir(via), path.Base(via)))
			g.kinds[name] = tar.TypeChar
		}
	case 10:
		g.entries = append(g.entries, whiteout(path.Join(path.Dir(via)), ".wh..opq"))
	case 11:
		if l := g.pick(tar.TypeLink); l != "" && l != name {
			g.add(name, hardlink(via, "/"+l, a...))
		}
	}
}

// TestRandomLayers keeps the generator honest: its tars must have all types of entries.
func TestRandomLayers(t *testing.T) {
	kinds := make(map[byte]int)
	for seed := range uint64(40) {
		for _, e := range randomLayer(rand.New(rand.NewPCG(seed, 1)), 120) {
			kinds[e.Typeflag]++
		}
	}
	for _, k := range []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar} {
		if kinds[k] < 20 {
			t.Errorf("type %q: got %d entries, want more", k, kinds[k])
		}
	}
}
