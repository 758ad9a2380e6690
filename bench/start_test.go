package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// BenchmarkStart times "ctr run --detach" of the first container after a pull, and of the 91st to the 100th while all
// of them run, on containerd's overlayfs snapshotter and on both kinds of our checkouts. The image is base:1, with
// 16,000 entries. It needs bin/ostree-snapshotter.
func BenchmarkStart(b *testing.B) {
	testenv.NeedsRoot(b)
	testenv.Must(b, testhost.InstallPackages(b.Context(), os.Stderr))
	tools, err := testhost.BuildTools(b.Context(), os.Stderr)
	testenv.Must(b, err)
	repo, err := testhost.RepoDir()
	testenv.Must(b, err)
	registry, err := stack.StartRegistry(b.Context(), tools)
	testenv.Must(b, err)
	defer func() { testenv.Must(b, registry.Stop()) }()
	ref, err := registry.Push(b.Context(), os.Stderr, "base:1")
	testenv.Must(b, err)
	s := make(series)
	for b.Loop() {
		for _, v := range []struct{ name, snapshotter, config string }{
			{"overlayfs", stack.Overlay, ""},
			{"composefs", stack.Ostree, "checkout = \"composefs\"\n"},
			{"hardlink", stack.Ostree, "checkout = \"hardlink\"\n"},
		} {
			dir, remove := freshDisk(b, "6G")
			b.Setenv("TMPDIR", dir)
			st, err := stack.Start(b.Context(), stack.Options{
				Tools: tools, Snapshotter: v.snapshotter, Config: v.config, Registry: registry.Address,
				Binary: filepath.Join(repo, "bin", "ostree-snapshotter"),
			})
			testenv.Must(b, err)
			testenv.Must(b, st.Pull(b.Context(), "default", ref))
			for i := range 100 {
				start := func() error {
					return st.StartContainer(b.Context(), "default", ref, fmt.Sprintf("c%d", i), "/bin/sleep", "1000")
				}
				switch {
				case i == 0:
					s.time(b, v.name+"-first", start)
				case i < 90:
					testenv.Must(b, start())
				default:
					s.time(b, v.name+"-100th", start)
				}
			}
			testenv.Must(b, st.Stop())
			b.Setenv("TMPDIR", "")
			remove()
		}
	}
	for _, which := range []string{"-first", "-100th"} {
		group := make(series)
		for _, name := range []string{"overlayfs", "composefs", "hardlink"} {
			group[name+which] = s[name+which]
		}
		group.report(b, "overlayfs"+which)
	}
}
