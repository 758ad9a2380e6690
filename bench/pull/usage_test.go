package pull

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The space of a directory is what du counts: holes, hard links, directories.
func TestSpaceIsThatOfDu(t *testing.T) {
	root := t.TempDir()
	for i := range 50 {
		d := filepath.Join(root, fmt.Sprint(i%7))
		must(t, os.MkdirAll(d, 0o755))
		name := filepath.Join(d, fmt.Sprint(i))
		must(t, os.WriteFile(name, make([]byte, i*1000), 0o600))
		must(t, os.Link(name, name+"-link"))
		must(t, os.Symlink("x", name+"-symlink"))
		must(t, os.Truncate(name, 1<<30))
	}
	got, err := measureSpace(root)
	must(t, err)
	for _, tt := range []struct {
		got  int64
		flag string
	}{{got.bytes, "--block-size=1"}, {got.inodes, "--inodes"}} {
		out, err := exec.CommandContext(t.Context(), "du", "-s", tt.flag, root).Output()
		must(t, err)
		var want int64
		_, err = fmt.Sscan(string(out), &want)
		must(t, err)
		if tt.got != want {
			t.Errorf("got %d, du %s says %d", tt.got, tt.flag, want)
		}
	}
}

func TestProcess(t *testing.T) {
	pids := []int{os.Getpid()}
	before, err := processorTime(pids)
	must(t, err)
	must(t, exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").Run())
	after, err := processorTime(pids)
	must(t, err)
	if used := after - before; used < 0.01 || used > 60 {
		t.Errorf("a child counted to 300000 in %v s", used)
	}
	if _, err := processorTime([]int{1 << 30}); err == nil {
		t.Error("no process: got no error")
	}
}

func TestPeakMemory(t *testing.T) {
	pids := []int{os.Getpid()}
	must(t, resetPeakMemory(pids))
	before, err := peakMemory(pids)
	must(t, err)
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i)
	}
	after, err := peakMemory(pids)
	must(t, err)
	if grown := after - before; grown < 50<<20 || grown > 200<<20 {
		t.Errorf("it grew by %d bytes, want 64 MiB", grown)
	}
	t.Log(b[len(b)-1])
}
