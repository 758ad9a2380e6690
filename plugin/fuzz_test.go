package plugin

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

const ownLabels = "containerd.io/snapshot/ostree."

// Words of a script: some are likely to reach deep code, others must be refused.
var (
	keys = []string{
		"a", "b", "c", "default/1/extract-1 x", "default/2/extract-2 x", "default/3/y", "", " ", "/", "..", "../../outside",
		"a/../../../outside/secret", "a\x00b", "a b/c d", "ключ", strings.Repeat("k", 2000), strings.Repeat("k", 40_000),
	}
	labelNames = []string{
		snapshots.LabelSnapshotRef, snapshots.LabelSnapshotDiffID, snapshotter.LabelLayer, snapshotter.LabelCheckout,
		snapshotter.LabelChainID, ownLabels, ownLabels + "x", "containerd.io/gc.root", "plain", "", strings.Repeat("l", 5000),
		snapshotter.LabelBlob,
	}
	labelValues = []string{
		"", "x", "../../outside", "evil", strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64), "sha256:../../outside",
		strings.Repeat("v", 10_000), "layers/../../outside",
	}
	fieldPaths = []string{
		"labels", "labels." + snapshotter.LabelLayer, "labels." + snapshotter.LabelCheckout, "labels.plain", "labels.", "labels..",
		"labels." + ownLabels + "x", "name", "parent", "created", "kind", "", "x.y",
	}
	filterTexts = []string{"kind==active", "name==a", "parent==b", "labels.plain==x", `labels."a b"~=(`, "==", "kind", `name~="`, ""}
	mediaTypes  = []string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageConfig,
		"application/vnd.docker.image.rootfs.diff.tar", ocispec.MediaTypeImageLayerGzip + "+encrypted", "", "x",
	}
	mountTypes = []string{"overlay", "bind", "", "erofs", "overlay/../bind"}
	digests    = []string{
		"sha256:" + strings.Repeat("0", 64), "sha512:" + strings.Repeat("0", 128), "md5:" + strings.Repeat("0", 32), "sha256:../../outside/secret",
		"../outside:secret", "", "sha256:", "sha256", "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("0", 63) + "/",
	}
)

// A script is a sequence of calls, encoded in the bytes of a fuzzer.
type script struct{ b []byte }

func (s *script) next() int {
	if len(s.b) == 0 {
		return 0
	}
	n := int(s.b[0])
	s.b = s.b[1:]
	return n
}

// word returns one of the words, or text from the script itself.
func (s *script) word(words []string) string {
	n := s.next()
	if n < 192 {
		return words[n%len(words)]
	}
	n = min(n-192, len(s.b))
	w := strings.ToValidUTF8(string(s.b[:n]), "?") // as protobuf demands
	s.b = s.b[n:]
	return w
}

func (s *script) words(words []string) []string {
	var list []string
	for range s.next() % 4 {
		list = append(list, s.word(words))
	}
	return list
}

func (s *script) labels() map[string]string {
	labels := make(map[string]string)
	for range s.next() % 4 {
		labels[s.word(labelNames)] = s.word(labelValues)
	}
	return labels
}

// A target is the daemon that runs scripts.
type target struct {
	*Server
	base      string
	outside   map[string]string
	snapshots snapshotsapi.SnapshotsClient
	diff      diffapi.DiffClient
	blobs     []string       // digests of the blobs in the content store
	paths     []string       // for mounts
	mounts    []*types.Mount // last mounts that the daemon returned
}

func newTarget(t *testing.T) *target {
	t.Helper()
	base := testenv.MemoryDir(t)
	d := &target{base: base}
	for name, content := range map[string]string{"outside/secret": "secret", "outside/fs/file": "x", "outside/commit": "x"} {
		writeFile(t, filepath.Join(base, name), []byte(content))
	}
	tar := snaptest.Tar(t, snaptest.File("f", "content"), snaptest.Dir("d"), snaptest.Link("d/l", "f"))
	for _, blob := range [][]byte{tar, compress(t, tar), snaptest.Tar(t, snaptest.Link("h", "missing")), []byte("garbage"), compress(t, tar)[:40]} {
		sum := digest.FromBytes(blob)
		writeFile(t, filepath.Join(base, "content/blobs/sha256", sum.Encoded()), blob)
		d.blobs = append(d.blobs, sum.String())
	}
	c := DefaultConfig()
	c.Root = filepath.Join(base, "root")
	c.Address = filepath.Join(base, "s")
	c.Containerd.Address = filepath.Join(base, "nobody")
	c.Containerd.ContentRoot = filepath.Join(base, "content")
	var err error
	if d.Server, err = Assemble(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"snapshots/1/fs", "snapshots/2/fs", "snapshots/1", "snapshots/../../outside/fs", "layers/0/fs", "repo/objects", ""} {
		d.paths = append(d.paths, c.Root+"/"+name)
	}
	d.paths = append(d.paths, filepath.Join(base, "outside/fs"), "/", "", "..", "overlay", "relative")
	d.outside = d.listOutside(t)

	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- d.grpc.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///fuzz", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		d.grpc.Stop()
		if err := errors.Join(<-served, d.Close()); err != nil {
			t.Error(err)
		}
	})
	d.snapshots, d.diff = snapshotsapi.NewSnapshotsClient(conn), diffapi.NewDiffClient(conn)
	return d
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func compress(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf strings.Builder
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return []byte(buf.String())
}

