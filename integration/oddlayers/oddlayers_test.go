package oddlayers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// refused is the result of an image that cannot be unpacked.
const refused = "refused"

// A row is an image, what to look at, and what that is with each snapshotter.
type row struct {
	name                           string
	layers                         [][]tar.Header // lowest first
	tars                           [][]byte       // the layers
	look                           func(dir string) (string, error)
	ours, overlayfs, native, erofs string
}

var (
	early = time.Unix(1700000000, 0)
	exact = time.Unix(1700000000, 123456789)
	far   = time.Date(2286, 11, 20, 0, 0, 0, 0, time.UTC)
)

func rows() []row {
	dir, file, link := snaptest.Dir, snaptest.File, snaptest.Link
	const (
		opaque     = ".wh..wh..opq"
		capability = "\x01\x00\x00\x02\x00\x24\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	)
	return []row{
		{
			name:   "hard link to a file of a lower layer",
			layers: [][]tar.Header{{file("a", "1")}, {link("b", "a")}},
			look:   sameFile("a", "b"),
			ours:   "one file", overlayfs: refused, native: "one file", erofs: refused,
		},
		{
			name:   "whiteout after the file in one layer",
			layers: [][]tar.Header{{file("a", "old")}, {file("a", "new"), file(".wh.a", "")}},
			look:   contents,
			ours:   "a=new", overlayfs: refused, native: "", erofs: "",
		},
		{
			name:   "whiteout of a directory before its new content",
			layers: [][]tar.Header{{dir("d"), file("d/old", "1")}, {file(".wh.d", ""), dir("d"), file("d/new", "2")}},
			look:   contents,
			ours:   "d/new=2", overlayfs: "d/new=2 d/old=1", native: "d/new=2", erofs: "d/new=2 d/old=1",
		},
		{
			name:   "time of a directory that a layer writes into and does not name",
			layers: [][]tar.Header{{timed(dir("d"), early)}, {file("d/f", "1")}},
			look:   timeOf("d"),
			ours:   "1700000000", overlayfs: "time of unpacking", native: "time of unpacking", erofs: "time of unpacking",
		},
		{
			name:   "mode of a directory that only a lower layer names",
			layers: [][]tar.Header{{moded(dir("d"), 0o1770)}, {file("d/f", "1")}},
			look:   modeOf("d"),
			ours:   "1770", overlayfs: "1770", native: "1770", erofs: "777",
		},
		{
			name:   "user.overlay.opaque",
			layers: [][]tar.Header{{dir("d")}, {with(dir("d"), "user.overlay.opaque", "y")}},
			look:   xattrOf("d", "user.overlay.opaque"),
			ours:   "none", overlayfs: "y", native: "y", erofs: "y",
		},
		{
			name:   "capability of a file that its hard link does not repeat",
			layers: [][]tar.Header{{with(file("a", "1"), "security.capability", capability), link("b", "a")}},
			look:   xattrOf("b", "security.capability"),
			ours:   capability, overlayfs: "none", native: "none", erofs: capability,
		},
		{
			name:   "opaque marker in the root",
			layers: [][]tar.Header{{file("a", "1")}, {file(opaque, ""), file("b", "2")}},
			look:   contents,
			ours:   "b=2", overlayfs: "a=1 b=2", native: "b=2", erofs: refused,
		},
		{
			name:   "whiteout in a directory that no lower layer has",
			layers: [][]tar.Header{{file("a", "1")}, {dir("d"), file("d/.wh.f", "")}},
			look:   names("d"),
			ours:   "", overlayfs: "f", native: "", erofs: "",
		},
		{
			name:   "time of 2286",
			layers: [][]tar.Header{{timed(file("a", "1"), far)}},
			look:   timeOf("a"),
			ours:   "0", overlayfs: "0", native: "0", erofs: fmt.Sprint(far.Unix()),
		},
		{
			name:   "fraction of a pax time",
			layers: [][]tar.Header{{timed(file("a", "1"), exact)}},
			look:   timeOf("a"),
			ours:   "1700000000.123456789", overlayfs: "1700000000.123456789", native: "1700000000.123456789", erofs: "1700000000.123456789",
		},
	}
}

func timed(h tar.Header, t time.Time) tar.Header {
	h.ModTime, h.Format = t, tar.FormatPAX
	return h
}

func moded(h tar.Header, mode int64) tar.Header {
	h.Mode = mode
	return h
}

func with(h tar.Header, xattr, value string) tar.Header {
	h.PAXRecords, h.Format = map[string]string{"SCHILY.xattr." + xattr: value}, tar.FormatPAX
	return h
}

// contents lists regular files with their contents.
func contents(dir string) (string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		found = append(found, rel+"="+string(b))
		return err
	})
	slices.Sort(found)
	return strings.Join(found, " "), err
}

