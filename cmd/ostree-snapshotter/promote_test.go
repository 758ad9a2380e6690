package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// imageBed is the fixture with an operating system in it, and a containerd that knows images.
type imageBed struct {
	*fixture
	store      *store
	containerd *containerdtest.Server
	client     *containerd.Client
	os         objectstore.Checksum // layer over the base
	diffIDs    []digest.Digest      // of base and os
}

func newImageBed(t *testing.T) *imageBed {
	t.Helper()
	f, s := newFixture(t)
	b := &imageBed{fixture: f, store: s, containerd: newContainerd(t)}
	var err error
	if b.os, _, err = f.Unpack(t.Context(), f.chain, snaptest.OSFiles); err != nil {
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
	if b.client, err = containerd.Dial(b.containerd.Address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.client.Close() })
	return b
}

func (b *imageBed) resolve(t *testing.T, name string) (*deploy.Image, error) {
	t.Helper()
	src := &imageSource{store: b.store, client: b.client, namespace: "default"}
	return src.resolve(t.Context(), name)
}

func hostPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

func foreignPlatform() ocispec.Platform { return ocispec.Platform{OS: "linux", Architecture: "s390x"} }

func TestResolveImage(t *testing.T) {
	b := newImageBed(t)
	f := b.containerd
	attestation := f.Manifest(containerdtest.Image{Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"}, DiffIDs: b.diffIDs[:1]})
	foreign := f.Manifest(containerdtest.Image{Platform: foreignPlatform(), DiffIDs: b.diffIDs[:1]})
	absent := foreign
	absent.Digest = digest.FromString("absent")
	host := f.Manifest(containerdtest.Image{
		Platform: hostPlatform(), Created: "2001-01-01T00:00:00Z", DiffIDs: b.diffIDs,
		Labels:      map[string]string{"version": "1", ocispec.AnnotationVersion: "12.1"},
		Annotations: map[string]string{ocispec.AnnotationCreated: "2002-02-02T02:02:02.5+01:00"},
	})
	index := f.Index(attestation, absent, foreign, f.Index(host))
	f.Tag("default", "example.org/os:1", index)
	f.Tag("default", "example.org/single:1", f.Manifest(containerdtest.Image{Created: "2001-01-01T00:00:00Z", DiffIDs: b.diffIDs, Labels: map[string]string{"version": "1"}}))
	f.Tag("default", "example.org/no-time:1", f.Manifest(containerdtest.Image{Created: "yesterday", DiffIDs: b.diffIDs, Annotations: map[string]string{ocispec.AnnotationCreated: "x"}}))

	got, err := b.resolve(t, "example.org/os:1")
	if err != nil {
		t.Fatal(err)
	}
	want := &deploy.Image{
		Name: "example.org/os:1", ManifestDigest: host.Digest, Target: index.Digest, Layers: []objectstore.Checksum{b.base, b.os}, Version: "12.1",
		Manifest: got.Manifest, Config: got.Config, Created: got.Created,
	}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	var manifest ocispec.Manifest
	decode(t, string(got.Manifest), &manifest)
	if digest.FromBytes(got.Manifest) != host.Digest || digest.FromBytes(got.Config) != manifest.Config.Digest {
		t.Errorf("manifest and config are not byte for byte those of the image:\n%s\n%s", got.Manifest, got.Config)
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

// TestResolveBuiltImage: a builder made the uppermost layer from a directory, so only its snapshot identifies it.
func TestResolveBuiltImage(t *testing.T) {
	f, s := newFixture(t)
	b := &imageBed{fixture: f, store: s, containerd: newContainerd(t)}
	var err error
	if b.client, err = containerd.Dial(b.containerd.Address); err != nil {
		t.Fatal(err)
	}
	defer b.client.Close()
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
	b.containerd.Tag("default", "example.org/built:1", b.containerd.Manifest(containerdtest.Image{DiffIDs: diffIDs}))
	got, err := b.resolve(t, "example.org/built:1")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Layers) != 2 || got.Layers[0] != f.base {
		t.Errorf("layers %v, want two of which the first is %s", got.Layers, f.base)
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
	good := containerdtest.Image{DiffIDs: b.diffIDs}
	absent := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString("absent"), Size: 6}
	}
	raw := func(mediaType, text string) ocispec.Descriptor { return f.Blob(mediaType, []byte(text)) }
	version := func(v string) containerdtest.Image {
		return containerdtest.Image{DiffIDs: b.diffIDs, Labels: map[string]string{"version": v}}
	}
	deep := f.Manifest(good)
	for range 5 {
		deep = f.Index(deep)
	}
	f.Tag("k8s.io", "example.org/there:1", f.Manifest(good))
	config := func(desc ocispec.Descriptor) ocispec.Descriptor {
		return f.Blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: desc})
	}
	for _, tt := range []struct {
		name   string
		target ocispec.Descriptor // zero: the image does not exist
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
		{"foreign", f.Manifest(containerdtest.Image{Platform: foreignPlatform(), DiffIDs: b.diffIDs}), exitNoImage, "it is for linux/s390x, this host is linux/" + runtime.GOARCH, "--platform linux/" + runtime.GOARCH},
		{"foreign-index", f.Index(f.Manifest(containerdtest.Image{Platform: foreignPlatform(), DiffIDs: b.diffIDs})), exitNoImage, "it is for linux/s390x", "--platform"},
		{"empty-index", f.Index(), exitNoImage, "names no manifest", ""},
		{"not-unpacked", f.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{b.diffIDs[0], digest.FromString("not unpacked")}}), exitNoImage, "has not unpacked it", "--snapshotter ostree"},
		{"no-layers", f.Manifest(containerdtest.Image{}), exitNotBootable, "it has no layers", ""},
		{"bad-diff-id", f.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{"../../etc/passwd"}}), exitFailed, "../../etc/passwd", ""},
		{"not-sha256", f.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{digest.SHA512.FromString("x")}}), exitFailed, "only sha256", ""},
		{"bad-config-digest", config(ocispec.Descriptor{Digest: "sha256:../x"}), exitFailed, "config \"sha256:../x\"", ""},
		{"deep", deep, exitFailed, "indexes in each other", ""},
		{"huge", raw(ocispec.MediaTypeImageManifest, strings.Repeat(" ", containerd.MaxDocument+1)), exitFailed, "at most", ""},
		{"not-json", raw(ocispec.MediaTypeImageManifest, "{"), exitFailed, "manifest sha256:", ""},
		{"not-utf8", raw(ocispec.MediaTypeImageManifest, "{\"annotations\":{\"a\":\"\xff\"}}"), exitFailed, "not UTF-8", ""},
		{"nul", raw(ocispec.MediaTypeImageManifest, "{}\x00"), exitFailed, "manifest sha256:", ""},
		{"type", raw("application/vnd.example", "{}"), exitNoImage, "names no manifest", ""},
		{"version-lines", f.Manifest(version("1\noptions init=/bin/sh")), exitNotBootable, "control characters", ""},
		{"version-long", f.Manifest(version(strings.Repeat("1", 129))), exitNotBootable, "too long", ""},
	} {
		t.Run(strings.ReplaceAll(tt.name, "/", "_"), func(t *testing.T) {
			if tt.target.Digest != "" {
				f.Tag("default", tt.name, tt.target)
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
		client, err := containerd.Dial(filepath.Join(t.TempDir(), "sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = (&imageSource{store: b.store, client: client, namespace: "default"}).resolve(t.Context(), "x")
		if err == nil || !strings.Contains(hintFor(err), "--address") {
			t.Errorf("got error %v with hint %q, want --address in it", err, hintFor(err))
		}
	})
}

// sysrootRepo makes the repository of a sysroot.
func sysrootRepo(t *testing.T, name string) *objectstore.Repo {
	t.Helper()
	if err := os.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
	return objecttest.NewRepoAt(t, openDir(t, name))
}

// osImage tags an image of the operating system.
func (b *imageBed) osImage(t *testing.T) *deploy.Image {
	t.Helper()
	const name = "example.org/os:1"
	b.containerd.Tag("default", name, b.containerd.Manifest(containerdtest.Image{
		Platform: hostPlatform(), DiffIDs: b.diffIDs, Labels: map[string]string{"version": "1"}, Created: "2001-01-01T00:00:00Z",
	}))
	img, err := b.resolve(t, name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestImageLabel: labels come from the policy in the image, and a line of the policy comes with each.
func TestImageLabel(t *testing.T) {
	b := newImageBed(t)
	b.osImage(t)
	status, _, errs := b.run(t, "image", "label", "example.org/os:1", "/usr")
	if status != exitNotBootable || !strings.Contains(errs, "no SELinux policy: there is no /etc/selinux/config") {
		t.Errorf("image without a policy: exit status %d, %s", status, errs)
	}
	tar, err := makeTar([]tarFile{
		{name: "etc/selinux/config", content: "SELINUX=permissive\nSELINUXTYPE=default\n"},
		{name: "etc/selinux/default/contexts/files/file_contexts", content: "/.*\tu:o:root\n/usr/[^/]*\t-d\tu:o:dir\n/run\t<<none>>\n"},
	})
	testenv.Must(t, err)
	held, err := b.layers.Import(t.Context(), bytes.NewReader(tar), layer.ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, held.Release())
	const name = "example.org/labelled:1"
	b.containerd.Tag("default", name, b.containerd.Manifest(containerdtest.Image{
		Platform: hostPlatform(), DiffIDs: []digest.Digest{b.diffIDs[0], digest.FromBytes(tar)},
	}))
	const file = "/etc/selinux/default/contexts/files/file_contexts"
	status, out, errs := b.run(t, "image", "label", name, "/usr/none/", "/etc/selinux/config", "run")
	table := `PATH                 TYPE                         LABEL     LINE
/usr/none            directory, not in the image  u:o:dir   ` + file + `:2: /usr/[^/]*
/etc/selinux/config  file                         u:o:root  ` + file + `:1: /.*
/run                 file, not in the image       none      ` + file + `:3: /run
`
	if status != exitOK || out != table {
		t.Errorf("exit status %d, %s\n%s\nwant\n%s", status, errs, out, table)
	}
	var got imageLabelReport
	_, out, _ = b.run(t, "image", "label", name, "/run", "--json")
	decode(t, out, &got)
	want := imageLabelReport{Name: name, Policy: "default", Mode: "permissive", Files: []imageLabelFile{
		{Path: "/run", Type: "file", Line: &imageLabelLine{File: file, Number: 3, Spec: "/run"}},
	}}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
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

// TestDfOfSharedStore: df reports which part of an image the host's system shares, and which only the image has.
func TestDfOfSharedStore(t *testing.T) {
	b := newImageBed(t)
	img := b.osImage(t)
	args := []string{"df", "--root", b.root.Path(), "-a", b.containerd.Address, "--json"}
	var before, after, gone dfReport
	decode(t, output(t, 0, args...), &before)
	to := sysrootRepo(t, b.root.Path()+"-sysroot")
	p, err := deploy.Promote(t.Context(), b.store.Layers, to, img, deploy.PromoteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	decode(t, output(t, 0, args...), &after)
	shared := b.allocated(t, img.Layers, to)
	row := func(r *dfReport) *dfRow {
		for i := range r.Images {
			if r.Images[i].Digest == img.ManifestDigest {
				return &r.Images[i]
			}
		}
		t.Fatalf("the image is not among %+v", r.Images)
		return nil
	}
	// Images of the fixture need the base's shell too.
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
	if diff := testenv.Diff(before, gone); diff != "" {
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
