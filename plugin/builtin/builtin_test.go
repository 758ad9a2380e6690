package builtin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/content/local"
	containerdplugin "github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

func registered(t *testing.T, typ containerdplugin.Type, id string) containerdplugin.Registration {
	t.Helper()
	for _, r := range registry.Graph(func(*containerdplugin.Registration) bool { return false }) {
		if r.Type == typ && r.ID == id {
			return r
		}
	}
	t.Fatalf("%s.%s is not registered", typ, id)
	return containerdplugin.Registration{}
}

// The plugins work as containerd initializes them: the differ finds the snapshotter and the content store.
func TestPlugins(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	dir := t.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	set := containerdplugin.NewPluginSet()
	mdb := metadata.NewDB(db, store, nil)
	if err := mdb.Init(ctx); err != nil {
		t.Fatal(err)
	}
	meta := containerdplugin.Registration{
		Type: plugins.MetadataPlugin, ID: "bolt",
		InitFn: func(*containerdplugin.InitContext) (any, error) { return mdb, nil },
	}
	instances := make(map[string]any)
	for _, r := range []containerdplugin.Registration{
		meta, registered(t, plugins.SnapshotPlugin, snapshotterID), registered(t, plugins.DiffPlugin, differID),
	} {
		ic := containerdplugin.NewContext(ctx, set, map[string]string{plugins.PropertyRootDir: filepath.Join(dir, r.ID)})
		ic.Config = r.Config
		p := r.Init(ic)
		if err := set.Add(p); err != nil {
			t.Fatal(err)
		}
		if instances[r.ID], err = p.Instance(); err != nil {
			t.Fatalf("%s: %v", r.URI(), err)
		}
	}
	sn, ok := instances[snapshotterID].(snapshots.Snapshotter)
	if !ok {
		t.Fatalf("snapshotter is a %T", instances[snapshotterID])
	}
	defer func() {
		if err := sn.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, ok := sn.(snapshots.Cleaner); !ok {
		t.Error("snapshotter is no cleaner")
	}
	applier, ok := instances[differID].(diff.Applier)
	if !ok {
		t.Fatalf("differ is a %T", instances[differID])
	}
	tar := snaptest.Tar(t, snaptest.File("file", "content"))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
	if err := content.WriteBlob(ctx, mdb.ContentStore(), "ref", strings.NewReader(string(tar)), desc); err != nil {
		t.Fatal(err)
	}
	m, err := sn.Prepare(ctx, "key", "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := applier.Apply(ctx, desc, m)
	if err != nil || got.Digest != desc.Digest {
		t.Fatalf("got %+v, %v", got, err)
	}
	if err := sn.Commit(ctx, "name", "key"); err != nil {
		t.Fatal(err)
	}
	if m, err = sn.View(ctx, "view", "name"); err != nil {
		t.Fatal(err)
	}
	err = mount.WithTempMount(ctx, m, func(root string) error {
		b, err := os.ReadFile(filepath.Join(root, "file"))
		if string(b) != "content" {
			t.Errorf("got %q", b)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
