package sysroot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
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
	want := "4 files or directories of /var could not be labelled, such as \"/var/lib/dir\" (operation not permitted), " +
		"\"/var/lib/fixed\" (operation not permitted), \"/var/lib/fixed2\" (operation not permitted)."
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
	if want := []string{"A file or directory of /var could not be labelled: \"/var/lib/snapshot\" (read-only file system)."}; !slices.Equal(notes, want) {
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

// badPolicyTree is a tree with labels, whose policy cannot be used.
func badPolicyTree(t *testing.T, version string) *node {
	t.Helper()
	tree := labelledTree(t, version, "a")
	at(tree, "usr/etc/selinux/x/contexts/files")["file_contexts.local"] = file(0o644, "\n/x\n")
	return tree
}

// TestNoPolicy deploys a tree with labels whose policy cannot be used, at once and staged.
func TestNoPolicy(t *testing.T) {
	b := newSysroot(t)
	b = openSysroot(t, b.path, sysroot.Options{})
	b.run = t.TempDir()
	commitTree(t, b.Repo(), "os/1", "1", badPolicyTree(t, "1"))
	commitTree(t, b.Repo(), "os/2", "2", badPolicyTree(t, "2"))
	noSELinux := func(r *sysroot.Request) { r.NoSELinux = true }
	check := func(what string, notes []string) {
		t.Helper()
		if len(notes) == 0 || !strings.HasPrefix(notes[0], "Files have the labels of the commit; those of /etc, /var and /boot that are not in it get none: ") ||
			!strings.Contains(notes[0], "file_contexts.local: line 2") {
			t.Errorf("%s: got notes %q, want the policy's error", what, notes)
		}
		root := filepath.Join(b.path, b.load().Deployments[0].Path())
		if got := label(t, root+"/usr/bin/sh"); got != "u:r:usr_t:s0" {
			t.Errorf("%s: /usr/bin/sh has the label %q", what, got)
		}
		if _, err := os.Lstat(b.path + "/ostree/deploy/os/var/.ostree-selabeled"); !os.IsNotExist(err) {
			t.Errorf("%s: /var: got error %v, want no record", what, err)
		}
	}
	check("deployed", b.notes("1", noSELinux))
	p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(t.Context(), st, st.Default(), []string{"quiet"}, nil)
	})
	check("other kernel arguments", p.Notes)
	b.boot(0)
	b.notes("2", noSELinux, func(r *sysroot.Request) { r.Stage = true })
	testenv.Must(t, finalizeOnce(b))
	if d := b.load().Default(); d.Version != "2" {
		t.Errorf("default is %s, want 2", d.Version)
	}

	// Staged by a program that does not ask for this.
	b.notes("1", noSELinux, func(r *sysroot.Request) { r.Stage = true })
	record := b.run + "/ostree/staged-deployment"
	data := value(os.ReadFile(record))(t)
	testenv.Must(t, os.WriteFile(record, bytes.Replace(data, []byte(".no-selinux"), []byte(".other-key."), 1), 0o644))
	if err := finalizeOnce(b); !errors.Is(err, selinux.ErrInvalid) {
		t.Errorf("staged by another program: got error %v, want %v", err, selinux.ErrInvalid)
	}
}

