package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// osFiles are the layer that makes an operating system of the fixture's base.
var osFiles = []tarFile{
	{name: "boot/"},
	{name: "dev/"},
	{name: "proc/"},
	{name: "run/"},
	{name: "sys/"},
	{name: "sysroot/"},
	{name: "tmp/"},
	{name: "var/"},
	{name: "ostree", target: "sysroot/ostree"},
	{name: "dev/null", content: "not seen", mtime: 1000},
	{name: "usr/lib/os-release", content: "ID=test\n", mtime: 1000},
	{name: "usr/lib/modules/6.1.0/vmlinuz", content: kib("kernel", 100), mtime: 1000},
	{name: "usr/lib/modules/6.1.0/initramfs.img", content: kib("initramfs", 200), mtime: 1000},
}

// imageBed is the fixture with an operating system in it, and a containerd that knows images.
type imageBed struct {
	*fixture
	store      *store
	containerd *fakeContainerd
	conn       *grpc.ClientConn
	os         objectstore.Checksum // layer over the base
	diffIDs    []digest.Digest      // of base and os
}

func newImageBed(t *testing.T) *imageBed {
	t.Helper()
	f, s := newFixture(t)
	b := &imageBed{fixture: f, store: s, containerd: newFakeContainerd(t)}
	var err error
	if b.os, _, err = f.unpack(t.Context(), f.chain, osFiles); err != nil {
		t.Fatal(err)
	}
	f.stopDaemon(t)
	for _, id := range []objectstore.Checksum{f.base, b.os} {
		l, err := f.layers.Layer(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		b.diffIDs = append(b.diffIDs, l.DiffID)
	}
	if b.conn, err = grpcClient(b.containerd.address, dialUnix); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.conn.Close() })
	return b
}

func (b *imageBed) resolve(t *testing.T, name string) (*resolved, error) {
	t.Helper()
	c := &cli{stderr: io.Discard, imageNamespace: "default"}
	return c.resolveImage(t.Context(), b.conn, b.store, name)
}

// imageJSON is what an image's author can say.
type imageJSON struct {
	platform    ocispec.Platform
	created     string
	labels      map[string]string
	annotations map[string]string
	diffIDs     []digest.Digest
}

// manifestOf stores manifest and config of an image, without going through types that would refuse what is wrong.
func (f *fakeContainerd) manifestOf(i imageJSON) ocispec.Descriptor {
	f.t.Helper()
	c := map[string]any{
		"os": i.platform.OS, "architecture": i.platform.Architecture, "variant": i.platform.Variant,
		"config": map[string]any{"Labels": i.labels}, "rootfs": map[string]any{"type": "layers", "diff_ids": i.diffIDs},
	}
	if i.created != "" {
		c["created"] = i.created
		c["history"] = []any{map[string]any{"created": i.created}}
	}
	config := f.blob(ocispec.MediaTypeImageConfig, c)
	desc := f.blob(ocispec.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": config, "layers": []any{}, "annotations": i.annotations,
	})
	if i.platform.OS != "" {
		desc.Platform = &i.platform
	}
	return desc
}

func hostPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

func foreignPlatform() ocispec.Platform { return ocispec.Platform{OS: "linux", Architecture: "s390x"} }

