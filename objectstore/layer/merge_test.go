package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

func merge(t testing.TB, s *Store, lower, upper objectstore.Checksum, name string) Layer {
	t.Helper()
	h, err := s.Merge(t.Context(), lower, upper, name)
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	return h.Layer
}

// wantMerged checks that two layers merged into one show over a base what they show one over the other.
func wantMerged(t *testing.T, base, lower, upper []tarEntry) {
	t.Helper()
	s, root := newStore(t, Options{})
	b, l, u := importTar(t, s, makeTar(t, base...)), importTar(t, s, makeTar(t, lower...)), importTar(t, s, makeTar(t, upper...))
	baseDir := checkOut(t, s, root, b.ID)
	want := mergedTree(t, baseDir, checkOut(t, s, root, b.ID, l.ID), checkOut(t, s, root, b.ID, l.ID, u.ID))
	m := merge(t, s, l.ID, u.ID, "m")
	got := mergedTree(t, baseDir, checkOut(t, s, root, b.ID, m.ID))
	// A hard link to a file of the lower layer is a link to it once both are in one layer.
	for _, nodes := range []map[string]*node{got, want} {
		for _, n := range nodes {
			n.group = ""
		}
	}
	if diff := diffTrees(got, want, never); diff != nil {
		t.Errorf("differs from the stack:\n\t%s", strings.Join(diff, "\n\t"))
	}
	flat, err := s.Flatten(t.Context(), []objectstore.Checksum{b.ID, l.ID, u.ID})
	testenv.Must(t, err)
	if diff := diffTrees(listed(t, s, flat), want, never); diff != nil {
		t.Errorf("flattened, differs from the stack:\n\t%s", strings.Join(diff, "\n\t"))
	}
	if again := merge(t, s, l.ID, u.ID, "again"); again != m {
		t.Errorf("again: got %+v, want %+v", again, m)
	}
}

// listed checks a tree out and lists it, without groups of links.
func listed(t *testing.T, s *Store, root *composefs.Inode) map[string]*node {
	t.Helper()
	path := t.TempDir()
	d, err := atfs.Open(path)
	testenv.Must(t, err)
	c := &checkout{s: s, root: d, groups: linkGroups(root)}
	testenv.Must(t, errors.Join(c.run(t.Context(), root), d.Close()))
	nodes := listTree(t, path)
	for _, n := range nodes {
		n.group = ""
	}
	return nodes
}

