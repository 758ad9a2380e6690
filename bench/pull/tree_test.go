package pull

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func dir(name string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

// file makes an entry whose mode and owner follow from its size.
func file(name string, size int) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(size), Uid: size, Size: int64(size)}
}

func symlink(name, target string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

// newTree makes the tree of gzipped layers.
func newTree(t *testing.T, layers ...[]*tar.Header) (tree, error) {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	testenv.Must(t, err)
	var descs []ocispec.Descriptor
	for _, headers := range layers {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, h := range headers {
			testenv.Must(t, w.WriteHeader(h))
			_, err := w.Write(make([]byte, h.Size))
			testenv.Must(t, err)
		}
		testenv.Must(t, w.Close())
		testenv.Must(t, z.Close())
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(b.Bytes()), Size: int64(b.Len())}
		testenv.Must(t, content.WriteBlob(t.Context(), store, desc.Digest.String(), &b, desc))
		descs = append(descs, desc)
	}
	return readTree(t.Context(), store, descs)
}

func TestTree(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers [][]*tar.Header
		want   string // names, with the sizes of regular files
	}{
		{"one layer", [][]*tar.Header{{dir("a/"), file("a/b", 1), symlink("c", "a/b")}}, "/a /a/b=1 /c->a/b"},
		{"a file over another", [][]*tar.Header{{file("a", 1)}, {file("./a", 2)}}, "/a=2"},
		{"whiteout", [][]*tar.Header{{dir("a/"), file("a/b", 1), file("ab", 2)}, {file(".wh.a", 0)}}, "/ab=2"},
		{"whiteout beside what is new", [][]*tar.Header{{file("a", 1)}, {file("a", 2), file(".wh.a", 0)}}, "/a=2"},
		{"opaque", [][]*tar.Header{{dir("a/"), file("a/b", 1)}, {dir("a/"), file("a/c", 2), file("a/.wh..wh..opq", 0)}}, "/a /a/c=2"},
		{"file over directory", [][]*tar.Header{{dir("a/"), file("a/b", 1)}, {file("a", 2)}}, "/a=2"},
		{"hard link to a layer below", [][]*tar.Header{{file("a", 3)}, {hardlink("b", "a")}, {file("a", 4)}}, "/a=4 /b=3"},
		{"parent is a link", [][]*tar.Header{{dir("usr/"), dir("usr/lib/"), symlink("lib", "usr/lib")}, {file("lib/x", 1)}}, "/lib->usr/lib /usr /usr/lib /usr/lib/x=1"},
		{"parent is an absolute link", [][]*tar.Header{{dir("v/"), dir("run/"), symlink("v/run", "/run")}, {file("v/run/x", 1)}}, "/run /run/x=1 /v /v/run->/run"},
		{"no parent", [][]*tar.Header{{file("a/b/c", 1)}}, "/a /a/b /a/b/c=1"},
		{"above the root", [][]*tar.Header{{file("../../a", 1)}}, "/a=1"},
		{"links in a circle", [][]*tar.Header{{symlink("a", "b"), symlink("b", "a"), file("a/c", 1)}}, "?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newTree(t, tt.layers...)
			testenv.Must(t, err)
			if tt.want != "?" && describe(got) != tt.want {
				t.Errorf("got %s, want %s", describe(got), tt.want)
			}
		})
	}
	if _, err := newTree(t, []*tar.Header{hardlink("a", "none")}); err == nil || !strings.Contains(err.Error(), `"a": link to "none"`) {
		t.Errorf("link to nothing: got %v", err)
	}
}

func describe(t tree) string {
	var words []string
	for _, name := range sortedNames(t) {
		l := t[name]
		switch {
		case l.Target != "":
			name += "->" + l.Target
		case l.Digest != "":
			name += fmt.Sprintf("=%d", l.Size)
			if l.UID != uint32(l.Size) || l.Mode&0o7777 != uint32(l.Size) {
				name += "?"
			}
		}
		words = append(words, name)
	}
	return strings.Join(words, " ")
}

// TestCompare changes every attribute that is compared.
func TestCompare(t *testing.T) {
	image, err := newTree(t, []*tar.Header{dir("a/"), file("a/b", 1), symlink("c", "a/b"), dir("dev/"), file("dev/null", 2)})
	testenv.Must(t, err)
	list := func(change func(name string, l *leaf) bool) string {
		var b strings.Builder
		for _, name := range sortedNames(image) {
			l := image[name]
			if !strings.HasPrefix(name, "/dev") && change(name, &l) {
				fmt.Fprintf(&b, "%q %s\n", name, l.Line())
			}
		}
		return b.String()
	}
	same := list(func(string, *leaf) bool { return true })
	if err := image.compare(strings.NewReader(same)); err != nil {
		t.Errorf("the same: %v", err)
	}
	if err := image.compare(strings.NewReader(same + "\"/new\" 1\n")); err == nil || !strings.HasSuffix(err.Error(), `the image has no "/new"`) {
		t.Errorf("a file more: got %v", err)
	}
	if err := image.compare(strings.NewReader(same + "what\n")); err == nil {
		t.Error("garbage: got no error")
	}
	for what, change := range map[string]func(*leaf){
		"mode":       func(l *leaf) { l.Mode ^= 0o020 },
		"owner":      func(l *leaf) { l.UID++ },
		"group":      func(l *leaf) { l.GID++ },
		"size":       func(l *leaf) { l.Size++ },
		"content":    func(l *leaf) { l.Digest = strings.Repeat("0", 64) },
		"target":     func(l *leaf) { l.Target += "x" },
		"capability": func(l *leaf) { l.Capability = "x" },
		"device":     func(l *leaf) { l.Device++ },
	} {
		got := list(func(name string, l *leaf) bool {
			if name == "/a/b" {
				change(l)
			}
			return true
		})
		if err := image.compare(strings.NewReader(got)); err == nil || !strings.Contains(err.Error(), `"/a/b" is `) {
			t.Errorf("another %s: got %v", what, err)
		}
	}
	for _, missing := range []string{"/a", "/a/b", "/c"} {
		got := list(func(name string, _ *leaf) bool { return name != missing })
		if err := image.compare(strings.NewReader(got)); err == nil || !strings.HasSuffix(err.Error(), fmt.Sprintf("the container has no %q", missing)) {
			t.Errorf("without %s: got %v", missing, err)
		}
	}
}
