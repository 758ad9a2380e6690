// Package faulttest sweeps an operation on a store: it makes each of its disk operations fail in turn, or kills the
// process before it, and then requires the store to be whole and a retry to work. It also records the order of disk
// operations.
//
// A [Case] describes the operation. The same Case works for [Sweep], [KillSweep] and [Order].
package faulttest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Err is the error of an operation that a sweep makes fail.
var Err = fmt.Errorf("injected fault: %w", unix.ENOSPC)

// A Case is an operation on a store of type S. A single goroutine must do its disk operations, so that they have an
// order and can be counted and compared.
type Case[S io.Closer] struct {
	// Prepare sets up the operation's surroundings in an empty directory. It may be nil.
	Prepare func(t *testing.T, path string)
	// Open opens the store in path like a starting process: it cleans up after the last one. hook must see every disk
	// operation of the store.
	Open func(t *testing.T, path string, hook atfs.Hook) S
	// Run is the operation. It must be repeatable, whether it failed or not.
	Run func(t *testing.T, s S) error
	// Check checks the conditions that always hold and, with done, those that hold after the operation has succeeded.
	Check func(t *testing.T, s S, done bool)
	// Survives reports which disk operations may fail without an error from Run. Nil means none.
	Survives func(op atfs.Op, name string) bool
	// Clean is called before the directory is removed, to undo what would prevent that. It may be nil.
	Clean func(t *testing.T, path string)
	// Disk is set if the operation needs a file system on a disk. Others are swept in memory, see [Dir].
	Disk bool
	// Min is a lower bound of Run's disk operations.
	Min int
}

// A gate is a hook that acts at one operation: number at, counted from 1 while it is armed.
type gate struct {
	at    int
	death string // deathAfter: only renames are counted
	act   func() error

	mu    sync.Mutex
	armed bool
	n     int
	op    atfs.Op // at which it acted
	name  string
}

func (g *gate) hook(op atfs.Op, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.armed || g.death == deathAfter && op != atfs.OpRename {
		return nil
	}
	if g.n++; g.n != g.at {
		return nil
	}
	g.op, g.name = op, name
	return g.act()
}

func (g *gate) arm(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = on
}

// fired returns the operation at which the gate acted.
func (g *gate) fired() (text string, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprintf("%s %s", g.op, g.name), g.op != ""
}

// Sweep runs the case once for each disk operation of Run and Close, and makes that operation fail. The error must then
// be [Err], the check must hold, and a retry must work without reopening the store. It ends when no operation is left
// to fail.
func Sweep[S io.Closer](t *testing.T, c Case[S]) {
	t.Helper()
	c.sweep(t, c.fault)
}

