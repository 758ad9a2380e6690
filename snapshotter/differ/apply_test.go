package differ_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/differ"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// world is a differ over a real snapshotter and a content store that counts reads.
type world struct {
	*snaptest.Env
	differ *differ.Differ
	dir    string
	opened atomic.Int64
	gate   chan struct{} // ReaderAt waits until it is closed; nil for no wait

	owned map[string][]digest.Digest // blobs by namespace; nil: every namespace has every blob
}

func newWorld(tb testing.TB, opts ...snapshotter.Option) *world {
	tb.Helper()
	w := &world{Env: snaptest.New(tb, opts...), dir: tb.TempDir()}
	w.differ = differ.New(w.Env, w.Store, w, newTarget(tb))
	return w
}

func (w *world) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	w.opened.Add(1)
	if w.gate != nil {
		select {
		case <-w.gate:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return blob.Files(w.dir).ReaderAt(ctx, desc)
}

// Info fails as that of containerd's metadata store does.
func (w *world) Info(ctx context.Context, blob digest.Digest) (content.Info, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return content.Info{}, err
	}
	if w.owned != nil && !slices.Contains(w.owned[ns], blob) {
		return content.Info{}, fmt.Errorf("content digest %s: %w", blob, errdefs.ErrNotFound)
	}
	return content.Info{Digest: blob}, nil
}

// put writes a blob into the content store.
func (w *world) put(tb testing.TB, mediaType string, blob []byte) ocispec.Descriptor {
	tb.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	w.putAs(tb, desc.Digest, blob)
	return desc
}

func (w *world) putAs(tb testing.TB, d digest.Digest, blob []byte) {
	tb.Helper()
	path := filepath.Join(w.dir, "blobs", d.Algorithm().String(), d.Encoded())
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, blob, 0o600)); err != nil {
		tb.Fatal(err)
	}
}