// TestBadLocalPolicy finds an error in the local policy when a deployment is planned, also if it is staged.
func TestBadLocalPolicy(t *testing.T) {
	b := newSysroot(t)
	b = openSysroot(t, b.path, sysroot.Options{})
	b.run = t.TempDir()
	commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
	commitTree(t, b.Repo(), "os/2", "2", labelledTree(t, "2", "b"))
	b.deploy(ref(b, "1"))
	b.boot(0)
	files := filepath.Join(b.path, b.load().Default().Path(), "etc/selinux/x/contexts/files/")
	plan := func(stage, noSELinux bool) (*sysroot.Plan, error) {
		st := b.load()
		return b.PlanDeploy(t.Context(), st, sysroot.Request{
			Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default(), Stage: stage, NoSELinux: noSELinux,
		})
	}
	original := value(os.ReadFile(files + "/file_contexts"))(t)
	for name, change := range map[string]func(){
		"added":    func() { testenv.Must(t, os.WriteFile(files+"/file_contexts.local", []byte("/y\n"), 0o644)) },
		"modified": func() { testenv.Must(t, os.WriteFile(files+"/file_contexts", []byte("/y\n"), 0o644)) },
		"removed":  func() { testenv.Must(t, os.Remove(files+"/file_contexts")) },
		"link": func() {
			testenv.Must(t, os.WriteFile(files+"/mine", []byte("/y\n"), 0o644))
			testenv.Must(t, os.Symlink("/etc/selinux/x/contexts/files/mine", files+"/file_contexts.local"))
		},
		"directory": func() { testenv.Must(t, os.Mkdir(files+"/file_contexts.local", 0o755)) },
		"loop":      func() { testenv.Must(t, os.Symlink("file_contexts.local", files+"/file_contexts.local")) },
		"large": func() {
			testenv.Must(t, os.WriteFile(files+"/file_contexts.local", nil, 0o644))
			testenv.Must(t, os.Truncate(files+"/file_contexts.local", selinux.MaxFile+1))
		},
	} {
		change()
		for _, stage := range []bool{false, true} {
			if _, err := plan(stage, false); !errors.Is(err, selinux.ErrInvalid) || !strings.Contains(err.Error(), "/etc/selinux/x/contexts/files/file_contexts") {
				t.Errorf("%s, staged %t: got error %v, want an ErrInvalid with the file", name, stage, err)
			}
			if _, err := plan(stage, true); err != nil {
				t.Errorf("%s, staged %t: without SELinux: %v", name, stage, err)
			}
		}
		testenv.Must(t, os.RemoveAll(files+"/file_contexts.local"))
		testenv.Must(t, os.WriteFile(files+"/file_contexts", original, 0o644))
		if _, err := plan(true, false); err != nil {
			t.Errorf("%s, undone: %v", name, err)
		}
	}

	// A deployment that was staged without SELinux is finalized without.
	testenv.Must(t, os.WriteFile(files+"/file_contexts.local", []byte("/y\n"), 0o644))
	b.notes("2", func(r *sysroot.Request) { r.Stage, r.NoSELinux = true, true })
	testenv.Must(t, finalizeOnce(b))
	if d := b.load().Default(); d.Version != "2" {
		t.Errorf("default is %s, want 2", d.Version)
	}

	// It can get other kernel arguments.
	p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(t.Context(), st, st.Default(), []string{"quiet"}, nil)
	})
	if len(p.Notes) == 0 || !strings.Contains(p.Notes[0], "file_contexts.local: line 1") {
		t.Errorf("other kernel arguments: got notes %q, want the policy's error", p.Notes)
	}
}

// mountVar makes a file system the /var of the bed's stateroot.
func (b *bed) mountVar(fstype string, size int64) (dir string) {
	b.t.Helper()
	dir = filepath.Join(b.path, "ostree/deploy/os/var")
	bind(b.t, testenv.NewDisk(b.t, fstype, size).Dir, dir)
	return dir
}

