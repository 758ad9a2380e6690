package etcmerge

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// sweep is a merge that uses everything that Apply can do.
func sweep(t *testing.T) faulttest.Case[scene] {
	t.Helper()
	testenv.NeedsRoot(t)
	pristine := tree{
		"changed": file("1"), "gone": dir(), "gone/f": file("1"), "gone/g": file("1"), "old": dir().mode(0o711),
		"old/sub": dir().owner(5, 6).xattr("user.a", "1"), "old/sub/f": file("1"), "attr": dir(), "same": file("1"),
	}
	current := tree{
		"changed": file("2").owner(7, 7).mode(0o4755), "old": dir().mode(0o711), "old/sub": dir().owner(5, 6).xattr("user.a", "1"),
		"old/sub/f": file("2").xattr("user.b", "2"), "attr": dir().mode(0o700).owner(1, 1).xattr("user.c", "3"), "same": file("1"),
		"new": dir().mode(0o1777).xattr("user.d", "4"), "new/l": symlink("f").owner(1, 2), "new/p": {Mode: unix.S_IFIFO | 0o640, GID: 3},
	}
	fresh := tree{
		"changed": file("3"), "gone": dir(), "gone/f": file("2"), "gone/g": file("1"), "gone/h": file("1"), "attr": dir().xattr("user.e", "5"),
		"same": file("4"), "default": file("1"),
	}
	want := tree{
		"changed": current["changed"], "old": current["old"], "old/sub": current["old/sub"], "old/sub/f": current["old/sub/f"],
		"attr": current["attr"], "same": fresh["same"], "new": current["new"], "new/l": current["new/l"], "new/p": current["new/p"],
		"default": fresh["default"],
	}
	return faulttest.Case[scene]{
		Min: 40,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			prepare(t, path, pristine, current, fresh)
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) scene {
			t.Helper()
			return openScene(t, path, hook)
		},
		Run: func(t *testing.T, s scene) error {
			t.Helper()
			_, err := s.merge(t)
			return err
		},
		Check: func(t *testing.T, s scene, done bool) {
			t.Helper()
			got := read(t, s.to.Path())
			for name, n := range got {
				switch {
				case name == tmpName && !done: // until the next time
				case n == want[name], n == fresh[name] && !done:
				case name == "attr" && !done: // a default whose attributes are changed one after the other
				default:
					t.Errorf("%s is %+v (done: %v)", name, n, done)
				}
			}
			for name := range want {
				if _, ok := got[name]; !ok && (done || fresh[name] != node{}) {
					t.Errorf("%s is missing (done: %v)", name, done)
				}
			}
		},
	}
}

func TestSweep(t *testing.T) { faulttest.Sweep(t, sweep(t)) }

func TestKillSweep(t *testing.T) { faulttest.KillSweep(t, sweep(t)) }

// Everything is complete before it gets its name.
func TestOrder(t *testing.T) { faulttest.Order(t, "apply", sweep(t)) }
