package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// A tenant pulls, exports, pushes and removes an image in a namespace, as one kind of client does.
type tenant struct {
	namespace                  string
	pull, export, push, remove func(e *env, ns, full, target string) error
}

// ctrTenant uses ctr, whose flag --local makes it do itself what containerd's transfer service does otherwise.
func ctrTenant(namespace string, local ...string) tenant {
	export := exportByTransfer
	if len(local) > 0 {
		export = func(e *env, ns, full, file string) error {
			_, err := e.Ctr(e.t.Context(), ns, slices.Concat([]string{"images", "export"}, local, []string{file, full})...)
			return err
		}
	}
	run := func(e *env, ns string, args ...string) error {
		_, err := e.Ctr(e.t.Context(), ns, args...)
		return err
	}
	return tenant{
		namespace: namespace,
		pull: func(e *env, ns, full, _ string) error {
			return e.Pull(e.t.Context(), ns, full, local...)
		},
		export: export,
		push: func(e *env, ns, full, target string) error {
			return run(e, ns, slices.Concat([]string{"images", "push", "--plain-http"}, local, []string{target, full})...)
		},
		remove: func(e *env, ns, full, _ string) error {
			return run(e, ns, "images", "rm", "--sync", full)
		},
	}
}

// tenants returns one tenant for each kind of client.
func tenants() []tenant {
	nerdctl := func(e *env, ns string, args ...string) error {
		_, err := e.Nerdctl(e.t.Context(), ns, args...)
		return err
	}
	cri := ctrTenant("k8s.io") // the CRI can neither export nor push
	cri.pull = func(e *env, _, full, _ string) error { _, err := e.Crictl(e.t.Context(), "pull", full); return err }
	cri.remove = func(e *env, _, full, _ string) error { _, err := e.Crictl(e.t.Context(), "rmi", full); return err }
	return []tenant{
		ctrTenant("transfer"),
		ctrTenant("local", "--local"),
		cri,
		{
			namespace: "nerdctl",
			pull:      func(e *env, ns, full, _ string) error { return nerdctl(e, ns, "pull", "--quiet", full) },
			export:    func(e *env, ns, full, file string) error { return nerdctl(e, ns, "save", "--output", file, full) },
			push: func(e *env, ns, full, target string) error {
				return errors.Join(nerdctl(e, ns, "tag", full, target), nerdctl(e, ns, "push", "--quiet", target),
					nerdctl(e, ns, "rmi", target))
			},
			remove: func(e *env, ns, full, _ string) error { return nerdctl(e, ns, "rmi", full) },
		},
	}
}

// exportByTransfer has containerd's transfer service export an image. ctr does so too, but ends when the service does: what
// it has not written by then is missing in the archive.
func exportByTransfer(e *env, ns, full, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		_, err := io.Copy(f, r)
		written <- errors.Join(err, f.Close())
	}()
	ctx := namespaces.WithNamespace(e.t.Context(), ns)
	err = e.Client().Transfer(ctx, transferimage.NewStore(full), archive.NewImageExportStream(w, ""))
	if err != nil {
		_ = w.Close()
	}
	return errors.Join(err, <-written)
}

// TestNamespaces pulls an image in four namespaces, by each kind of client, in both orders. Everywhere it is whole: it
// can be exported and pushed to another registry, and stays so while the other namespaces remove it. The last namespace
// repairs it from its own blobs. Each layer is unpacked once in all.
func TestNamespaces(t *testing.T) {
	forward := tenants()
	backward := tenants()
	slices.Reverse(backward)
	for _, c := range []struct {
		ref     string
		unpacks int
		order   []tenant
	}{
		{"layers:1", 1, forward},
		{"odd:1", 3, backward},
	} {
		t.Run(c.ref, func(t *testing.T) {
			second, err := stack.StartRegistry(t.Context(), shared.tools)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := second.Stop(); err != nil {
					t.Error(err)
				}
			}()
			e := start(t, func(o *stack.Options) { o.ParallelUnpacks = c.unpacks })
			full := push(t, c.ref)
			for _, n := range c.order {
				e.must(n.pull(e, n.namespace, full, ""))
				e.mustExport(n, full, c.ref)
				e.must(n.push(e, n.namespace, full, fmt.Sprintf("%s/%s/%s", second.Address, n.namespace, c.ref)))
				e.compare(c.ref, e.view(n.namespace, full))
			}
			e.importedOnce(c.ref)
			last := c.order[len(c.order)-1]
			for _, n := range c.order[:len(c.order)-1] {
				e.must(n.remove(e, n.namespace, full, ""))
				e.mustExport(last, full, c.ref)
			}
			e.prune()
			e.run(last.namespace, full, "/bin/true")
			e.damageOne()
			e.fsckReport(12)
			if r := e.fsckReport(0, "--repair"); len(r.Repaired) == 0 {
				t.Error("fsck --repair repaired nothing")
			}
			e.compare(c.ref, e.view(last.namespace, full))
		})
	}
}

