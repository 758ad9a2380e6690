package objectstore_test

import (
	"errors"
	"os"
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

// TestVerifyLabel verifies objects whose inodes have got a label, as a kernel with SELinux gives one to every new inode. It does
// not count if the object has none.
func TestVerifyLabel(t *testing.T) {
	testenv.NeedsRoot(t)
	label := func(name string) objectstore.Xattr {
		return objectstore.Xattr{Name: "security.selinux", Value: []byte("system_u:object_r:" + name + ":s0\x00")}
	}
	for _, tt := range []struct {
		name   string
		xattrs []objectstore.Xattr
		damage func(name string) error
		want   error
	}{
		{name: "no label"},
		{name: "no label, another attribute", xattrs: []objectstore.Xattr{{Name: "user.name", Value: []byte("value")}}},
		{name: "another label", xattrs: []objectstore.Xattr{label("usr_t")}, want: objectstore.ErrCorrupt},
		{name: "content", damage: func(name string) error { return os.WriteFile(name, []byte("wrong"), 0o600) }, want: objectstore.ErrCorrupt},
		{
			name: "attribute", damage: func(name string) error { return unix.Setxattr(name, "user.more", []byte("value"), 0) },
			want: objectstore.ErrCorrupt,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			repo := objecttest.NewRepo(t)
			txn, err := repo.Begin(t.Context())
			testenv.Must(t, err)
			stored, err := txn.StoreFile(&objectstore.FileMeta{Mode: unix.S_IFREG | 0o600, Xattrs: tt.xattrs}, unix.Timespec{}, []byte(tt.name))
			testenv.Must(t, err)
			testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
			name := objectPath(repo, stored.Checksum)
			kernels := label("container_file_t")
			testenv.Must(t, unix.Setxattr(name, kernels.Name, kernels.Value, 0))
			if tt.damage != nil {
				testenv.Must(t, tt.damage(name))
			}
			if err := repo.Verify(objectstore.TypeFile, stored.Checksum); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if tt.want != nil {
				testenv.Must(t, os.Remove(name)) // the fsck after the test should find nothing
			}
		})
	}
}
