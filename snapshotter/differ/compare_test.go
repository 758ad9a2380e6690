package differ_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/differ"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// newTarget returns a content store of containerd with its leases.
func newTarget(tb testing.TB) differ.Target {
	tb.Helper()
	dir := tb.TempDir()
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	blobs, err := local.NewStore(dir)
	if err != nil {
		tb.Fatal(err)
	}
	m := metadata.NewDB(db, blobs, nil)
	if err := m.Init(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return differ.Target{Store: m.ContentStore(), Leases: metadata.NewLeaseManager(m)}
}

// A container is an active snapshot on a layer, with the mounts that containerd compares to commit it.
type container struct {
	*world
	target differ.Target
	ctx    context.Context
	lower  []mount.Mount
	upper  []mount.Mount
}

// compareBase returns a layer with files of all kinds. As in every layer, times have no nanoseconds.
func compareBase(tb testing.TB) []byte {
	tb.Helper()
	set := func(h tar.Header, f func(*tar.Header)) tar.Header {
		f(&h)
		return h
	}
	headers := []tar.Header{
		snaptest.Dir("etc"), snaptest.File("etc/passwd", "root"), snaptest.File("etc/group", "wheel"), snaptest.File("etc/empty", ""),
		snaptest.Dir("etc/conf.d"), snaptest.File("etc/conf.d/a", "a"), snaptest.File("etc/conf.d/b", "b"), snaptest.File("etc.old", "old"),
		snaptest.Dir("usr"), snaptest.Dir("usr/bin"), snaptest.File("usr/bin/tool", strings.Repeat("tool", 1000)), snaptest.Link("usr/bin/same", "usr/bin/tool"),
		snaptest.File("gone", "gone"), snaptest.Dir("usr/lib"), snaptest.File("usr/lib/a", "a"), snaptest.File("usr/lib/b", "b"),
		snaptest.Dir("opt"), snaptest.File("opt/below", "below"), snaptest.Dir("opt/dir"), snaptest.File("opt/dir/x", "x"),
		snaptest.Dir("file"), snaptest.File("file/in", "in"),
		snaptest.Dir("var"), snaptest.Dir("var/cache"), snaptest.Dir("var/cache/deep"), snaptest.File("var/cache/deep/x", "x"),
		set(snaptest.File("dangling", ""), func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, "/no/such/file" }),
		set(snaptest.File("bin", ""), func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, "usr/bin" }),
		set(snaptest.File("ping", "ping"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}),
	}
	for i := range headers {
		headers[i].ModTime = time.Unix(1_600_000_000, 0)
	}
	return snaptest.Tar(tb, headers...)
}

func newContainer(tb testing.TB) *container {
	tb.Helper()
	return newContainerOn(tb, compareBase(tb), snaptest.Tar(tb,
		snaptest.Dir("srv"), snaptest.File("srv/page", "page"), snaptest.File(".wh.gone", ""), snaptest.File("usr/lib/.wh.a", ""),
		snaptest.Dir("opt"), snaptest.File("opt/.wh..wh..opq", ""), snaptest.File("opt/top", "top"), snaptest.File("file", "now a file"),
	))
}

// newContainerOn creates a container from an image with these layers.
func newContainerOn(tb testing.TB, layers ...[]byte) *container {
	tb.Helper()
	c := &container{world: newWorld(tb), target: newTarget(tb)}
	c.differ = differ.New(c.Env, c.Store, c.world, c.target)
	c.ctx = namespaces.WithNamespace(tb.Context(), "test")
	parent := ""
	for i, layer := range layers {
		m := c.prepare(tb, fmt.Sprintf("n/%d/extract-1 x", i), parent)
		desc := c.put(tb, ocispec.MediaTypeImageLayer, layer)
		if _, err := c.differ.Apply(tb.Context(), desc, m); err != nil {
			tb.Fatal(err)
		}
		name := fmt.Sprintf("layer-%d", i)
		if err := c.Commit(tb.Context(), name, fmt.Sprintf("n/%d/extract-1 x", i)); err != nil {
			tb.Fatal(err)
		}
		parent = name
	}
	c.upper = c.prepare(tb, "container", parent)
	var err error
	if c.lower, err = c.View(tb.Context(), "view", parent); err != nil {
		tb.Fatal(err)
	}
	return c
}

// change runs a shell script in the container's tree.
func (c *container) change(tb testing.TB, script string) {
	tb.Helper()
	root, unmount := snaptest.Mount(tb, c.upper)
	defer unmount()
	cmd := exec.CommandContext(tb.Context(), "sh", "-ec", script)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// entries lists the entries of a blob's tar.
func (c *container) entries(tb testing.TB, desc ocispec.Descriptor) (list []string) {
	tb.Helper()
	ra, err := c.target.Store.ReaderAt(c.ctx, desc)
	if err != nil {
		tb.Fatal(err)
	}
	defer ra.Close()
	r, err := compression.DecompressStream(content.NewReader(ra))
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %c %o %d:%d %d %s %v %v", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname, h.ModTime.UTC(), h.PAXRecords))
	}
}

