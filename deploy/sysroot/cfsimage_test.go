package sysroot_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// giveCfs gives a deployment a composefs image, as newer versions of ostree do.
func (b *bed) giveCfs(index int) {
	b.t.Helper()
	d := b.load().Deployments[index]
	root := openDir(b.t, filepath.Join(b.path, d.Path()))
	testenv.Must(b.t, root.SetImmutable(false))
	testenv.Must(b.t, os.WriteFile(b.cfsOf(d), []byte("image"), 0o644))
	testenv.Must(b.t, root.SetImmutable(true))
}

func (b *bed) cfsOf(d *sysroot.Deployment) string {
	return filepath.Join(b.path, d.Path(), ".ostree.cfs")
}

// A deployment of a commit has the composefs image that another deployment of the commit has.
func TestComposefsImageKept(t *testing.T) {
	newBed := func(t *testing.T) *bed {
		t.Helper()
		b := newSysroot(t)
		tree := osTree("1", "a")
		at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[composefs]\nenabled=maybe\n")
		commitTree(t, b.Repo(), "os/1", "1", tree)
		b.commit("2", "b")
		b.deploy(ref(b, "1"), withKargs("rw"))
		b.giveCfs(0)
		return b
	}
	check := func(t *testing.T, b *bed, d *sysroot.Deployment) {
		t.Helper()
		if got, err := os.ReadFile(b.cfsOf(d)); err != nil || string(got) != "image" {
			t.Errorf("composefs image of %s: got %q, %v", d.Name(), got, err)
		}
	}
	lost := func(p *sysroot.Plan) bool {
		return slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "composefs image") })
	}
	t.Run("kargs", func(t *testing.T) {
		b := newBed(t)
		p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanKargs(t.Context(), st, st.Default(), st.Default().Kargs.Append("quiet"), st.Default().Origin)
		})
		check(t, b, b.load().Default())
		if lost(p) {
			t.Errorf("got the notes %q", p.Notes)
		}
	})
	t.Run("the same again", func(t *testing.T) {
		b := newBed(t)
		b.deploy(ref(b, "2"))
		p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1"), Merge: st.Default()})
		})
		check(t, b, p.New)
	})
	t.Run("staged", func(t *testing.T) {
		b := newBed(t)
		b.run = t.TempDir()
		b.boot(0)
		b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "1"), Merge: st.Booted, Stage: true})
		})
		check(t, b, b.load().Staged.Deployment)
		value(b.FinalizeStaged(t.Context()))(t)
		check(t, b, b.load().Default())
	})
	t.Run("another commit", func(t *testing.T) {
		b := newBed(t)
		p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default()})
		})
		if !lost(p) {
			t.Errorf("got the notes %q, want one about the image", p.Notes)
		}
		if _, err := os.Lstat(b.cfsOf(p.New)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("composefs image of another commit: %v", err)
		}
	})
}

// A tree that demands a composefs image is deployed if there is one.
func TestComposefsImageDemanded(t *testing.T) {
	testenv.NeedsTool(t, "ostree")
	b := newSysroot(t)
	tree := osTree("1", "a")
	commitTree(t, b.Repo(), "os/1", "1", tree)
	b.deploy(ref(b, "1"))
	at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, "[composefs]\nenabled=yes\n")
	commitTree(t, b.Repo(), "os/2", "2", tree)
	plan := func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "2"), Merge: st.Default()})
	}
	if _, err := plan(b.load()); !errors.Is(err, sysroot.ErrUnsupported) {
		t.Fatalf("without an image: got %v, want ErrUnsupported", err)
	}
	b.admin("deploy", "--os=os", "os/2")
	b.giveCfs(0)
	p := b.do(plan)
	if _, err := os.Stat(b.cfsOf(p.New)); err != nil {
		t.Error(err)
	}
}
