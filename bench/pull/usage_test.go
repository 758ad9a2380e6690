package pull

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSpaceIsThatOfDu compares with du on holes, hard links and directories.
func TestSpaceIsThatOfDu(t *testing.T) {
	root := t.TempDir()
	for i := range 50 {
		d := filepath.Join(root, fmt.Sprint(i%7))
		testenv.Must(t, os.MkdirAll(d, 0o755))
		name := filepath.Join(d, fmt.Sprint(i))
		testenv.Must(t, os.WriteFile(name, make([]byte, i*1000), 0o600))
		testenv.Must(t, os.Link(name, name+"-link"))
		testenv.Must(t, os.Symlink("x", name+"-symlink"))
		testenv.Must(t, os.Truncate(name, 1<<30))
	}
	got, err := measureSpace(root)
	testenv.Must(t, err)
	for _, tt := range []struct {
		got  int64
		flag string
	}{{got.bytes, "--block-size=1"}, {got.inodes, "--inodes"}} {
		out, err := exec.CommandContext(t.Context(), "du", "-s", tt.flag, root).Output()
		testenv.Must(t, err)
		var want int64
		_, err = fmt.Sscan(string(out), &want)
		testenv.Must(t, err)
		if tt.got != want {
			t.Errorf("got %d, du %s prints %d", tt.got, tt.flag, want)
		}
	}
}

func TestProcess(t *testing.T) {
	pids := []int{os.Getpid()}
	before, err := processorTime(pids)
	testenv.Must(t, err)
	testenv.Must(t, exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").Run())
	after, err := processorTime(pids)
	testenv.Must(t, err)
	if used := after - before; used < 0.01 || used > 60 {
		t.Errorf("a child counted to 300000 in %v s", used)
	}
	if _, err := processorTime([]int{1 << 30}); err == nil {
		t.Error("no process: got no error")
	}
}

func TestPeakMemory(t *testing.T) {
	pids := []int{os.Getpid()}
	testenv.Must(t, resetPeakMemory(pids))
	before, err := peakMemory(pids)
	testenv.Must(t, err)
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i)
	}
	after, err := peakMemory(pids)
	testenv.Must(t, err)
	if grown := after - before; grown < 50<<20 || grown > 200<<20 {
		t.Errorf("it grew by %d bytes, want 64 MiB", grown)
	}
	t.Log(b[len(b)-1])
}
