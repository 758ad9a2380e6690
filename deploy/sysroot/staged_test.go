package sysroot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// newBooted makes a sysroot with two deployments, the default of which runs, and a third version that is not deployed.
func newBooted(t *testing.T) *bed {
	t.Helper()
	testenv.NeedsRoot(t)
	path := testenv.MemoryDir(t)
	b := &bed{t: t, path: filepath.Join(path, "sysroot"), run: filepath.Join(path, "run")}
	testenv.Must(t, os.Mkdir(b.path, 0o755))
	testenv.Must(t, os.Mkdir(b.run, 0o755))
	initSysroot(t, b.path)
	b.reopen(nil)
	t.Cleanup(func() { testenv.Must(t, b.Close()) })
	b.commitTiny("1", "2", "3", "4")
	b.deploy(ref(b, "1"), withKargs("rw", "quiet"))
	b.deploy(ref(b, "2"))
	b.boot(0)
	return b
}

func staged(r *sysroot.Request) { r.Stage = true }

func (b *bed) stagedFile() string { return filepath.Join(b.run, "ostree/staged-deployment") }

func TestStage(t *testing.T) {
	b := newBooted(t)
	before := b.load()
	if before.Booted == nil || before.Booted != before.Default() || before.Pending() != nil || before.Rollback() != before.Deployments[1] {
		t.Fatalf("got %+v", before)
	}
	b.changeEtc()
	b.deploy(ref(b, "3"), staged)
	st := b.load()
	if st.Staged == nil || st.Staged.Commit != ref(b, "3") || st.Staged.Merge != st.Booted || st.Staged.Locked || st.Pending() != st.Staged.Deployment {
		t.Fatalf("got %+v", st.Staged)
	}
	if got := st.Staged.Kargs.String(); got != "rw quiet" {
		t.Errorf("kernel arguments: got %q", got)
	}
	if got := st.Staged.Origin; got == nil {
		t.Error("no origin file")
	}
	root := filepath.Join(b.path, st.Staged.Path())
	if got := string(value(os.ReadFile(root + "/etc/conf"))(t)); got != "default 3" || immutable(t, root) {
		t.Errorf("etc/conf: %q; immutable: %t", got, immutable(t, root))
	}
	// The entries and links are as before, and all three have refs.
	if st.BootVersion != before.BootVersion || len(st.Deployments) != 2 || len(value(b.Repo().Refs("ostree"))(t)) != 3 {
		t.Errorf("got %+v", st)
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(t.Context(), st) })

	// It is locked, then not.
	lock := b.stagedFile() + "-locked"
	testenv.Must(t, os.WriteFile(lock, nil, 0o600))
	if p := value(b.FinalizeStaged(t.Context()))(t); p != nil || !b.load().Staged.Locked {
		t.Errorf("locked: got %v", p)
	}
	testenv.Must(t, os.Remove(lock))

	etc := filepath.Join(b.path, st.Booted.Path(), "etc")
	testenv.Must(t, os.WriteFile(etc+"/late", []byte("late"), 0o644))
	p := value(b.FinalizeStaged(t.Context()))(t)
	if p == nil || p.New.Commit != ref(b, "3") || len(p.Removed) != 1 || p.Removed[0].Commit != ref(b, "1") {
		t.Fatalf("got %+v", p)
	}
	st = b.load()
	if st.Staged != nil || st.Default().Commit != ref(b, "3") || st.Deployments[1] != st.Booted || st.Pending() != st.Default() || !immutable(t, root) {
		t.Errorf("got %+v", st)
	}
	for name, want := range map[string]string{"late": "late", "conf": "changed", "added": "added"} {
		if got := string(value(os.ReadFile(filepath.Join(root, "etc", name)))(t)); got != want {
			t.Errorf("etc/%s: got %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(root + "/etc/same"); !os.IsNotExist(err) {
		t.Errorf("etc/same, which was removed: got error %v", err)
	}
	if p := value(b.FinalizeStaged(t.Context()))(t); p != nil {
		t.Errorf("again: got %v", p)
	}
	objecttest.Fsck(t, b.Repo())
}

// TestStagedGoes: every plan that drops a staged deployment announces it.
func TestStagedGoes(t *testing.T) {
	for name, tt := range map[string]struct {
		plan func(b *bed, st *sysroot.State) (*sysroot.Plan, error)
		note string // about the staged deployment; "": none, it stays
	}{
		"rollback": {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanRollback(st) }, "is dropped: at shutdown it would become the default"},
		"deploy": {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(b.t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "4"), Merge: st.Booted})
		}, "is dropped"},
		"stage": {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(b.t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "4"), Merge: st.Booted, Stage: true})
		}, "It takes the place of"},
		"undeploy it":      {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 0) }, "undeploy os"},
		"undeploy another": {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 2) }, ""},
		"pin another":      {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, 2, true) }, ""},
		"clean up":         {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(b.t.Context(), st) }, ""},
		"behind the others": {func(b *bed, st *sysroot.State) (*sysroot.Plan, error) {
			return b.PlanDeploy(b.t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "4"), Merge: st.Booted, NotDefault: true, Retain: true})
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBooted(t)
			b.deploy(ref(b, "3"), staged)
			was := b.load().Staged
			p := b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return tt.plan(b, st) })
			st := b.load()
			stays := st.Staged != nil && st.Staged.Name() == was.Name()
			if stays != (tt.note == "") || !strings.Contains(p.String(), tt.note) {
				t.Errorf("stays: %t; plan\n%s", stays, p)
			}
			said := false
			for _, d := range p.Removed {
				said = said || d.Name() == was.Name()
			}
			if said == stays {
				t.Errorf("removed: %v", p.Removed)
			}
			if _, err := os.Stat(filepath.Join(b.path, was.Path())); stays != (err == nil) {
				t.Errorf("its directory: got error %v", err)
			}
		})
	}
}

