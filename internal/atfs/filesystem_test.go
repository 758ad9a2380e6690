package atfs_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestSetImmutable(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	must(t, err)
	defer d.Close()
	must(t, d.SetImmutable(false)) // which it is
	must(t, d.SetImmutable(true))
	must(t, d.SetImmutable(true))
	if err := d.Mkdir("x", 0o755); !errors.Is(err, unix.EPERM) {
		t.Errorf("immutable: got error %v, want %v", err, unix.EPERM)
	}
	must(t, d.SetImmutable(false))
	must(t, d.Mkdir("x", 0o755))
}

func TestSpace(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	must(t, err)
	defer d.Close()
	s, known, err := d.Space()
	must(t, err)
	if !known || s.Free < 1<<20 || s.Free > 16<<20 || s.BlockSize == 0 {
		t.Errorf("got %+v, %t", s, known)
	}
	if ro, err := d.ReadOnly(); ro || err != nil {
		t.Errorf("read-only: got %t, %v", ro, err)
	}
	testenv.Remount(t, disk.Dir, unix.MS_RDONLY, "")
	if ro, err := d.ReadOnly(); !ro || err != nil {
		t.Errorf("read-only after remount: got %t, %v", ro, err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
