package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

// newContainerd serves what containerd has when our differ could not be loaded.
func newContainerd(t *testing.T) *containerdtest.Server {
	t.Helper()
	s := containerdtest.New(t)
	s.Plugins = map[string]string{containerd.SnapshotterID: "", containerd.DifferID: "no socket"}
	return s
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
	root := s.Root.Path()
	c := newContainerd(t)
	diffID := func(id objectstore.Checksum) digest.Digest {
		l, err := f.layers.Layer(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return l.DiffID
	}
	imageA := c.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{diffID(f.base), diffID(f.a)}})
	c.Tag("default", "example.org/a:1", imageA)
	c.Tag("k8s.io", "example.org/a:1", imageA)
	c.Tag("k8s.io", "example.org/b:1", c.Index(c.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{diffID(f.base), diffID(f.b)}})))
	c.Tag("default", "example.org/elsewhere:1", c.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{digest.FromString("not unpacked here")}}))

	t.Run("df", func(t *testing.T) {
		var all dfReport
		decode(t, output(t, 0, "df", "--root", root, "-a", c.Address, "--json"), &all)
		if all.Source != fromContainerd || len(all.Images) != 2 {
			t.Fatalf("%d images from %s, want 2 from containerd", len(all.Images), all.Source)
		}
		b, a := all.Images[0], all.Images[1]
		if len(b.Names) != 1 || b.Names[0] != (containerd.ImageName{Namespace: "k8s.io", Name: "example.org/b:1"}) {
			t.Errorf("names of the image with most unique bytes are %v, want example.org/b:1", b.Names)
		}
		if len(a.Names) != 2 || a.Digest != imageA.Digest || a.Layers != 2 || a.Active != 1 {
			t.Errorf("image a is %+v, want two names, two layers, one container", a)
		}
		var one dfReport
		decode(t, output(t, 0, "df", "--root", root, "-a", "unix://"+c.Address, "-n", "default", "--json"), &one)
		if diff := testenv.Diff([]dfRow{a}, one.Images); diff != "" {
			t.Errorf("images of namespace default (-want +got):\n%s", diff)
		}
		if text := output(t, 0, "df", "--root", root, "-a", c.Address); !strings.Contains(text, "\nexample.org/a:1 (+1) ") {
			t.Errorf("table has no line for example.org/a:1:\n%s", text)
		}
	})
	t.Run("fsck", func(t *testing.T) {
		objs, err := s.Layers.Closure(f.a)
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
		decode(t, output(t, exitCorrupt, "fsck", "--root", root, "-a", c.Address, "--json"), &r)
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
		if text := output(t, 0, "config", "containerd", "-a", c.Address); !strings.Contains(text, "\nversion = 4\n") {
			t.Errorf("configuration for containerd 2.4.2 is not of version 4:\n%s", text)
		}
		old := newContainerd(t)
		old.Version = "1.6.20~ds1"
		if text := output(t, exitFailed, "config", "containerd", "-a", old.Address); text != "" {
			t.Errorf("containerd 1.6 gets a configuration with which it does not start:\n%s", text)
		}
		var report checkReport
		decode(t, output(t, exitFailed, "config", "check", "--root", root, "-a", old.Address, "--json"), &report)
		list := report.Checks
		i := slices.IndexFunc(list, func(f finding) bool { return f.Check == "containerd" })
		if i < 0 || list[i].Result != resultFailed || !strings.Contains(list[i].Detail, "1.7 or later is needed") {
			t.Errorf("config check finds %+v, want that 1.7 is needed", list)
		}
	})
	t.Run("config check", func(t *testing.T) {
		var report checkReport
		decode(t, output(t, exitFailed, "config", "check", "--root", root, "-a", c.Address, "--json"), &report)
		got := make(map[string]string)
		for _, f := range report.Checks {
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