// TestLabelsFullOfAttributes: users can fill what a file has for attributes, or have more than the kernel lists.
func TestLabelsFullOfAttributes(t *testing.T) {
	for fstype, c := range map[string]struct {
		size        int64
		attrs       int
		label, note string
	}{
		"ext4": {64 << 20, 1 << 10, "", "A file or directory of /var could not be labelled: \"/var/full\" (no space left on device)."},
		"xfs":  {320 << 20, 300, "u:r:var_t:s0", ""},
	} {
		t.Run(fstype, func(t *testing.T) {
			b := newSysroot(t)
			commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
			name := b.mountVar(fstype, c.size) + "/full"
			testenv.Must(t, os.WriteFile(name, nil, 0o644))
			var err error
			for i := 0; i < c.attrs && err == nil; i++ {
				for size := 240; size > 0; size /= 2 { // as much as fits
					if err = unix.Lsetxattr(name, fmt.Sprintf("user.%d.%s", i, strings.Repeat("x", size)), []byte("v"), 0); err == nil {
						break
					}
				}
			}
			if full := c.note != ""; full != errors.Is(err, unix.ENOSPC) || err != nil && !full {
				t.Fatalf("set attributes: %v", err)
			}
			notes := b.notes("1")
			if got := strings.Join(notes, " "); got != c.note {
				t.Errorf("got notes %q, want %q", got, c.note)
			}
			if got := label(t, name); got != c.label {
				t.Errorf("the file has the label %q, want %q", got, c.label)
			}
		})
	}
}

// TestLabelsFaults: no fault of a single file of /var stops a deployment; a full file system does. A file is named once, in
// letters that a terminal can show.
func TestLabelsFaults(t *testing.T) {
	const odd = "odd\x1b[2J\n"
	for name, c := range map[string]struct {
		err   error
		swap  func(name string) error // what a user does with the directory meanwhile
		fatal bool
	}{
		"too many attributes": {err: unix.E2BIG},
		"quota":               {err: unix.EDQUOT},
		"attributes too full": {err: unix.ENOSPC},
		"bad block":           {err: unix.EIO},
		"bad inode":           {err: unix.EUCLEAN},
		"bad checksum":        {err: unix.EBADMSG},
		"not for single file": {err: unix.ENOMEM, fatal: true},
		"file for directory":  {swap: func(name string) error { return os.WriteFile(name, nil, 0o644) }},
		"link for directory":  {swap: func(name string) error { return os.Symlink("/etc", name) }},
		"two faults":          {err: unix.EPERM, swap: func(name string) error { return os.WriteFile(name, nil, 0o644) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newSysroot(t)
			b.run = t.TempDir()
			commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
			dir := filepath.Join(b.path, "ostree/deploy/os/var", odd)
			testenv.Must(t, os.MkdirAll(dir, 0o755))
			b.reopen(func(op atfs.Op, name string) error {
				switch {
				case op != atfs.OpSetxattr || !strings.HasSuffix(name, "/var/"+odd):
					return nil
				case c.swap == nil:
					return c.err
				}
				return errors.Join(os.Remove(dir), c.swap(dir), c.err)
			})
			st := b.load()
			p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}))(t)
			err := b.Execute(t.Context(), p)
			if c.fatal {
				if !errors.Is(err, c.err) {
					t.Errorf("got error %v, want %v", err, c.err)
				}
				return
			}
			testenv.Must(t, err)
			const prefix = `A file or directory of /var could not be labelled: "/var/odd\x1b[2J\n" (`
			if len(p.Notes) != 1 || !strings.HasPrefix(p.Notes[0], prefix) {
				t.Errorf("got notes %q, want one that begins with %q", p.Notes, prefix)
			}
		})
	}
	t.Run("full file system", func(t *testing.T) {
		b := newSysroot(t)
		b.run = t.TempDir()
		commitTree(t, b.Repo(), "os/1", "1", labelledTree(t, "1", "a"))
		dir := b.mountVar("ext4", 64<<20)
		testenv.Must(t, os.WriteFile(dir+"/file", nil, 0o644))
		b.reopen(func(op atfs.Op, name string) error {
			if op == atfs.OpSetxattr && strings.HasSuffix(name, "/var/file") {
				return unix.ENOSPC
			}
			return nil
		})
		st := b.load()
		p := value(b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1")}))(t)
		var fs unix.Statfs_t
		testenv.Must(t, unix.Statfs(dir, &fs))
		f := value(os.Create(dir + "/large"))(t)
		testenv.Must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-256<<10))
		testenv.Must(t, f.Close())
		if err := b.Execute(t.Context(), p); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got error %v, want %v", err, unix.ENOSPC)
		}
	})
}
