package containerd_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

func TestKeptSignatures(t *testing.T) {
	s := containerdtest.New(t)
	c, err := containerd.Dial(s.Address)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, c.Close()) })
	manifest := s.Blob(ocispec.MediaTypeImageManifest, []byte("{}")).Digest
	none := digest.FromString("none")
	if doc, err := c.KeptSignatures(t.Context(), "default", none); doc != nil || err != nil {
		t.Errorf("of no image: %q, %v", doc, err)
	}
	if err := c.KeepSignatures(t.Context(), "default", none, []byte("x")); !errdefs.IsNotFound(err) {
		t.Errorf("kept with no image: %v", err)
	}
	if doc, err := c.KeptSignatures(t.Context(), "default", manifest); doc != nil || err != nil {
		t.Errorf("of an image without: %q, %v", doc, err)
	}
	for _, want := range []string{"one", "two", "two", "one"} {
		testenv.Must(t, c.KeepSignatures(t.Context(), "default", manifest, []byte(want)))
		if doc, err := c.KeptSignatures(t.Context(), "default", manifest); string(doc) != want || err != nil {
			t.Errorf("kept %q, %v, want %q", doc, err, want)
		}
		info, err := s.Content.Info(t.Context(), digest.FromString(want))
		testenv.Must(t, err)
		if len(info.Labels) > 0 {
			t.Errorf("the document has the labels %v, and would stay without its image", info.Labels)
		}
	}
}
