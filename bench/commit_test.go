package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// BenchmarkCommit measures the commit of an upper directory with 1 GiB of new files: 64 of 8 MiB, 1,600 of 256 KiB and
// 28,000 of 4 KiB, all in the page cache, as a build leaves them. On ext4 they are copied; XFS and Btrfs have reflinks.
// space-MiB is what the file system has less afterwards, while the upper directory still exists.
func BenchmarkCommit(b *testing.B) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		b.Run(fstype, func(b *testing.B) {
			var space float64
			for b.Loop() {
				b.StopTimer()
				disk := testenv.NewDisk(b, fstype, 6<<30).Dir
				upper := filepath.Join(disk, "upper")
				fillUpper(b, upper)
				root, err := atfs.Open(disk)
				testenv.Must(b, err)
				testenv.Must(b, root.Mkdir("repo", 0o700))
				dir, err := root.OpenDir("repo")
				testenv.Must(b, err)
				repo, err := objectstore.Create(dir, objectstore.ModeBare)
				testenv.Must(b, err)
				store, err := layer.Open(root, repo, layer.Options{})
				testenv.Must(b, err)
				from, err := atfs.Open(upper)
				testenv.Must(b, err)
				before := freeSpace(b, disk)
				b.StartTimer()
				held, err := store.ImportDir(b.Context(), from, nil, "1")
				testenv.Must(b, err)
				b.StopTimer()
				space = float64(before-freeSpace(b, disk)) / (1 << 20)
				testenv.Must(b, errors.Join(held.Release(), from.Close(), store.Close(), repo.Close(), dir.Close(), root.Close()))
				b.StartTimer()
			}
			b.ReportMetric(space, "space-MiB")
		})
	}
}

func fillUpper(b *testing.B, dir string) {
	b.Helper()
	random := rand.NewChaCha8([32]byte{1})
	for _, kind := range []struct{ count, size int }{{64, 8 << 20}, {1600, 256 << 10}, {28000, 4 << 10}} {
		content := make([]byte, kind.size)
		for i := range kind.count {
			_, _ = random.Read(content[:min(64, len(content))]) // enough to make each file another one
			name := filepath.Join(dir, fmt.Sprint(kind.size), fmt.Sprint(i/1000), fmt.Sprint(i))
			testenv.Must(b, os.MkdirAll(filepath.Dir(name), 0o755))
			testenv.Must(b, os.WriteFile(name, content, 0o644))
		}
	}
}

func freeSpace(b *testing.B, dir string) int64 {
	b.Helper()
	unix.Sync()
	var st unix.Statfs_t
	testenv.Must(b, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}
