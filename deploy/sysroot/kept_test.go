package sysroot_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// removals are changes that remove the deployment of commit 1, the second of two.
var removals = map[string]func(b *bed, st *sysroot.State) (*sysroot.Plan, error){
	"deploy": func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(b.t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "3"), Merge: st.Deployments[0]})
	},
	"deploy the same commit": func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(b.t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1"), Merge: st.Deployments[0]})
	},
	"kargs": func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(b.t.Context(), st, st.Deployments[0], kargs.List{"quiet"}, st.Deployments[0].Origin)
	},
	"undeploy": func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 1) },
	"cleanup": func(b *bed, _ *sysroot.State) (*sysroot.Plan, error) { // after a process was killed that undeployed it
		testenv.Must(b.t, os.Remove(filepath.Join(b.path, "boot/loader/entries/ostree-1-os.conf")))
		return b.PlanCleanup(b.t.Context(), b.load())
	},
}

// newRemovals makes a sysroot for removals, and returns the path of the deployment that goes.
func newRemovals(t *testing.T) (b *bed, old string) {
	t.Helper()
	b = newSysroot(t)
	for _, v := range []string{"1", "2", "3"} {
		b.commit(v, v)
	}
	b.deploy(ref(b, "1"))
	old = filepath.Join(b.path, b.load().Deployments[0].Path())
	b.deploy(ref(b, "2"))
	return b, old
}

// execute plans a removal and executes it.
func (b *bed) execute(plan func(*bed, *sysroot.State) (*sysroot.Plan, error)) (*sysroot.Plan, error) {
	b.t.Helper()
	unlock := value(b.Lock(b.t.Context()))(b.t)
	defer func() { testenv.Must(b.t, unlock()) }()
	p := value(plan(b, b.load()))(b.t)
	return p, b.Execute(b.t.Context(), p)
}

// TestProtectedFiles: files of an old deployment that an operator has protected with chattr(1) go with it.
func TestProtectedFiles(t *testing.T) {
	for name, plan := range removals {
		t.Run(name, func(t *testing.T) {
			b, old := newRemovals(t)
			testenv.Must(t, os.WriteFile(old+"/etc/resolv.conf", []byte("mine"), 0o644))
			testenv.Must(t, os.MkdirAll(old+"/etc/d", 0o755))
			testenv.SetFlags(t, old+"/etc/resolv.conf", testenv.Immutable)
			testenv.SetFlags(t, old+"/etc/d", testenv.Immutable|testenv.AppendOnly)
			p, err := b.execute(plan)
			testenv.Must(t, err)
			if p.New != nil && filepath.Join(b.path, p.New.Path()) == old { // made anew
				old += "/etc/resolv.conf"
			}
			if _, err := os.Lstat(old); !os.IsNotExist(err) {
				t.Errorf("%s exists: %v", old, err)
			}
		})
	}
}

// TestMountInOldDeployment: what is mounted in an old deployment stays, and is named. All else is done, and the rest goes
// once it is unmounted.
func TestMountInOldDeployment(t *testing.T) {
	for name := range removals {
		t.Run(name, func(t *testing.T) {
			b, old := newRemovals(t)
			mnt := old + "/etc/mnt"
			testenv.Must(t, os.Mkdir(mnt, 0o755))
			testenv.Must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, ""))
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
			testenv.Must(t, os.WriteFile(mnt+"/precious", []byte("text"), 0o600))
			b.removeStuck(name, old, "/etc/mnt", unix.EBUSY, func() {
				if text := string(value(os.ReadFile(mnt + "/precious"))(t)); text != "text" {
					t.Errorf("the mounted file has %q", text)
				}
				testenv.Must(t, unix.Unmount(mnt, 0))
			})
		})
	}
}

// TestBadDiskInOldDeployment is the same for a file that the disk does not let go.
func TestBadDiskInOldDeployment(t *testing.T) {
	for name := range removals {
		t.Run(name, func(t *testing.T) {
			b, old := newRemovals(t)
			testenv.Must(t, os.WriteFile(old+"/etc/bad", nil, 0o600))
			bad := true
			plain := value(atfs.Open(b.path))(t)
			defer plain.Close()
			dir := value(plain.WithHook(func(op atfs.Op, name string) error {
				if bad && op == atfs.OpUnlink && strings.HasSuffix(name, "/etc/bad") {
					return unix.EIO
				}
				return nil
			}))(t)
			defer dir.Close()
			testenv.Must(t, b.Close())
			b.Sysroot = value(sysroot.Open(dir, sysroot.Options{}))(t)
			b.removeStuck(name, old, "/etc/bad", unix.EIO, func() { bad = false })
		})
	}
}

// removeStuck executes a removal of the deployment at old, which has a file that cannot be removed for the given cause,
// until undo is called.
func (b *bed) removeStuck(name, old, stuck string, cause error, undo func()) {
	t := b.t
	t.Helper()
	kernel := value(filepath.Glob(b.path + "/boot/ostree/os-" + bootcsum("kernel 1", "initramfs 1")))(t)
	if len(kernel) != 1 {
		t.Fatalf("no kernel of the old deployment: %q", kernel)
	}

	p, err := b.execute(removals[name])
	if !errors.Is(err, objectstore.ErrNotRemoved) || !errors.Is(err, cause) || !strings.Contains(err.Error(), stuck) {
		t.Errorf("got error %v, want %v, %v, for %s", err, objectstore.ErrNotRemoved, cause, stuck)
	}
	st := b.load()
	for i, d := range p.Deployments {
		if len(st.Deployments) != len(p.Deployments) || st.Deployments[i].Path() != d.Path() {
			t.Fatalf("got deployments %+v, want the plan's", st.Deployments)
		}
	}
	if _, err := os.Lstat(old + "/usr"); !os.IsNotExist(err) {
		t.Errorf("/usr of the old deployment exists: %v", err)
	}
	if p.New == nil || p.New.Commit != ref(b, "1") {
		if _, err := os.Lstat(kernel[0]); !os.IsNotExist(err) {
			t.Errorf("the kernel of the old deployment exists: %v", err)
		}
	}

	if name == "undeploy" { // its directory is taken until then
		again, err := b.execute(removals["deploy the same commit"])
		if !errors.Is(err, objectstore.ErrNotRemoved) || again.New.Serial != 1 {
			t.Errorf("deploy it again: got serial %d, error %v, want 1 and %v", again.New.Serial, err, objectstore.ErrNotRemoved)
		}
		p = again
	}

	undo()
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(t.Context(), st) })
	if _, err := os.Lstat(old); !os.IsNotExist(err) {
		t.Errorf("the old deployment exists: %v", err)
	}
	if n := len(b.load().Deployments); n != len(p.Deployments) {
		t.Errorf("got %d deployments, want %d", n, len(p.Deployments))
	}
}
