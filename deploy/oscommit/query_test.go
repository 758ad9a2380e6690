package oscommit_test

import (
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestSizes(t *testing.T) {
	b := newBed(t)
	content := func(n int) string { return strings.Repeat("x", n) }
	tree, err := oscommit.NewTree(b.flatten(t, makeTar(t,
		entry{"usr/", "", nil}, entry{"usr/empty", "", nil}, entry{"usr/link -> one", "", nil},
		entry{"usr/one", content(5000), nil}, entry{"usr/same", content(5000), nil},
		entry{"etc/", "", nil}, entry{"etc/conf", content(101), nil},
		entry{"opt/", "", nil}, entry{"opt/app", content(9000), nil},
		entry{"var/", "", nil}, entry{"var/db", content(100), nil},
	)))
	testenv.Must(t, err)
	for name, want := range map[string]int64{
		"usr/one": 5000, "usr/empty": 0, "usr/etc/conf": 101, "usr/link": -1, "usr": -1, "usr/none": -1, "etc/conf": -1, "": -1,
	} {
		size, ok := tree.FileSize(name)
		if ok != (want >= 0) || ok && size != want {
			t.Errorf("size of %q: got %d, %t, want %d", name, size, ok, want)
		}
	}
	const block = 4096
	files := int64(2+2+6+2) * block // /usr/one, which is /usr/same; twice /usr/etc/conf, /opt/app, /var/db
	dirs := int64(8) * (2 * block)  // the root, /usr, and twice /usr/etc, /opt, /var
	if got, want := tree.Allocated(block, true), files+dirs; got != want {
		t.Errorf("allocated with copies: got %d, want %d", got, want)
	}
	if got, want := tree.Allocated(block, false), files+dirs-(3+2)*block; got != want { // without /opt and /opt/app
		t.Errorf("allocated: got %d, want %d", got, want)
	}
}
