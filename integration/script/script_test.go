package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"remount": remountMain})
}

// remountMain is the program of a script's "remount DIR... FILE": it makes each DIR writable for itself, and FILE.
func remountMain() {
	last := len(os.Args) - 1
	err := mounts.EnsureWritable(os.Args[1:last]...)
	if err == nil {
		err = os.WriteFile(os.Args[last], nil, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestScript runs the scripts in testdata. The commands beyond testscript's own are below.
func TestScript(t *testing.T) {
	testenv.NeedsRoot(t)
	containerd := newOSContainerd(t)
	bin := t.TempDir()
	binary, err := testhost.BuildBinary(t.Context(), t.TempDir())
	testenv.Must(t, err)
	testenv.Must(t, os.Symlink(binary, filepath.Join(bin, "ostree-snapshotter")))
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// A containerd that happens to run on the host is none of a script's business.
			env.Setenv("CONTAINERD_ADDRESS", filepath.Join(env.WorkDir, "no-containerd.sock"))
			env.Setenv("OS_CONTAINERD", containerd.Address)
			env.Setenv("GOARCH", runtime.GOARCH)
			old, err := filepath.Abs("testdata/sysroot-021a6dd.tar.gz")
			env.Setenv("OLD_SYSROOT", old)
			return err
		},
		Condition: func(cond string) (bool, error) {
			if cond != "booted" { // this machine, from an ostree deployment
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return deploy.IsRunning("/")
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status":  scriptStatus,
			"fixture": scriptFixture,
			"forget":  scriptForget,
			"build":   scriptBuild,
			"damage":  scriptDamage,
			"lock":    scriptLock,
			"waitfor": scriptWaitFor,
			"same":    scriptSame,
			"json":    scriptJSON,
			"layout":  scriptLayout,

			"osstore":    scriptOSStore,
			"sysroot":    scriptSysroot,
			"deployment": scriptDeployment,
			"meanwhile":  scriptMeanwhile,
		},
	})
}

// status N COMMAND [ARG...]: the command ends with exit status N.
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status is %d, want %d", got, want)
	}
}

// fixture DIR: makes the store of a snaptest.Fixture in DIR, and closes it.
func scriptFixture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fixture DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o711))
	f, err := snaptest.MakeFixture(context.Background(), dir)
	ts.Check(err)
	ts.Setenv("LAYER_BASE", f.Base.String())
	ts.Setenv("LAYER_A", f.A.String())
	ts.Setenv("LAYER_B", f.B.String())
	ts.Setenv("CHECKOUT_B", "layers/"+layer.CheckoutDir(f.B)+"/fs")
	ts.Setenv("CHAIN_BASE", f.Chain.String())
	ts.Setenv("CHAIN_A", f.ChainA.String())
	ts.Setenv("CHAIN_B", f.ChainB.String())
	ts.Check(f.Close())
}

// forget DIR NAME: removes a snapshot like a daemon that crashes before it cleans up.
func scriptForget(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: forget DIR NAME")
	}
	f, err := snaptest.OpenFixture(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	err = f.Remove(context.Background(), snaptest.SnapshotName(args[1]))
	ts.Check(errors.Join(err, f.Close()))
}

// build DIR: commits the container of a fixture, as a builder does: the layer is made of a directory.
func scriptBuild(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: build DIR")
	}
	f, err := snaptest.OpenFixture(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	err = f.Commit(context.Background(), snaptest.SnapshotName("built"), snaptest.SnapshotName("container"))
	ts.Check(errors.Join(err, f.Close()))
}

// damage DIR: changes a byte in the largest object of the store in DIR and sets $OBJECT to its file name. damage DIR
// remove: removes it instead.
func scriptDamage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 || len(args) == 2 && args[1] != "remove" {
		ts.Fatalf("usage: damage DIR [remove]")
	}
	objects := filepath.Join(ts.MkAbs(args[0]), "repo/objects")
	var largest string
	var size int64
	ts.Check(filepath.WalkDir(objects, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > size {
			largest, size = name, info.Size()
		}
		return err
	}))
	rel, err := filepath.Rel(objects, largest)
	ts.Check(err)
	ts.Setenv("OBJECT", strings.ReplaceAll(rel, "/", ""))
	if len(args) == 2 {
		ts.Check(os.Remove(largest))
		return
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, size/2)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, size/2)
	ts.Check(errors.Join(err, f.Close()))
}

// lock DIR: holds the lock of the repository in DIR, as a pull does, until the script ends. Commands that need it
// exclusively fail at once.
func scriptLock(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: lock DIR")
	}
	config := filepath.Join(ts.MkAbs(args[0]), "repo/config")
	text, err := os.ReadFile(config)
	ts.Check(err)
	ts.Check(os.WriteFile(config, append(text, "lock-timeout-secs=0\n"...), 0o644))
	f, err := snaptest.OpenFixture(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	lock, err := f.Repo.Lock(context.Background(), objectstore.LockShared)
	ts.Check(err)
	ts.Check(f.Snapshotter.Close())
	ts.Defer(func() { ts.Check(errors.Join(lock.Unlock(), f.Close())) })
}

// waitfor FILE: waits until FILE exists.
func scriptWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfor FILE")
	}
	for range 500 {
		if _, err := os.Lstat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%s has not appeared in ten seconds", args[0])
}

// same DIR FILE: FILE lists the content of DIR: names, types, sizes, inode numbers. The first call creates FILE.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: same DIR FILE")
	}
	var b strings.Builder
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		_, err = fmt.Fprintf(&b, "%s %o %d %d\n", name, st.Mode, st.Size, st.Ino)
		return err
	}))
	list := ts.MkAbs(args[1])
	want, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		ts.Check(os.WriteFile(list, []byte(b.String()), 0o600))
		return
	}
	ts.Check(err)
	if got := b.String(); got != string(want) {
		ts.Fatalf("%s has changed: it was\n%s\nand is\n%s", args[0], want, got)
	}
}

// json PATH VALUE: the output of the last command is a JSON document that has the value at a path like images.0.size.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: json PATH VALUE")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		ts.Fatalf("standard output is no JSON: %v", err)
	}
	for part := range strings.SplitSeq(args[0], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[part]
		case []any:
			if part == "len" {
				v = len(at)
				continue
			}
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(at) {
				ts.Fatalf("%s: no element %s", args[0], part)
			}
			v = at[i]
		default:
			v = nil
		}
	}
	if got := fmt.Sprint(v); (got == args[1]) == neg {
		ts.Fatalf("%s is %q, want %q: %v", args[0], got, args[1], !neg)
	}
}