func (w *world) prepare(tb testing.TB, key, parent string, opts ...snapshots.Opt) []mount.Mount {
	tb.Helper()
	m, err := w.Prepare(tb.Context(), key, parent, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func gz(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func zst(tb testing.TB, b []byte) []byte {
	tb.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

// noise returns n characters that compress badly.
func noise(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(digest.FromString(fmt.Sprint(i)).Encoded())
	}
	return b.String()[:n]
}

// layers returns the tars of an image whose layers change the ones below in every way.
func layers(tb testing.TB) [][]byte {
	tb.Helper()
	symlink := snaptest.File("usr/lib/link", "")
	symlink.Typeflag, symlink.Linkname = '2', "../bin/tool"
	setuid := snaptest.File("usr/bin/su", "su")
	setuid.Mode, setuid.Uid = 0o4755, 0
	owned := snaptest.File("var/owned", "owned")
	owned.Uid, owned.Gid, owned.Mode = 1000, 100, 0o640
	fifo := snaptest.File("var/fifo", "")
	fifo.Typeflag = '6'
	return [][]byte{
		snaptest.Tar(tb,
			snaptest.Dir("usr"), snaptest.Dir("usr/bin"), snaptest.File("usr/bin/tool", noise(3<<20)), snaptest.Link("usr/bin/tool2", "usr/bin/tool"),
			setuid, snaptest.Dir("usr/lib"), symlink, snaptest.File("usr/lib/a", "a"), snaptest.Dir("var"), owned, fifo,
			snaptest.File("var/empty", ""), snaptest.Dir("opt"), snaptest.File("opt/x", "x"), snaptest.File("opt/y", "y"),
			snaptest.Dir("etc"), snaptest.File("etc/conf", "1")),
		snaptest.Tar(tb,
			snaptest.Dir("etc"), snaptest.File("etc/conf", "2"), snaptest.File("usr/lib/.wh.a", ""), snaptest.Dir("opt"),
			snaptest.File("opt/.wh..wh..opq", ""), snaptest.File("opt/z", "z"), snaptest.Link("usr/bin/tool3", "usr/bin/tool")),
		snaptest.Tar(tb, snaptest.File("usr/lib/a", "again"), snaptest.File(".wh.var", ""), snaptest.Dir("srv"), snaptest.File("srv/other", noise(2<<20))),
	}
}

// A container must see the tree that containerd's own applier creates.
func TestApplyIsLikeContainerd(t *testing.T) {
	tars := layers(t)
	flat := t.TempDir()
	if err := os.Chmod(flat, 0o755); err != nil {
		t.Fatal(err)
	}
	testenv.NeedsRoot(t)
	for i, tar := range tars {
		if _, err := archive.Apply(t.Context(), flat, bytes.NewReader(tar)); err != nil {
			t.Fatal(err)
		}
		if i == 0 && snaptest.Composefs() {
			// An overlay copies up a file that a later layer links to, so that the two names are different files.
			tool2 := filepath.Join(flat, "usr/bin/tool2")
			if err := errors.Join(os.Rename(tool2, tool2+"-"), exec.Command("cp", "-a", tool2+"-", tool2).Run(), os.Remove(tool2+"-")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, mediaType string
		encode          func(testing.TB, []byte) []byte
	}{
		{"gzip", ocispec.MediaTypeImageLayerGzip, gz},
		{"docker gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip", gz},
		{"zstd", ocispec.MediaTypeImageLayerZstd, zst},
		{"plain", ocispec.MediaTypeImageLayer, func(_ testing.TB, b []byte) []byte { return b }},
		{"docker gzip called tar", "application/vnd.docker.image.rootfs.diff.tar", gz},
	} {
		for _, mode := range []string{"sequential", "parallel"} {
			t.Run(c.name+" "+mode, func(t *testing.T) {
				w := newWorld(t)
				parent := ""
				for i, tar := range tars {
					desc := w.put(t, c.mediaType, c.encode(t, tar))
					key := fmt.Sprintf("n/%d/extract-1 x", i)
					var opts []snapshots.Opt
					below := parent
					if mode == "parallel" {
						opts, below = []snapshots.Opt{snapshots.WithParent(parent)}, ""
					}
					m := w.prepare(t, key, below)
					got, err := w.differ.Apply(t.Context(), desc, m, diff.WithSyncFs(i == 0))
					if err != nil {
						t.Fatal(err)
					}
					want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
					if got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
						t.Errorf("got %+v, want %+v", got, want)
					}
					parent = fmt.Sprintf("n/1/%d", i)
					if err := w.Commit(t.Context(), parent, key, opts...); err != nil {
						t.Fatal(err)
					}
				}
				m, err := w.View(t.Context(), "view", parent)
				if err != nil {
					t.Fatal(err)
				}
				target, unmount := snaptest.Mount(t, m)
				defer unmount()
				if err := fstest.CheckDirectoryEqual(flat, target); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestApplyOnce(t *testing.T) {
	w := newWorld(t)
	tar := layers(t)[0]
	desc := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
	w.gate = make(chan struct{})
	const n = 10
	var wg sync.WaitGroup
	errs := make([]error, n)
	started := make(chan struct{}, n)
	for i := range n {
		m := w.prepare(t, fmt.Sprintf("n/%d/extract-1 x", i), "")
		wg.Go(func() {
			started <- struct{}{}
			got, err := w.differ.Apply(t.Context(), desc, m)
			if err == nil && got.Digest != digest.FromBytes(tar) {
				err = fmt.Errorf("got digest %s", got.Digest)
			}
			errs[i] = err
		})
	}
	for range n {
		<-started
	}
	close(w.gate)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := w.opened.Load(); got != 1 {
		t.Errorf("blob was opened %d times, want once", got)
	}
	for i := range n {
		if err := w.Commit(t.Context(), fmt.Sprint(i), fmt.Sprintf("n/%d/extract-1 x", i)); err != nil {
			t.Error(err)
		}
	}
	if ls, err := w.Store.Layers(t.Context()); err != nil || len(ls) != 1 {
		t.Errorf("layers are %v, %v, want one", ls, err)
	}
}

// A call that waits for another one ends with its own context, and does not fail because the other one does.
func TestApplyWaitsForAnother(t *testing.T) {
	w := newWorld(t)
	desc := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, layers(t)[0]))
	w.gate = make(chan struct{})
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelSecond()
	results := make([]chan error, 3)
	run := func(ctx context.Context, i int) {
		m := w.prepare(t, fmt.Sprintf("n/%d/extract-1 x", i), "")
		results[i] = make(chan error, 1)
		go func() {
			_, err := w.differ.Apply(ctx, desc, m)
			results[i] <- err
		}()
	}
	run(first, 0)
	for w.opened.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	run(second, 1)
	run(t.Context(), 2)
	if err := <-results[1]; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting call: got %v, want its context's error", err)
	}
	cancelFirst()
	if err := <-results[0]; !errors.Is(err, context.Canceled) {
		t.Errorf("unpacking call: got %v, want its context's error", err)
	}
	close(w.gate)
	if err := <-results[2]; err != nil {
		t.Errorf("the other call must unpack by itself: %v", err)
	}
}

func TestApplyKnown(t *testing.T) {
	w := newWorld(t)
	tar := layers(t)[0]
	zipped := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
	plain := w.put(t, ocispec.MediaTypeImageLayer, tar)
	apply := func(key string, desc ocispec.Descriptor) {
		t.Helper()
		got, err := w.differ.Apply(t.Context(), desc, w.prepare(t, key, ""))
		if err != nil || got.Digest != digest.FromBytes(tar) || got.Size != int64(len(tar)) {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	apply("n/1/extract-1 x", zipped)
	if err := os.RemoveAll(w.dir); err != nil { // no blob is read again
		t.Fatal(err)
	}
	apply("n/2/extract-1 x", zipped)
	apply("n/3/extract-1 x", plain)
	if got := w.opened.Load(); got != 1 {
		t.Errorf("blobs were opened %d times, want once", got)
	}
	w.Reopen(t)
}

// TestApplyInAnotherNamespace applies a layer of namespace a in namespace b. Neither the blob's digest nor the diff ID is
// enough: containerd must have the blob in b. Then it is known and not read again.
func TestApplyInAnotherNamespace(t *testing.T) {
	for _, c := range []struct {
		name    string
		context func(ctx context.Context, ns string) context.Context
	}{
		{"named by the call", namespaces.WithNamespace},
		{"named by the snapshot", func(ctx context.Context, _ string) context.Context { return ctx }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			tar := layers(t)[0]
			zipped := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
			plain := ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar)),
			}
			w.owned = map[string][]digest.Digest{"a": {zipped.Digest}}
			number := 0
			apply := func(ns string, desc ocispec.Descriptor) error {
				t.Helper()
				number++
				key := fmt.Sprintf("%s/%d/extract-1 x", ns, number)
				got, err := w.differ.Apply(c.context(t.Context(), ns), desc, w.prepare(t, key, ""))
				if err != nil {
					if _, serr := os.Stat(filepath.Join(w.Path, "snapshots", fmt.Sprint(number), "layer")); serr == nil {
						t.Errorf("snapshot %q has the layer in spite of %v", key, err)
					}
					return err
				}
				if got.Digest != digest.FromBytes(tar) {
					t.Errorf("namespace %s got diff ID %s, want %s", ns, got.Digest, digest.FromBytes(tar))
				}
				return nil
			}
			// The file is there, but not for b: it is not even unpacked.
			if err := apply("b", zipped); !errdefs.IsNotFound(err) || w.opened.Load() != 0 {
				t.Errorf("unknown blob of a, applied in b: got %v after %d reads, want a not found", err, w.opened.Load())
			}
			testenv.Must(t, apply("a", zipped))
			for _, desc := range []ocispec.Descriptor{zipped, plain} {
				err := apply("b", desc)
				if !errdefs.IsNotFound(err) || !strings.Contains(fmt.Sprint(err), `namespace "b"`) {
					t.Errorf("%s of a, applied in b: got %v, want a not found that names the namespace", desc.MediaType, err)
				}
			}
			w.owned["b"] = w.owned["a"]
			testenv.Must(t, apply("b", zipped))
			if got := w.opened.Load(); got != 1 {
				t.Errorf("blobs were opened %d times, want once", got)
			}
		})
	}
}

func TestApplyToStaged(t *testing.T) {
	w := newWorld(t, snapshotter.WithStaging(func(context.Context) bool { return true }))
	tar := layers(t)[0]
	desc := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
	if _, err := w.differ.Apply(t.Context(), desc, w.prepare(t, "n/1/extract-1 x", "")); err != nil {
		t.Fatal(err)
	}
	label := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: digest.FromBytes(tar).String()})
	m := w.prepare(t, "n/2/extract-1 x", "", label)
	// containerd 2.3 applies the layer all the same, perhaps from another blob.
	other := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("other"), Size: 1}
	got, err := w.differ.Apply(t.Context(), other, m)
	if err != nil || got.Digest != digest.FromBytes(tar) {
		t.Errorf("got %+v, %v, want the staged layer", got, err)
	}
	if w.opened.Load() != 1 {
		t.Error("the blob was opened")
	}
}

func TestApplyRefuses(t *testing.T) {
	w := newWorld(t)
	tar := layers(t)[0]
	desc := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
	ours := w.prepare(t, "n/1/extract-1 x", "")
	elsewhere := []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw", "rbind"}}}
	with := func(f func(*ocispec.Descriptor)) ocispec.Descriptor {
		d := desc
		f(&d)
		return d
	}
	for _, c := range []struct {
		name   string
		desc   ocispec.Descriptor
		mounts []mount.Mount
		is     func(error) bool
	}{
		{"another snapshotter's mounts", desc, elsewhere, errdefs.IsNotImplemented},
		{"no mounts", desc, nil, errdefs.IsNotImplemented},
		{"encrypted layer", with(func(d *ocispec.Descriptor) { d.MediaType += "+encrypted" }), ours, errdefs.IsInvalidArgument},
		{"encrypted layer for another snapshotter", with(func(d *ocispec.Descriptor) { d.MediaType += "+encrypted" }), elsewhere, errdefs.IsNotImplemented},
		{"not a layer", with(func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageManifest }), ours, errdefs.IsInvalidArgument},
		{"digest is a path", with(func(d *ocispec.Descriptor) { d.Digest = "sha256:../../../../etc/passwd" }), ours, errdefs.IsInvalidArgument},
		{"no digest", with(func(d *ocispec.Descriptor) { d.Digest = "" }), ours, errdefs.IsInvalidArgument},
		{"no such blob", with(func(d *ocispec.Descriptor) { d.Digest = digest.FromString("?") }), ours, errdefs.IsNotFound},
		{"another size", with(func(d *ocispec.Descriptor) { d.Size++ }), ours, errdefs.IsFailedPrecondition},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := w.differ.Apply(t.Context(), c.desc, c.mounts); !c.is(err) {
				t.Errorf("got %v of another class", err)
			}
		})
	}
	encrypted := with(func(d *ocispec.Descriptor) { d.MediaType += "+encrypted" })
	keys := func(_ context.Context, _ ocispec.Descriptor, c *diff.ApplyConfig) error {
		c.ProcessorPayloads = oneOf(c.ProcessorPayloads, "io.containerd.ocicrypt.v1.Payload")
		return nil
	}
	if _, err := w.differ.Apply(t.Context(), encrypted, ours, keys); !errdefs.IsNotImplemented(err) {
		t.Errorf("an encrypted layer with keys: got %v, want an ErrNotImplemented: the walking differ may decrypt it", err)
	}
	if _, err := w.differ.Apply(t.Context(), encrypted, ours); err == nil || !strings.Contains(err.Error(), encrypted.MediaType) || !strings.Contains(err.Error(), encrypted.Digest.String()) {
		t.Errorf("an encrypted layer: got %v, want an error with its type and digest", err)
	}
	if _, err := w.differ.Compare(t.Context(), ours, ours); !errdefs.IsNotImplemented(err) {
		t.Errorf("compare: got %v, want not implemented", err)
	}
}

