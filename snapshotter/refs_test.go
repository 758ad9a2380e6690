package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/sirupsen/logrus"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// logged returns a context, and the text of the warnings and errors logged with it.
func logged(ctx context.Context) (_ context.Context, text *bytes.Buffer) {
	text = &bytes.Buffer{}
	logger := logrus.New()
	logger.SetOutput(text)
	logger.SetLevel(logrus.WarnLevel)
	return log.WithLogger(ctx, logrus.NewEntry(logger)), text
}

// name returns the name that unpackAll gives the snapshot of a layer.
func (i image) name(layer int) string {
	return "default/1/" + identity.ChainIDs(slices.Clone(i.chain))[layer].String()
}

// blobs stand for the blobs that the layers of an image are unpacked from.
var blobs = []digest.Digest{digest.FromString("the lower blob"), digest.FromString("the upper blob")}

// unpackBlobs is unpackAll with layers unpacked from blobs.
func (i image) unpackBlobs(tb testing.TB, e *snaptest.Env) {
	tb.Helper()
	parent := ""
	for n, tar := range i.tars {
		key := fmt.Sprintf("default/2/extract-%d x", n)
		id, _, err := e.Locate(tb.Context(), prepare(tb, e, key, parent))
		testenv.Must(tb, err)
		held, err := e.Store.Import(tb.Context(), bytes.NewReader(tar), layer.ImportOptions{Blob: blobs[n]})
		testenv.Must(tb, err)
		testenv.Must(tb, errors.Join(e.AddLayer(tb.Context(), id, held, false), held.Release()))
		commit(tb, e, i.name(n), key, snapshots.WithLabels(map[string]string{snapshotter.LabelBlob: "sha256:forged"}))
		parent = i.name(n)
	}
}

// TestRefsAreRestored checks that lost refs are restored from the rows and the snapshots' directories.
func TestRefsAreRestored(t *testing.T) {
	for _, remove := range []string{"repo/refs", "repo/refs/heads", "repo/refs/heads/oci/blob"} {
		t.Run(remove, func(t *testing.T) {
			e := snaptest.New(t)
			img := newImage(t)
			img.unpackBlobs(t, e)
			for n := range blobs {
				if got := labelsOf(t, e, img.name(n))[snapshotter.LabelBlob]; got != blobs[n].String() {
					t.Errorf("label of layer %d is %q, want %s", n, got, blobs[n])
				}
			}
			// A layer being unpacked has no row yet.
			third := digest.FromString("another blob")
			id, _, err := e.Locate(t.Context(), prepare(t, e, "default/9/extract-9 x", ""))
			testenv.Must(t, err)
			held, err := e.Store.Import(t.Context(), bytes.NewReader(snaptest.Tar(t, snaptest.File("third", "3"))), layer.ImportOptions{Blob: third})
			testenv.Must(t, err)
			testenv.Must(t, errors.Join(e.AddLayer(t.Context(), id, held, false), held.Release()))
			before, err := e.Repo.Refs("oci")
			testenv.Must(t, err)

			testenv.Must(t, e.Close())
			testenv.Must(t, os.RemoveAll(filepath.Join(e.Path, remove)))
			ctx, text := logged(t.Context())
			again, err := snaptest.Open(ctx, e.Path)
			testenv.Must(t, err)
			*e = *again
			if n := strings.Count(text.String(), "refs of layers were lost"); n != 1 || strings.Count(text.String(), "\n") != 1 {
				t.Errorf("log says so %d times, want once and nothing else:\n%s", n, text)
			}
			after, err := e.Repo.Refs("oci")
			if err != nil || !maps.Equal(after, before) {
				t.Errorf("got refs %v, %v, want %v", after, err, before)
			}
			for _, blob := range append(slices.Clone(blobs), third) {
				held, err := e.Store.AcquireBlob(t.Context(), blob)
				testenv.Must(t, err)
				testenv.Must(t, held.Release())
			}
			testenv.Must(t, e.Cleanup(t.Context()))
			wantFiles(t, view(t, e, img.name(1)), imageFiles)
			// The label is restored from the file beside the layer.
			commit(t, e, "third", "default/9/extract-9 x")
			if got := labelsOf(t, e, "third")[snapshotter.LabelBlob]; got != third.String() {
				t.Errorf("label after the restart is %q, want %s", got, third)
			}
		})
	}
}

// TestBlobOfAnotherLayer checks that the file blob counts only for the layer that it names.
func TestBlobOfAnotherLayer(t *testing.T) {
	for name, content := range map[string]string{
		"another layer": strings.Repeat("0", 64) + " " + blobs[0].String() + "\n",
		"empty":         "",
		"no digest":     "%s sha256:abc\n",
	} {
		t.Run(name, func(t *testing.T) {
			e := snaptest.New(t)
			id, _, err := e.Locate(t.Context(), prepare(t, e, "default/9/extract-9 x", ""))
			testenv.Must(t, err)
			held, err := e.Store.Import(t.Context(), bytes.NewReader(newImage(t).tars[0]), layer.ImportOptions{Blob: blobs[0]})
			testenv.Must(t, err)
			testenv.Must(t, errors.Join(e.AddLayer(t.Context(), id, held, false), held.Release()))
			if strings.Contains(content, "%s") {
				content = fmt.Sprintf(content, held.ID)
			}
			testenv.Must(t, os.WriteFile(filepath.Join(e.Path, "snapshots", id, "blob"), []byte(content), 0o600))
			commit(t, e, "c", "default/9/extract-9 x")
			if got, ok := labelsOf(t, e, "c")[snapshotter.LabelBlob]; ok {
				t.Errorf("label is %q, want none", got)
			}
		})
	}
}

// TestCheckoutsAreRebuilt checks that missing checkouts are rebuilt at start, as far as their layers exist.
func TestCheckoutsAreRebuilt(t *testing.T) {
	testenv.NeedsRoot(t)
	e, err := snaptest.OpenBare(t.Context(), t.TempDir()) // with composefs none could be missing
	testenv.Must(t, err)
	defer func() { testenv.Must(t, errors.Join(e.Check(context.WithoutCancel(t.Context())), e.Close())) }()
	img := newImage(t)
	img.unpackBlobs(t, e)
	testenv.Must(t, e.Close())
	testenv.Must(t, os.RemoveAll(filepath.Join(e.Path, "layers")))
	ctx, text := logged(t.Context())
	again, err := snaptest.OpenBare(ctx, e.Path)
	testenv.Must(t, err)
	*e = *again
	if !strings.Contains(text.String(), "checkouts of layers were missing and are rebuilt") || !strings.Contains(text.String(), "checkouts=2") || strings.Count(text.String(), "\n") != 1 {
		t.Errorf("log has\n%s", text)
	}
	if names, err := filepath.Glob(filepath.Join(e.Path, "layers/*/fs*")); err != nil || len(names) != 2 {
		t.Errorf("checkouts: got %q, %v, want two", names, err)
	}
	wantFiles(t, view(t, e, img.name(1)), imageFiles)
}