// names lists a directory, without looking at the files.
func names(name string) func(dir string) (string, error) {
	return func(dir string) (string, error) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		found, err := f.Readdirnames(-1)
		slices.Sort(found)
		return strings.Join(found, " "), errors.Join(err, f.Close())
	}
}

func sameFile(a, b string) func(dir string) (string, error) {
	return func(dir string) (string, error) {
		first, err := os.Stat(filepath.Join(dir, a))
		if err != nil {
			return "", err
		}
		second, err := os.Stat(filepath.Join(dir, b))
		if err != nil {
			return "", err
		}
		if os.SameFile(first, second) {
			return "one file", nil
		}
		return "two files", nil
	}
}

func timeOf(name string) func(dir string) (string, error) {
	return func(dir string) (string, error) {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		t := fi.ModTime()
		switch {
		case time.Since(t).Abs() < time.Hour:
			return "time of unpacking", nil
		case t.Nanosecond() == 0:
			return fmt.Sprint(t.Unix()), nil
		}
		return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
	}
}

func modeOf(name string) func(dir string) (string, error) {
	return func(dir string) (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, name), &st)
		return fmt.Sprintf("%o", st.Mode&0o7777), err
	}
}

func xattrOf(name, xattr string) func(dir string) (string, error) {
	return func(dir string) (string, error) {
		b := make([]byte, 64)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), xattr, b)
		if errors.Is(err, unix.ENODATA) {
			return "none", nil
		}
		return string(b[:max(n, 0)]), err
	}
}

// TestOddLayers checks every row of docs/odd-layers.md, and that the document has it.
func TestOddLayers(t *testing.T) {
	testenv.NeedsOverlay(t)
	document, err := os.ReadFile("../../docs/odd-layers.md")
	testenv.Must(t, err)
	for _, r := range rows() {
		for _, headers := range r.layers {
			r.tars = append(r.tars, snaptest.Tar(t, headers...))
		}
		t.Run(r.name, func(t *testing.T) {
			if !strings.Contains(string(document), "\n| "+r.name+" |") {
				t.Errorf("docs/odd-layers.md has no row %q", r.name)
			}
			t.Run("hard links", func(t *testing.T) { want(t, r.ours, ours(t, r)) })
			t.Run("composefs", func(t *testing.T) {
				want(t, r.ours, ours(t, r, snapshotter.WithComposefs(snaptest.Kernel(t))))
			})
			t.Run("overlayfs", func(t *testing.T) {
				sn, err := overlay.NewSnapshotter(t.TempDir())
				testenv.Must(t, err)
				want(t, r.overlayfs, theirs(t, r, sn))
			})
			t.Run("native", func(t *testing.T) {
				sn, err := native.NewSnapshotter(t.TempDir())
				testenv.Must(t, err)
				want(t, r.native, theirs(t, r, sn))
			})
			t.Run("erofs", func(t *testing.T) { want(t, r.erofs, erofs(t, r)) })
		})
	}
}