// oneOf returns a map with one key. It takes a map to know the type of the values, whose module we do not require.
func oneOf[V any](_ map[string]V, key string) map[string]V {
	return map[string]V{key: *new(V)}
}

// Nothing refers to the remains of a bad blob, and the good one can be applied afterwards.
func TestApplyCorrupted(t *testing.T) {
	tar := layers(t)[0]
	for _, c := range []struct {
		name string
		blob func(good []byte) []byte
	}{
		{"truncated", func(b []byte) []byte { return b[:len(b)/2] }},
		{"flipped", func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 0xff; return b }},
		{"garbage behind", func(b []byte) []byte { return append(bytes.Clone(b), "garbage"...) }},
		{"another tar", func([]byte) []byte { return gz(t, layers(t)[1]) }},
		{"nothing", func([]byte) []byte { return nil }},
		{"not a tar", func([]byte) []byte { return gz(t, []byte(noise(1<<20))) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			good := gz(t, tar)
			desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(good)}
			w.putAs(t, desc.Digest, c.blob(good))
			m := w.prepare(t, "n/1/extract-1 x", "")
			if got, err := w.differ.Apply(t.Context(), desc, m); err == nil {
				t.Fatalf("applied as %+v", got)
			}
			if ls, err := w.Store.Layers(t.Context()); err != nil || len(ls) != 0 {
				t.Errorf("layers are %v, %v, want none", ls, err)
			}
			if err := w.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(w.Path, "repo/objects/*/*")); len(left) != 0 {
				t.Errorf("%d objects are left", len(left))
			}
			w.putAs(t, desc.Digest, good)
			if got, err := w.differ.Apply(t.Context(), desc, m); err != nil || got.Digest != digest.FromBytes(tar) {
				t.Errorf("good blob afterwards: %+v, %v", got, err)
			}
		})
	}
}

// Errors must keep their class through the socket: containerd tries the next differ only after a "not implemented".
func TestApplyOverSocket(t *testing.T) {
	w := newWorld(t)
	tar := layers(t)[0]
	desc := w.put(t, ocispec.MediaTypeImageLayerGzip, gz(t, tar))
	l, err := net.Listen("unix", filepath.Join(snaptest.SocketDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(w.differ, w.differ))
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := proxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
		diff.Applier
		diff.Comparer
	})
	got, err := client.Apply(t.Context(), desc, w.prepare(t, "n/1/extract-1 x", ""), diff.WithSyncFs(true))
	if err != nil || got.Digest != digest.FromBytes(tar) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := client.Apply(t.Context(), desc, []mount.Mount{{Type: "bind", Source: "/"}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("foreign mounts: got %v, want not implemented", err)
	}
	if _, err := client.Compare(t.Context(), nil, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("compare: got %v, want not implemented", err)
	}
}
