package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// layout returns a test image as an argument of "bench".
func layout(t *testing.T, ref string) string {
	t.Helper()
	dir, err := images.Layout(t.Context(), os.Stderr, ref)
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// part makes an image of the entries in a directory of a test image with one layer, and returns its OCI layout.
func part(t *testing.T, ref, dir string) string {
	t.Helper()
	var layer bytes.Buffer
	img := image(t, ref)
	if err := copyPart(&layer, img.Blob(img.Manifest.Layers[0].Digest), dir); err != nil {
		t.Fatalf("copy %s of %s: %v", dir, ref, err)
	}
	config := ocispec.Image{
		Platform: img.Config.Platform,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}},
	}
	archive, err := images.Archive(ref, config, images.Layer{MediaType: ocispec.MediaTypeImageLayer, Blob: layer.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	layout := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "tar", "-C", layout, "-x")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return layout
}

// copyPart copies the entries of a compressed layer that are in a directory, and those of its parents.
func copyPart(w io.Writer, blob, dir string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	to := tar.NewWriter(w)
	for from := tar.NewReader(plain); ; {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			return to.Close()
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name) + "/"
		if !strings.HasPrefix(name, dir+"/") && !strings.HasPrefix(dir, name) {
			continue
		}
		if err := to.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(to, from); err != nil {
			return err
		}
	}
}

// A benchRun is the result of one run of "bench".
type benchRun struct {
	report *report.Report // nil if none was written
	status int
	errors []string // lines
	out    string   // directory with the reports
}

