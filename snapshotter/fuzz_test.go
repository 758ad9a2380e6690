package snapshotter_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// FuzzDirectory writes garbage to the files beside the upper directory of an active snapshot, as a damaged disk may.
// Each method works or returns a data loss; the snapshot can be removed, and the next start succeeds.
func FuzzDirectory(f *testing.F) {
	testenv.NeedsRoot(f)
	zero := strings.Repeat("0", 64)
	for _, s := range [][2]string{
		{"", ""},
		{zero + "\n", ""},
		{zero, "1 2\n"},
		{"layer", "1 2"},
		{"layer", "1"},
		{"layer", "-1 -9223372036854775808\n"},
		{"layer", "99999999999999999999 1"},
		{"layer", "x y"},
		{"../../x\n", ""},
		{strings.Repeat("a", 300), ""},
		{"layer", strings.Repeat("1", 300)},
		{strings.ToUpper("layer"), "0 0"},
		{"layer\x00", "1 2\x00"},
	} {
		f.Add([]byte(s[0]), []byte(s[1]), true)
		f.Add([]byte(s[0]), []byte(s[1]), false)
	}
	f.Fuzz(func(t *testing.T, layerFile, usageFile []byte, staged bool) {
		path := testenv.MemoryDir(t)
		e, err := snaptest.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}()
		held, err := e.Store.Import(t.Context(), bytes.NewReader(snaptest.Tar(t, snaptest.File("f", "content"))), layer.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := held.Release(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Prepare(t.Context(), "k", ""); err != nil {
			t.Fatal(err)
		}
		// Let inputs name the existing layer.
		layerFile = bytes.ReplaceAll(layerFile, []byte("layer"), []byte(held.ID.String()))
		for name, content := range map[string][]byte{"layer": layerFile, "usage": usageFile} {
			if err := os.WriteFile(filepath.Join(path, "snapshots/1", name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if staged {
			if err := os.WriteFile(filepath.Join(path, "snapshots/1/staged"), layerFile, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		check := func(what string, err error) {
			unmarked := what == "locate" && snaptest.Composefs() && errdefs.IsNotImplemented(err) // mounts of a staged snapshot name no layer
			if err != nil && !errdefs.IsDataLoss(err) && !unmarked {
				t.Errorf("%s: got %v, want nothing or an error of data loss", what, err)
			}
		}
		m, err := e.Mounts(t.Context(), "k")
		check("mounts", err)
		if err == nil {
			_, _, err = e.Locate(t.Context(), m)
			check("locate", err)
		}
		_, err = e.Usage(t.Context(), "k")
		check("usage", err)
		check("cleanup", e.Cleanup(t.Context()))
		check("commit", e.Commit(t.Context(), "name", "k"))
		e.Reopen(t)
		for _, key := range []string{"k", "name"} {
			if err := e.Remove(t.Context(), key); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("remove: %v", err)
			}
		}
	})
}