// sweep calls one with a directory and 1, 2, 3..., until it reports that no operation had that number.
func (c Case[S]) sweep(t *testing.T, one func(t *testing.T, path string, at int) (reached bool)) {
	t.Helper()
	var dir string
	if c.Disk {
		dir = t.TempDir()
	} else {
		dir, _ = Dir(t)
	}
	for at := 1; ; at++ {
		reached := false
		ok := t.Run(strconv.Itoa(at), func(t *testing.T) {
			path := filepath.Join(dir, strconv.Itoa(at))
			if err := os.Mkdir(path, 0o711); err != nil {
				t.Fatal(err)
			}
			if c.Prepare != nil {
				c.Prepare(t, path)
			}
			reached = one(t, path, at)
			if c.Clean != nil {
				c.Clean(t, path)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		})
		if !ok {
			return
		}
		if !reached {
			if at <= c.Min {
				t.Errorf("got %d operations on the disk, want %d or more", at-1, c.Min)
			}
			t.Logf("%d operations on the disk", at-1)
			return
		}
	}
}

func (c Case[S]) fault(t *testing.T, path string, at int) bool {
	t.Helper()
	g := &gate{at: at, act: func() error { return Err }}
	s := c.Open(t, path, g.hook)
	g.arm(true)
	err := c.Run(t, s)
	what, fired := g.fired()
	if fired {
		g.arm(false)
		c.judge(t, g, err)
		c.Check(t, s, err == nil)
		if err != nil {
			if err := c.Run(t, s); err != nil {
				t.Errorf("%s failed: the same again: %v", what, err)
			}
			c.Check(t, s, true)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s failed: close: %v", what, err)
		}
		// Open's own requirements must hold; the check has just passed.
		if err := c.Open(t, path, nil).Close(); err != nil {
			t.Errorf("%s failed: open and close: %v", what, err)
		}
		return true
	}
	if err != nil {
		t.Errorf("nothing failed: got %v", err)
	}
	err = s.Close()
	g.arm(false)
	if _, fired = g.fired(); fired {
		c.judge(t, g, err)
	} else if err != nil {
		t.Errorf("nothing failed: close: %v", err)
	}
	s = c.Open(t, path, nil)
	c.Check(t, s, true)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return fired
}

// judge fails the test unless the error is that of the failed operation, on one line.
func (c Case[S]) judge(t *testing.T, g *gate, err error) {
	t.Helper()
	what, _ := g.fired()
	switch {
	case err == nil && c.Survives != nil && c.Survives(g.op, g.name):
	case !errors.Is(err, Err):
		t.Errorf("%s failed: got error %v, want %v", what, err, Err)
	case strings.Contains(err.Error(), "\n"):
		t.Errorf("%s failed: error has several lines: %v", what, err)
	}
}

// childEnv tells a child process the manner of its death, the number of the operation, and the directory.
const childEnv = "OSTREE_SNAPSHOTTER_TEST_KILL"

// IsChild reports whether this process is a child that a sweep kills. Its parent has checked the needs of the test.
func IsChild() bool {
	_, ok := os.LookupEnv(childEnv)
	return ok
}

// The ways in which a child dies.
const (
	deathBefore = "before" // the operation
	deathAfter  = "after"  // a rename, which alone counts, at the next write to a file
)

// KillSweep runs the case once for each disk operation of Run and Close, in a process that is killed before that
// operation. Then the store is opened, the check must hold, and a retry must work.
//
// The process is the test binary, running only the test that called KillSweep.
func KillSweep[S io.Closer](t *testing.T, c Case[S]) {
	t.Helper()
	c.killSweep(t, deathBefore)
}

// KillAfterRenameSweep is KillSweep with a process that dies at its next write to a file after a rename, even a write
// that the hook does not see: in the middle of a database transaction.
func KillAfterRenameSweep[S io.Closer](t *testing.T, c Case[S]) {
	t.Helper()
	c.Min = 1
	c.killSweep(t, deathAfter)
}

func (c Case[S]) killSweep(t *testing.T, death string) {
	t.Helper()
	if value, ok := os.LookupEnv(childEnv); ok {
		var g gate
		var path string
		if _, err := fmt.Sscan(value, &g.death, &g.at, &path); err != nil {
			t.Fatal(err)
		}
		c.child(t, path, &g)
		return
	}
	c.sweep(t, func(t *testing.T, path string, at int) bool {
		t.Helper()
		return c.kill(t, path, death, at)
	})
}

// reachedText is written by a child that reached its operation and survived.
const reachedText = "faulttest: lived on"

func (c Case[S]) child(t *testing.T, path string, g *gate) {
	t.Helper()
	g.act = func() error { return die(g.death) }
	s := c.Open(t, path, g.hook)
	g.arm(true)
	if err := c.Run(t, s); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := g.fired(); ok {
		fmt.Println(reachedText)
	}
}

// die kills the process, now or at its next write to a file: the kernel then sends SIGXFSZ, which Go would ignore.
func die(death string) error {
	if death == deathAfter {
		var byDefault [4]uintptr // a struct sigaction in the kernel's layout
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGXFSZ), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		if errno != 0 {
			return errno
		}
		return errors.Join(unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}), unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{}))
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // until the signal arrives
}

func (c Case[S]) kill(t *testing.T, path, death string, at int) (reached bool) {
	t.Helper()
	name := strings.TrimSuffix(t.Name(), "/"+strconv.Itoa(at))
	// The child's own temporary directories go with the sweep's.
	out, killed := RunChild(t, name, fmt.Sprintf("%s=%s %d %s", childEnv, death, at, path), "TMPDIR="+filepath.Dir(path))
	s := c.Open(t, path, nil)
	c.Check(t, s, !killed)
	if killed {
		if err := c.Run(t, s); err != nil {
			t.Errorf("killed: the same again: %v", err)
		}
		c.Check(t, s, true)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return killed || strings.Contains(out, reachedText)
}

// RunChild runs one test of this test binary in a child process, with additions to the environment. It returns the
// output and whether the child was killed. It fails the test if the child ends in any other way but success.
func RunChild(t *testing.T, test string, env ...string) (out string, killed bool) {
	t.Helper()
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+strings.Join(parts, "/"), "-test.count=1")
	cmd.Env = append(os.Environ(), env...)
	b, err := cmd.CombinedOutput()
	out = string(b)
	if err == nil {
		return out, false
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		ws, ok := exit.Sys().(syscall.WaitStatus)
		if ok && ws.Signaled() && (ws.Signal() == unix.SIGKILL || ws.Signal() == unix.SIGXFSZ) {
			return out, true
		}
	}
	t.Fatalf("child: %v\n%s", err, out)
	return out, false
}

// Dir mounts an in-memory file system until the test ends, or makes a directory if it cannot mount. A sweep syncs
// thousands of times: on a disk it would wait for the writes of other processes.
func Dir(t *testing.T) (dir string, mounted bool) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("faulttest", dir, "tmpfs", 0, "mode=0711"); err != nil {
		return dir, false
	}
	t.Cleanup(func() {
		// A failed test may have left files open.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, true
}

// WithFiles calls f with a limit on the files that the process may open beyond those already open. The limit affects
// the whole process: use it in a test that runs alone, or in a child.
func WithFiles(t *testing.T, more int, f func() error) error {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(len(open) - 1 + more), Max: old.Max} // the list includes itself
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	return f()
}
