package sysroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSyncForBootloader writes while the file system is frozen and thawed again and again. Nothing hangs or fails.
func TestSyncForBootloader(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "tmpfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := t.TempDir()
			if fstype == "tmpfs" {
				testenv.NeedsRoot(t)
				testenv.Must(t, unix.Mount("test", dir, "tmpfs", 0, ""))
				t.Cleanup(func() { testenv.Must(t, unix.Unmount(dir, 0)) })
			} else {
				dir = testenv.NewDisk(t, fstype, 320<<20).Dir
			}
			d, err := atfs.Open(dir)
			testenv.Must(t, err)
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
				if err := syncForBootloader(d); err != nil {
					t.Error(err)
				}
			}
			close(done)
			wg.Wait()
		})
	}
}

// TestSyncForBootloaderFrozen: another process has frozen the file system, which stays frozen.
func TestSyncForBootloaderFrozen(t *testing.T) {
	freeze := testenv.NeedsTool(t, "fsfreeze")
	disk := testenv.NewDisk(t, "ext4", 16<<20)
	d, err := atfs.Open(disk.Dir)
	testenv.Must(t, err)
	defer d.Close()
	run(t, freeze, "--freeze", disk.Dir)
	err = syncForBootloader(d)
	run(t, freeze, "--unfreeze", disk.Dir) // an error if it is not frozen
	testenv.Must(t, err)
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