func TestStagedInUse(t *testing.T) {
	b := newBooted(t)
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanDeploy(t.Context(), st, sysroot.Request{Stateroot: "os", Commit: ref(b, "3"), Merge: st.Deployments[1], Stage: true})
	})
	st := b.load()
	if _, err := b.PlanUndeploy(st, 1); !errors.Is(err, sysroot.ErrInUse) || !strings.Contains(err.Error(), "it is booted") {
		t.Errorf("booted: got error %v, want %v", err, sysroot.ErrInUse)
	}
	if _, err := b.PlanUndeploy(st, 2); !errors.Is(err, sysroot.ErrInUse) || !strings.Contains(err.Error(), "takes over its /etc") {
		t.Errorf("merged: got error %v, want %v", err, sysroot.ErrInUse)
	}
	if _, err := b.PlanPin(st, 0, true); !errors.Is(err, sysroot.ErrInvalid) {
		t.Errorf("pin a staged deployment: got error %v, want %v", err, sysroot.ErrInvalid)
	}
}

// TestFinalizeFails leaves the error for the next boot, which boots the same deployment as before.
func TestFinalizeFails(t *testing.T) {
	b := newBooted(t)
	b.deploy(ref(b, "3"), staged)
	st := b.load()
	// A file of the new system is a directory in the old one's /etc.
	etc := filepath.Join(b.path, st.Booted.Path(), "etc")
	testenv.Must(t, os.Remove(etc+"/conf"))
	testenv.Must(t, os.Mkdir(etc+"/conf", 0o755))
	if p, err := b.FinalizeStaged(t.Context()); err == nil || p != nil {
		t.Fatalf("got %v, error %v", p, err)
	}
	if now := b.load(); now.Default().Name() != st.Default().Name() || now.Staged == nil {
		t.Errorf("got %+v", now)
	}
	report := value(b.BootComplete(t.Context()))(t)
	if !strings.Contains(report.Finalize, "conf") {
		t.Errorf("reported: %q", report.Finalize)
	}
	testenv.Must(t, os.Remove(etc+"/conf"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.FinalizeStaged(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got error %v", err)
	}
	if p := value(b.FinalizeStaged(t.Context()))(t); p == nil {
		t.Error("nothing was finalized")
	}
	if report := value(b.BootComplete(t.Context()))(t); report.Finalize != "" {
		t.Errorf("reported: %q", report.Finalize)
	}
}

// TestStagedFile: the files in /run are read with care.
func TestStagedFile(t *testing.T) {
	b := newBooted(t)
	b.deploy(ref(b, "3"), staged)
	data := value(os.ReadFile(b.stagedFile()))(t)
	for name, text := range map[string]string{
		"half":           string(data[:len(data)/2]),
		"zeros":          string(make([]byte, len(data))),
		"no target":      "",
		"path":           strings.Replace(string(data), "\x00os\x00", "\x00..\x00", 1),
		"name":           strings.Replace(string(data), ref(b, "3").String(), strings.Repeat("x", 64), 1),
		"does not exist": strings.Replace(string(data), ref(b, "3").String(), strings.Repeat("1", 64), 1),
	} {
		testenv.Must(t, os.WriteFile(b.stagedFile(), []byte(text), 0o644))
		if st, err := b.Load(t.Context()); !errors.Is(err, sysroot.ErrCorrupt) {
			t.Errorf("%s: got %+v, error %v, want %v", name, st, err, sysroot.ErrCorrupt)
		}
	}
	// Nothing can be merged from a deployment that no longer exists.
	testenv.Must(t, os.WriteFile(b.stagedFile(), []byte(strings.Replace(string(data), ref(b, "2").String(), ref(b, "4").String(), 1)), 0o644))
	if _, err := b.FinalizeStaged(t.Context()); !errors.Is(err, sysroot.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, sysroot.ErrNotExist)
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 0) })
}