// upperDir returns the container's upper directory.
func (c *container) upperDir() string {
	for _, o := range c.upper[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return filepath.Join(c.Path, "snapshots", filepath.Base(c.upper[0].Source), "fs")
}

// overlay returns the container's mounts as an overlay. Given a mount of another type, the walking differ does not
// recognise a file that was copied up as the one that others link to.
func (c *container) overlay() []mount.Mount {
	if c.upper[0].Type == "overlay" {
		return c.upper
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + filepath.Join(filepath.Dir(c.upperDir()), "work"), "upperdir=" + c.upperDir(), "lowerdir=" + c.lower[0].Source,
	}}}
}

// sameAsWalking checks that the blob is identical to that of containerd's walking differ.
func (c *container) sameAsWalking(t *testing.T, opts ...diff.Opt) {
	t.Helper()
	want, err := walking.NewWalkingDiff(c.target.Store).Compare(c.ctx, c.lower, c.overlay(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	list := c.entries(t, want)
	// The blob must be written, and not found in the store.
	if err := c.target.Store.Delete(c.ctx, want.Digest); err != nil {
		t.Fatal(err)
	}
	got, err := c.differ.Compare(c.ctx, c.lower, c.upper, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
		t.Errorf("got %v, want %v\ngot\n\t%s\nwant\n\t%s", got, want, strings.Join(c.entries(t, got), "\n\t"), strings.Join(list, "\n\t"))
	}
}

// compareScripts change the tree of compareBase.
var compareScripts = map[string]string{
	"what a layer hides":        `echo 1 >gone; echo 2 >usr/lib/a; echo 3 >opt/below; mkdir opt/dir; echo 4 >opt/dir/x; rm file; mkdir file; echo 5 >file/in`,
	"over an opaque one":        `rm -r opt usr/lib; mkdir opt usr/lib; echo 1 >opt/top; echo 2 >opt/below; echo 3 >usr/lib/a`,
	"delete over opaque":        `rm -r opt usr/lib file; mkdir opt`,
	"nothing":                   `:`,
	"create":                    `echo new >etc/new; mkdir -p opt/a/b; echo x >opt/a/b/c; : >opt/empty`,
	"modify":                    `echo more >>etc/passwd; touch -d @99.5 etc/group; touch -d @1600000000 srv/page`,
	"touch as it was":           `touch -d @1600000000 etc/passwd`,
	"other content":             `printf toor >etc/passwd; touch -d @1600000000 etc/passwd`,
	"same content and time":     `printf root >etc/passwd; touch -d @1600000000 etc/passwd; printf x >etc/empty; : >etc/empty; touch -d @1600000000 etc/empty`,
	"nanoseconds":               `touch -d @1600000000.5 etc/passwd`,
	"delete":                    `rm etc/passwd; rm -r var/cache; rm dangling bin`,
	"delete all of many":        `rm -r etc usr; rm etc.old`,
	"create and delete":         `echo x >etc/new; rm etc/new; mkdir etc/d; rmdir etc/d`,
	"rename":                    `mv etc/passwd etc/master; mv srv/page page`,
	"replace directory":         `rm -r var/cache; mkdir var/cache; echo c >var/cache/c`,
	"replace deeper":            `rm -r var; mkdir -p var/cache/deep; echo y >var/cache/deep/y; mkdir var/cache/new`,
	"replace by the same names": `rm -r etc; mkdir etc; echo root >etc/passwd; mkdir etc/conf.d; echo a >etc/conf.d/a`,
	"replace by file":           `rm -r var/cache; echo c >var/cache; rm etc/group; mkdir etc/group; echo g >etc/group/g`,
	"replace by symlink":        `rm -r var/cache; ln -s /etc var/cache; rm etc/passwd; ln -s group etc/passwd`,
	"directory for link":        `rm bin dangling; mkdir bin dangling; echo x >bin/tool; echo y >dangling/y`,
	"chmod and chown":           `chmod 4711 etc/passwd; chown 7:8 etc/group; chmod 700 etc; chown 3:4 var; chmod 1755 var; chmod 2755 usr`,
	"root":                      `chmod 700 .; chown 3:3 .`,
	"hard links":                `ln etc/passwd etc/pw2; ln etc/passwd a-first; echo n >n1; ln n1 n2; echo more >>n2; ln n1 usr/n3`,
	"break a hard link":         `echo more >>usr/bin/tool`,
	"link to a link":            `ln -P bin bin2; ln usr/bin/same usr/bin/zz`,
	"symlinks":                  `ln -s /nowhere etc/l; ln -sfn /other bin; chown -h 5:5 dangling`,
	"devices":                   `mknod c c 1 3; mknod b b 7 1; mkfifo p; chmod 622 p; chown 9:9 c`,
	"capabilities":              `chmod 700 ping; cp ping other`,
	"large":                     `dd if=/dev/urandom of=large bs=1M count=3 2>/dev/null; truncate -s 5M sparse`,
	"odd names":                 `echo 1 >'a b'; echo 2 >"$(printf 'n\nl')"; echo 3 >"$(printf '\377')"; mkdir -p "$(printf 'x%.0s' $(seq 200))/$(printf 'y%.0s' $(seq 200))"; echo 4 >-x`,
	"names that sort oddly":     `mkdir a a.b a-b; echo 1 >a/z; echo 2 >a.b/z; echo 3 >a-b/z; echo 4 >a0; mkdir 'a b'; echo 5 >'a b/z'`,
}

// TestCompare compares the blob with that of containerd's own differ, bit by bit.
func TestCompare(t *testing.T) {
	for name, script := range compareScripts {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t)
			c.change(t, script)
			c.sameAsWalking(t)
		})
	}
}