func TestMerge(t *testing.T) {
	base := []tarEntry{
		dir("d", mode(0o711)), file("d/base", "base"), dir("d/sub", mode(0o700)), file("d/sub/f", "base"), file("f", "base"),
		dir("e", mode(0o1777)), file("e/base", "base"), symlink("l", "d"),
	}
	opq := ".wh..opq"
	for _, tt := range []struct {
		name         string
		lower, upper []tarEntry
	}{
		{"nothing", nil, nil},
		{"disjoint", []tarEntry{file("a", "1")}, []tarEntry{file("b", "2"), file("d/new", "3")}},
		{"file over file", []tarEntry{file("f", "1")}, []tarEntry{file("f", "2", mode(0o600))}},
		{"directory over directory", []tarEntry{dir("d", mode(0o700), withXattr("user.a", "1")), file("d/a", "1")}, []tarEntry{dir("d", mode(0o755)), file("d/b", "2")}},
		{"implied over entry", []tarEntry{dir("d", mode(0o700), withXattr("user.a", "1"))}, []tarEntry{file("d/b", "2")}},
		{"entry over implied", []tarEntry{file("d/a", "1")}, []tarEntry{dir("d", mode(0o1777))}},
		{"implied over implied", []tarEntry{file("d/a", "1")}, []tarEntry{file("d/b", "2")}},
		{"implied and new", nil, []tarEntry{file("n/m/b", "2")}},
		{"whiteout of base", []tarEntry{file("a", "1")}, []tarEntry{whiteout("", "f"), whiteout("d", "base")}},
		{"whiteout of lower", []tarEntry{file("a", "1"), file("f", "2")}, []tarEntry{whiteout("", "a"), whiteout("", "f")}},
		{"whiteout of whiteout", []tarEntry{whiteout("", "f")}, []tarEntry{whiteout("", "f")}},
		{"whiteout of directory", []tarEntry{file("d/a", "1")}, []tarEntry{whiteout("", "d")}},
		{"file over whiteout", []tarEntry{whiteout("", "f")}, []tarEntry{file("f", "2")}},
		{"directory over whiteout", []tarEntry{whiteout("", "d")}, []tarEntry{dir("d"), file("d/b", "2")}},
		{"implied over whiteout", []tarEntry{whiteout("", "d")}, []tarEntry{file("d/sub/b", "2")}},
		{"directory over file", []tarEntry{file("d", "1")}, []tarEntry{dir("d"), file("d/b", "2")}},
		{"implied over file", []tarEntry{file("d", "1")}, []tarEntry{file("d/sub/b", "2")}},
		{"directory over link", []tarEntry{symlink("d", "e")}, []tarEntry{dir("d"), file("d/b", "2")}},
		{"file over directory", []tarEntry{file("d/a", "1")}, []tarEntry{file("d", "2")}},
		{"opaque over directory", []tarEntry{file("d/a", "1"), file("d/sub/b", "1")}, []tarEntry{dir("d"), whiteout("d", opq), file("d/c", "2")}},
		{"opaque without entry", []tarEntry{dir("d", mode(0o700)), file("d/a", "1")}, []tarEntry{whiteout("d", opq)}},
		{"opaque without entry over implied", []tarEntry{file("d/a", "1")}, []tarEntry{whiteout("d", opq)}},
		{"directory over opaque", []tarEntry{dir("d"), whiteout("d", opq), file("d/a", "1")}, []tarEntry{dir("d", mode(0o700)), file("d/b", "2")}},
		{"implied over opaque", []tarEntry{dir("d", mode(0o750)), whiteout("d", opq), file("d/a", "1")}, []tarEntry{file("d/sub/b", "2")}},
		{"whiteout in opaque", []tarEntry{dir("d"), whiteout("d", opq), file("d/a", "1"), dir("d/sub"), file("d/sub/b", "1")}, []tarEntry{whiteout("d", "a"), whiteout("d", "base"), whiteout("d/sub", "f")}},
		{"opaque over opaque", []tarEntry{dir("d"), whiteout("d", opq), file("d/a", "1")}, []tarEntry{dir("d"), whiteout("d", opq), file("d/b", "1")}},
		{"opaque root", []tarEntry{file("a", "1"), file("d/a", "1")}, []tarEntry{whiteout("", opq), file("d/b", "2")}},
		{"over an opaque root", []tarEntry{whiteout("", opq), file("d/a", "1")}, []tarEntry{file("d/sub/b", "2"), whiteout("", "f")}},
		{"hard links in lower", []tarEntry{file("a", "1"), hardlink("b", "a")}, []tarEntry{file("a", "2")}},
		{"hard link to lower", []tarEntry{file("a", "1"), dir("d", mode(0o700))}, []tarEntry{hardlink("d/b", "a")}},
		{"hard link to base", []tarEntry{file("a", "1")}, []tarEntry{hardlink("b", "f"), hardlink("c", "d/sub/f")}},
		{"hard link of lower to base", []tarEntry{hardlink("a", "f")}, []tarEntry{hardlink("b", "a")}},
		{"hard link to what an opaque directory hides", []tarEntry{file("d/a", "1")}, []tarEntry{hardlink("z", "d/a"), dir("d"), whiteout("d", opq)}},
		{"hard link to what is replaced later", []tarEntry{file("d/a", "1")}, []tarEntry{hardlink("z", "d/a"), file("d", "2")}},
		{"hard link to a link", []tarEntry{symlink("s", "/x")}, []tarEntry{hardlink("z", "s")}},
		{"device 0:0", []tarEntry{file("f", "1")}, []tarEntry{device(tar.TypeChar, "f", 0, 0)}},
		{"empty files", []tarEntry{file("a", "")}, []tarEntry{file("b", ""), file("d/base", "")}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMerged(t, base, tt.lower, tt.upper) })
	}
}

// TestMergeRandom merges random layers.
func TestMergeRandom(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			names := map[string]bool{} // regular files of the layers so far
			base := randomChange(rnd, names, 25)
			lower := randomChange(rnd, names, 25)
			upper := randomChange(rnd, names, 25)
			wantMerged(t, base, lower, upper)
		})
	}
}

