package layout_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// write makes a layout with a manifest for each tag in its index.
func write(t *testing.T, dir string, tags ...string) string {
	t.Helper()
	var index ocispec.Index
	for i, tag := range tags {
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(string(rune('a' + i)))}
		if tag != "" {
			desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		index.Manifests = append(index.Manifests, desc)
	}
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	return writeIndex(t, dir, b)
}

func writeIndex(t *testing.T, dir string, b []byte) string {
	t.Helper()
	dir = filepath.Join(t.TempDir(), dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpen(t *testing.T) {
	first, second := digest.FromString("a"), digest.FromString("b")
	colon := write(t, "with:colon", "1")
	for _, tt := range []struct {
		name string
		arg  string
		want []digest.Digest
		err  string
	}{
		{"untagged", write(t, "d", ""), []digest.Digest{first}, ""},
		{"only tag", write(t, "d", "1"), []digest.Digest{first}, ""},
		{"tag", write(t, "d", "1", "2") + ":2", []digest.Digest{second}, ""},
		{"a colon in the directory", colon, []digest.Digest{first}, ""},
		{"a colon in the directory, and a tag", colon + ":1", []digest.Digest{first}, ""},
		{"two platforms under one tag", write(t, "d", "1", "1"), []digest.Digest{first, second}, ""},
		{"empty", write(t, "d"), nil, ""},
		{"several tags", write(t, "d", "2", "1"), nil, `the layout has several tags: "1", "2"`},
		{"absent tag", write(t, "d", "1") + ":3", nil, `the layout has no tag "3", but "1"`},
		{"absent", "/nowhere:1", nil, "/nowhere is no OCI layout: it has no index.json"},
		{"not JSON", writeIndex(t, "d", []byte("{")), nil, "index.json: unexpected end of JSON input"},
		{"too large", writeIndex(t, "d", make([]byte, containerd.MaxDocument+1)), nil, "index.json has 4194305 bytes, at most 4194304 are read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := layout.Open(t.Context(), tt.arg)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, desc := range l.Manifests {
				got = append(got, desc.Digest)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			target, err := l.Target()
			if one := len(tt.want) == 1; (err == nil) != one || one && target.Digest != tt.want[0] {
				t.Errorf("the target is %v, %v", target, err)
			}
		})
	}
}

func TestTagsError(t *testing.T) {
	_, err := layout.Open(t.Context(), write(t, "d", "b", "a", "b"))
	tags, ok := errors.AsType[*layout.TagsError](err)
	if !ok || !slices.Equal(tags.Tags, []string{`"a"`, `"b"`}) {
		t.Errorf("got %v", err)
	}
}