// mustExport exports an image, and ends the test unless the archive has every layer.
func (e *env) mustExport(n tenant, full, ref string) {
	e.t.Helper()
	file := filepath.Join(e.t.TempDir(), "image.tar")
	e.must(n.export(e, n.namespace, full, file))
	f, err := os.Open(file)
	e.must(err)
	defer f.Close()
	found := make(map[string]bool)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		e.must(err)
		found[path.Base(h.Name)] = true
	}
	for _, l := range image(e.t, ref).Manifest.Layers {
		if !found[l.Digest.Encoded()] {
			e.t.Fatalf("namespace %s: the archive of %s lacks layer %s", n.namespace, ref, l.Digest)
		}
	}
}

// damageOne flips a bit of the largest object.
func (e *env) damageOne() {
	e.t.Helper()
	found, err := filepath.Glob(filepath.Join(e.Root, "repo/objects/*/*.file"))
	e.must(err)
	size := func(name string) int64 {
		st, err := os.Stat(name)
		e.must(err)
		return st.Size()
	}
	largest := slices.MaxFunc(found, func(a, b string) int { return int(size(a) - size(b)) })
	e.must(flip(rand.New(rand.NewPCG(1, 1)), largest))
}

// layerBlobs returns the digests of an image's layers that containerd has in a namespace.
func (e *env) layerBlobs(namespace, ref string) (found []string) {
	e.t.Helper()
	ctx := namespaces.WithNamespace(e.t.Context(), namespace)
	for _, l := range image(e.t, ref).Manifest.Layers {
		_, err := e.Client().ContentStore().Info(ctx, l.Digest)
		if err == nil {
			found = append(found, l.Digest.Encoded())
		} else if !errdefs.IsNotFound(err) {
			e.t.Fatal(err)
		}
	}
	return found
}

// TestShareNamespaces pulls an image in a second namespace with share_namespaces: it gets no blob of a layer there.
func TestShareNamespaces(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.Config = "share_namespaces = true\n" })
	full := e.pull("first", "layers:1")
	e.pull("second", "layers:1")
	if got := e.layerBlobs("second", "layers:1"); len(got) != 0 {
		t.Errorf("the second namespace has the blobs of layers %q, want none", got)
	}
	e.importedOnce("layers:1")
	e.ctr("first", "images", "rm", "--sync", full)
	e.compare("layers:1", e.view("second", full))
}

// TestNamedLayers makes images in a second namespace that name layers of the first one, by blob and by diff ID, without
// having their blobs. Neither can be unpacked.
func TestNamedLayers(t *testing.T) {
	e := start(t, nil)
	e.pull("first", "layers:1")
	private := image(t, "layers:1")
	own := image(t, "odd:1")
	ctx, release, err := e.Client().WithLease(namespaces.WithNamespace(t.Context(), "second"))
	e.must(err)
	defer func() { e.must(release(context.WithoutCancel(ctx))) }()
	for _, c := range []struct {
		name, want string
		layers     []ocispec.Descriptor
		have       bool // the layers' blobs
	}{
		{"by blob", "not found", private.Manifest.Layers, false},
		{"by diff ID", "wrong diff", own.Manifest.Layers[1:2], true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{Stack: e.Stack, t: t}
			config := private.Config
			config.RootFS.DiffIDs = config.RootFS.DiffIDs[:len(c.layers)]
			m := private.Manifest
			m.Layers = c.layers
			if c.have {
				for _, l := range c.layers {
					b, err := os.ReadFile(own.Blob(l.Digest))
					e.must(err)
					e.putBlob(ctx, l.MediaType, b)
				}
			}
			b, err := json.Marshal(config)
			e.must(err)
			m.Config = e.putBlob(ctx, m.Config.MediaType, b)
			b, err = json.Marshal(m)
			e.must(err)
			target := e.putBlob(ctx, ocispec.MediaTypeImageManifest, b)
			record, err := e.Client().ImageService().Create(ctx, coreimages.Image{Name: c.name, Target: target})
			e.must(err)
			err = containerd.NewImage(e.Client(), record).Unpack(ctx, e.Snapshotter)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("unpack: got %v, want an error with %q", err, c.want)
			}
			err = e.Client().SnapshotService(e.Snapshotter).Walk(ctx, func(context.Context, snapshots.Info) error {
				return errors.New("the namespace has a snapshot")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// putBlob writes a blob into containerd's content store.
func (e *env) putBlob(ctx context.Context, mediaType string, b []byte) ocispec.Descriptor {
	e.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	e.must(content.WriteBlob(ctx, e.Client().ContentStore(), d.Digest.String(), bytes.NewReader(b), d))
	return d
}
