package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// timePrefix begins a line with the processor time of a test, by name, or of its package.
const timePrefix = "processor time: "

// userHz is the unit of times in /proc, on all architectures.
const userHz = 100

// ended matches the line that ends a test, but not a subtest. The first byte marks it for test2json.
var ended = regexp.MustCompile(`^\x16?--- (?:PASS|FAIL|SKIP): (\S+) \(`)

// execute runs a test program for "go test -exec". After its output it prints how much processor time each test took
// until it ended, with the processes for which the program waited. It returns the program's exit status.
func execute(args []string, w io.Writer) (int, error) {
	// A killed wrapper must not leave the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT) // go test ends a test that hangs with SIGQUIT
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	var times strings.Builder
	last := 0.0
	err = copyLines(w, out, func(test string) error {
		now, err := processorTime(cmd.Process.Pid)
		fmt.Fprintf(&times, "%s%.2f %s\n", timePrefix, now-last, test)
		last = now
		return err
	})
	var failed *exec.ExitError
	if waited := cmd.Wait(); waited != nil && !errors.As(waited, &failed) {
		err = errors.Join(err, waited)
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	_, printed := fmt.Fprintf(w, "%s%s%.2f\n", &times, timePrefix, used.Seconds())
	return cmd.ProcessState.ExitCode(), errors.Join(err, printed)
}

// copyLines copies the output of a test program. It calls end after each test.
func copyLines(w io.Writer, r io.Reader, end func(test string) error) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if _, err := w.Write(line); err != nil {
			return err
		}
		if m := ended.FindSubmatch(line); m != nil {
			if err := end(string(m[1])); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// processorTime returns the seconds of processor time that a process and the children for which it waited have taken.
func processorTime(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const utime = 14 - 3 // the name, which may have spaces, is the second field, and the times of children follow
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < utime+4 {
		return 0, fmt.Errorf("read times of process %d: got %q", pid, b)
	}
	sum := 0
	for _, f := range fields[utime : utime+4] {
		var n int
		if _, err := fmt.Sscan(f, &n); err != nil {
			return 0, fmt.Errorf("read times of process %d: %w", pid, err)
		}
		sum += n
	}
	return float64(sum) / userHz, nil
}