func TestResolveImage(t *testing.T) {
	b := newImageBed(t)
	f := b.containerd
	attestation := f.manifestOf(imageJSON{platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"}, diffIDs: b.diffIDs[:1]})
	foreign := f.manifestOf(imageJSON{platform: foreignPlatform(), diffIDs: b.diffIDs[:1]})
	absent := foreign
	absent.Digest = digest.FromString("absent")
	host := f.manifestOf(imageJSON{
		platform: hostPlatform(), created: "2001-01-01T00:00:00Z", diffIDs: b.diffIDs,
		labels:      map[string]string{"version": "1", ocispec.AnnotationVersion: "12.1"},
		annotations: map[string]string{ocispec.AnnotationCreated: "2002-02-02T02:02:02.5+01:00"},
	})
	f.tag("default", "example.org/os:1", f.index(attestation, absent, foreign, f.index(host)))
	f.tag("default", "example.org/single:1", f.manifestOf(imageJSON{created: "2001-01-01T00:00:00Z", diffIDs: b.diffIDs, labels: map[string]string{"version": "1"}}))
	f.tag("default", "example.org/no-time:1", f.manifestOf(imageJSON{created: "yesterday", diffIDs: b.diffIDs, annotations: map[string]string{ocispec.AnnotationCreated: "x"}}))

	got, err := b.resolve(t, "example.org/os:1")
	if err != nil {
		t.Fatal(err)
	}
	want := &resolved{
		Name: "example.org/os:1", Namespace: "default", Manifest: host.Digest, Chain: identity.ChainID(b.diffIDs),
		Layers: []objectstore.Checksum{b.base, b.os}, Version: "12.1",
		Target: got.Target, ManifestJSON: got.ManifestJSON, ConfigJSON: got.ConfigJSON, Created: got.Created,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	var manifest ocispec.Manifest
	decode(t, string(got.ManifestJSON), &manifest)
	if digest.FromBytes(got.ManifestJSON) != host.Digest || digest.FromBytes(got.ConfigJSON) != manifest.Config.Digest {
		t.Errorf("manifest and config are not byte for byte those of the image:\n%s\n%s", got.ManifestJSON, got.ConfigJSON)
	}
	if want := time.Date(2002, 2, 2, 1, 2, 2, 5e8, time.UTC); !got.Created.Equal(want) {
		t.Errorf("created %s, want %s", got.Created, want)
	}
	if got, err := b.resolve(t, "example.org/single:1"); err != nil || got.Version != "1" || got.Created.Year() != 2001 {
		t.Errorf("single manifest: got %+v, %v, want version 1 of 2001", got, err)
	}
	if got, err := b.resolve(t, "example.org/no-time:1"); err != nil || !got.Created.IsZero() || got.Version != "" {
		t.Errorf("times that are none: got %+v, %v, want neither time nor version", got, err)
	}
}

// TestResolveBuiltImage has an image whose uppermost layer was made of a directory, as builders do: only its snapshot says
// which it is.
func TestResolveBuiltImage(t *testing.T) {
	f, s := newFixture(t)
	b := &imageBed{fixture: f, store: s, containerd: newFakeContainerd(t)}
	conn, err := grpcClient(b.containerd.address, dialUnix)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b.conn = conn
	base, err := f.layers.Layer(t.Context(), f.base)
	if err != nil {
		t.Fatal(err)
	}
	diffIDs := []digest.Digest{base.DiffID, digest.FromString("what a builder says")}
	chain := identity.ChainID(diffIDs)
	if err := f.run(t.Context(), "build", f.chain, "built"); err != nil {
		t.Fatal(err)
	}
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String()})
	if err := f.sn.Commit(t.Context(), snapshotName(chain.String()), snapshotName("build"), labels); err != nil {
		t.Fatal(err)
	}
	f.stopDaemon(t)
	b.containerd.tag("default", "example.org/built:1", b.containerd.manifestOf(imageJSON{diffIDs: diffIDs}))
	got, err := b.resolve(t, "example.org/built:1")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Layers) != 2 || got.Layers[0] != f.base || got.Chain != chain {
		t.Errorf("layers %v of chain %s, want two of which the first is %s, and %s", got.Layers, got.Chain, f.base, chain)
	}
	root, err := f.layers.Flatten(t.Context(), got.Layers)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range root.Entries {
		names = append(names, e.Name)
	}
	if want := []string{"bin", "data", "etc"}; !slices.Equal(names, want) {
		t.Errorf("the image has %v, want %v", names, want)
	}
}

