package sysroot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// program is the path of our program in hosts. The directory of its name in /run is the program's own.
const program = "/run/program/ostree-snapshotter"

// buildProgram builds the program once, and returns its path.
var buildProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sysroot-test-")
	if err != nil {
		return "", err
	}
	programDir = dir
	return testhost.BuildBinary(context.Background(), dir)
})

// programDir is removed after all tests.
var programDir string

// withProgram returns the options of the tests' hosts.
func withProgram(t *testing.T, binds ...ostreehost.Bind) ostreehost.Options {
	t.Helper()
	name, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}
	return ostreehost.Options{Binds: append(binds, ostreehost.Bind{From: name, To: program}), Env: ostreeEnv}
}

// cli runs the program in a system, where it must exit with a status, and returns its standard output.
func cli(t *testing.T, h *ostreehost.Host, status int, args ...string) string {
	t.Helper()
	out, err := h.Run(append([]string{program}, args...)...)
	var exit *ostreehost.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.Code
	} else if err != nil {
		t.Fatal(err)
	}
	if got != status {
		t.Fatalf("%v: exit status is %d, want %d: %v\n%s", args, got, status, err, out)
	}
	return out
}

// states returns version and states of each deployment in the output of "status", in order.
func states(t *testing.T, h *ostreehost.Host) string {
	t.Helper()
	var report struct {
		Deployments []struct {
			Version                                            string
			Booted, Default, Staged, Pending, Rollback, Pinned bool
			Kargs                                              []string
		}
	}
	if err := json.Unmarshal([]byte(cli(t, h, 0, "status", "--json")), &report); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, d := range report.Deployments {
		words := []string{d.Version}
		for _, w := range []struct {
			is   bool
			word string
		}{
			{d.Booted, "booted"},
			{d.Default, "default"},
			{d.Staged, "staged"},
			{d.Pending, "pending"},
			{d.Rollback, "rollback"},
			{d.Pinned, "pinned"},
		} {
			if w.is {
				words = append(words, w.word)
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	return strings.Join(list, "; ")
}

// TestCLI runs the program in the running system, as "/", with /sysroot read-only or not.
func TestCLI(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for _, readonly := range []bool{false, true} {
			disk, systems := newSystems(t, r, readonly, "cli")
			s := systems[0]
			s.init(disk)
			if _, err := s.admin("deploy", "--os="+osName, "--karg=root=LABEL=root", "--karg=rw", "os/v1"); err != nil {
				t.Fatal(err)
			}
			s.testCLI(r, s.setReadonly(readonly), readonly)
		}
	})
}

// TestLinkedBoot changes a running system whose /boot is a link to that of a read-only /sysroot.
func TestLinkedBoot(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		disk, systems := newSystems(t, r, false, "linked")
		s := systems[0]
		s.initEmpty()
		dir := filepath.Join(disk, "tree")
		testenv.Must(t, os.Mkdir(dir, 0o755))
		trees["os/v1"].write(t, dir)
		testenv.Must(t, os.Remove(filepath.Join(dir, "boot")))
		testenv.Must(t, os.Symlink("sysroot/boot", filepath.Join(dir, "boot")))
		s.ostree("commit", "--branch=os/v1", "--tree=dir="+dir)
		if _, err := s.admin("deploy", "--os="+osName, "--karg=root=LABEL=root", "--karg=rw", "os/v1"); err != nil {
			t.Fatal(err)
		}
		h := s.start(r, 0, s.setReadonly(true))
		cli(t, h, 0, "kargs", "--append", "quiet")
		if got := strings.TrimSpace(cli(t, h, 0, "kargs")); got != "root=LABEL=root rw quiet" {
			t.Errorf("kernel arguments are %q", got)
		}
		h.Stop()
	})
}

func (s *system) testCLI(r ostreehost.Release, config string, readonly bool) {
	t := s.t
	expect := func(h *ostreehost.Host, what, want string) {
		t.Helper()
		if got := states(t, h); got != want {
			t.Errorf("%s (readonly %v): %q, want %q", what, readonly, got, want)
		}
	}
	h := s.start(r, 0, config)
	expect(h, "the first", "1 booted default")
	if got := strings.TrimSpace(cli(t, h, 0, "kargs")); got != "root=LABEL=root rw" {
		t.Errorf("kernel arguments are %q", got)
	}
	cli(t, h, 1, "undeploy", "0")
	cli(t, h, 1, "rollback")

	// ostree stages a deployment, the program changes it, and finalizes it with later changes of /etc.
	run(t, h, "ostree", "admin", "deploy", "--stage", "--os="+osName, "os/v2")
	expect(h, "staged", "2 staged pending; 1 booted default")
	cli(t, h, 2, "pin", "0")
	cli(t, h, 0, "kargs", "--append", "quiet")
	expect(h, "staged with other kernel arguments", "2 staged pending; 1 booted default")
	if err := os.WriteFile(h.Path("etc/late"), []byte("late"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := cli(t, h, 0, "config-diff"); got != "A    late\n" {
		t.Errorf("config-diff prints %q", got)
	}
	cli(t, h, 0, "finalize-staged")
	expect(h, "finalized", "2 default pending; 1 booted")
	// That of Debian testing gives every deployment a composefs image, which other kernel arguments do not take away.
	_, err := os.Lstat(filepath.Join(s.root, s.deploymentOf(s.entries()[0]), cfs.Name))
	if got, want := err == nil, r == ostreehost.Forky; got != want {
		t.Errorf("the deployment with other kernel arguments has a composefs image: %t, want %t (%v)", got, want, err)
	}
	if got := len(statusLines(run(t, h, "ostree", "admin", "status"))); got != 2 {
		t.Errorf("ostree lists %d deployments, want 2", got)
	}
	if readonly {
		checkMounts(t, h, true, s.boot != "") // for all processes but the program itself
	}

	h.Stop()
	h = s.start(r, 0, config)
	expect(h, "the second", "2 booted default; 1 rollback")
	if b, err := os.ReadFile(h.Path("etc/late")); err != nil || string(b) != "late" {
		t.Errorf("/etc/late is %q, %v", b, err)
	}
	if got := strings.TrimSpace(cli(t, h, 0, "kargs")); got != "root=LABEL=root rw quiet" {
		t.Errorf("kernel arguments are %q", got)
	}
	cli(t, h, 0, "boot-complete")
	cli(t, h, 0, "pin", "1")

	// A rollback reports, before and after, that it drops the staged deployment.
	run(t, h, "ostree", "admin", "deploy", "--stage", "--os="+osName, "os/v3")
	if out := cli(t, h, 0, "rollback", "--dry-run"); !strings.Contains(out, "staged, is dropped") {
		t.Errorf("rollback --dry-run does not report the staged deployment:\n%s", out)
	}
	expect(h, "dry run", "3 staged pending; 2 booted default; 1 rollback pinned")
	cli(t, h, 0, "rollback")
	expect(h, "rolled back", "1 default pending pinned; 2 booted")
	cli(t, h, 0, "rollback")
	expect(h, "and back", "2 booted default; 1 rollback pinned")
	cli(t, h, 0, "unpin", "1")
	cli(t, h, 0, "undeploy", "1")
	cli(t, h, 0, "cleanup")
	expect(h, "the last", "2 booted default")
	run(t, h, "ostree", "admin", "status")
	h.Stop()
}