// listOutside lists all files outside the root, with their content.
func (d *target) listOutside(t *testing.T) map[string]string {
	t.Helper()
	list := make(map[string]string)
	err := filepath.WalkDir(d.base, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == d.config.Root:
			list[name] = "the root"
			return fs.SkipDir
		case !e.Type().IsRegular():
			list[name] = e.Type().String()
			return nil
		}
		b, err := os.ReadFile(name)
		list[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// call makes the next call of the script.
func (d *target) call(ctx context.Context, s *script) error {
	switch s.next() % 13 {
	case 0, 1:
		r, err := d.snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: s.word(keys), Parent: s.word(keys), Labels: s.labels()})
		d.keep(r.GetMounts())
		return err
	case 2:
		r, err := d.snapshots.View(ctx, &snapshotsapi.ViewSnapshotRequest{Key: s.word(keys), Parent: s.word(keys), Labels: s.labels()})
		d.keep(r.GetMounts())
		return err
	case 3:
		r, err := d.snapshots.Mounts(ctx, &snapshotsapi.MountsRequest{Key: s.word(keys)})
		d.keep(r.GetMounts())
		return err
	case 4:
		_, err := d.snapshots.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Key: s.word(keys), Name: s.word(keys), Parent: s.word(keys), Labels: s.labels()})
		return err
	case 5:
		_, err := d.snapshots.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Key: s.word(keys)})
		return err
	case 6:
		_, err := d.snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: s.word(keys)})
		return err
	case 7:
		_, err := d.snapshots.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{
			Info:       &snapshotsapi.Info{Name: s.word(keys), Parent: s.word(keys), Kind: snapshotsapi.Kind(s.next()), Labels: s.labels()},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: s.words(fieldPaths)},
		})
		return err
	case 8:
		_, err := d.snapshots.Usage(ctx, &snapshotsapi.UsageRequest{Key: s.word(keys)})
		return err
	case 9:
		_, err := d.list(ctx, s.words(filterTexts)...)
		return err
	case 10:
		_, err := d.snapshots.Cleanup(ctx, &snapshotsapi.CleanupRequest{})
		return err
	case 11:
		_, err := d.diff.Diff(ctx, &diffapi.DiffRequest{Left: d.someMounts(s), Right: d.someMounts(s), MediaType: s.word(mediaTypes), Ref: s.word(keys), Labels: s.labels()})
		return err
	}
	_, err := d.diff.Apply(ctx, &diffapi.ApplyRequest{Diff: d.descriptor(s), Mounts: d.someMounts(s), SyncFs: s.next()%2 == 1})
	return err
}

func (d *target) keep(m []*types.Mount) {
	if len(m) > 0 {
		d.mounts = m
	}
}

func (d *target) list(ctx context.Context, filters ...string) ([]*snapshotsapi.Info, error) {
	stream, err := d.snapshots.List(ctx, &snapshotsapi.ListSnapshotsRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var all []*snapshotsapi.Info
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r.Info...)
	}
}

// descriptor returns the descriptor of a blob, which exists at first.
func (d *target) descriptor(s *script) *types.Descriptor {
	return &types.Descriptor{
		Digest:      s.word(slices.Concat(d.blobs, digests)),
		MediaType:   s.word(mediaTypes),
		Size:        int64(int8(s.next())),
		Annotations: s.labels(),
	}
}

// someMounts returns the last mounts of the daemon, or something similar.
func (d *target) someMounts(s *script) []*types.Mount {
	n := s.next() % 6
	if n < 3 {
		return d.mounts
	}
	mounts := make([]*types.Mount, n-3)
	for i := range mounts {
		m := &types.Mount{Type: s.word(mountTypes), Source: s.word(d.paths), Target: s.word(d.paths)}
		for range s.next() % 4 {
			option := s.word([]string{"upperdir=", "lowerdir=", "workdir=", "ro", "rbind", "X-loop="})
			if strings.HasSuffix(option, "=") {
				option += s.word(d.paths)
			}
			m.Options = append(m.Options, option)
		}
		mounts[i] = m
	}
	return mounts
}

// check verifies the store after the calls.
func (d *target) check(t *testing.T) {
	t.Helper()
	if got := d.listOutside(t); !maps.Equal(got, d.outside) {
		t.Errorf("outside of the root: got %q, want %q", got, d.outside)
	}
	all, err := d.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range all {
		d.checkLabels(t, info)
	}
	report, err := d.store.Repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 1})
	if err := errors.Join(err, report.Err()); err != nil {
		t.Errorf("fsck: %v", err)
	}
}