// The layer of a container that deleted files with the longest names is that of containerd's own differ, and the store
// takes it: the name of a whiteout is longer than that of any file.
func TestCompareLongNames(t *testing.T) {
	files := []tar.Header{snaptest.Dir("d")}
	script := ":"
	for _, n := range []int{251, 252, 255} {
		name := "d/" + strings.Repeat("n", n)
		files = append(files, snaptest.File(name, "x"))
		script += "; rm " + name
	}
	c := newContainerOn(t, snaptest.Tar(t, files...))
	c.change(t, script)
	c.sameAsWalking(t)
	desc, err := c.differ.Compare(c.ctx, c.lower, c.upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	testenv.Must(t, err)
	b, err := content.ReadBlob(c.ctx, c.target.Store, desc)
	testenv.Must(t, err)
	held, err := c.Store.Import(c.ctx, bytes.NewReader(b), layer.ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, held.Release())
	if held.Entries != 4 {
		t.Errorf("got %d entries, want a directory and 3 whiteouts", held.Entries)
	}
	testenv.Must(t, c.Commit(c.ctx, "done", "container")) // from the upper directory
}

// TestCompareRandom compares after each of many scripts.
func TestCompareRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := newContainer(t)
	scripts := slices.Sorted(maps.Values(compareScripts))
	for range 25 {
		script := scripts[r.IntN(len(scripts))]
		c.change(t, "(set +e; "+script+") 2>/dev/null || :") // an earlier script may have removed files
		c.sameAsWalking(t)
		if t.Failed() {
			t.Fatalf("after %s", script)
		}
	}
}

// TestCompareOptions compares with every media type, an epoch, labels and a reference.
func TestCompareOptions(t *testing.T) {
	c := newContainer(t)
	c.change(t, compareScripts["create"])
	epoch := time.Unix(1_000_000_000, 0)
	for _, opts := range [][]diff.Opt{
		{diff.WithMediaType(ocispec.MediaTypeImageLayer)},
		{diff.WithMediaType(ocispec.MediaTypeImageLayerGzip), diff.WithReference("ref")},
		{diff.WithMediaType(ocispec.MediaTypeImageLayerZstd)},
		{diff.WithSourceDateEpoch(&epoch), diff.WithLabels(map[string]string{"a": "b"})},
	} {
		c.sameAsWalking(t, opts...)
	}
	c.change(t, compareScripts["modify"])
	desc, err := c.differ.Compare(c.ctx, c.lower, c.upper, diff.WithLabels(map[string]string{"a": "b"}))
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.target.Store.Info(c.ctx, desc.Digest)
	if err != nil || info.Labels["a"] != "b" || info.Labels["containerd.io/uncompressed"] == "" {
		t.Errorf("got labels %v, %v", info.Labels, err)
	}
	if _, err := c.differ.Compare(c.ctx, c.lower, c.upper, diff.WithMediaType("application/x")); !errdefs.IsNotImplemented(err) {
		t.Errorf("an unknown media type: got %v", err)
	}
	left, err := c.target.Store.ListStatuses(c.ctx)
	if err != nil || len(left) != 0 {
		t.Errorf("unfinished blobs: %v, %v", left, err)
	}
}

