package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// fakeContainerd serves namespaces and images from memory, and a real content store.
type fakeContainerd struct {
	t       *testing.T
	content content.Store
	images  map[string][]*imagesapi.Image // by namespace
	address string
}

type namespacesServer struct {
	namespacesapi.UnimplementedNamespacesServer
	f *fakeContainerd
}

func (s namespacesServer) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	resp := &namespacesapi.ListNamespacesResponse{}
	for name := range s.f.images {
		resp.Namespaces = append(resp.Namespaces, &namespacesapi.Namespace{Name: name})
	}
	return resp, nil
}

type imagesServer struct {
	imagesapi.UnimplementedImagesServer
	f *fakeContainerd
}

func (s imagesServer) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	return &imagesapi.ListImagesResponse{Images: s.f.images[ns]}, nil
}

func (s imagesServer) Get(ctx context.Context, req *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	list, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, img := range list.Images {
		if img.Name == req.Name {
			return &imagesapi.GetImageResponse{Image: img}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

type versionServer struct {
	versionapi.UnimplementedVersionServer
}

func (versionServer) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v2.4.2"}, nil
}

// introspectionServer has the plugins that are named, with an error unless it is "".
type introspectionServer struct {
	introspectionapi.UnimplementedIntrospectionServer
	plugins map[string]string
}

func (s introspectionServer) Plugins(_ context.Context, req *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	resp := &introspectionapi.PluginsResponse{}
	for id, problem := range s.plugins {
		if !strings.HasSuffix(req.Filters[0], ",id=="+id) {
			continue
		}
		p := &introspectionapi.Plugin{ID: id}
		if problem != "" {
			p.InitErr = &rpcstatus.Status{Message: problem}
		}
		resp.Plugins = append(resp.Plugins, p)
	}
	return resp, nil
}

func newFakeContainerd(t *testing.T) *fakeContainerd {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeContainerd{t: t, content: store, images: make(map[string][]*imagesapi.Image)}
	f.address = filepath.Join(t.TempDir(), "containerd.sock")
	l, err := net.Listen("unix", f.address)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	namespacesapi.RegisterNamespacesServer(srv, namespacesServer{f: f})
	imagesapi.RegisterImagesServer(srv, imagesServer{f: f})
	contentapi.RegisterContentServer(srv, contentserver.New(store))
	versionapi.RegisterVersionServer(srv, versionServer{})
	introspectionapi.RegisterIntrospectionServer(srv, introspectionServer{
		plugins: map[string]string{snapshotterID: "", differID: "no socket"},
	})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return f
}

// blob stores bytes, or the JSON of anything else, and describes them.
func (f *fakeContainerd) blob(mediaType string, v any) ocispec.Descriptor {
	f.t.Helper()
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			f.t.Fatal(err)
		}
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(f.t.Context(), f.content, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
		f.t.Fatal(err)
	}
	return desc
}

// manifest stores a manifest and its config.
func (f *fakeContainerd) manifest(diffIDs ...digest.Digest) ocispec.Descriptor {
	f.t.Helper()
	config := f.blob(ocispec.MediaTypeImageConfig, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}})
	return f.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config,
	})
}

func (f *fakeContainerd) index(manifests ...ocispec.Descriptor) ocispec.Descriptor {
	f.t.Helper()
	return f.blob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

func (f *fakeContainerd) tag(namespace, name string, target ocispec.Descriptor) {
	f.images[namespace] = append(f.images[namespace], &imagesapi.Image{
		Name:   name,
		Target: &types.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size},
	})
}

func TestListImages(t *testing.T) {
	l1, l2, l3 := digest.FromString("1"), digest.FromString("2"), digest.FromString("3")
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	chains := func(diffIDs ...digest.Digest) []digest.Digest { return identity.ChainIDs(diffIDs) }

	f := newFakeContainerd(t)
	two := f.index(f.manifest(l1, l2), absent)
	f.tag("default", "example.org/two:latest", two)
	f.tag("k8s.io", "example.org/two:latest", two)
	f.tag("k8s.io", "example.org/two@"+two.Digest.String(), two)
	platforms := f.index(f.manifest(l1), f.manifest(l3), f.index(f.manifest(l1, l3)))
	f.tag("default", "example.org/platforms", platforms)
	f.tag("default", "example.org/absent", absent)
	f.tag("default", "example.org/not-json", f.blob(ocispec.MediaTypeImageManifest, []byte("not JSON")))
	f.tag("default", "example.org/huge", f.blob(ocispec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), maxManifest+1)))
	f.tag("default", "example.org/config-absent", f.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: absent}))
	deep := f.manifest(l2)
	for range maxIndexDepth + 1 {
		deep = f.index(deep)
	}
	f.tag("default", "example.org/deep", deep)
	f.tag("default", "example.org/unknown", f.blob("application/vnd.example", []byte("{}")))
	f.images["empty"] = nil

	conn, err := grpcClient(f.address, dialUnix)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	list, err := listImages(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]digest.Digest)
	for _, img := range list {
		var names []string
		for _, n := range img.names {
			names = append(names, n.Namespace+"/"+n.Name)
		}
		got[strings.Join(names, " ")] = img.chains
	}
	want := map[string][]digest.Digest{
		"default/example.org/two:latest k8s.io/example.org/two:latest k8s.io/example.org/two@" + two.Digest.String(): chains(l1, l2),
		"default/example.org/platforms":     {l1, l3, chains(l1, l3)[1]},
		"default/example.org/absent":        nil,
		"default/example.org/not-json":      nil,
		"default/example.org/huge":          nil,
		"default/example.org/config-absent": nil,
		"default/example.org/deep":          nil,
		"default/example.org/unknown":       nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chains of images (-want +got):\n%s", diff)
	}
}