// checkLabels checks that only committed snapshots have our private labels, with the values that this program set.
func (d *target) checkLabels(t *testing.T, info *snapshotsapi.Info) {
	t.Helper()
	for name, value := range info.Labels {
		if !strings.HasPrefix(name, ownLabels) {
			continue
		}
		ok := info.Kind == snapshotsapi.Kind_COMMITTED
		switch name {
		case snapshotter.LabelLayer:
			id, err := objectstore.ParseChecksum(value)
			if ok = ok && err == nil; ok {
				_, err = d.store.Layers.Layer(t.Context(), id)
				ok = err == nil
			}
		case snapshotter.LabelCheckout:
			has, err := d.store.Layers.HasCheckout(value)
			ok = ok && err == nil && has
		case snapshotter.LabelChainID:
			ok = ok && digest.Digest(value).Validate() == nil && !strings.Contains(value, strings.Repeat("0", 64))
		case snapshotter.LabelBlob:
			held, err := d.store.Layers.AcquireBlob(t.Context(), digest.Digest(value))
			if ok = ok && err == nil; ok {
				ok = held.ID.String() == info.Labels[snapshotter.LabelLayer] && held.Release() == nil
			}
		default:
			ok = false
		}
		if !ok {
			t.Errorf("snapshot %.100q, %s, has label %s=%.100q", info.Name, info.Kind, name, value)
		}
	}
}

// FuzzCalls sends a daemon arbitrary sequences of calls. Each call succeeds or returns an error with a specific code;
// nothing outside the root changes, private labels cannot be set, and the store stays whole.
func FuzzCalls(f *testing.F) {
	testenv.NeedsRoot(f)
	const prepare, view, mounts, commit, remove, stat, update, usage, list, cleanup, compare, apply = 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
	const none = 6 // the empty key
	unpack := []byte{prepare, 3, none, 0, apply, 1, 1, 0, 0, 0, 0, commit, 3, 5, none, 0}
	f.Add(unpack)
	f.Add(slices.Concat(unpack, []byte{stat, 5, usage, 5, list, 0, view, 0, 5, 0, mounts, 0, prepare, 1, 5, 0, commit, 1, 2, none, 0, remove, 2, cleanup}))
	f.Add(slices.Concat(unpack, []byte{update, 5, 0, 2, 3, 2, 3, 3, 3, 4, 3, 2, 0, 1, remove, 5, cleanup, stat, 5}))
	f.Add([]byte{prepare, 9, none, 3, 2, 4, 3, 2, 4, 5, apply, 0, 0, 0, 0, 4, 0, 3, 0, 1, 0, 3, 0, commit, 9, 0, none, 3, 2, 4, 3, 8, 4, 5})
	f.Add([]byte{prepare, 0, none, 0, apply, 8, 1, 255, 0, 4, 1, 0, 0, 1, 3, 1, apply, 2, 0, 0, 0, 0, 0, commit, 0, 1, none, 0})
	f.Add([]byte{prepare, 0, none, 0, apply, 0, 0, 0, 0, 0, 0, apply, 2, 0, 0, 0, 0, 0, apply, 3, 1, 0, 0, 0, 0, apply, 4, 1, 0, 0, 0, 0, commit, 0, 1, 0, 0})
	f.Add([]byte{prepare, 0, none, 1, 9, 1, update, 0, 2, 0, 1, 8, 1, 1, 1, update, 0, 2, 0, 1, 8, 1, 1, 6, update, 0, 2, 0, 1, 8, 1, 1, 4})
	f.Add(slices.Concat(unpack, []byte{prepare, 1, 5, 0, apply, 0, 0, 0, 0, 0, 0, apply, 2, 0, 0, 0, 0, 0, mounts, 1, usage, 1, commit, 1, 0, 5, 0, view, 2, 0, 0, remove, 5, remove, 0}))
	f.Add(slices.Concat(unpack, []byte{view, 0, 5, 0, apply, 0, 0, 0, 0, 0, 0, mounts, 0, prepare, 4, none, 1, 1, 9, commit, 4, 2, 5, 1, 0, 5}))
	f.Add([]byte{prepare, 15, none, 0, prepare, 16, none, 0, prepare, none, none, 0, list, 3, 4, 5, 7, compare, 0, 0, 0, 0, 0})
	if err := log.SetLevel("panic"); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newTarget(t)
		s := &script{b}
		for range 40 {
			if len(s.b) == 0 {
				break
			}
			rest := s.b
			err := d.call(t.Context(), s)
			if c := status.Code(err); c == codes.Unknown || c == codes.Internal {
				t.Errorf("call %d, % .60x: got %v", rest[0]%13, rest, err)
			}
		}
		d.check(t)
	})
}
