package atfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
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

// TestSyncForBootloader writes while the file system is frozen and thawed again and again: nothing hangs or fails.
func TestSyncForBootloader(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "tmpfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := t.TempDir()
			if fstype == "tmpfs" {
				testenv.NeedsRoot(t)
				must(t, unix.Mount("test", dir, "tmpfs", 0, ""))
				t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
			} else {
				dir = testenv.NewDisk(t, fstype, 320<<20).Dir
			}
			d, err := atfs.Open(dir)
			must(t, err)
			defer d.Close()
			var wg sync.WaitGroup
			done := make(chan struct{})
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
						t.Error(err)
					}
				}
			})
			for range 10 {
				if err := d.SyncForBootloader(); err != nil {
					t.Error(err)
				}
			}
			close(done)
			wg.Wait()
		})
	}
}

// TestSyncForBootloaderFrozen: somebody else has frozen the file system, which stays so.
func TestSyncForBootloaderFrozen(t *testing.T) {
	freeze := testenv.NeedsTool(t, "fsfreeze")
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	must(t, err)
	defer d.Close()
	run(t, freeze, "--freeze", disk.Dir)
	err = d.SyncForBootloader()
	run(t, freeze, "--unfreeze", disk.Dir) // an error if it is not frozen
	must(t, err)
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

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
