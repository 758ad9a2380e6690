package sysroot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// newSmallBoot makes a sysroot with the versions 1 and 2 deployed, whose /boot has no room for the kernel of version 3,
// and never for that of version big.
func newSmallBoot(t *testing.T) *bed {
	t.Helper()
	boot := testenv.NewDisk(t, "ext4", 8<<20, "-O", "^has_journal", "-m", "0")
	b := newSysroot(t)
	b.bootPath, b.run = boot.Dir, t.TempDir()
	b.reopen(nil)
	for v, size := range map[string]int{"1": 3 << 20, "2": 3 << 20, "3": 3 << 20, "big": 6 << 20} {
		tree := osTree(v, v)
		at(tree, "usr/lib/modules/6.1.0")["initramfs.img"] = file(0o600, strings.Repeat(v[:1], size))
		commitTree(t, b.Repo(), "os/"+v, v, tree)
	}
	b.deploy(ref(b, "1"), withKargs("rw"))
	b.deploy(ref(b, "2"))
	return b
}

// versions returns the versions of the deployments in boot order, after it has checked that each has its kernel and no
// other kernel is left.
func (b *bed) versions() (list []string) {
	b.t.Helper()
	var want []string
	for _, d := range b.load().Deployments {
		list = append(list, d.Version)
		want = append(want, "os-"+d.BootCsum)
		if _, err := os.Stat(filepath.Join(b.bootPath, "ostree/os-"+d.BootCsum, "initramfs-6.1.0.img")); err != nil {
			b.t.Error(err)
		}
	}
	var kernels []string
	for _, e := range value(os.ReadDir(filepath.Join(b.bootPath, "ostree")))(b.t) {
		kernels = append(kernels, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(kernels, want) {
		b.t.Errorf("/boot has the kernels %q, want %q", kernels, want)
	}
	return list
}

// A full /boot is no obstacle if deployments that go anyway may go first: never the booted one, nor a pinned one.
func TestEarlyPrune(t *testing.T) {
	early := func(b *bed, version string, change func(*sysroot.Request)) (*sysroot.Plan, error) {
		st := b.load()
		r := sysroot.Request{
			Stateroot: "os", Commit: ref(b, version), Origin: originFile("os/x"), Merge: st.MergeDeployment("os"),
			EarlyPrune: true,
		}
		if change != nil {
			change(&r)
		}
		return b.PlanDeploy(b.t.Context(), st, r)
	}
	refused := func(t *testing.T, b *bed, version string, change func(*sysroot.Request)) {
		t.Helper()
		before := b.versions()
		if p, err := early(b, version, change); p != nil || !errors.Is(err, sysroot.ErrNoSpace) {
			t.Errorf("got %v, %v, want %v", p, err, sysroot.ErrNoSpace)
		}
		if got := b.versions(); !slices.Equal(got, before) {
			t.Errorf("a plan has changed %q to %q", before, got)
		}
	}
	deployed := func(t *testing.T, b *bed, change func(*sysroot.Request), want ...string) {
		t.Helper()
		before := b.versions()
		p := value(early(b, "3", change))(t)
		if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.HasPrefix(n, "/boot is full: os ") }) || len(p.Removed) != 1 {
			t.Errorf("got the plan\n%s", p)
		}
		if got := b.versions(); !slices.Equal(got, before) {
			t.Errorf("a plan has changed %q to %q", before, got)
		}
		testenv.Must(t, b.Execute(t.Context(), p))
		if got := b.versions(); !slices.Equal(got, want) {
			t.Errorf("got the deployments %q, want %q", got, want)
		}
	}
	t.Run("not asked", func(t *testing.T) {
		refused(t, newSmallBoot(t), "3", func(r *sysroot.Request) { r.EarlyPrune = false })
	})
	t.Run("rollback", func(t *testing.T) { deployed(t, newSmallBoot(t), nil, "3", "2") })
	t.Run("booted", func(t *testing.T) {
		b := newSmallBoot(t)
		b.boot(1)
		deployed(t, b, nil, "3", "1")
	})
	t.Run("staged", func(t *testing.T) {
		b := newSmallBoot(t)
		b.boot(0)
		deployed(t, b, func(r *sysroot.Request) { r.Stage = true }, "2")
		value(b.FinalizeStaged(t.Context()))(t)
		if got, want := b.versions(), []string{"3", "2"}; !slices.Equal(got, want) {
			t.Errorf("finalized: got the deployments %q, want %q", got, want)
		}
	})
	t.Run("pinned", func(t *testing.T) {
		b := newSmallBoot(t)
		b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 1, true) })
		refused(t, b, "3", nil)
	})
	t.Run("retained", func(t *testing.T) {
		refused(t, newSmallBoot(t), "3", func(r *sysroot.Request) { r.Retain = true })
	})
	t.Run("too big", func(t *testing.T) { refused(t, newSmallBoot(t), "big", nil) })
	t.Run("leftovers", func(t *testing.T) {
		b := newSmallBoot(t)
		b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 1) })
		dead := filepath.Join(b.bootPath, "ostree/os-"+strings.Repeat("0", 64))
		testenv.Must(t, os.Mkdir(dead, 0o755))
		testenv.Must(t, os.WriteFile(filepath.Join(dead, "vmlinuz-6.1.0"), make([]byte, 3<<20), 0o644))
		p := value(early(b, "3", func(r *sysroot.Request) { r.EarlyPrune = false }))(t)
		testenv.Must(t, b.Execute(t.Context(), p))
		if got, want := b.versions(), []string{"3", "2"}; !slices.Equal(got, want) || len(p.Notes) > 0 {
			t.Errorf("got the deployments %q, want %q; notes %q", got, want, p.Notes)
		}
	})
	t.Run("room", func(t *testing.T) {
		b := newSmallBoot(t)
		if p := value(early(b, "2", nil))(t); len(p.Notes) > 0 {
			t.Errorf("a kernel that is there: got the notes %q", p.Notes)
		}
	})
}

// A smallLoader is a boot loader with room for two kernels.
type smallLoader struct{ boot string }

func (l smallLoader) Check(_ context.Context, need []sysroot.BootFile, gone []string) error {
	kernels, err := filepath.Glob(filepath.Join(l.boot, "ostree/os-*"))
	if err != nil {
		return err
	}
	kernels = slices.DeleteFunc(kernels, func(k string) bool { return filepath.Base(k) == filepath.Base(filepath.Dir(need[0].Name)) })
	if len(kernels)-len(gone) > 1 {
		return unix.ENOSPC
	}
	return nil
}

func (smallLoader) Write(context.Context, *atfs.Dir, []sysroot.BootEntry) error { return nil }

func (smallLoader) Tries(context.Context) (map[string]*bls.Tries, error) { return nil, nil }

func (smallLoader) Bless(context.Context, string) error { return nil }
