package plugin

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// start runs a daemon until the test ends or stop is called. stop returns the result of Serve.
func start(t *testing.T, c *Config, options ...Option) (conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	s, err := Assemble(t.Context(), c, options...)
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
	for i := range 250 { // so that the stream has several messages
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

// TestCleanupWaits has a layer that nothing needs: a client that asks to wait, as the command prune does, finds nothing
// of it after a Cleanup.
func TestCleanupWaits(t *testing.T) {
	c := testConfig(t)
	c.Cleanup.WaitAbove = 100
	s, err := OpenStore(t.Context(), c)
	testenv.Must(t, err)
	held, err := s.Layers.Import(t.Context(), bytes.NewReader(snaptest.Tar(t, snaptest.File("file", "text"))), layer.ImportOptions{})
	testenv.Must(t, err)
	testenv.Must(t, errors.Join(held.Release(), s.Close()))
	objects := func() int {
		names, err := filepath.Glob(filepath.Join(c.Root, "repo/objects/??/*"))
		testenv.Must(t, err)
		return len(names)
	}
	if objects() == 0 {
		t.Fatal("there are no objects: this tests nothing")
	}
	conn, _ := start(t, c)
	ctx := metadata.AppendToOutgoingContext(t.Context(), inspect.WaitHeader, "true")
	_, err = snapshotsapi.NewSnapshotsClient(conn).Cleanup(ctx, &snapshotsapi.CleanupRequest{Snapshotter: "ostree"})
	if n := objects(); err != nil || n > 0 {
		t.Errorf("after the cleanup, %v, there are %d objects", err, n)
	}
}

// notifySocket returns a socket that receives the notifications to systemd.
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

// A bug in one call must not stop the daemon, and with it the snapshots of all containers.
func TestPanicEndsTheCall(t *testing.T) {
	address := testConfig(t).Address
	l, err := listenUnix(address)
	if err != nil {
		t.Fatal(err)
	}
	server := newGRPC("store", "")
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

// From containerd's content store through our socket: one layer is applied, and a known one is staged.
func TestApplyThroughTheDaemon(t *testing.T) {
	c := testConfig(t)
	c.SkipDownload = true
	c.Durability = DurabilitySync
	f := containerdtest.NewAt(t, c.Containerd.Address)
	f.ContentRoot = f.Dir
	desc := f.Blob(ocispec.MediaTypeImageLayer, snaptest.Tar(t, snaptest.File("file", "content")))
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
	f.Version = "2.3.7"
	if m, err = sn.Prepare(ctx, "default/4/extract-1 x", "", labels); err != nil || m[0].ReadOnly() {
		t.Errorf("known layer on containerd 2.3: got %v, %v, want mounts that can be written to", m, err)
	}
}

// TestMaxCalls reads from the server's HTTP/2 settings (RFC 9113, section 6.5) how many calls a connection may have.
func TestMaxCalls(t *testing.T) {
	c := testConfig(t)
	start(t, c)
	conn, err := net.Dial("unix", c.Address)
	testenv.Must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	testenv.Must(t, err)
	head := make([]byte, 9)
	_, err = io.ReadFull(conn, head)
	testenv.Must(t, err)
	settings := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(conn, settings)
	testenv.Must(t, err)
	for s := range slices.Chunk(settings, 6) {
		if binary.BigEndian.Uint16(s) == 3 { // SETTINGS_MAX_CONCURRENT_STREAMS
			if got := binary.BigEndian.Uint32(s[2:]); got != maxCalls {
				t.Errorf("got %d calls, want %d", got, maxCalls)
			}
			return
		}
	}
	t.Errorf("settings %x do not limit calls", settings)
}

// TestPruneBesideStuckDaemon: a file that the daemon cannot remove does not make it look locked.
func TestPruneBesideStuckDaemon(t *testing.T) {
	c := testConfig(t)
	c.Checkout = CheckoutHardlink
	start(t, c)
	stuck := filepath.Join(c.Root, "tmp/snapshot-old-x/stuck")
	if err := os.MkdirAll(stuck, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", stuck, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(stuck, unix.MNT_DETACH) })
	prune := func() error {
		s, err := OpenShared(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = (&inspect.Store{Root: s.Root, Repo: s.Repo, Layers: s.Layers, Daemon: c.Address}).Prune(t.Context(), false)
		return err
	}
	var locked *inspect.LockedError
	err := prune()
	if !errors.Is(err, objectstore.ErrNotRemoved) || errors.As(err, &locked) || !strings.Contains(err.Error(), "snapshot-old-x/stuck") {
		t.Errorf("got %v, want %v that names the mount point", err, objectstore.ErrNotRemoved)
	}
	if err := unix.Unmount(stuck, 0); err != nil {
		t.Fatal(err)
	}
	if err := prune(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := os.Lstat(filepath.Dir(stuck)); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}

// Of HTTP/2: the type of a ping, and the flag of an answer to one.
const framePing, flagAck = 6, 1

// pings counts the pings among the HTTP/2 frames that a connection receives.
type pings struct {
	net.Conn
	mu   sync.Mutex
	left []byte // of a frame that is not complete
	n    int
}

// Read reads and counts.
func (p *pings) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = append(p.left, b[:n]...)
	for len(p.left) >= 9 {
		size := 9 + int(p.left[0])<<16 + int(p.left[1])<<8 + int(p.left[2])
		if len(p.left) < size {
			break
		}
		if p.left[3] == framePing && p.left[4]&flagAck == 0 {
			p.n++
		}
		p.left = p.left[size:]
	}
	return n, err
}

// TestNoPings calls the daemon a few times: it sends no ping for any of the requests.
func TestNoPings(t *testing.T) {
	c := testConfig(t)
	start(t, c)
	var p *pings
	conn, err := grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Address)
			p = &pings{Conn: conn}
			return p, err
		}))
	testenv.Must(t, err)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	for i := range 5 {
		_, err := sn.Prepare(t.Context(), fmt.Sprint(i), "")
		testenv.Must(t, err)
	}
	testenv.Must(t, conn.Close())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n > 0 {
		t.Errorf("the daemon sent %d pings for 5 requests", p.n)
	}
}
