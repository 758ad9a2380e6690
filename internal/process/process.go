// Package process runs programs in the background with their output in files. It starts them, waits until they are
// ready, and ends them and their leftovers. Benchmarks and tests use it to run their own containerd.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A Process is a running program whose output goes to a log file.
type Process struct {
	Pid int
	Log string // path

	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

// Start starts a program in its own session, with env added to our environment. It appends the output to the log file.
func Start(log string, env []string, name string, args ...string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	defer f.Close()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = f, f
	// In its own session, so that an interrupt from the terminal reaches only us and we can stop it in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	p := &Process{Pid: cmd.Process.Pid, Log: log, name: filepath.Base(name), cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// running reports whether the process still runs.
func (p *Process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err returns how the process ended: nil while it runs, and after exit code 0.
func (p *Process) Err() error {
	if p.running() {
		return nil
	}
	return p.err
}

// endWait is how long a process may take to end after a signal.
const endWait = 30 * time.Second

// Signal sends a signal and waits for the process to end, at most for endWait.
func (p *Process) Signal(sig os.Signal) error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(endWait):
		return fmt.Errorf("stop %s: still running %v after %v", p.name, endWait, sig)
	}
}

// Stop ends the process. If it does not end in time Stop kills it, which is an error.
func (p *Process) Stop() error {
	if p == nil {
		return nil
	}
	err := p.Signal(unix.SIGTERM)
	if err != nil {
		err = errors.Join(err, p.Signal(unix.SIGKILL))
	}
	return err
}

// WaitFor calls ready until it returns nil, the process ends, or half a minute has passed.
func (p *Process) WaitFor(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("start %s: ended at once: %w\n%s", p.name, p.err, Tail(p.Log, 20))
		case <-ctx.Done():
			return fmt.Errorf("start %s: not ready: %w\n%s", p.name, err, Tail(p.Log, 20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Listening returns a condition for WaitFor: a process listens on a unix socket.
func Listening(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// Tail returns the last lines of a file, or why it cannot be read.
func Tail(name string, lines int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	all := strings.SplitAfter(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// KillShims ends the shims of the containerd at a socket, after the processes they started: the containers.
func KillShims(socket string) error {
	var shims []int
	parents := make(map[int]int)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil {
			argv := strings.Split(string(b), "\x00")
			if filepath.Base(argv[0]) == "containerd-shim-runc-v2" && slices.Contains(argv, socket) {
				shims = append(shims, pid)
			}
		}
		if ppid, ok := parentOf(pid); ok {
			parents[pid] = ppid
		}
	}
	var victims []int
	for _, shim := range shims {
		for pid, ppid := range parents {
			if ppid == shim {
				victims = append(victims, pid)
			}
		}
	}
	var errs []error
	for _, pid := range append(victims, shims...) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// parentOf returns the process ID of a process's parent.
func parentOf(pid int) (int, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The program's name is in parentheses and may contain anything.
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 2 {
		return 0, false
	}
	ppid, err := strconv.Atoi(fields[1])
	return ppid, err == nil
}

// RemoveCgroups removes a control group and the groups below it, which must be empty, from every hierarchy.
func RemoveCgroups(name string) error {
	dirs, err := filepath.Glob("/sys/fs/cgroup" + name)
	if err != nil {
		return err
	}
	v1, err := filepath.Glob("/sys/fs/cgroup/*" + name)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range append(dirs, v1...) {
		errs = append(errs, removeCgroup(dir, time.Now().Add(endWait)))
	}
	return errors.Join(errs...)
}

// removeCgroup removes one control group, and waits for the last of its processes to go.
func removeCgroup(dir string, deadline time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name()), deadline); err != nil {
				return err
			}
		}
	}
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// UnmountBelow unmounts everything mounted on a directory or below it, the deepest first.
func UnmountBelow(dir string) error {
	below, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(below) {
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
