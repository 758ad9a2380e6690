package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

func dial(t testing.TB, address string) *containerd.Client {
	t.Helper()
	c, err := containerd.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestDial dials sockets with unusual names, before and after they exist.
func TestDial(t *testing.T) {
	for _, tt := range []struct{ name, prefix string }{
		{"containerd.sock", ""},
		{"containerd.sock", "unix://"},
		{"a name?with#odd %zz.sock", ""},
		{"a name?with#odd %zz.sock", "unix://"},
	} {
		t.Run(tt.prefix+tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "dial") // a short name, for the limit of socket paths
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			address := filepath.Join(dir, tt.name)
			c := dial(t, tt.prefix+address)
			if _, err := c.Version(t.Context()); err == nil || !strings.Contains(err.Error(), address) {
				t.Errorf("nobody listens: got %v, want an error that names the socket", err)
			}
			containerdtest.NewAt(t, address)
			c = dial(t, tt.prefix+address)
			if got, err := c.Version(t.Context()); got != "v2.4.2" || err != nil {
				t.Errorf("version: got %q, %v", got, err)
			}
		})
	}
}

// A client reconnects to a containerd that was restarted.
func TestRestart(t *testing.T) {
	first := containerdtest.New(t)
	c := dial(t, first.Address)
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	if got, err := c.Version(t.Context()); !errdefs.IsUnavailable(err) {
		t.Fatalf("containerd is stopped: got %q, %v, want an ErrUnavailable", got, err)
	}
	containerdtest.NewAt(t, first.Address)
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if _, err := c.Version(t.Context()); err == nil {
			return
		} else if time.Since(begin) > 10*time.Second {
			t.Fatal(err)
		}
	}
}

func TestStagesMounts(t *testing.T) {
	s := containerdtest.New(t)
	c := dial(t, s.Address)
	for version, want := range map[string]bool{"2.4.2": true, "2.3.7": false, "devel": false} {
		s.Version = version
		if got := c.StagesMounts(t.Context()); got != want {
			t.Errorf("containerd %q stages mounts: %v, want %v", version, got, want)
		}
	}
}

func TestMapsMounts(t *testing.T) {
	s := containerdtest.New(t)
	c := dial(t, s.Address)
	for version, want := range map[string]bool{"1.7.24~ds1": false, "1.7.35+unknown": false, "2.0.14": true, "2.4.2": true, "devel": true} {
		s.Version = version
		if got := c.MapsMounts(t.Context()); got != want {
			t.Errorf("containerd %q maps mounts: %v, want %v", version, got, want)
		}
	}
}

func TestStagesMountsWithoutContainerd(t *testing.T) {
	c := dial(t, filepath.Join(t.TempDir(), "sock"))
	begin := time.Now()
	if c.StagesMounts(t.Context()) {
		t.Error("a containerd that does not answer stages mounts")
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("it took %s to find out, want at most 2 s", took)
	}
}

func TestContentRoot(t *testing.T) {
	s := containerdtest.New(t)
	c := dial(t, s.Address)
	if got, err := c.ContentRoot(t.Context()); !errors.Is(err, containerd.ErrNoContentRoot) {
		t.Errorf("got %q, %v, want ErrNoContentRoot", got, err)
	}
	s.ContentRoot = "/somewhere"
	if got, err := c.ContentRoot(t.Context()); got != "/somewhere" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	absent := dial(t, filepath.Join(t.TempDir(), "sock"))
	if got, err := absent.ContentRoot(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without containerd: got %q, %v, want an ErrUnavailable", got, err)
	}
}

func TestCheckPlugin(t *testing.T) {
	s := containerdtest.New(t)
	s.Plugins = map[string]string{"good": "", "bad": "no socket"}
	c := dial(t, s.Address)
	var absent *containerd.NoPluginError
	if err := c.CheckPlugin(t.Context(), "kind", "good"); err != nil {
		t.Errorf("plugin: %v", err)
	}
	if err := c.CheckPlugin(t.Context(), "kind", "bad"); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("plugin that did not load: got %v", err)
	}
	if err := c.CheckPlugin(t.Context(), "kind", "none"); !errors.As(err, &absent) || absent.ID != "none" {
		t.Errorf("plugin that is absent: got %v", err)
	}
}

func TestBlobs(t *testing.T) {
	text := []byte("blob")
	for _, c := range []struct {
		name   string
		root   func(store string) string // reported by containerd
		config func(store string) string // from the configuration
		file   bool
		asked  int
	}{
		{"asked", func(s string) string { return s }, func(string) string { return "" }, true, 1},
		{"configured", func(string) string { return "" }, func(s string) string { return s }, true, 0},
		{"containerd does not tell", func(string) string { return "" }, func(string) string { return "" }, false, 2},
		{"not visible here", func(s string) string { return s + "/elsewhere" }, func(string) string { return "" }, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := containerdtest.New(t)
			s.ContentRoot = c.root(s.Dir)
			blobs := dial(t, s.Address).Blobs(c.config(s.Dir))
			desc := s.Blob(ocispec.MediaTypeImageLayer, text)
			ctx := namespaces.WithNamespace(t.Context(), "default")
			for range 2 {
				b, err := blobs.ReaderAt(ctx, desc)
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
			if got := s.PluginsAsked(); got != c.asked {
				t.Errorf("containerd was asked %d times, want %d", got, c.asked)
			}
		})
	}
}
