// Package containerdtest serves the part of containerd's API that tests need.
package containerdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
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
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A Server serves a version, plugins, namespaces and images from memory, and a real content store. Fields must not be
// set while a call runs.
type Server struct {
	Address string        // path of the socket
	Content content.Store // shared by all namespaces
	Dir     string        // directory of the content store

	Version     string            // reported
	Plugins     map[string]string // IDs of loaded plugins, and the error of each; "" for none
	ContentRoot string            // reported directory of the content store; "" for none

	t      testing.TB
	server *grpc.Server
	mu     sync.Mutex
	images map[string][]*imagesapi.Image // by namespace
	asked  int
}

// New starts a server without images at a socket in a temporary directory. It stops when the test ends.
func New(t testing.TB) *Server {
	t.Helper()
	return NewAt(t, filepath.Join(t.TempDir(), "containerd.sock"))
}

// NewAt is like New, with a socket at the given path.
func NewAt(t testing.TB, address string) *Server {
	t.Helper()
	dir := t.TempDir()
	store, err := local.NewLabeledStore(dir, &labels{all: make(map[digest.Digest]map[string]string)})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, Address: address, Content: store, Dir: dir, Version: "v2.4.2", images: make(map[string][]*imagesapi.Image)}
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	s.server = srv
	namespacesapi.RegisterNamespacesServer(srv, namespacesServer{s: s})
	imagesapi.RegisterImagesServer(srv, imagesServer{s: s})
	contentapi.RegisterContentServer(srv, contentserver.New(store))
	versionapi.RegisterVersionServer(srv, versionServer{s: s})
	introspectionapi.RegisterIntrospectionServer(srv, introspectionServer{s: s})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return s
}

// Stop stops the server, and closes its connections.
func (s *Server) Stop() { s.server.Stop() }

// Blob stores bytes, or the JSON of anything else, and returns their descriptor.
func (s *Server) Blob(mediaType string, v any) ocispec.Descriptor {
	s.t.Helper()
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			s.t.Fatal(err)
		}
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(s.t.Context(), s.Content, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
		s.t.Fatal(err)
	}
	return desc
}

// An Image has the parts of a manifest and config that tests vary.
type Image struct {
	Platform    ocispec.Platform
	Created     string // in the config
	Labels      map[string]string
	Annotations map[string]string // of the manifest
	Layers      []ocispec.Descriptor
	DiffIDs     []digest.Digest
}

// Manifest stores the manifest and config of an image, unchecked, and returns the descriptor of the manifest.
func (s *Server) Manifest(i Image) ocispec.Descriptor {
	s.t.Helper()
	c := map[string]any{
		"os": i.Platform.OS, "architecture": i.Platform.Architecture, "variant": i.Platform.Variant,
		"config": map[string]any{"Labels": i.Labels}, "rootfs": map[string]any{"type": "layers", "diff_ids": i.DiffIDs},
	}
	if i.Created != "" {
		c["created"] = i.Created
		c["history"] = []any{map[string]any{"created": i.Created}}
	}
	layers := i.Layers
	if layers == nil {
		layers = []ocispec.Descriptor{}
	}
	desc := s.Blob(ocispec.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": s.Blob(ocispec.MediaTypeImageConfig, c),
		"layers": layers, "annotations": i.Annotations,
	})
	if i.Platform.OS != "" {
		desc.Platform = &i.Platform
	}
	return desc
}

// Index stores an index of manifests, and returns its descriptor.
func (s *Server) Index(manifests ...ocispec.Descriptor) ocispec.Descriptor {
	s.t.Helper()
	return s.Blob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

// Namespace creates a namespace without images.
func (s *Server) Namespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[name] = append(s.images[name], nil...)
}

// Tag adds an image to a namespace.
func (s *Server) Tag(namespace, name string, target ocispec.Descriptor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[namespace] = append(s.images[namespace], &imagesapi.Image{
		Name:   name,
		Target: &types.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size},
	})
}

// PluginsAsked returns the number of requests for plugins.
func (s *Server) PluginsAsked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

type namespacesServer struct {
	namespacesapi.UnimplementedNamespacesServer
	s *Server
}

func (n namespacesServer) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	resp := &namespacesapi.ListNamespacesResponse{}
	for name := range n.s.images {
		resp.Namespaces = append(resp.Namespaces, &namespacesapi.Namespace{Name: name})
	}
	return resp, nil
}

type imagesServer struct {
	imagesapi.UnimplementedImagesServer
	s *Server
}

func (i imagesServer) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	return &imagesapi.ListImagesResponse{Images: i.s.images[ns]}, nil
}

func (i imagesServer) Get(ctx context.Context, req *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	list, err := i.List(ctx, nil)
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
	s *Server
}

func (v versionServer) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: v.s.Version}, nil
}

type introspectionServer struct {
	introspectionapi.UnimplementedIntrospectionServer
	s *Server
}

func (i introspectionServer) Plugins(_ context.Context, req *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	i.s.asked++
	resp := &introspectionapi.PluginsResponse{}
	if req.Filters[0] == "type==io.containerd.content.v1,id==content" {
		resp.Plugins = append(resp.Plugins, &introspectionapi.Plugin{ID: "content", Exports: map[string]string{"root": i.s.ContentRoot}})
	}
	for id, problem := range i.s.Plugins {
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

// labels are the labels of blobs.
type labels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

// Get returns the labels of a blob.
func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all[d]), nil
}

// Set replaces the labels of a blob.
func (l *labels) Set(d digest.Digest, m map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[d] = maps.Clone(m)
	return nil
}

// Update sets labels of a blob, and removes those without a value.
func (l *labels) Update(d digest.Digest, m map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[d] == nil {
		l.all[d] = make(map[string]string)
	}
	maps.Copy(l.all[d], m)
	maps.DeleteFunc(l.all[d], func(_, v string) bool { return v == "" })
	return maps.Clone(l.all[d]), nil
}
