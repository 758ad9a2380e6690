package pull

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// space is the disk space of a directory.
type space struct{ bytes, inodes int64 }

func (s space) minus(t space) space { return space{s.bytes - t.bytes, s.inodes - t.inodes} }

// measureSpace counts the allocated blocks and the inodes of a directory and everything below it on its file system,
// each inode once, like du. It syncs first, because a file system may allocate blocks only then.
func measureSpace(dir string) (s space, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return s, err
	}
	err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	if err != nil {
		return s, fmt.Errorf("sync %s: %w", dir, err)
	}
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return s, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	seen := make(map[uint64]bool) // inodes with several names
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a daemon is at work there
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return &fs.PathError{Op: "lstat", Path: name, Err: err}
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		s.bytes += atfs.Allocated(&st)
		s.inodes++
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("measure %s: %w", dir, err)
	}
	return s, nil
}

// clockTicks is the unit of times in /proc, USER_HZ. It is 100 on every Linux architecture that Go supports.
const clockTicks = 100

// processorTime returns the seconds of processor time used by processes and by their children that have ended.
func processorTime(pids []int) (float64, error) {
	var ticks int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("measure processor time: %w", err)
		}
		// The fields follow the name, which may contain any character; utime, stime, cutime and cstime are fields 14 to
		// 17 of proc_pid_stat(5).
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) < 15 {
			return 0, fmt.Errorf("measure processor time: /proc/%d/stat has %d fields", pid, len(fields))
		}
		for _, f := range fields[11:15] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("measure processor time: %w", err)
			}
			ticks += n
		}
	}
	return float64(ticks) / clockTicks, nil
}

// idleTime waits until processes do nothing, and returns their processor time. Processes that always do something have a
// minute.
func idleTime(ctx context.Context, pids []int) (float64, error) {
	const (
		still = 500 * time.Millisecond // more than any pause of a background task
		noise = 1.5 / clockTicks       // of a process that does nothing
	)
	last, err := processorTime(pids)
	for deadline := time.Now().Add(time.Minute); err == nil; {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(still):
		}
		before := last
		if last, err = processorTime(pids); last-before < noise || time.Now().After(deadline) {
			break
		}
	}
	return last, err
}

// resetPeakMemory restarts the measurement of peakMemory. See clear_refs in proc(5).
func resetPeakMemory(pids []int) error {
	for _, pid := range pids {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/clear_refs", pid), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("reset peak memory: %w", err)
		}
		_, err = f.WriteString("5")
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("reset peak memory: %w", err)
		}
	}
	return nil
}

// peakMemory returns the sum of the largest resident sets of processes, in bytes.
func peakMemory(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, fmt.Errorf("measure memory: %w", err)
		}
		found := false
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("measure memory: %w", err)
				}
				sum, found = sum+kb<<10, true
			}
		}
		if !found {
			return 0, fmt.Errorf("measure memory: /proc/%d/status has no VmHWM", pid)
		}
	}
	return sum, nil
}
