package layer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestScratch(t *testing.T) {
	s, root := newStore(t, Options{})
	tmp := filepath.Join(root, "tmp")
	count := func() int {
		t.Helper()
		names, err := os.ReadDir(tmp)
		testenv.Must(t, err)
		return len(names)
	}
	var releases []func() error
	for range 2 {
		dir, release, err := s.Scratch("repo")
		testenv.Must(t, err)
		testenv.Must(t, dir.MkdirAll("a/b", 0o700))
		releases = append(releases, release)
	}
	if n := count(); n != 2 {
		t.Errorf("%d directories in tmp/, want 2", n)
	}
	testenv.Must(t, releases[0]())
	testenv.Must(t, releases[0]())
	if n := count(); n != 1 {
		t.Errorf("%d directories in tmp/ after a release, want 1", n)
	}
	// The process that made the other one has died.
	testenv.Must(t, s.SweepTmp())
	wantTree(t, tmp, ".: dir 700")
	testenv.Must(t, releases[1]())
}
