package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const (
	memoryEnv = "OSTREE_SNAPSHOTTER_TEST_MEMORY"
	longEnv   = "OSTREE_SNAPSHOTTER_TEST_LONG"
)

// Scale returns quick, or full if the environment asks for full-size tests, which take minutes.
func Scale(quick, full int) int {
	if os.Getenv(longEnv) != "" {
		return full
	}
	return quick
}

// PeakMemory runs f in a separate process and returns the process's peak resident memory in bytes, including the
// program itself. The process runs the same test again: code before the call must not depend on running first, and code
// after it does not run there.
func PeakMemory(t *testing.T, f func()) int64 {
	t.Helper()
	if os.Getenv(memoryEnv) != "" {
		f()
		peak, err := highWaterMark()
		if err == nil {
			_, err = fmt.Fprint(os.NewFile(3, "report"), peak)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.SkipNow()
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+strings.Join(pattern, "/"), "-test.count=1")
	cmd.Env = append(os.Environ(), memoryEnv+"=1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.CombinedOutput()
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var peak int64
	if _, err := fmt.Fscan(r, &peak); err != nil {
		t.Fatalf("peak memory of the process: %v\n%s", err, out)
	}
	return peak
}

// LimitMemory runs f as [PeakMemory] does, and fails the test if it takes more than limit bytes. The race detector,
// which takes memory itself, disables the limit.
func LimitMemory(t *testing.T, limit int64, f func()) {
	t.Helper()
	peak := PeakMemory(t, f)
	t.Logf("peak memory %d MiB, %d MiB are allowed", peak>>20, limit>>20)
	if peak > limit && !raceDetector {
		t.Errorf("peak memory is %d MiB, want at most %d", peak>>20, limit>>20)
	}
}

// highWaterMark returns the peak resident size of this process. The usage that wait(2) reports will not do: it starts
// at the size of the forking process.
func highWaterMark() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		var kib int64
		if n, err := fmt.Sscanf(string(line), "VmHWM: %d kB", &kib); err == nil && n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status")
}
