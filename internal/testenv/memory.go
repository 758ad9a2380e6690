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

// Scale returns quick, or full if the environment asks for tests at full size, which take minutes.
func Scale(quick, full int) int {
	if os.Getenv(longEnv) != "" {
		return full
	}
	return quick
}

// PeakMemory runs f in a process of its own and returns the most memory that the process had resident, in bytes, the
// program itself included. The process is the test once more: nothing before the call may depend on being the first to
// do something, and nothing behind it is reached in there.
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

// LimitMemory runs f as [PeakMemory] does. More than limit bytes are an error of the test, unless the race detector
// takes its own share.
func LimitMemory(t *testing.T, limit int64, f func()) {
	t.Helper()
	peak := PeakMemory(t, f)
	t.Logf("peak memory %d MiB, %d MiB are allowed", peak>>20, limit>>20)
	if peak > limit && !raceDetector {
		t.Errorf("peak memory is %d MiB, want at most %d", peak>>20, limit>>20)
	}
}

// highWaterMark returns the peak resident size of this process. The usage that wait(2) reports would not do: it begins
// with that of the process that forked.
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