// TestGzipEnd checks what containerd makes of bytes behind the end of a gzip layer, without a program of the host.
func TestGzipEnd(t *testing.T) {
	t.Setenv("CONTAINERD_DISABLE_IGZIP", "1")
	t.Setenv("CONTAINERD_DISABLE_PIGZ", "1")
	for name, tail := range map[string][]byte{"zeros": make([]byte, 512), "junk": []byte("junk")} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, err := z.Write(snaptest.Tar(t, snaptest.File("a", "1")))
			testenv.Must(t, errors.Join(err, z.Close()))
			stream, err := compression.DecompressStream(io.MultiReader(&b, bytes.NewReader(tail)))
			testenv.Must(t, err)
			_, err = io.Copy(io.Discard, stream)
			if err = errors.Join(err, stream.Close()); !errors.Is(err, gzip.ErrHeader) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v, want an error", err)
			}
		})
	}
}

func want(t *testing.T, want, got string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// ours unpacks a row's image with this snapshotter, and looks at it.
func ours(t *testing.T, r row, opts ...snapshotter.Option) string {
	t.Helper()
	e, err := snaptest.OpenBare(t.Context(), t.TempDir(), opts...)
	testenv.Must(t, err)
	defer func() { testenv.Must(t, e.Close()) }()
	return unpack(t, r, e.Snapshotter, func(ctx context.Context, b []byte, mounts []mount.Mount) error {
		held, err := e.Store.Import(ctx, bytes.NewReader(b), layer.ImportOptions{})
		if err != nil {
			return err
		}
		id, _, err := e.Locate(ctx, mounts)
		if err == nil {
			err = e.AddLayer(ctx, id, held, false)
		}
		return errors.Join(err, held.Release())
	})
}

// theirs does the same with a snapshotter of containerd and its differ.
func theirs(t *testing.T, r row, sn snapshots.Snapshotter) string {
	t.Helper()
	defer func() { testenv.Must(t, sn.Close()) }()
	store, err := local.NewStore(t.TempDir())
	testenv.Must(t, err)
	differ := apply.NewFileSystemApplier(store)
	return unpack(t, r, sn, func(ctx context.Context, b []byte, mounts []mount.Mount) error {
		desc := ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b)),
		}
		if err := content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
			return err
		}
		_, err := differ.Apply(ctx, desc, mounts)
		return err
	})
}

// unpack unpacks a row's image, and looks at it.
func unpack(
	t *testing.T, r row, sn snapshots.Snapshotter, apply func(context.Context, []byte, []mount.Mount) error,
) (result string) {
	t.Helper()
	parent := ""
	for i, b := range r.tars {
		key, name := fmt.Sprintf("extract-%d x", i), fmt.Sprint("layer ", i)
		mounts, err := sn.Prepare(t.Context(), key, parent)
		testenv.Must(t, err)
		err = apply(t.Context(), b, mounts)
		if err == nil {
			err = sn.Commit(t.Context(), name, key)
		}
		if err != nil {
			t.Logf("layer %d: %v", i, err)
			return refused
		}
		parent = name
	}
	mounts, err := sn.View(t.Context(), "view", parent)
	testenv.Must(t, err)
	testenv.Must(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		result, err = r.look(dir)
		return err
	}))
	return result
}

// erofs does with a row's image what containerd's erofs differ and snapshotter do: it converts each layer with
// mkfs.erofs and these options, and mounts an overlay of them.
func erofs(t *testing.T, r row) (result string) {
	t.Helper()
	testenv.SkipShort(t, "needs packages of another Debian release")
	testenv.NeedsEROFS(t)
	testenv.NeedsLoop(t)
	tools, err := testhost.ErofsUtils(t.Context(), t.Output())
	testenv.Must(t, err)
	lowers := []string{t.TempDir()} // an overlay needs two
	for i, b := range r.tars {
		image := filepath.Join(t.TempDir(), "layer.erofs")
		cmd := exec.CommandContext(t.Context(), filepath.Join(tools, "mkfs.erofs"),
			"--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", "--sort=none", image)
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Logf("layer %d: %v: %s", i, err, out)
			return refused
		}
		dir, _ := snaptest.Mount(t, []mount.Mount{{Type: "erofs", Source: image, Options: []string{"ro", "loop"}}})
		lowers = append([]string{dir}, lowers...)
	}
	mounts := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lowers, ":")}}}
	testenv.Must(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		result, err = r.look(dir)
		return err
	}))
	return result
}
