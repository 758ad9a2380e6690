package atfs_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestSetImmutable(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	testenv.Must(t, err)
	defer d.Close()
	testenv.Must(t, d.SetImmutable(false)) // as it is already
	testenv.Must(t, d.SetImmutable(true))
	testenv.Must(t, d.SetImmutable(true))
	if err := d.Mkdir("x", 0o755); !errors.Is(err, unix.EPERM) {
		t.Errorf("immutable: got error %v, want %v", err, unix.EPERM)
	}
	testenv.Must(t, d.SetImmutable(false))
	testenv.Must(t, d.Mkdir("x", 0o755))
}

func TestSpace(t *testing.T) {
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	testenv.Must(t, err)
	defer d.Close()
	s, known, err := d.Space()
	testenv.Must(t, err)
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

// TestRoom asks for more and for less than the free space of a file system.
func TestRoom(t *testing.T) {
	d := openDir(t, t.TempDir())
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.FD(), &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks == 0 {
		testenv.Unsupported(t, "needs a file system for temporary files that says how large it is")
	}
	for _, size := range []int64{int64(st.Blocks+1) * int64(st.Bsize), math.MaxInt64} { //nolint:unconvert // 32 bits on some
		if err := d.Room(size); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("room for %d bytes: got %v, want %v", size, err, unix.ENOSPC)
		}
	}
	if err := d.Room(1); err != nil {
		t.Error(err)
	}
}

// TestFuller fills a file system by blocks, and one by inodes.
func TestFuller(t *testing.T) {
	testenv.NeedsRoot(t)
	for name, fill := range map[string]func(t *testing.T, dir string){
		"blocks": func(t *testing.T, dir string) {
			t.Helper()
			testenv.Must(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 600<<10), 0o600))
		},
		"inodes": func(t *testing.T, dir string) {
			t.Helper()
			for i := range 60 {
				testenv.Must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			testenv.Must(t, unix.Mount("test", dir, "tmpfs", 0, "size=1m,nr_inodes=100"))
			t.Cleanup(func() { testenv.Must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			d := openDir(t, dir)
			want := func(percent int, full bool) {
				t.Helper()
				if got, err := d.Fuller(percent); err != nil || got != full {
					t.Errorf("fuller than %d %%: got %v, %v, want %v", percent, got, err, full)
				}
			}
			want(50, false)
			fill(t, dir)
			want(50, true)
			want(70, false)
			want(100, false)
		})
	}
}

func TestReusesInodesLate(t *testing.T) {
	for _, tt := range []struct {
		fstype, options string
		want            bool
	}{{"ext4", "-Jsize=4", false}, {"ext4", "-O^has_journal", true}} {
		t.Run(tt.fstype+" "+tt.options, func(t *testing.T) {
			d, err := atfs.Open(testenv.NewDisk(t, tt.fstype, 64<<20, "-q", tt.options).Dir)
			testenv.Must(t, err)
			defer d.Close()
			if got, err := d.ReusesInodesLate(); err != nil || got != tt.want {
				t.Errorf("got %t (%v), want %t", got, err, tt.want)
			}
		})
	}
	d, err := atfs.Open("/proc")
	testenv.Must(t, err)
	defer d.Close()
	if got, err := d.ReusesInodesLate(); err != nil || got {
		t.Errorf("proc: got %t, %v", got, err)
	}
}
