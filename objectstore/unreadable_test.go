package objectstore_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestVerifyUnreadable verifies an object that the disk cannot read: it is damaged, and no reason to give up.
func TestVerifyUnreadable(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	objecttest.Commit(t, repo, "r", oneFile("unreadable"))
	sum := files(t, repo)[0]
	// A read of the beginning of this file fails with EIO.
	if err := unix.Mount("/proc/self/mem", objectPath(repo, sum), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := repo.Verify(objectstore.TypeFile, sum)
	if uerr := unix.Unmount(objectPath(repo, sum), 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, objectstore.ErrCorrupt) || !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want %v and %v", err, objectstore.ErrCorrupt, unix.EIO)
	}
}
