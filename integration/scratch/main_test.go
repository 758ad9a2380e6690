package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// scratch runs the program with a value of TMPDIR.
func scratch(t *testing.T, program, tmpdir string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmpdir)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), diag.String(), cmd.ProcessState.ExitCode()
}

func build(t *testing.T) (program string) {
	t.Helper()
	testenv.NeedsRoot(t)
	testenv.NeedsLoop(t)
	program, err := testhost.BuildProgram(t.Context(), t.TempDir(), "./integration/scratch")
	testenv.Must(t, err)
	return program
}

func TestScratch(t *testing.T) {
	program := build(t)
	const script = `echo here >"$TMPDIR/file"; sync -f "$TMPDIR/file"; stat -f -c %T "$TMPDIR"; stat -c %a "$TMPDIR"; echo "$TMPDIR"; exit 7`
	out, diag, status := scratch(t, program, "", "sh", "-euc", script)
	lines := strings.Fields(out)
	if status != 7 || diag != "" || len(lines) != 3 || lines[0] != "ext2/ext3" || lines[1] != "1777" {
		t.Fatalf("status %d, want 7; printed %q and %q, want ext4 with mode 1777", status, out, diag)
	}
	if _, err := os.Lstat(filepath.Join(lines[2], "file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file outside: %v", err)
	}

	own := t.TempDir() // as in tests that run below this program
	if out, diag, status := scratch(t, program, own, "sh", "-c", `echo "$TMPDIR"`); out != own+"\n" || diag != "" || status != 0 {
		t.Errorf("with TMPDIR set: %q, %q, status %d", out, diag, status)
	}
	if out, diag, status := scratch(t, program, own, "/no/such/program"); out != "" || status != 1 || !strings.HasPrefix(diag, "scratch: error: ") {
		t.Errorf("without the program: %q, %q, status %d", out, diag, status)
	}
}

// TestNothingIsLeft ends a command in each way, and checks that the file system and its file are gone.
func TestNothingIsLeft(t *testing.T) {
	program := build(t)
	for name, end := range map[string]syscall.Signal{"exit": 0, "failure": 0, "SIGINT": unix.SIGINT, "SIGTERM": unix.SIGTERM, "SIGKILL": unix.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), program, "sh", "-euc",
				`dev=$(mountpoint -d "$TMPDIR"); echo "/sys/dev/block/$dev/loop/backing_file"; read -r status; exit "$status"`)
			cmd.Env = append(os.Environ(), "TMPDIR=")
			stdin, err := cmd.StdinPipe()
			testenv.Must(t, err)
			stdout, err := cmd.StdoutPipe()
			testenv.Must(t, err)
			testenv.Must(t, cmd.Start())
			line, err := bufio.NewReader(stdout).ReadString('\n')
			testenv.Must(t, err)
			attribute := strings.TrimSpace(line) // of the loop device
			b, err := os.ReadFile(attribute)
			testenv.Must(t, err)
			file, deleted := strings.CutSuffix(strings.TrimSpace(string(b)), " (deleted)")
			if _, err := os.Lstat(file); !deleted || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file below the file system is %q, which has a name still: %v", b, err)
			}
			switch {
			case end != 0:
				testenv.Must(t, cmd.Process.Signal(end))
			case name == "failure":
				_, err = stdin.Write([]byte("7\n"))
			default:
				_, err = stdin.Write([]byte("0\n"))
			}
			testenv.Must(t, err)
			if err := cmd.Wait(); (err == nil) != (name == "exit") {
				t.Errorf("the command ended with %v", err)
			}
			left := func() bool { // another file may have the device
				now, err := os.ReadFile(attribute)
				return err == nil && bytes.Equal(now, b)
			}
			for deadline := time.Now().Add(time.Minute); left(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s is still %q", attribute, b)
				}
			}
		})
	}
}

func TestSize(t *testing.T) {
	const gib = 1 << 30
	for free, want := range map[int64]int64{100 * gib: 32 * gib, 16 * gib: 12 * gib, 11 * gib: 11 * gib / 4 * 3} {
		if got, err := size(free); err != nil || got != want {
			t.Errorf("with %d bytes free the size is %d, %v, want %d", free, got, err, want)
		}
	}
	if n, err := size(3 * gib); err == nil || err.Error() != "3.0 GiB are free, and it needs 10.7" {
		t.Errorf("with 3 GiB free: %d, %v", n, err)
	}
}
