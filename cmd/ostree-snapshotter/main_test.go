package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ostree-snapshotter": main, "remount": remountMain})
}

// remountMain is the program of a script's "remount DIR FILE": it makes DIR writable for itself, and FILE.
func remountMain() {
	err := mounts.EnsureWritable(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], nil, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestScript runs testdata/script. The commands beyond testscript's own are below.
func TestScript(t *testing.T) {
	testenv.NeedsRoot(t)
	containerd := newOSContainerd(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
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

// fixture DIR: makes the store of makeFixture in DIR, and closes it.
func scriptFixture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fixture DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o711))
	f, err := makeFixture(context.Background(), dir)
	ts.Check(err)
	ts.Setenv("LAYER_BASE", f.base.String())
	ts.Setenv("LAYER_A", f.a.String())
	ts.Setenv("LAYER_B", f.b.String())
	ts.Setenv("CHECKOUT_B", "layers/"+layer.CheckoutDir(f.b)+"/fs")
	ts.Setenv("CHAIN_BASE", f.chain.String())
	ts.Setenv("CHAIN_A", f.chainA.String())
	ts.Setenv("CHAIN_B", f.chainB.String())
	ts.Check(f.close())
}

// forget DIR NAME: removes a snapshot like a daemon that crashes before it cleans up.
func scriptForget(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: forget DIR NAME")
	}
	f, err := openFixture(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	err = f.sn.Remove(context.Background(), snapshotName(args[1]))
	ts.Check(errors.Join(err, f.close()))
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
	f, err := openFixture(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	lock, err := f.repo.Lock(context.Background(), objectstore.LockShared)
	ts.Check(err)
	ts.Check(f.sn.Close())
	ts.Defer(func() { ts.Check(errors.Join(lock.Unlock(), f.close())) })
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

func TestStatusOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailed},
		{usagef("x"), exitUsage},
		{withHint(usagef("x"), "y"), exitUsage},
		{fmt.Errorf("x: %w", objectstore.ErrNoRepo), exitNoRepo},
		{fmt.Errorf("x: %w", objectstore.ErrLocked), exitLocked},
		{fmt.Errorf("x: %w", objectstore.ErrCorrupt), exitCorrupt},
		{withStatus(exitPartly, fmt.Errorf("x: %w", objectstore.ErrCorrupt)), exitPartly},
		{errInterrupted, exitInterrupted},
	} {
		var b bytes.Buffer
		if got := report(&b, tt.err); got != tt.want {
			t.Errorf("exit status of %q is %d, want %d", fmt.Sprint(tt.err), got, tt.want)
		}
	}
}

// TestInterrupted ends each command that can take long before it has begun.
func TestInterrupted(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := makeFixture(t.Context(), dir)
	if err == nil {
		err = f.close()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, verb := range []string{"df", "layers", "fsck", "prune"} {
		t.Run(verb, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := execute(ctx, []string{verb, "--root", dir}, &stdout, &stderr); got != exitInterrupted {
				t.Errorf("exit status is %d, want %d", got, exitInterrupted)
			}
			if got, want := stderr.String(), "ostree-snapshotter: error: interrupted\n"; got != want {
				t.Errorf("stderr is %q, want %q", got, want)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout is %q, want nothing", stdout.String())
			}
		})
	}
}

// eachCommand calls f for every command that is ours.
func eachCommand(t *testing.T, f func(t *testing.T, cmd *cobra.Command)) {
	t.Helper()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			t.Run(strings.ReplaceAll(sub.CommandPath(), " ", "_"), func(t *testing.T) { f(t, sub) })
			walk(sub)
		}
	}
	walk((&cli{}).rootCommand())
}

func TestHelpListsExitStatuses(t *testing.T) {
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		t.Helper()
		for _, status := range []int{exitOK, exitFailed, exitUsage} {
			if want := fmt.Sprintf("%3d  %s", status, exitMeaning[status]); !strings.Contains(cmd.Long, want) {
				t.Errorf("help does not say %q", want)
			}
		}
	})
}

// TestDocsNameEverything keeps docs/cli.md complete: every command, and every field of every JSON document.
func TestDocsNameEverything(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		t.Helper()
		if !strings.Contains(doc, "`"+cmd.CommandPath()+"`") {
			t.Error("docs/cli.md does not name it")
		}
	})
	for _, v := range []any{
		dfReport{},
		layerRow{},
		fsckReport{},
		pruneReport{},
		versionInfo{},
		finding{},
		changeReport{},
		kargsReport{},
		upgradeReport{},
		statusReport{},
		deploymentName{},
		bootReport{},
	} {
		for _, name := range jsonFields(reflect.TypeOf(v)) {
			if !strings.Contains(doc, "`"+name+"`") {
				t.Errorf("docs/cli.md does not name the field %q of %T", name, v)
			}
		}
	}
}

// jsonFields are the names of the fields of a struct, and of those in it.
func jsonFields(typ reflect.Type) []string {
	for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" {
			names = append(names, name)
			names = append(names, jsonFields(f.Type)...)
		}
	}
	return slices.Compact(names)
}

func TestProgressLine(t *testing.T) {
	p := &progress{verb: "checking objects"}
	for _, tt := range []struct {
		done, total int64
		want        string
	}{
		{0, 0, "\rchecking objects 0\x1b[K"},
		{7, 0, "\rchecking objects 7\x1b[K"},
		{7, 28, "\rchecking objects 7/28 (25%)\x1b[K"},
	} {
		if got := p.line(tt.done, tt.total); got != tt.want {
			t.Errorf("line(%d, %d) = %q, want %q", tt.done, tt.total, got, tt.want)
		}
	}
}

func TestProgressOnPipe(t *testing.T) {
	var b bytes.Buffer
	p := (&cli{stderr: &b}).newProgress("working")
	p.update(1, 2)
	p.stop()
	if b.Len() > 0 {
		t.Errorf("progress wrote %q to something that is no terminal", b.String())
	}
}