// randomChange is a layer that changes the layers below. known are the regular files of the stack below it, then also
// its own.
func randomChange(rnd *rand.Rand, known map[string]bool, n int) []tarEntry {
	var entries []tarEntry
	own := map[string]byte{}
	remove := func(name string) {
		maps.DeleteFunc(known, func(k string, _ bool) bool { return k == name || strings.HasPrefix(k, name+"/") })
	}
	for i := 0; len(entries) < n; i++ {
		name := fmt.Sprintf("n%d", rnd.IntN(4))
		for range rnd.IntN(3) {
			name = path.Join(name, fmt.Sprintf("n%d", rnd.IntN(4)))
		}
		bad := false
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			k, ok := own[d]
			bad = bad || ok && k != tar.TypeDir
		}
		if _, ok := own[name]; ok || bad {
			if i > 1000 {
				break
			}
			continue
		}
		parents := func() {
			for d := path.Dir(name); d != "."; d = path.Dir(d) {
				own[d] = tar.TypeDir
				delete(known, d)
			}
		}
		switch rnd.IntN(7) {
		case 0, 1:
			parents()
			remove(name)
			own[name], known[name] = tar.TypeReg, true
			entries = append(entries, file(name, fmt.Sprint(rnd.Uint32()), owner(rnd.IntN(3), 0)))
		case 2:
			parents()
			own[name] = tar.TypeDir
			delete(known, name)
			entries = append(entries, dir(name, mode(int64(rnd.IntN(0o2000))), withXattr("user.a", fmt.Sprint(rnd.IntN(3)))))
		case 3:
			parents()
			remove(name)
			own[name] = tar.TypeChar
			entries = append(entries, whiteout(path.Dir(name), path.Base(name)))
		case 4:
			parents()
			own[name] = tar.TypeDir
			maps.DeleteFunc(known, func(k string, _ bool) bool { return k == name || strings.HasPrefix(k, name+"/") && own[k] == 0 })
			entries = append(entries, whiteout(name, ".wh..opq"))
		case 5:
			parents()
			remove(name)
			own[name] = tar.TypeSymlink
			entries = append(entries, symlink(name, fmt.Sprint("/target/", i)))
		case 6:
			for _, target := range sortedKeys(known) {
				if target != name && !strings.HasPrefix(target, name+"/") && !strings.HasPrefix(name, target+"/") && rnd.IntN(3) == 0 {
					parents()
					remove(name)
					own[name], known[name] = tar.TypeReg, true
					entries = append(entries, hardlink(name, target))
					break
				}
			}
		}
	}
	return entries
}

// TestMergeUnknown merges missing layers.
func TestMergeUnknown(t *testing.T) {
	s, _ := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("a", "x")))
	for _, pair := range [][2]objectstore.Checksum{{l.ID, {1}}, {{1}, l.ID}} {
		if _, err := s.Merge(t.Context(), pair[0], pair[1], "m"); err == nil {
			t.Errorf("%s: got a layer, want an error", pair)
		}
	}
	if refs, err := s.Repo().Refs(""); err != nil || len(refs) != 1 {
		t.Errorf("refs: got %v (%v), want that of the tar", refs, err)
	}
}

// TestFlatten covers cases that have no stack to compare with.
func TestFlatten(t *testing.T) {
	s, _ := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, file("d/a", "x"), hardlink("d/b", "d/a"), whiteout("", "w"), dir("o"), whiteout("o", ".wh..opq")))
	root, err := s.Flatten(t.Context(), []objectstore.Checksum{l.ID})
	testenv.Must(t, err)
	wantLines := []string{`d/a: file 644 "x"`, `d/b: file 644 "x"`, "d: dir 755", "o: dir 755"}
	if got := treeLines(listed(t, s, root)); !slices.Equal(got, wantLines) {
		t.Errorf("got %q, want %q", got, wantLines)
	}
	if d := child(root, "d"); child(d, "a") != child(d, "b") {
		t.Error("a file with two names is two inodes")
	}
	dangling := importTar(t, s, makeTar(t, hardlink("b", "nowhere")))
	if _, err := s.Flatten(t.Context(), []objectstore.Checksum{l.ID, dangling.ID}); !errors.Is(err, errNoLinkTarget) {
		t.Errorf("dangling link: got error %v, want %v", err, errNoLinkTarget)
	}
	if _, err := s.Flatten(t.Context(), []objectstore.Checksum{l.ID, {1}}); !errors.Is(err, ErrNotExist) {
		t.Errorf("missing layer: got error %v, want %v", err, ErrNotExist)
	}
	if root, err := s.Flatten(t.Context(), nil); err != nil || len(root.Entries) != 0 {
		t.Errorf("no layers: got %v, %v, want an empty directory", root, err)
	}
}
