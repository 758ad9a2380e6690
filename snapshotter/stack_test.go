package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/containerd/containerd/v2/core/mount"
)

func TestMounts(t *testing.T) {
	overlay := func(options ...string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
	}
	for _, c := range []struct {
		name  string
		stack stack
		want  []mount.Mount
		ro    bool
	}{
		{
			name: "active without parent",
			want: []mount.Mount{{Type: "bind", Source: "/u", Options: []string{"rw", "rbind"}}},
		},
		{
			name:  "unpacking without parent",
			stack: stack{unpack: true},
			want:  overlay("workdir=/w", "upperdir=/u", "index=off"),
		},
		{
			name:  "unpacking on a parent",
			stack: stack{unpack: true, lowers: []string{"/l1"}},
			want:  overlay("workdir=/w", "upperdir=/u", "lowerdir=/l1:/empty", "index=off"),
		},
		{
			name:  "active on one layer",
			stack: stack{lowers: []string{"/l1"}},
			want:  overlay("workdir=/w", "upperdir=/u", "lowerdir=/l1:/empty", "index=off"),
		},
		{
			name:  "active on several layers",
			stack: stack{lowers: []string{"/l3", "/l2", "/l1"}},
			want:  overlay("workdir=/w", "upperdir=/u", "lowerdir=/l3:/l2:/l1", "index=off"),
		},
		{
			name:  "a layer twice",
			stack: stack{lowers: []string{"/l2", "/l1", "/l2", "/l1"}},
			want:  overlay("workdir=/w", "upperdir=/u", "lowerdir=/l2:/l1", "index=off"),
		},
		{
			name:  "view of a layer twice",
			stack: stack{readOnly: true, lowers: []string{"/l1", "/l1"}},
			want:  overlay("lowerdir=/l1:/empty", "index=off"),
			ro:    true,
		},
		{
			name:  "view of nothing",
			stack: stack{readOnly: true},
			want:  []mount.Mount{{Type: "bind", Source: "/u", Options: []string{"ro", "rbind"}}},
			ro:    true,
		},
		{
			name:  "view or staged on one layer",
			stack: stack{readOnly: true, unpack: true, lowers: []string{"/l1"}},
			want:  overlay("lowerdir=/l1:/empty", "index=off"),
			ro:    true,
		},
		{
			name:  "view or staged on several layers",
			stack: stack{readOnly: true, unpack: true, lowers: []string{"/l2", "/l1"}},
			want:  overlay("lowerdir=/l2:/l1", "index=off"),
			ro:    true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.stack.upper, c.stack.work, c.stack.empty, c.stack.options = "/u", "/w", "/empty", []string{"index=off"}
			got := c.stack.mount()
			if diff := testenv.Diff(c.want, got); diff != "" {
				t.Errorf("mounts (-want +got):\n%s", diff)
			}
			if ro := got[len(got)-1].ReadOnly(); ro != c.ro {
				t.Errorf("containerd takes them for read-only: got %v, want %v", ro, c.ro)
			}
		})
	}
}

// TestMountsOf128LayersFitIntoAPage checks the size of the options: mount(2) takes one page. containerd omits the
// common prefix of the lower directories.
func TestMountsOf128LayersFitIntoAPage(t *testing.T) {
	const page = 4096
	root := "/var/lib/ostree-snapshotter"
	s := stack{upper: root + "/snapshots/1234567/fs", work: root + "/snapshots/1234567/work", options: []string{"index=off"}}
	for i := range 128 {
		s.lowers = append(s.lowers, fmt.Sprintf("%s/layers/%016x/fs", root, i))
	}
	options := strings.Join(s.mount()[0].Options, ",")
	if got := len(strings.ReplaceAll(options, root+"/layers/", "")); got >= page {
		t.Errorf("options take %d bytes, want less than %d", got, page)
	}
}

func TestOverlayOptions(t *testing.T) {
	for _, c := range []struct {
		name       string
		parameters map[string]string
		want       []string
	}{
		{"module not loaded", nil, nil},
		{"index off by default", map[string]string{"index": "N\n"}, []string{"index=off"}},
		{"index on by default", map[string]string{"index": "Y\n"}, []string{"index=off"}},
		{"others off", map[string]string{"index": "N\n", "metacopy": "N\n", "redirect_dir": "N\n"}, []string{"index=off"}},
		{
			"others on",
			map[string]string{"index": "Y\n", "metacopy": "Y\n", "redirect_dir": "Y\n"},
			[]string{"index=off", "metacopy=off", "redirect_dir=off"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, value := range c.parameters {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := overlayOptions(dir); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestIsUnpackKey(t *testing.T) {
	for key, want := range map[string]bool{
		"default/12/extract-614361939-Q871 sha256:3074": true,
		"extract-614361939-Q871 sha256:3074":            true,
		"default/12/extraction":                         false,
		"default/12/container-1":                        false,
		"extract-1/12/container":                        false,
		"default/1//tmp/initialC955347308":              false,
		"":                                              false,
	} {
		if got := isUnpackKey(key); got != want {
			t.Errorf("isUnpackKey(%q) = %v, want %v", key, got, want)
		}
	}
}

func TestRootPathOfMounts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", "with,comma", "with:colon", `with\backslash`} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := mountablePath(path)
		if ok := name == "plain"; ok != (err == nil) {
			t.Errorf("%s: got error %v, want one only where mount options cannot say the path", name, err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("plain", link); err != nil {
		t.Fatal(err)
	}
	got, err := mountablePath(link)
	if want, _ := filepath.EvalSymlinks(filepath.Join(dir, "plain")); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}
