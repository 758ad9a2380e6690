package composefsmount

import (
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestProbe(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsEROFS(t)
	dir, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	s, err := Probe(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s)
	if names, err := dir.ReadNames(); err != nil || len(names) > 0 {
		t.Errorf("left behind: %q (%v)", names, err)
	}
}
