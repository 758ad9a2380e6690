package erofs

import (
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot mount")
	}
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
