package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// large is a tree that takes 120 KB of /boot, and half of that for its /etc.
var large = &osTree{name: "Test OS", version: "4", kernel: strings.Repeat("large ", 10_000), files: map[string]string{
	"usr/etc/large": strings.Repeat("large ", 10_000),
}}

// conflicting is a tree with directories in /etc where others have files.
var conflicting = &osTree{name: "Conflict", version: "1", kernel: "a", files: map[string]string{
	"usr/etc/conf": "", "usr/etc/conf/a": "in a directory now", "usr/etc/machine.d/a": "", "usr/etc/machine.d/a/b": "here too",
}}

// refusals are states in which nothing can be deployed. Each must give an error of this class with one line that
// describes the problem, and must change nothing.
var refusals = []struct {
	name    string
	ref     string
	prepare func(s *system)
	undo    func(s *system)
	class   error // nil: not an error of the package
	text    string
}{
	{
		name: "boot too small", ref: "os/large",
		prepare: func(s *system) { testenv.Remount(s.t, s.boot, 0, "size=64k") },
		undo:    func(s *system) { testenv.Remount(s.t, s.boot, 0, "size=16m") },
		class:   sysroot.ErrNoSpace, text: "the boot file system needs",
	},
	{
		name: "read-only sysroot", ref: "os/v2",
		prepare: func(s *system) { testenv.Remount(s.t, filepath.Dir(s.root), unix.MS_RDONLY, "") },
		undo:    func(s *system) { testenv.Remount(s.t, filepath.Dir(s.root), 0, "") },
		class:   sysroot.ErrReadOnly, text: "is mounted read-only",
	},
	{
		name: "read-only boot", ref: "os/v2",
		prepare: func(s *system) { testenv.Remount(s.t, s.boot, unix.MS_RDONLY, "") },
		undo:    func(s *system) { testenv.Remount(s.t, s.boot, 0, "") },
		class:   sysroot.ErrReadOnly, text: "is mounted read-only",
	},
	{name: "no kernel", ref: "os/kernelless", class: sysroot.ErrInvalid, text: "no kernel"},
	{name: "two kernels", ref: "os/two", class: sysroot.ErrInvalid, text: "several kernels"},
	{
		name: "files in the way of directories", ref: "os/conflict",
		prepare: func(s *system) {
			for _, name := range []string{"machine.d/a", "conf"} {
				if err := os.WriteFile(filepath.Join(s.etc(), name), []byte("changed"), 0o644); err != nil {
					s.t.Fatal(err)
				}
			}
		},
		class: etcmerge.ErrConflict, text: "machine.d",
	},
	{
		name: "no sysroot", ref: "os/v2",
		prepare: func(s *system) { move(s.t, s.root, "ostree", "data") },
		undo:    func(s *system) { move(s.t, s.root, "data", "ostree") },
		class:   sysroot.ErrNotSysroot, text: "not an ostree sysroot",
	},
	{
		name: "a repository of another mode", ref: "os/v2",
		prepare: func(s *system) { s.setConfig("[core]\nrepo_version=1\nmode=bare-user\n") },
		undo:    func(s *system) { s.setConfig(bareConfig) },
		text:    `has mode "bare-user": only mode "bare"`,
	},
	{
		name: "a boot loader that would have to be written", ref: "os/v2",
		prepare: func(s *system) { s.setConfig(bareConfig + "[sysroot]\nbootloader=zipl\n") },
		undo:    func(s *system) { s.setConfig(bareConfig) },
		class:   sysroot.ErrUnsupported, text: "zipl",
	},
	{
		name: "an entry without its deployment", ref: "os/v2",
		prepare: func(s *system) { move(s.t, s.root, "ostree/boot.1", "ostree/gone") },
		undo:    func(s *system) { move(s.t, s.root, "ostree/gone", "ostree/boot.1") },
		class:   sysroot.ErrCorrupt, text: "boot.1",
	},
}

