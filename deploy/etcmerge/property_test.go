package etcmerge

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestRandomTrees merges random trees, and compares the results with those of merge3.
func TestRandomTrees(t *testing.T) {
	testenv.NeedsRoot(t) // for owners
	merged := 0
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			pristine := make(tree)
			grow(rnd, pristine, "", 3)
			current, fresh := mutate(rnd, pristine), mutate(rnd, pristine)
			s := newScene(t, pristine, current, fresh)
			want, conflicts := merge3(pristine, current, fresh)
			p, err := s.merge(t)
			if err != nil && !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
			got := make(map[string]bool)
			for _, c := range p.Conflicts {
				got[c.Path] = true
			}
			if diff := testenv.Diff(conflicts, got); diff != "" {
				t.Fatalf("conflicts (-want +got):\n%s", diff)
			}
			if err != nil {
				want = fresh
			} else {
				merged++
			}
			if diff := testenv.Diff(want, read(t, s.to.Path())); diff != "" {
				t.Errorf("new etc (-want +got):\n%s", diff)
			}
			if err != nil {
				return
			}
			if err := p.Apply(t.Context(), s.current, s.to); err != nil {
				t.Fatalf("again: %v", err)
			}
			if diff := testenv.Diff(want, read(t, s.to.Path())); diff != "" {
				t.Errorf("new etc after the second time (-want +got):\n%s", diff)
			}
		})
	}
	if merged < 100 {
		t.Errorf("got %d merges without a conflict, want 100 or more", merged)
	}
}

// grow puts some random nodes into a directory.
func grow(rnd *rand.Rand, tr tree, in string, depth int) {
	for _, base := range []string{"a", "a-", "b"} {
		if rnd.IntN(4) == 0 {
			continue
		}
		name := path.Join(in, base)
		tr[name] = random(rnd, depth)
		if isDir(tr[name].Mode) {
			grow(rnd, tr, name, depth-1)
		}
	}
}

func random(rnd *rand.Rand, depth int) node {
	var n node
	switch k := rnd.IntN(5); {
	case k < 2 && depth > 0:
		n = dir()
	case k < 4:
		n = file([]string{"", "1", "2"}[rnd.IntN(3)])
	default:
		n = symlink([]string{"a", "/etc", "../../../.."}[rnd.IntN(3)])
	}
	return n
}

// mutate returns a copy with some nodes changed.
func mutate(rnd *rand.Rand, tr tree) tree {
	tr = maps.Clone(tr)
	for _, name := range slices.Sorted(maps.Keys(tr)) {
		n, ok := tr[name]
		if !ok {
			continue // removed with its directory
		}
		switch rnd.IntN(24) {
		case 0:
			remove(tr, name)
		case 1:
			remove(tr, name)
			tr[name] = random(rnd, 1)
			if isDir(tr[name].Mode) {
				grow(rnd, tr, name, 1)
			}
		case 2:
			tr[name] = n.owner(rnd.IntN(3), rnd.IntN(3))
		case 3, 4:
			switch {
			case isDir(n.Mode):
				grow(rnd, tr, path.Join(name, "new"), 0)
				tr[path.Join(name, "new")] = dir().mode(0o700)
			case n.Mode == file("").Mode:
				tr[name] = file("changed").mode(n.Mode & 0o777)
			}
		case 5:
			if n.Mode == file("").Mode || isDir(n.Mode) {
				tr[name] = n.mode(0o750).xattr("user.a", "1")
			}
		}
	}
	return tr
}

func remove(tr tree, name string) {
	maps.DeleteFunc(tr, func(p string, _ node) bool { return p == name || strings.HasPrefix(p, name+"/") })
}

// merge3 is the merge, on maps.
func merge3(pristine, current, fresh tree) (want tree, conflicts map[string]bool) {
	want = maps.Clone(fresh)
	conflicts = make(map[string]bool)
	for name := range pristine {
		if _, ok := current[name]; !ok && isDir(current[path.Dir(name)].Mode) || !ok && path.Dir(name) == "." {
			remove(want, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(current)) {
		n := current[name]
		if n == pristine[name] {
			continue
		}
		blocked := false
		for _, above := range parents(name) {
			if f, ok := fresh[above]; ok && !isDir(f.Mode) && !blocked {
				conflicts[above], blocked = true, true
			}
		}
		if f, ok := fresh[name]; ok && !blocked && isDir(f.Mode) != isDir(n.Mode) {
			conflicts[name] = true
		}
		for _, above := range parents(name) {
			if _, ok := want[above]; !ok {
				want[above] = current[above]
			}
		}
		want[name] = n
	}
	return want, conflicts
}

// parents returns the directories above a name, the topmost first.
func parents(name string) (above []string) {
	for i := range name {
		if name[i] == '/' {
			above = append(above, name[:i])
		}
	}
	return above
}
