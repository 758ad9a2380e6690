package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/inflate"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// freshDisk mounts a new ext4 file system and returns its mount point. Every cold run gets one, so that none depends on what
// the previous ones left.
func freshDisk(b *testing.B, size string) (dir string, remove func()) {
	b.Helper()
	return newDisk(b, size, false)
}

// ramDisk is freshDisk in memory, where syncing costs almost nothing. mkfs are additional arguments of mkfs.ext4.
func ramDisk(b *testing.B, size string, mkfs ...string) (dir string, remove func()) {
	b.Helper()
	return newDisk(b, size, true, mkfs...)
}

func newDisk(b *testing.B, size string, ram bool, mkfs ...string) (dir string, remove func()) {
	b.Helper()
	testenv.NeedsRoot(b)
	tmp, err := os.MkdirTemp("", "bench")
	if err != nil {
		b.Fatal(err)
	}
	if ram {
		run(b, "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", tmp)
	}
	dir = filepath.Join(tmp, "disk")
	image := filepath.Join(tmp, "ext4.img")
	testenv.Must(b, os.Mkdir(dir, 0o755))
	run(b, "truncate", "-s", size, image)
	mkfs = append([]string{"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, mkfs...)
	run(b, "mkfs.ext4", append(mkfs, image)...)
	run(b, "mount", "-o", "loop", image, dir)
	return dir, func() {
		run(b, "umount", dir)
		if ram {
			run(b, "umount", tmp)
		}
		testenv.Must(b, os.RemoveAll(tmp))
	}
}

func run(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// layerBlob returns the compressed blob of a test image's largest layer.
func layerBlob(b *testing.B, ref string) string {
	b.Helper()
	layout, err := images.Layout(b.Context(), os.Stderr, ref)
	testenv.Must(b, err)
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
	testenv.Must(b, err)
	var largest string
	var size int64
	for _, name := range blobs {
		st, err := os.Stat(name)
		testenv.Must(b, err)
		if st.Size() > size {
			largest, size = name, st.Size()
		}
	}
	return largest
}

// A gunzip opens a blob decompressed. The result must be read to its end and closed.
type gunzip func(ctx context.Context, blob string) (io.ReadCloser, error)

func builtin(_ context.Context, blob string) (io.ReadCloser, error) {
	f, err := os.Open(blob)
	if err != nil {
		return nil, err
	}
	return readCloser{inflate.NewReader(f), f.Close}, nil
}

func klauspost(_ context.Context, blob string) (io.ReadCloser, error) {
	f, err := os.Open(blob)
	if err != nil {
		return nil, err
	}
	r, err := kgzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return readCloser{r, f.Close}, nil
}

func igzip(ctx context.Context, blob string) (io.ReadCloser, error) {
	f, err := os.Open(blob)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	cmd := exec.CommandContext(ctx, "igzip", "-dc")
	cmd.Stdin, cmd.Stdout = f, w
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return readCloser{r, func() error { return errors.Join(r.Close(), cmd.Wait()) }}, nil
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }

// drain reads a stream in the cheapest way.
func drain(r io.ReadCloser) (int64, error) {
	buf := make([]byte, 1<<20)
	var n int64
	for {
		m, err := r.Read(buf)
		n += int64(m)
		if errors.Is(err, io.EOF) {
			return n, r.Close()
		}
		if err != nil {
			return n, errors.Join(err, r.Close())
		}
	}
}

// series collects durations of variants that a benchmark runs in turn.
type series map[string][]time.Duration

func (s series) time(b *testing.B, name string, f func() error) {
	b.Helper()
	start := time.Now()
	if err := f(); err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	s[name] = append(s[name], time.Since(start))
}

// report reports the median of each variant, and the median over the rounds of its ratio to the baseline. Ratios are
// formed within a round, so that a temporary slowdown affects both sides.
func (s series) report(b *testing.B, baseline string) {
	b.Helper()
	for name, d := range s {
		b.ReportMetric(float64(median(d))/1e6, name+"-ms")
		if name == baseline {
			continue
		}
		ratios := make([]float64, len(d))
		for i := range d {
			ratios[i] = float64(d[i]) / float64(s[baseline][i])
		}
		b.ReportMetric(median(ratios), fmt.Sprintf("%s/%s", name, baseline))
	}
	b.ReportMetric(0, "ns/op") // the sum of the variants is meaningless
}

func median[T int64 | float64 | time.Duration](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