// The blob is kept by the caller's lease, or else by one that expires.
func TestCompareLease(t *testing.T) {
	c := newContainer(t)
	c.change(t, compareScripts["create"])
	mine, err := c.target.Leases.Create(c.ctx, leases.WithID("mine"))
	if err != nil {
		t.Fatal(err)
	}
	for ctx, want := range map[context.Context]int{leases.WithLease(c.ctx, mine.ID): 1, c.ctx: 2} {
		desc, err := c.differ.Compare(ctx, c.lower, c.upper)
		if err != nil {
			t.Fatal(err)
		}
		all, err := c.target.Leases.List(c.ctx)
		if err != nil || len(all) != want && want == 2 {
			t.Errorf("got leases %v, %v, want %d", all, err, want)
		}
		kept := false
		for _, l := range all {
			resources, err := c.target.Leases.ListResources(c.ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			kept = kept || slices.Contains(resources, leases.Resource{ID: desc.Digest.String(), Type: "content"})
			if until := l.Labels["containerd.io/gc.expire"]; l.ID != mine.ID && until == "" {
				t.Errorf("lease %v does not expire", l)
			}
		}
		if !kept {
			t.Errorf("no lease keeps %s", desc.Digest)
		}
	}
}

// A containerd that does not pass the caller's namespace on gets the blob in that of the snapshot. Without any, the
// differ steps back.
func TestCompareWithoutNamespace(t *testing.T) {
	c := newContainer(t)
	c.change(t, compareScripts["modify"])
	if _, err := c.differ.Compare(t.Context(), c.lower, c.upper); !errdefs.IsNotImplemented(err) {
		t.Errorf("a snapshot without a namespace: got %v, want an ErrNotImplemented", err)
	}
	if all, err := c.target.Leases.List(c.ctx); err != nil || len(all) != 0 {
		t.Errorf("got leases %v, %v, want none", all, err)
	}
	c.upper = c.prepare(t, "test/9/container", "layer-1")
	c.change(t, compareScripts["modify"])
	desc, err := c.differ.Compare(t.Context(), c.lower, c.upper)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := c.differ.Compare(c.ctx, c.lower, c.upper); err != nil || want.Digest != desc.Digest {
		t.Errorf("got blob %s, want %s as with a namespace (%v)", desc.Digest, want.Digest, err)
	}
	if _, err := c.target.Store.Info(c.ctx, desc.Digest); err != nil {
		t.Errorf("the blob is not in the snapshot's namespace: %v", err)
	}
}

// Mounts other than those of an active snapshot and its parent are left to another differ, and so are files that only a
// mount can read.
func TestCompareRefuses(t *testing.T) {
	c := newContainer(t)
	c.change(t, compareScripts["modify"])
	root := c.prepare(t, "root", "")
	on := c.prepare(t, "other", "layer-0")
	for name, m := range map[string][2][]mount.Mount{
		"nothing":             {nil, nil},
		"foreign":             {{{Type: "bind", Source: "/etc"}}, {{Type: "bind", Source: "/etc"}}},
		"a view":              {c.lower, c.lower},
		"swapped":             {c.upper, c.lower},
		"without a parent":    {nil, root},
		"on something else":   {c.lower, on},
		"below is a snapshot": {c.upper, c.upper},
	} {
		if _, err := c.differ.Compare(c.ctx, m[0], m[1]); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want not implemented", name, err)
		}
	}
	upper := c.upperDir()
	for _, x := range []string{"metacopy", "redirect", "whiteout"} {
		name := filepath.Join(upper, "etc/passwd")
		if err := unix.Setxattr(name, "trusted.overlay."+x, []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := c.differ.Compare(c.ctx, c.lower, c.upper); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want not implemented", x, err)
		}
		if err := unix.Removexattr(name, "trusted.overlay."+x); err != nil {
			t.Fatal(err)
		}
	}
	left, err := c.target.Store.ListStatuses(c.ctx)
	if err != nil || len(left) != 0 {
		t.Errorf("unfinished blobs: %v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	if _, err := c.differ.Compare(ctx, c.lower, c.upper); err == nil {
		t.Error("canceled: got no error")
	}
	if names, err := os.ReadDir(upper); err != nil || len(names) == 0 {
		t.Errorf("the upper directory has %v, %v", names, err)
	}
}

// A write error fails the call, and leaves no blob.
func TestCompareFails(t *testing.T) {
	c := newContainer(t)
	c.change(t, compareScripts["create"])
	broken := c.target
	broken.Store = brokenStore{c.target.Store}
	_, err := differ.New(c.Env, c.Store, c.world, broken).Compare(c.ctx, c.lower, c.upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	left, err := c.target.Store.ListStatuses(c.ctx)
	if err != nil || len(left) != 0 {
		t.Errorf("unfinished blobs: %v, %v", left, err)
	}
}

// brokenStore is a content store on a full disk.
type brokenStore struct{ content.Store }

func (s brokenStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return brokenWriter{w}, err
}

type brokenWriter struct{ content.Writer }

func (brokenWriter) Write([]byte) (int, error) { return 0, unix.ENOSPC }