func move(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

// newDeployed makes a sysroot with one deployment, a separate /boot, and the commits of the refusals.
func newDeployed(t *testing.T, r ostreehost.Release) *system {
	t.Helper()
	disk, systems := newSystems(t, r, true, "sysroot")
	s := systems[0]
	s.init(disk)
	s.commitTree(disk, "os/large", large)
	s.commitTree(disk, "os/kernelless", &osTree{name: "No kernel", version: "1"})
	s.commitTree(disk, "os/two", &osTree{name: "Two kernels", version: "1", kernel: "a", files: map[string]string{
		"usr/lib/modules/6.12.2/vmlinuz": "kernel b", "usr/lib/modules/6.12.2/initramfs.img": "initramfs b",
	}})
	s.commitTree(disk, "os/conflict", conflicting)
	if _, err := s.admin("deploy", "--os="+osName, "--karg=root=/dev/vda2", "os/v1"); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRefusals(t *testing.T) {
	needs(t)
	s := newDeployed(t, ostreehost.Trixie)
	for _, tc := range refusals {
		t.Run(tc.name, func(t *testing.T) {
			s.t = t
			if tc.prepare != nil {
				tc.prepare(s)
			}
			before := s.list()
			err := (&deployOp{ref: tc.ref, stateroot: osName}).ours(t.Context(), s)
			after := s.list()
			if tc.undo != nil {
				tc.undo(s)
			}
			if err == nil || tc.class != nil && !errors.Is(err, tc.class) {
				t.Fatalf("error %v, want one that is %v", err, tc.class)
			}
			checkMessage(t, err, tc.text)
			if diff := before.diff(after); len(diff) > 0 {
				t.Errorf("changed\n%s", strings.Join(diff, "\n"))
			}
			if out, err := s.admin("status"); err != nil || len(statusLines(out)) != 1 {
				t.Errorf("ostree admin status: %q, %v", out, err)
			}
		})
	}
}

// checkMessage checks that an error is one line that describes the problem.
func checkMessage(t *testing.T, err error, text string) {
	t.Helper()
	if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %q, want one line with %q", err, text)
	}
	t.Log(err)
}

// TestDiskFull lets the disk fill up: when nothing of a planned deployment is written, after some pages, and later each
// time until the deployment succeeds.
func TestDiskFull(t *testing.T) {
	needs(t)
	s := newDeployed(t, ostreehost.Trixie)
	disk := filepath.Dir(s.root)
	before := s.list()
	d := &deployOp{ref: "os/large", stateroot: osName}
	fill := func(pages uint64) {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		testenv.Remount(t, disk, 0, fmt.Sprintf("size=%d", (st.Blocks-st.Bfree+pages)*uint64(st.Bsize)))
	}
	fill(1)
	err := d.ours(t.Context(), s)
	if !errors.Is(err, sysroot.ErrNoSpace) {
		t.Fatalf("plan with one page left: %v", err)
	}
	checkMessage(t, err, "the sysroot has")
	last := ""
	for pages := uint64(0); ; pages++ {
		testenv.Remount(t, disk, 0, "size=256m")
		err := s.change(t.Context(), func(sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
			p, err := d.plan(t.Context(), sr, st)
			fill(pages)
			return p, err
		})
		testenv.Remount(t, disk, 0, "size=256m")
		if err == nil {
			t.Logf("took %d pages", pages)
			break
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("with %d pages left: %v", pages, err)
		}
		if err.Error() != last {
			last = err.Error()
			checkMessage(t, err, "no space left on device")
		}
		if diff := before.diff(s.list()); len(diff) > 0 {
			// After the switch of boot/loader only the cleanup can fail. It is repeated.
			if got := len(s.entries()); got != 2 {
				t.Fatalf("with %d pages left: %v, and changed\n%s", pages, err, strings.Join(diff, "\n"))
			}
			s.check(t, s)
			if err := cleanup().ours(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if got := s.list().leftovers(true); len(got) > 0 {
				t.Errorf("cleanup has left %q", got)
			}
			s.check(t, s)
			if err := undeploy(0).ours(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			before = s.list()
		}
	}
	s.check(t, s)
	if got := len(s.entries()); got != 2 {
		t.Errorf("%d entries, want 2", got)
	}
}

// asUserEnv names the sysroot in which the test's binary deploys; see TestNotRoot.
const asUserEnv = "SYSROOT_TEST_DEPLOY"

// deployAsUser is the process started by TestNotRoot.
func deployAsUser(root string) error {
	s := &system{root: root}
	return (&deployOp{ref: "os/v2", stateroot: osName}).ours(context.Background(), s)
}

func TestNotRoot(t *testing.T) {
	needs(t)
	s := newDeployed(t, ostreehost.Trixie)
	before := s.list()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asUserEnv+"="+s.root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Fatalf("deploy as another user: %v\n%s", err, out)
	}
	text := strings.TrimSuffix(string(out), "\n")
	if strings.Contains(text, "\n") || !strings.Contains(text, fs.ErrPermission.Error()) {
		t.Errorf("the error is %q, want one line with %q", text, fs.ErrPermission)
	}
	if diff := before.diff(s.list()); len(diff) > 0 {
		t.Errorf("changed\n%s", strings.Join(diff, "\n"))
	}
}