func TestResolveImageErrors(t *testing.T) {
	b := newImageBed(t)
	f := b.containerd
	good := imageJSON{diffIDs: b.diffIDs}
	absent := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString("absent"), Size: 6}
	}
	raw := func(mediaType, text string) ocispec.Descriptor { return f.blob(mediaType, []byte(text)) }
	version := func(v string) imageJSON {
		return imageJSON{diffIDs: b.diffIDs, labels: map[string]string{"version": v}}
	}
	deep := f.manifestOf(good)
	for range maxIndexDepth + 1 {
		deep = f.index(deep)
	}
	f.tag("k8s.io", "example.org/there:1", f.manifestOf(good))
	config := func(desc ocispec.Descriptor) ocispec.Descriptor {
		return f.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: desc})
	}
	for _, tt := range []struct {
		name   string
		target ocispec.Descriptor // zero: there is no such image
		status int
		want   string // in the error
		hint   string // in the hint
	}{
		{"example.org/none:1", ocispec.Descriptor{}, exitNoImage, "no such image in namespace default", "ctr -n default images pull --snapshotter ostree example.org/none:1"},
		{"example.org/there:1", ocispec.Descriptor{}, exitNoImage, "no such image", "-n k8s.io"},
		{"busybox", ocispec.Descriptor{}, exitNoImage, "no such image", "docker.io/library/busybox:latest"},
		{"user/os:1", ocispec.Descriptor{}, exitNoImage, "no such image", "docker.io/user/os:1"},
		{"example.org/os", ocispec.Descriptor{}, exitNoImage, "no such image", "example.org/os:latest"},
		{"no-index", absent(ocispec.MediaTypeImageIndex), exitNoImage, "does not have its index", "pulls it again"},
		{"no-manifest", absent(ocispec.MediaTypeImageManifest), exitNoImage, "does not have its manifest", "pulls it again"},
		{"no-config", config(absent(ocispec.MediaTypeImageConfig)), exitNoImage, "does not have its config", "pulls it again"},
		{"foreign", f.manifestOf(imageJSON{platform: foreignPlatform(), diffIDs: b.diffIDs}), exitNoImage, "it is for linux/s390x, this host is linux/" + runtime.GOARCH, "--platform linux/" + runtime.GOARCH},
		{"foreign-index", f.index(f.manifestOf(imageJSON{platform: foreignPlatform(), diffIDs: b.diffIDs})), exitNoImage, "it is for linux/s390x", "--platform"},
		{"empty-index", f.index(), exitNoImage, "names no manifest", ""},
		{"not-unpacked", f.manifestOf(imageJSON{diffIDs: []digest.Digest{b.diffIDs[0], digest.FromString("not unpacked")}}), exitNoImage, "has not unpacked it", "--snapshotter ostree"},
		{"no-layers", f.manifestOf(imageJSON{}), exitNotBootable, "it has no layers", ""},
		{"bad-diff-id", f.manifestOf(imageJSON{diffIDs: []digest.Digest{"../../etc/passwd"}}), exitFailed, "../../etc/passwd", ""},
		{"not-sha256", f.manifestOf(imageJSON{diffIDs: []digest.Digest{digest.SHA512.FromString("x")}}), exitFailed, "only sha256", ""},
		{"bad-config-digest", config(ocispec.Descriptor{Digest: "sha256:../x"}), exitFailed, "config \"sha256:../x\"", ""},
		{"deep", deep, exitFailed, "indexes in each other", ""},
		{"huge", raw(ocispec.MediaTypeImageManifest, strings.Repeat(" ", maxManifest+1)), exitFailed, "at most", ""},
		{"not-json", raw(ocispec.MediaTypeImageManifest, "{"), exitFailed, "manifest sha256:", ""},
		{"not-utf8", raw(ocispec.MediaTypeImageManifest, "{\"annotations\":{\"a\":\"\xff\"}}"), exitFailed, "not UTF-8", ""},
		{"nul", raw(ocispec.MediaTypeImageManifest, "{}\x00"), exitFailed, "manifest sha256:", ""},
		{"type", raw("application/vnd.example", "{}"), exitNoImage, "names no manifest", ""},
		{"version-lines", f.manifestOf(version("1\noptions init=/bin/sh")), exitNotBootable, "control characters", ""},
		{"version-long", f.manifestOf(version(strings.Repeat("1", maxVersion+1))), exitNotBootable, "too long", ""},
	} {
		t.Run(strings.ReplaceAll(tt.name, "/", "_"), func(t *testing.T) {
			if tt.target.Digest != "" {
				f.tag("default", tt.name, tt.target)
			}
			img, err := b.resolve(t, tt.name)
			if err == nil {
				t.Fatalf("got %+v, want an error", img)
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.name) {
				t.Errorf("got error %v, want %q in it, and the image's name", err, tt.want)
			}
			if hint := hintFor(err); !strings.Contains(hint, tt.hint) {
				t.Errorf("got hint %q, want %q in it", hint, tt.hint)
			}
			if got := statusOf(err); got != tt.status {
				t.Errorf("got status %d, want %d", got, tt.status)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		conn, err := grpcClient(filepath.Join(t.TempDir(), "sock"), dialUnix)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = (&cli{}).resolveImage(t.Context(), conn, b.store, "x")
		if err == nil || !strings.Contains(hintFor(err), "--address") {
			t.Errorf("got error %v with hint %q, want --address in it", err, hintFor(err))
		}
	})
}

// bind mounts a directory a second time, until the test ends.
func bind(t *testing.T, dir, at string) {
	t.Helper()
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// openStoreAt opens a store as a command does.
func openStoreAt(t *testing.T, root string) *store {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte("version = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := (&cli{root: root, configFile: config, openDir: atfs.Open}).openStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// sysrootRepo makes the repository of a sysroot.
func sysrootRepo(t *testing.T, name string) *objectstore.Repo {
	t.Helper()
	if err := os.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
	return objecttest.NewRepoAt(t, openDir(t, name))
}

// sharedInodes returns how many content objects two repositories have as one inode, and how many as two.
func sharedInodes(t *testing.T, a, b *objectstore.Repo) (shared, apart int) {
	t.Helper()
	for _, obj := range contentObjects(t, a) {
		x, err := a.Stat(obj)
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Stat(obj)
		switch {
		case errors.Is(err, objectstore.ErrNotExist):
		case err != nil:
			t.Fatal(err)
		case x.Ino == y.Ino && x.Dev == y.Dev:
			shared++
		default:
			apart++
		}
	}
	return shared, apart
}

func contentObjects(t *testing.T, repo *objectstore.Repo) (sums []objectstore.Checksum) {
	t.Helper()
	names, err := filepath.Glob(repo.ObjectsDir().Path() + "/??/*.file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		rel, err := filepath.Rel(repo.ObjectsDir().Path(), name)
		if err != nil {
			t.Fatal(err)
		}
		obj, err := objectstore.ParseLoosePath(rel)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, obj.Checksum)
	}
	return sums
}

// osImage tags an image of the operating system.
func (b *imageBed) osImage(t *testing.T) *resolved {
	t.Helper()
	const name = "example.org/os:1"
	b.containerd.tag("default", name, b.containerd.manifestOf(imageJSON{
		platform: hostPlatform(), diffIDs: b.diffIDs, labels: map[string]string{"version": "1"}, created: "2001-01-01T00:00:00Z",
	}))
	img, err := b.resolve(t, name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func promote(t *testing.T, s *store, to *objectstore.Repo, img *resolved, dryRun bool) *promoted {
	t.Helper()
	p, err := (&cli{stderr: io.Discard}).promote(t.Context(), s, to, img, dryRun)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPromote(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	to := sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo")

	dry := promote(t, b.store, to, img, true)
	if dry.repo == to || dry.need.Shared == 0 || dry.need.Objects != 0 {
		t.Errorf("dry run: need %+v in the sysroot's repository: %t, want links in another one", dry.need, dry.repo == to)
	}
	if n := len(contentObjects(t, to)); n != 0 {
		t.Errorf("dry run: %d objects are in the sysroot's repository", n)
	}
	if err := dry.release(); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(b.root.Path() + "/tmp"); err != nil || len(names) != 0 {
		t.Errorf("dry run: %v, %v are left in tmp/, want nothing", names, err)
	}

	p := promote(t, b.store, to, img, false)
	if err := p.release(); err != nil {
		t.Error(err)
	}
	if p.commit != dry.commit {
		t.Errorf("commit %s, that of the dry run is %s", p.commit, dry.commit)
	}
	if got, err := to.Ref("ostree/container/image/docker_3A__2F__2F_example_2E_org/os_3A_1"); err != nil || got != p.commit {
		t.Errorf("ref: got %s, %v, want %s", got, err, p.commit)
	}
	commit, err := to.Commit(p.commit)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"version": "1", "ostree.linux": "6.1.0", "ostree.manifest-digest": img.Manifest.String(),
		"ostree.manifest": string(img.ManifestJSON), "ostree.container.image-config": string(img.ConfigJSON),
	} {
		if got, _ := commit.MetaString(key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if commit.Timestamp != uint64(img.Created.Unix()) {
		t.Errorf("time %d, want %d", commit.Timestamp, img.Created.Unix())
	}
	// bin/sh, os-release, vmlinuz and initramfs.img; the others are layer images and recipes.
	if shared, apart := sharedInodes(t, to, b.repo); shared != 4 || apart != 0 {
		t.Errorf("%d files are one inode in both repositories, %d are two, want 4 and none", shared, apart)
	}
	if len(p.dropped) != 1 || p.dropped[0].Path != "/dev/null" {
		t.Errorf("dropped: %v, want /dev/null", p.dropped)
	}
	if got, want := elsewhere(t, b.store), b.allocated(t, img.Layers, to); got != want {
		t.Errorf("df: %d bytes are elsewhere too, want the %d of the shared files", got, want)
	}
	again := promote(t, b.store, to, img, false)
	if again.commit != p.commit || again.need.Shared+again.need.Objects != 0 {
		t.Errorf("again: commit %s, need %+v, want %s and nothing", again.commit, again.need, p.commit)
	}
}

// elsewhere returns how many bytes of a store others have too.
func elsewhere(t *testing.T, s *store) (sum int64) {
	t.Helper()
	use := measure(t, s)
	for obj := range use.elsewhere {
		sum += use.objectBytes[obj]
	}
	return sum
}

// allocated returns the bytes of the objects that layers of the store share with another repository.
func (b *imageBed) allocated(t *testing.T, layers []objectstore.Checksum, with *objectstore.Repo) (sum int64) {
	t.Helper()
	for _, id := range layers {
		objects, err := b.layers.Objects(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, obj := range objects {
			st, err := with.Stat(obj)
			if err != nil && !errors.Is(err, objectstore.ErrNotExist) {
				t.Fatal(err)
			}
			sum += atfs.Allocated(&st)
		}
	}
	return sum
}

// TestDfOfSharedStore has df say what of an image the host's system has too, and what the image alone.
func TestDfOfSharedStore(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	args := []string{"df", "--root", b.root.Path(), "-a", b.containerd.address, "--json"}
	var before, after, gone dfReport
	decode(t, output(t, 0, args...), &before)
	to := sysrootRepo(t, b.root.Path()+"-sysroot")
	promote(t, b.store, to, img, false)
	decode(t, output(t, 0, args...), &after)
	shared := b.allocated(t, img.Layers, to)
	row := func(r *dfReport) *dfRow {
		for i := range r.Images {
			if r.Images[i].Digest == img.Target {
				return &r.Images[i]
			}
		}
		t.Fatalf("the image is not among %+v", r.Images)
		return nil
	}
	// The base's shell is needed by the images of the fixture too.
	shell := b.allocated(t, []objectstore.Checksum{b.base}, to)
	if before.Elsewhere != 0 || row(&before).Elsewhere != 0 || after.Elsewhere != shared || row(&after).Elsewhere != shared {
		t.Errorf("elsewhere: %d and %d bytes, then %d and %d, want none, then %d", before.Elsewhere, row(&before).Elsewhere,
			after.Elsewhere, row(&after).Elsewhere, shared)
	}
	if got, want := row(&after).Unique, row(&before).Unique-(shared-shell); got != want {
		t.Errorf("unique: %d bytes, before %d, want %d", got, row(&before).Unique, want)
	}
	if after.Stored != before.Stored || row(&after).Unique+row(&after).Shared != row(&before).Unique+row(&before).Shared {
		t.Errorf("stored: %d bytes, before %d, want the same", after.Stored, before.Stored)
	}
	if err := os.RemoveAll(to.ObjectsDir().Path()); err != nil {
		t.Fatal(err)
	}
	decode(t, output(t, 0, args...), &gone)
	if diff := cmp.Diff(before, gone); diff != "" {
		t.Errorf("when the other repository is gone (-want +got):\n%s", diff)
	}
	for _, name := range []string{to.Dir().Path() + "/refs/heads/ostree", to.ObjectsDir().Path()} { // for the check when the test ends
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(to.ObjectsDir().Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	objecttest.Fsck(t, b.repo)
}

// TestPromoteInOneRepo has the store and the sysroot use one repository.
func TestPromoteInOneRepo(t *testing.T) {
	b := newImageBed(t)
	to, err := objectstore.Open(b.repo.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	before := len(contentObjects(t, to))
	p := promote(t, b.store, to, b.osImage(t), false)
	if p.need.Objects+p.need.Shared != 0 {
		t.Errorf("need %+v, want no objects", p.need)
	}
	// The symbolic link and the empty file.
	if n := len(contentObjects(t, to)) - before; n != 2 {
		t.Errorf("%d objects were added, want 2", n)
	}
	objecttest.Fsck(t, to)
}

// TestPromoteAcrossMounts has the store below a mount of its own, as /var is on a host that ostree has booted: the kernel
// links nothing from there to the sysroot.
func TestPromoteAcrossMounts(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	// One file system, of which the store's root is the var of a stateroot.
	dir := t.TempDir()
	bind(t, filepath.Dir(b.root.Path()), dir+"/sysroot")
	bind(t, b.root.Path(), dir+"/var")
	to := sysrootRepo(t, dir+"/sysroot/ostree/repo")
	s := openStoreAt(t, dir+"/var")
	if how, err := to.Transfer(s.repo); err != nil || how == objectstore.TransferLink {
		t.Fatalf("transfer: got %v, %v, want that it cannot be linked", how, err)
	}
	p := promote(t, s, to, img, false)
	if p.need.Objects != 0 || p.need.Transfer != objectstore.TransferLink {
		t.Errorf("need %+v, want links", p.need)
	}
	if shared, apart := sharedInodes(t, to, s.repo); shared != 4 || apart != 0 {
		t.Errorf("%d files are one inode in both repositories, %d are two, want 4 and none", shared, apart)
	}
}

// TestPromoteElsewhere has the sysroot on another file system.
func TestPromoteElsewhere(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	to := sysrootRepo(t, testenv.NewDisk(t, "ext4", 16<<20).Dir+"/ostree/repo")
	p := promote(t, b.store, to, img, false)
	if p.need.Transfer != objectstore.TransferCopy || p.need.Objects != 4 || p.need.Bytes < 396<<10 {
		t.Errorf("need %+v, want copies of 4 files", p.need)
	}
	small := sysrootRepo(t, testenv.NewDisk(t, "ext4", 256<<10, "-O", "^has_journal").Dir+"/ostree/repo")
	_, err := (&cli{stderr: io.Discard}).promote(t.Context(), b.store, small, img, false)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "are free") {
		t.Errorf("got error %v, want one that says how much is free", err)
	}
}

func TestPromoteNotBootable(t *testing.T) {
	b := newImageBed(t)
	b.containerd.tag("default", "example.org/app:1", b.containerd.manifestOf(imageJSON{diffIDs: b.diffIDs[:1]}))
	img, err := b.resolve(t, "example.org/app:1")
	if err != nil {
		t.Fatal(err)
	}
	to := sysrootRepo(t, t.TempDir())
	_, err = (&cli{stderr: io.Discard}).promote(t.Context(), b.store, to, img, false)
	if statusOf(err) != exitNotBootable {
		t.Fatalf("got status %d of %v, want %d", statusOf(err), err, exitNotBootable)
	}
	for _, want := range []string{"example.org/app:1", "kernel: ", "directory: /usr", "symbolic link: /ostree", "os-release"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q in it", err, want)
		}
	}
	if n := len(contentObjects(t, to)); n != 0 {
		t.Errorf("%d objects were stored", n)
	}
}

// TestPromotePruned has a layer pruned between the image being found and its commit being made.
func TestPromotePruned(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	img.Layers = append(img.Layers, objectstore.Checksum{1})
	_, err := (&cli{stderr: io.Discard}).promote(t.Context(), b.store, sysrootRepo(t, t.TempDir()), img, false)
	if err == nil || !strings.Contains(err.Error(), "no such layer") {
		t.Errorf("got error %v, want that there is no such layer", err)
	}
}
