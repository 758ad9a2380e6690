package snapshotter_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// TestOneTree checks that an image shows the same tree to a container, in each checkout mode, and to a deployment: what
// the image specification says of whiteouts and opaque directories. overlayfs says less: it merges the roots of all
// layers, and it lists the whiteouts in a directory that only one layer has.
func TestOneTree(t *testing.T) {
	d, f := snaptest.Dir, func(name string) tar.Header { return snaptest.File(name, "content") }
	const opaque = ".wh..wh..opq"
	for _, c := range []struct {
		name   string
		layers [][]tar.Header // lowest first
		want   string
	}{
		{"whiteout", [][]tar.Header{{f("a"), f("b")}, {f(".wh.a")}}, "b"},
		{"opaque directory", [][]tar.Header{{d("d"), f("d/a"), f("b")}, {d("d"), f("d/" + opaque), f("d/c")}}, "b d/ d/c"},
		{"opaque root", [][]tar.Header{{f("a"), d("d"), f("d/b")}, {f(opaque), f("c"), f("d/e")}}, "c d/ d/e"},
		{"opaque root alone", [][]tar.Header{{f("a")}, {f(opaque)}}, ""},
		{"opaque root in the middle", [][]tar.Header{{f("a")}, {f("b"), f(opaque)}, {f("c")}}, "b c"},
		{"opaque root of the lowest layer", [][]tar.Header{{f(opaque), f("a")}, {f("b")}}, "a b"},
		{"opaque root of the only layer", [][]tar.Header{{f(opaque), f("a")}}, "a"},
		{"two opaque roots", [][]tar.Header{{f("a")}, {f(opaque), f("b")}, {f(opaque), f("c")}}, "c"},
		{"opaque root of a layer twice", [][]tar.Header{{f(opaque), f("a")}, {f("b")}, {f(opaque), f("a")}}, "a"},
		{"whiteouts of the only layer", [][]tar.Header{{f(".wh.a"), f("b"), d("d"), f("d/.wh.c"), f("d/e")}}, "b d/ d/e"},
		{"whiteouts of the lowest layer", [][]tar.Header{{f(".wh.a"), d("d"), f("d/.wh.c"), f("d/e")}, {f("b")}}, "b d/ d/e"},
		{"opaque directory of the only layer", [][]tar.Header{{d("d"), f("d/" + opaque), f("d/e"), f("d/.wh.c")}}, "d/ d/e"},
		{"whiteout in a new directory", [][]tar.Header{{f("a")}, {d("d"), f("d/.wh.c"), f("d/e")}}, "a d/ d/e"},
		{"whiteout in a new directory of a directory", [][]tar.Header{{d("d"), f("d/a")}, {d("d/n"), f("d/n/.wh.c")}}, "d/ d/a d/n/"},
		{"whiteout in an implied directory", [][]tar.Header{{f("a")}, {f("d/.wh.c"), f("d/e")}}, "a d/ d/e"},
		{
			"whiteout in a directory that was removed",
			[][]tar.Header{{d("d"), f("d/c")}, {f(".wh.d")}, {d("d"), f("d/.wh.c"), f("d/e")}},
			"d/ d/e",
		},
		{
			"whiteout in a directory that was hidden",
			[][]tar.Header{{d("d/s"), f("d/s/c")}, {d("d"), f("d/" + opaque)}, {d("d/s"), f("d/s/.wh.c"), f("d/s/e")}},
			"d/ d/s/ d/s/e",
		},
		{"whiteout in a directory that was a file", [][]tar.Header{{f("d")}, {d("d"), f("d/.wh.c"), f("d/e")}}, "d/ d/e"},
		{
			"whiteout in a directory over two lower layers",
			[][]tar.Header{{d("d"), f("d/c")}, {f("a")}, {d("d"), f("d/.wh.c"), f("d/e")}},
			"a d/ d/e",
		},
		{
			"a layer whose whiteout counts in one place only",
			[][]tar.Header{{d("d"), f("d/c"), f("d/.wh.x")}, {f(".wh.d")}, {d("d"), f("d/c"), f("d/.wh.x")}},
			"d/ d/c",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachMode(t, nil, func(t *testing.T, e *snaptest.Env) {
				t.Helper()
				name := ""
				var chain []objectstore.Checksum
				for i, headers := range c.layers {
					key, parent := fmt.Sprintf("ns/%d/extract-1 x", i), name
					name = fmt.Sprintf("ns/%d/layer", i)
					apply(t, e, prepare(t, e, key, parent), snaptest.Tar(t, headers...))
					commit(t, e, name, key)
					id, err := objectstore.ParseChecksum(labelsOf(t, e, name)[snapshotter.LabelLayer])
					testenv.Must(t, err)
					chain = append(chain, id)
				}
				wantTree(t, "active", prepare(t, e, "active", name), c.want)
				wantTree(t, "view", value(e.View(t.Context(), "view", name))(t), c.want)
				flat, err := e.Store.Flatten(t.Context(), chain)
				testenv.Must(t, err)
				if got := strings.Join(flatNames(flat, ""), " "); got != c.want {
					t.Errorf("flattened: got %q, want %q", got, c.want)
				}
			})
		})
	}
}

// wantTree compares the names in a mount, as readdir and lstat show them.
func wantTree(t *testing.T, what string, m []mount.Mount, want string) {
	t.Helper()
	dir, unmount := snaptest.Mount(t, m)
	defer unmount()
	var names []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			rel += "/"
		}
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			rel += " (listed, but missing)"
		}
		if _, err := unix.Lgetxattr(name, "trusted.overlay.opaque", nil); err == nil {
			rel += " (opaque)"
		}
		names = append(names, rel)
		return nil
	})
	testenv.Must(t, err)
	slices.Sort(names)
	if got := strings.Join(names, " "); got != want {
		t.Errorf("%s %v: got %q, want %q", what, m, got, want)
	}
}

// flatNames returns the names of a tree in the form of wantTree.
func flatNames(dir *composefs.Inode, prefix string) (names []string) {
	for _, e := range dir.Entries {
		name := path.Join(prefix, e.Name)
		if e.Inode.IsDir() {
			names = append(append(names, name+"/"), flatNames(e.Inode, name)...)
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