// TestChainIDsOfRepeatedIndex reads an index that names one manifest very often, which must not be read as often.
func TestChainIDsOfRepeatedIndex(t *testing.T) {
	f := newFakeContainerd(t)
	m := f.manifest(digest.FromString("1"))
	many := make([]ocispec.Descriptor, 10000)
	for i := range many {
		many[i] = m
	}
	reads := &countingProvider{Provider: f.content}
	w := chainWalk{provider: reads, seen: make(map[digest.Digest]bool)}
	chains, err := w.chainIDs(t.Context(), f.index(many...), maxIndexDepth)
	if err != nil || len(chains) != 1 {
		t.Fatalf("chainIDs() = %v, %v; want one chain", chains, err)
	}
	if reads.n != 3 { // index, manifest, config
		t.Errorf("%d blobs were read, want 3", reads.n)
	}
}

type countingProvider struct {
	content.Provider
	n int
}

func (p *countingProvider) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	p.n++
	return p.Provider.ReaderAt(ctx, desc)
}

// output runs a command that must end with an exit status, and returns what it writes to standard output.
func output(t *testing.T, status int, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := execute(t.Context(), args, &stdout, &stderr); got != status {
		t.Fatalf("%v: exit status is %d, want %d\n%s%s", args, got, status, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// TestCommandsWithContainerd runs the commands that ask containerd for images.
func TestCommandsWithContainerd(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	root := s.root.Path()
	c := newFakeContainerd(t)
	diffID := func(id objectstore.Checksum) digest.Digest {
		l, err := f.layers.Layer(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return l.DiffID
	}
	imageA := c.manifest(diffID(f.base), diffID(f.a))
	c.tag("default", "example.org/a:1", imageA)
	c.tag("k8s.io", "example.org/a:1", imageA)
	c.tag("k8s.io", "example.org/b:1", c.index(c.manifest(diffID(f.base), diffID(f.b))))
	c.tag("default", "example.org/elsewhere:1", c.manifest(digest.FromString("not unpacked here")))

	t.Run("df", func(t *testing.T) {
		var all dfReport
		decode(t, output(t, 0, "df", "--root", root, "-a", c.address, "--json"), &all)
		if all.Source != fromContainerd || len(all.Images) != 2 {
			t.Fatalf("%d images from %s, want 2 from containerd", len(all.Images), all.Source)
		}
		b, a := all.Images[0], all.Images[1]
		if len(b.Names) != 1 || b.Names[0] != (imageName{"k8s.io", "example.org/b:1"}) {
			t.Errorf("names of the image with most unique bytes are %v, want example.org/b:1", b.Names)
		}
		if len(a.Names) != 2 || a.Digest != imageA.Digest || a.Layers != 2 || a.Active != 1 {
			t.Errorf("image a is %+v, want two names, two layers, one container", a)
		}
		var one dfReport
		decode(t, output(t, 0, "df", "--root", root, "-a", "unix://"+c.address, "-n", "default", "--json"), &one)
		if diff := cmp.Diff([]dfRow{a}, one.Images); diff != "" {
			t.Errorf("images of namespace default (-want +got):\n%s", diff)
		}
		if text := output(t, 0, "df", "--root", root, "-a", c.address); !strings.Contains(text, "\nexample.org/a:1 (+1) ") {
			t.Errorf("table has no line for example.org/a:1:\n%s", text)
		}
	})
	t.Run("fsck", func(t *testing.T) {
		objs, err := s.layers.Closure(f.a)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			name := "repo/objects/" + objectstore.LoosePath(o.Checksum, o.Type)
			if o.Type != objectstore.TypeFile {
				continue
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte("damaged"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var r fsckReport
		decode(t, output(t, exitCorrupt, "fsck", "--root", root, "-a", c.address, "--json"), &r)
		blamed := make(map[string]bool)
		for _, p := range r.Problems {
			for _, name := range p.Images {
				blamed[name] = true
			}
		}
		for _, name := range []string{"default/example.org/a:1", "k8s.io/example.org/a:1", "k8s.io/example.org/b:1"} {
			if !blamed[name] {
				t.Errorf("image %s is not said to be affected", name)
			}
		}
		if blamed["default/example.org/elsewhere:1"] {
			t.Error("an image that is not here is said to be affected")
		}
	})
	t.Run("config containerd", func(t *testing.T) {
		if text := output(t, 0, "config", "containerd", "-a", c.address); !strings.Contains(text, "\nversion = 4\n") {
			t.Errorf("configuration for containerd 2.4.2 is not of version 4:\n%s", text)
		}
	})
	t.Run("config check", func(t *testing.T) {
		var list []finding
		decode(t, output(t, exitFailed, "config", "check", "--root", root, "-a", c.address, "--json"), &list)
		got := make(map[string]string)
		for _, f := range list {
			got[f.Check] = f.Result
		}
		want := map[string]string{"containerd": resultOK, "snapshotter plugin": resultOK, "differ plugin": resultFailed}
		for check, result := range want {
			if got[check] != result {
				t.Errorf("check of %s is %q, want %q", check, got[check], result)
			}
		}
	})
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("output is no JSON: %v\n%s", err, text)
	}
}
