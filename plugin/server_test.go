package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// start runs a daemon until the test ends or stop is called, which returns what Run did.
func start(t *testing.T, c *Config) (conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	s, err := Assemble(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := listen(c.Address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return errors.Join(<-done, s.Close())
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return dial(t, c.Address), stop
}

func dial(tb testing.TB, address string) *grpc.ClientConn {
	tb.Helper()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestServer(t *testing.T) {
	c := testConfig(t)
	notifications := notifySocket(t)
	conn, stop := start(t, c)
	if got := <-notifications; got != "READY=1" {
		t.Errorf("systemd was told %q first, want READY=1", got)
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	for i := range 250 { // more than one message of the stream
		if _, err := sn.Prepare(t.Context(), fmt.Sprintf("key-%d", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	err := sn.Walk(t.Context(), func(context.Context, snapshots.Info) error { n++; return nil })
	if err != nil || n != 250 {
		t.Errorf("walk found %d snapshots, %v, want 250", n, err)
	}
	cleaner, ok := sn.(snapshots.Cleaner)
	if !ok {
		t.Fatal("proxy is no cleaner")
	}
	if err := cleaner.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]os.FileMode{c.Root: 0o711, c.Root + "/snapshots": 0o700, c.Root + "/metadata.db": 0o600, c.Address: 0o600, filepath.Dir(c.Address): 0o711} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s is %v, %v, want %o", name, fi.Mode(), err, want)
		}
	}
	if _, err := Assemble(t.Context(), c); err == nil || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second instance: got %v, want one line with this process's number", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if fi, err := os.Stat(c.Root + "/metadata.db.copy"); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("copy of metadata.db after the stop: got %v, %v, want a file of mode 600", fi, err)
	}
	if got := <-notifications; got != "STOPPING=1" {
		t.Errorf("systemd was told %q, want STOPPING=1", got)
	}
	conn, _ = start(t, c)
	sn = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	if m, err := sn.Mounts(t.Context(), "key-7"); err != nil || !strings.HasPrefix(m[0].Source, c.Root) {
		t.Errorf("after restart: %v, %v", m, err)
	}
}

// notifySocket is where systemd would be told what state the daemon is in.
func notifySocket(t *testing.T) <-chan string {
	t.Helper()
	name := filepath.Join(snaptest.SocketDir(t), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	got := make(chan string, 16)
	go func() {
		b := make([]byte, 256)
		for {
			n, err := conn.Read(b)
			if err != nil {
				close(got)
				return
			}
			got <- string(b[:n])
		}
	}()
	return got
}

// A bug in one call must not take the daemon, and all containers' snapshots with it, down.
func TestPanicEndsTheCall(t *testing.T) {
	address := testConfig(t).Address
	l, err := listenUnix(address)
	if err != nil {
		t.Fatal(err)
	}
	server := newGRPC()
	snapshotsapi.RegisterSnapshotsServer(server, panicking{})
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	client := snapshotsapi.NewSnapshotsClient(dial(t, address))
	for range 2 {
		if _, err := client.Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{}); status.Code(err) != codes.Internal {
			t.Errorf("unary call: got %v, want an internal error", err)
		}
		stream, err := client.List(t.Context(), &snapshotsapi.ListSnapshotsRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Internal {
			t.Errorf("stream: got %v, want an internal error", err)
		}
	}
}

type panicking struct {
	snapshotsapi.UnimplementedSnapshotsServer
}

func (panicking) Stat(context.Context, *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	panic("oh")
}

func (panicking) List(*snapshotsapi.ListSnapshotsRequest, snapshotsapi.Snapshots_ListServer) error {
	panic("no")
}

// fakeContainerd answers what the daemon asks of containerd.
type fakeContainerd struct {
	versionapi.UnimplementedVersionServer
	introspectionapi.UnimplementedIntrospectionServer
	version string
	root    string // of the content store, as containerd tells it
	plugins int    // how often it was asked for it
}

func (f *fakeContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: f.version}, nil
}

func (f *fakeContainerd) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	f.plugins++
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{
		{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": f.root}},
	}}, nil
}

// serve starts containerd at address, with a content store of one blob in dir.
func (f *fakeContainerd) serve(t *testing.T, address, dir string, blob []byte) ocispec.Descriptor {
	t.Helper()
	store, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(t.Context(), store, "ref", strings.NewReader(string(blob)), desc); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	versionapi.RegisterVersionServer(server, f)
	introspectionapi.RegisterIntrospectionServer(server, f)
	contentapi.RegisterContentServer(server, contentserver.New(store))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return desc
}

func TestBlobsOfContainerd(t *testing.T) {
	text := []byte("blob")
	for _, c := range []struct {
		name   string
		root   func(store string) string // what containerd tells
		config func(store string) string // what the configuration says
		file   bool
		asked  int
	}{
		{"asked", func(s string) string { return s }, func(string) string { return "" }, true, 1},
		{"configured", func(string) string { return "" }, func(s string) string { return s }, true, 0},
		{"containerd does not tell", func(string) string { return "" }, func(string) string { return "" }, false, 2},
		{"not visible here", func(s string) string { return s + "/elsewhere" }, func(string) string { return "" }, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t)
			store := t.TempDir()
			d, err := connect(config.Containerd.Address, c.config(store))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			f := &fakeContainerd{root: c.root(store)}
			desc := f.serve(t, config.Containerd.Address, store, text) // after the connection was prepared
			ctx := namespaces.WithNamespace(t.Context(), "default")
			for range 2 {
				b, err := d.ReaderAt(ctx, desc)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := b.(*blob.FileBlob); ok != c.file {
					t.Errorf("blob is a %T, want a file: %v", b, c.file)
				}
				got := make([]byte, b.Size())
				if _, err := b.ReadAt(got, 0); err != nil || string(got) != string(text) {
					t.Errorf("got %q, %v", got, err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
			if f.plugins != c.asked {
				t.Errorf("containerd was asked %d times, want %d", f.plugins, c.asked)
			}
		})
	}
}

// The whole way: containerd's content store, our socket, a layer applied and a known one staged.
func TestApplyThroughTheDaemon(t *testing.T) {
	c := testConfig(t)
	c.SkipDownload = true
	c.Durability = DurabilitySync
	f := &fakeContainerd{root: t.TempDir(), version: "2.4.2"}
	tar := snaptest.Tar(t, snaptest.File("file", "content"))
	desc := f.serve(t, c.Containerd.Address, f.root, tar)
	conn, _ := start(t, c)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	applier := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: desc.Digest.String()})

	m, err := sn.Prepare(ctx, "default/1/extract-1 x", "", labels)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := applier.Apply(ctx, desc, m); err != nil || got.Digest != desc.Digest {
		t.Fatalf("got %+v, %v", got, err)
	}
	if err := sn.Commit(ctx, "default/2/x", "default/1/extract-1 x"); err != nil {
		t.Fatal(err)
	}
	if m, err = sn.Prepare(ctx, "default/3/extract-1 x", "", labels); err != nil || !m[0].ReadOnly() {
		t.Errorf("known layer: got %v, %v, want read-only mounts", m, err)
	}
	f.version = "2.3.7"
	if m, err = sn.Prepare(ctx, "default/4/extract-1 x", "", labels); err != nil || m[0].ReadOnly() {
		t.Errorf("known layer on containerd 2.3: got %v, %v, want mounts that can be written to", m, err)
	}
}

func TestStagingWithoutContainerd(t *testing.T) {
	d, err := connect(testConfig(t).Containerd.Address, "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	begin := time.Now()
	if d.stages(t.Context()) {
		t.Error("a containerd that does not answer stages")
	}
	if took := time.Since(begin); took > 2*questionTimeout {
		t.Errorf("it took %s to find out, want at most %s", took, questionTimeout)
	}
}

func TestStagingVersion(t *testing.T) {
	for version, want := range map[string]bool{
		"2.4.0": true, "v2.4.2": true, "2.10.1": true, "3.0.0": true, "2.4.0-rc.1": true, "2.5.0+unknown": true,
		"2.3.7": false, "1.7.35": false, "v1.99.0": false, "": false, "2.4": false, "2.x.0": false, "devel": false, "-3.4.0": false,
	} {
		if got := stagingVersion(version); got != want {
			t.Errorf("stagingVersion(%q) = %v, want %v", version, got, want)
		}
	}
}
