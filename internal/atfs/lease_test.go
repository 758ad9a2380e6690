package atfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestHasWriters has a file that is open in several ways, and one whose last writer left a mapping.
func TestHasWriters(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	testenv.Must(t, os.WriteFile(name, []byte("content"), 0o644))
	d, err := atfs.Open(dir)
	testenv.Must(t, err)
	defer d.Close()
	check := func(what string, want bool) {
		t.Helper()
		f, err := d.Open("f")
		testenv.Must(t, err)
		defer f.Close()
		if got, err := f.HasWriters(); err != nil || got != want {
			t.Errorf("%s: got %t, %v, want %t", what, got, err, want)
		}
	}
	check("closed", false)
	reader, err := os.Open(name)
	testenv.Must(t, err)
	defer reader.Close()
	check("open for reading", false)
	writer, err := os.OpenFile(name, os.O_RDWR, 0)
	testenv.Must(t, err)
	check("open for writing", true)
	mapping, err := unix.Mmap(int(writer.Fd()), 0, 7, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	testenv.Must(t, err)
	testenv.Must(t, writer.Close())
	check("mapped", true)
	testenv.Must(t, unix.Munmap(mapping))
	check("closed again", false)
}