// bench runs the command with the programs of the tests, and checks that nothing is left of it.
func bench(ctx context.Context, t *testing.T, args ...string) benchRun {
	t.Helper()
	tmp, out := t.TempDir(), t.TempDir()
	cmd := exec.CommandContext(ctx, daemonBinary(t), append([]string{"bench", "--json", "--tmp", tmp, "--out", out}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+strings.Join([]string{
		filepath.Dir(shared.tools.Containerd), os.Getenv("PATH"), filepath.Dir(shared.tools.Runc),
	}, ":"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok && ctx.Err() == nil {
		t.Fatalf("%v: %v\n%s", args, err, &stderr)
	}
	run := benchRun{status: cmd.ProcessState.ExitCode(), out: out}
	for line := range strings.Lines(stderr.String()) {
		run.errors = append(run.errors, strings.TrimSuffix(line, "\n"))
	}
	if stdout.Len() > 0 {
		if run.report, err = report.ReadJSON(&stdout); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := os.ReadDir(tmp); err != nil || len(names) > 0 {
		t.Errorf("%v: left %v, %v", args, names, err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, tmp) || strings.HasPrefix(m.Mountpoint, "/run/osb") {
			t.Errorf("%v: left mount %+v", args, *m)
		}
	}
	if names, err := filepath.Glob("/run/osb*"); err != nil || len(names) > 0 {
		t.Errorf("%v: left %v, %v", args, names, err)
	}
	if found := append(processesOf(t, "/run/osb"), processesOf(t, tmp)...); len(found) > 0 {
		t.Errorf("%v: left processes %q", args, found)
	}
	return run
}

// value returns a result of the first run of a kind.
func (b benchRun) value(t *testing.T, snapshotter, image string, state report.State, m report.Metric) float64 {
	t.Helper()
	for _, r := range b.report.Runs {
		if r.Snapshotter == snapshotter && r.Image == image && r.State == state {
			v, ok := r.Values[m]
			if !ok {
				t.Errorf("%s, %s, %s: no %s", snapshotter, image, state, m)
			}
			return v
		}
	}
	t.Errorf("no run of %s, %s, %s", snapshotter, image, state)
	return math.NaN()
}

// TestBench measures two images that share files but no layer, with two snapshotters, and checks the figures. They are
// Python's library as first released and with all updates, a tenth of the entries of their images.
func TestBench(t *testing.T) {
	needsHost(t)
	testenv.NeedsLoop(t)
	const library = "usr/lib/python3.11"
	small, updated := part(t, "base:1", library), part(t, "base:2", library)
	first, second := "oci:"+small, "oci:"+updated
	b := bench(t.Context(), t, "--runs", "1", "--images", first, "--images", second)
	if b.status != 0 || len(b.errors) > 0 {
		t.Fatalf("exit status %d: %q", b.status, b.errors)
	}
	if n := len(b.report.Runs); n != 2*(2*2+2) || len(b.report.Failures) > 0 || b.report.Baseline != stack.Overlay {
		t.Errorf("got %d runs, failures %v, baseline %s", n, b.report.Failures, b.report.Baseline)
	}
	for _, r := range b.report.Runs {
		want := []report.Metric{report.Unpack, report.Download, report.CPU, report.Memory, report.Disk, report.Inodes}
		if r.State == report.Cold {
			want = append(want, report.Start, report.Remove, report.RemoveCPU)
		}
		if r.State == report.All {
			want = []report.Metric{report.Disk, report.Inodes, report.Cached, report.Remove, report.RemoveCPU}
		}
		for _, m := range want {
			v, ok := r.Values[m]
			if zero := r.State == report.Again || m == report.CPU || m == report.RemoveCPU; !ok || v < 0 || v == 0 && !zero {
				t.Errorf("round %d, %s, %s, %s: %s is %v", r.Round, r.Snapshotter, r.Image, r.State, m, v)
			}
		}
		if len(r.Values) != len(want) {
			t.Errorf("round %d, %s, %s, %s: got %v, want %v", r.Round, r.Snapshotter, r.Image, r.State, r.Values, want)
		}
	}
	ours, theirs := "ostree", stack.Overlay
	for _, m := range []report.Metric{report.Disk, report.Inodes, report.Cached} {
		if a, b := b.value(t, ours, "", report.All, m), b.value(t, theirs, "", report.All, m); a >= b {
			t.Errorf("%s of both images: %v with ostree, %v with overlayfs", m, a, b)
		}
	}
	if again := b.value(t, ours, first, report.Again, report.Disk); again > 64<<10 {
		t.Errorf("the same image again takes %v bytes with ostree", again)
	}
	for _, name := range []string{"report.json", "report.html", "report.md", "chart.svg"} {
		if st, err := os.Stat(filepath.Join(b.out, name)); err != nil || st.Size() < 500 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	wantSpace(t, small, b.value(t, ours, first, report.Cold, report.Disk))
}

// wantSpace pulls the image of a layout outside the benchmark and compares its disk space by du, by df of the product
// and by the benchmark. They may differ by one percent.
func wantSpace(t *testing.T, layout string, got float64) {
	t.Helper()
	img, err := images.Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	const name = "bench:1"
	if err := img.Push(t.Context(), shared.registry.Address, name); err != nil {
		t.Fatal(err)
	}
	disk := testenv.NewDisk(t, "ext4", 1<<30, "-q")
	root := filepath.Join(disk.Dir, "store")
	if err := os.Mkdir(root, 0o711); err != nil {
		t.Fatal(err)
	}
	e := start(t, func(o *stack.Options) { o.Root = root })
	du := func() float64 {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", `sync -f "$1"; du -s --block-size=1 "$1"`, "du", root).Output()
		if err != nil {
			t.Fatal(err)
		}
		var n float64
		if _, err := fmt.Sscan(string(out), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	df := func() float64 {
		out, err := e.Run(t.Context(), daemonBinary(t), "df", "--json", "--root", root, "--daemon-address", e.Daemon, "--address", e.Containerd)
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			Stored float64 `json:"stored_bytes"`
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Fatal(err)
		}
		return v.Stored
	}
	du0, df0 := du(), df()
	if err := e.Pull(t.Context(), defaultNS, shared.registry.Address+"/"+name); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]float64{"du": du() - du0, "df of the product": df() - df0} {
		if math.Abs(got-want) > want/100 {
			t.Errorf("the benchmark reports %.0f bytes, %s %.0f", got, what, want)
		}
	}
}

// TestBenchFailures runs without one requirement after another. Each failure is one line, and the rest is measured.
func TestBenchFailures(t *testing.T) {
	needsHost(t)
	testenv.NeedsLoop(t)
	small, large := layout(t, "tiny:1"), layout(t, "base:1")
	for _, tt := range []struct {
		name   string
		args   []string
		status int
		want   []string // the end of each error line, in order
		ran    []string // snapshotters that have figures
	}{
		{
			name: "a snapshotter that is missing", status: 3, ran: []string{"ostree"},
			args: []string{"--images", small, "--snapshotters", "erofs,ostree", "--filesystem", "none"},
			want: []string{"measure snapshotter erofs: find snapshotter erofs: "},
		},
		{
			name: "images that do not exist", status: 3, ran: []string{"overlayfs"},
			args: []string{"--images", "oci:/nowhere", "--images", "127.0.0.1:1/none:1", "--images", small, "--snapshotters", "overlayfs"},
			want: []string{"measure image oci:/nowhere: /nowhere is no OCI layout", "measure image 127.0.0.1:1/none:1: fetch 127.0.0.1:1/none:1: "},
		},
		{
			name: "a disk that gets full", status: 3, ran: []string{"ostree", "overlayfs"},
			args: []string{"--images", large, "--images", small, "--disk-size", "250MiB"},
			want: []string{
				"measure image " + large + ", snapshotter ostree: ", "measure image " + large + ", snapshotter overlayfs: ",
			},
		},
		{
			name: "a containerd that is down", status: 1,
			args: []string{"--images", small, "-a", "/nowhere/containerd.sock", "--snapshotters", "overlayfs"},
			want: []string{"measure snapshotter overlayfs: connect to /nowhere/containerd.sock: dial unix /nowhere/containerd.sock: connect: no such file or directory"},
		},
		{
			name: "a containerd that does not start", status: 1,
			args: []string{"--images", small, "--containerd", "/bin/false", "--snapshotters", "overlayfs"},
			want: []string{"measure snapshotter overlayfs: start false: ended at once: exit status 1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bench(t.Context(), t, append([]string{"--runs", "1"}, tt.args...)...)
			if b.status != tt.status {
				t.Errorf("exit status %d, want %d", b.status, tt.status)
			}
			lines := slices.DeleteFunc(b.errors, func(l string) bool { return strings.HasPrefix(l, "ostree-snapshotter: hint: ") })
			if len(lines) != len(tt.want) {
				t.Fatalf("got errors %q, want %d", lines, len(tt.want))
			}
			for i, l := range lines {
				if !strings.HasPrefix(l, "ostree-snapshotter: error: "+tt.want[i]) {
					t.Errorf("got %q, want %q...", l, tt.want[i])
				}
			}
			ran := make(map[string]bool)
			for _, r := range b.report.Runs {
				ran[r.Snapshotter] = true
			}
			for _, name := range tt.ran {
				if !ran[name] {
					t.Errorf("no figure of %s", name)
				}
			}
			if len(ran) != len(tt.ran) {
				t.Errorf("there are figures of %v, want %v", ran, tt.ran)
			}
		})
	}
}

// TestBenchWrongFiles measures a snapshotter that shows other files than the image has. It must have no figures. Debian
// 13's mkfs.erofs changes the mode of a directory that a lower layer has and the layer itself does not.
func TestBenchWrongFiles(t *testing.T) {
	needsHost(t)
	testenv.NeedsLoop(t)
	erofs, err := testhost.ErofsUtils(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", erofs+":"+os.Getenv("PATH"))
	right, wrong := layout(t, "tiny:1"), layout(t, "layers:1")
	b := bench(t.Context(), t, "--runs", "1", "--images", right, "--images", wrong, "--snapshotters", "erofs,overlayfs")
	want := "ostree-snapshotter: error: measure image " + wrong + `, snapshotter erofs: compare container with image: "/data" is 40777 `
	if b.status != 3 || len(b.errors) != 1 || !strings.HasPrefix(b.errors[0], want) {
		t.Fatalf("exit status %d, %q, want %s...", b.status, b.errors, want)
	}
	for _, r := range b.report.Runs {
		if r.Snapshotter == "erofs" && r.Image != right {
			t.Errorf("there are figures of %q: %v", r.Image, r.Values)
		}
	}
	if v := b.value(t, "erofs", right, report.Cold, report.Unpack); !(v > 0) {
		t.Errorf("the other image was unpacked in %v s", v)
	}
}

// TestBenchInterrupted interrupts the benchmark as Ctrl-C does, early and late. bench checks that nothing is left.
func TestBenchInterrupted(t *testing.T) {
	needsHost(t)
	testenv.NeedsLoop(t)
	image := layout(t, "layers:1")
	for _, after := range []time.Duration{300 * time.Millisecond, 2 * time.Second, 7 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		b := bench(ctx, t, "--runs", "100", "--images", image)
		cancel()
		if want := "ostree-snapshotter: error: interrupted"; b.status != 130 || len(b.errors) != 1 || b.errors[0] != want {
			t.Errorf("after %v: exit status %d, %q", after, b.status, b.errors)
		}
		if b.report != nil && !b.report.Interrupted {
			t.Errorf("after %v: the report is not marked as interrupted", after)
		}
	}
}

// TestBenchExisting measures a running containerd. Its images stay.
func TestBenchExisting(t *testing.T) {
	e := start(t, nil)
	ref := push(t, "odd:1")
	if err := e.Pull(t.Context(), defaultNS, ref); err != nil {
		t.Fatal(err)
	}
	b := bench(t.Context(), t, "--runs", "2", "--images", layout(t, "layers:1"), "--images", layout(t, "tiny:1"),
		"-a", e.Containerd, "--daemon-address", e.Daemon)
	if b.status != 0 {
		t.Fatalf("exit status %d: %q", b.status, b.errors)
	}
	if n := len(b.report.Runs); n != 2*2*(2*2+2) {
		t.Errorf("got %d runs", n)
	}
	out, err := e.Ctr(t.Context(), defaultNS, "images", "ls", "-q")
	if err != nil || strings.TrimSpace(out) != ref {
		t.Errorf("images afterwards: %q, %v", out, err)
	}
	for _, ns := range []string{"ostree-snapshotter-bench", "ostree-snapshotter-bench-again"} {
		for _, what := range []string{"images", "containers"} {
			if out, err := e.Ctr(t.Context(), ns, what, "ls", "-q"); err != nil || out != "" {
				t.Errorf("%s in namespace %s: %q, %v", what, ns, out, err)
			}
		}
	}
}
