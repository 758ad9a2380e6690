package sysroot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// notes deploys a commit of the bed, and returns the notes of the executed plan.
func (b *bed) notes(commit string, change ...func(*sysroot.Request)) []string {
	b.t.Helper()
	return b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		r := sysroot.Request{Stateroot: "os", Commit: ref(b, commit), Merge: st.MergeDeployment("os")}
		for _, f := range change {
			f(&r)
		}
		return b.PlanDeploy(b.t.Context(), st, r)
	}).Notes
}

// TestLabelsDeep labels a /var with more nested directories than a process may have open.
func TestLabelsDeep(t *testing.T) {
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	const depth = 1500
	lib := filepath.Join(b.path, "ostree/deploy/os/var/lib")
	testenv.Must(t, os.MkdirAll(lib, 0o755))
	// down calls f with each nested directory, from the top.
	down := func(f func(level, fd int)) {
		t.Helper()
		fd := value(unix.Open(lib, unix.O_DIRECTORY, 0))(t)
		for level := range depth {
			f(level, fd)
			next := value(unix.Openat(fd, "d", unix.O_DIRECTORY, 0))(t)
			testenv.Must(t, unix.Close(fd))
			fd = next
		}
		f(depth, fd)
		testenv.Must(t, unix.Close(fd))
	}
	down(func(level, fd int) {
		if level < depth {
			testenv.Must(t, unix.Mkdirat(fd, "d", 0o755))
		}
		testenv.Must(t, unix.Mkdirat(fd, "e", 0o755)) // entered after d
	})
	var limit unix.Rlimit
	testenv.Must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	few := limit
	few.Cur = 400
	testenv.Must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	notes := b.notes("1")
	testenv.Must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if len(notes) != 0 {
		t.Errorf("got notes %q, want none", notes)
	}
	down(func(level, fd int) {
		for _, name := range []string{".", "e"} {
			if got := label(t, fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)); got != "u:r:lib_t:s0" {
				t.Fatalf("%s at level %d has the label %q", name, level, got)
			}
		}
	})
}

// TestLabelsRefused labels all but the files of /var that refuse it, and names them.
func TestLabelsRefused(t *testing.T) {
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	stateroot := filepath.Join(b.path, "ostree/deploy/os/var")
	testenv.Must(t, os.MkdirAll(stateroot+"/lib/dir", 0o755))
	refusing := []string{"lib/dir", "lib/fixed", "lib/fixed2", "lib/log"}
	for _, name := range []string{"lib/dir/inside", "lib/fixed", "lib/fixed2", "lib/log", "lib/zz"} {
		testenv.Must(t, os.WriteFile(filepath.Join(stateroot, name), nil, 0o644))
	}
	for _, name := range refusing {
		flags := testenv.Immutable
		if name == "lib/log" {
			flags = testenv.AppendOnly
		}
		undo := testenv.SetFlags(t, filepath.Join(stateroot, name), flags)
		t.Cleanup(undo)
	}
	notes := b.notes("1")
	want := "4 files or directories of /var could not be labelled, such as /var/lib/dir (operation not permitted), " +
		"/var/lib/fixed (operation not permitted), /var/lib/fixed2 (operation not permitted)."
	if !slices.Equal(notes, []string{want}) {
		t.Errorf("got notes\n%q, want\n%q", notes, want)
	}
	got := labels(t, stateroot)
	for _, name := range refusing {
		if got[name] != "" {
			t.Errorf("%s has the label %q", name, got[name])
		}
	}
	for _, name := range []string{"lib", "lib/dir/inside", "lib/zz"} {
		if got[name] != "u:r:lib_t:s0" {
			t.Errorf("%s has the label %q", name, got[name])
		}
	}
	if _, err := os.Lstat(stateroot + "/.ostree-selabeled"); err != nil {
		t.Errorf("record: %v", err)
	}
}

// TestLabelsOfSubvolumes labels the subvolumes of a /var on Btrfs, and nothing that is mounted there.
func TestLabelsOfSubvolumes(t *testing.T) {
	b := newSysroot(t)
	btrfs := testenv.NeedsTool(t, "btrfs")
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	disk := testenv.NewDisk(t, "btrfs", 256<<20).Dir
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), btrfs, args...).CombinedOutput(); err != nil {
			t.Fatalf("btrfs %q: %v\n%s", args, err, out)
		}
	}
	stateroot := filepath.Join(b.path, "ostree/deploy/os/var")
	run("subvolume", "create", disk+"/var")
	testenv.Must(t, os.MkdirAll(disk+"/var/lib", 0o755))
	run("subvolume", "create", disk+"/var/lib/machines")
	for _, name := range []string{"var/lib/machines/sub/file", "outside/file", "var/lib/mnt/file", "var/lib/here"} {
		testenv.Must(t, os.MkdirAll(filepath.Dir(filepath.Join(disk, name)), 0o755))
		testenv.Must(t, os.WriteFile(filepath.Join(disk, name), nil, 0o644))
	}
	run("subvolume", "snapshot", "-r", disk+"/var/lib/machines", disk+"/var/lib/snapshot")
	bind(t, disk+"/var", stateroot)
	bind(t, disk+"/outside", stateroot+"/lib/mnt") // of the same file system
	bind(t, disk+"/outside/file", stateroot+"/lib/here")
	notes := b.notes("1")
	if want := []string{"A file or directory of /var could not be labelled: /var/lib/snapshot (read-only file system)."}; !slices.Equal(notes, want) {
		t.Errorf("got notes %q, want %q", notes, want)
	}
	for name, want := range map[string]string{
		"var": "var", "var/lib": "lib", "var/lib/machines": "lib", "var/lib/machines/sub": "lib", "var/lib/machines/sub/file": "lib",
		"var/lib/mnt": "", "var/lib/mnt/file": "", "var/lib/here": "", "outside": "", "outside/file": "",
	} {
		if want != "" {
			want = "u:r:" + want + "_t:s0"
		}
		if got := label(t, filepath.Join(disk, name)); got != want {
			t.Errorf("%s has the label %q, want %q", name, got, want)
		}
	}
}
