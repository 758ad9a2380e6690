package bench

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// BenchmarkPull times "ctr images pull" from a registry on this machine with containerd's overlayfs snapshotter and
// with ours: a first image into an empty store (cold), and, for ours, an image that shares most files with the first
// but no layer (related). It needs bin/ostree-snapshotter. The peak memory of the daemon is reported too.
func BenchmarkPull(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: runs containerd")
	}
	must(b, testhost.InstallPackages(b.Context(), os.Stderr))
	tools, err := testhost.BuildTools(b.Context(), os.Stderr)
	must(b, err)
	repo, err := testhost.RepoDir()
	must(b, err)
	registry, err := stack.StartRegistry(b.Context(), tools)
	must(b, err)
	defer func() { must(b, registry.Stop()) }()
	var refs []string
	for _, name := range []string{"base:1", "base:2"} {
		ref, err := registry.Push(b.Context(), os.Stderr, name)
		must(b, err)
		refs = append(refs, ref)
	}
	s := make(series)
	var rss int64
	for b.Loop() {
		for _, snapshotter := range []string{stack.Overlay, stack.Ostree} {
			dir, remove := freshDisk(b, "6G")
			b.Setenv("TMPDIR", dir)
			st, err := stack.Start(b.Context(), stack.Options{
				Tools: tools, Snapshotter: snapshotter, Binary: filepath.Join(repo, "bin", "ostree-snapshotter"), Registry: registry.Address,
			})
			must(b, err)
			s.time(b, snapshotter, func() error { return st.Pull(b.Context(), "default", refs[0]) })
			s.time(b, snapshotter+"-related", func() error { return st.Pull(b.Context(), "default", refs[1]) })
			if snapshotter == stack.Ostree {
				rss = max(rss, peakRSS(b, st.DaemonPid()))
			}
			must(b, st.Stop())
			b.Setenv("TMPDIR", "")
			remove()
		}
	}
	s.report(b, stack.Overlay)
	b.ReportMetric(float64(rss)/(1<<20), "peak-RSS-MiB")
}

// peakRSS is the largest resident set that a process has had, in bytes.
func peakRSS(b *testing.B, pid int) int64 {
	b.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	must(b, err)
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			must(b, err)
			return kb << 10
		}
	}
	b.Fatal("no VmHWM in /proc/pid/status")
	return 0
}
