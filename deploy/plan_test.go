package deploy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// wants returns the file with which an image asks for kernel arguments.
func wants(args string) file {
	return file{name: "usr/lib/bootc/kargs.d/10-os.toml", content: "kargs = [" + args + "]\n"}
}

// TestPlan deploys versions of an image one after the other.
func TestPlan(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	one := b.osImage(t, wants(`"quiet", "old"`))
	two := b.osImage(t, wants(`"quiet", "new"`), file{name: "usr/two"})
	two.ManifestDigest = "sha256:02"

	first := b.deploy(t, s, Request{Image: one, Kargs: kargs.Edits{Append: []string{"rw"}}})
	if got := first.New.Kargs.String(); got != "quiet old rw" {
		t.Errorf("kernel arguments of the first are %q", got)
	}
	if image, _ := OriginName(b.load(t, s).Default()); image != one.Name {
		t.Errorf("origin names %q, want %q", image, one.Name)
	}
	if same := b.deploy(t, s, Request{Image: one}); same.Plan != nil || same.Same.Commit != first.New.Commit {
		t.Errorf("the same again: got %+v, want nothing to do", same)
	}
	if other := b.deploy(t, s, Request{Image: one, Kargs: kargs.Edits{Append: []string{"nosmt"}}}); other.Plan == nil || other.New.Serial != 1 {
		t.Errorf("with another kernel argument: got %+v, want a deployment", other)
	}

	// The machine's arguments stay, the image's change.
	before := refs(t, s.Repo())
	dry, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: two, Promote: PromoteOptions{DryRun: true}})
	testenv.Must(t, err)
	if got := dry.New.Kargs.String(); got != "quiet rw nosmt new" || !strings.HasPrefix(dry.String(), "deploy os ") {
		t.Errorf("kernel arguments of the next are %q in the plan\n%s", got, dry)
	}
	if err := dry.Execute(t.Context()); err == nil {
		t.Error("the plan of a dry run was executed")
	}
	testenv.Must(t, dry.Close())
	if after := refs(t, s.Repo()); !slices.Equal(before, after) {
		t.Errorf("a dry run has changed refs from %q to %q", before, after)
	}
	if next := b.deploy(t, s, Request{Image: two}); next.New.Commit != dry.New.Commit {
		t.Errorf("deployed %s, the dry run planned %s", next.New.Commit, dry.New.Commit)
	}
}

// TestOperatorKargs: an argument that the operator asks for stays when an image that asked for it too no longer does,
// and one that only images ask for goes.
func TestOperatorKargs(t *testing.T) {
	version := 0
	for name, ask := range map[string]func(t *testing.T, b *bed, s *System, img *Image){
		"before the image": func(t *testing.T, b *bed, s *System, _ *Image) {
			t.Helper()
			b.deploy(t, s, Request{Image: b.osImage(t), Kargs: kargs.Edits{Append: []string{"quiet"}}})
		},
		"with the image": func(t *testing.T, b *bed, s *System, img *Image) {
			t.Helper()
			b.deploy(t, s, Request{Image: img, Kargs: kargs.Edits{Set: []string{"quiet"}}})
		},
		"later": func(t *testing.T, b *bed, s *System, img *Image) {
			t.Helper()
			b.deploy(t, s, Request{Image: img})
			st := b.load(t, s)
			p, err := s.PlanKargs(t.Context(), st, st.Default(), &kargs.Edits{Set: []string{"quiet"}})
			testenv.Must(t, err)
			if p == nil {
				t.Fatal("nothing to do, although the argument is the operator's now")
			}
			testenv.Must(t, s.Execute(t.Context(), p))
			st = b.load(t, s)
			if p, err := s.PlanKargs(t.Context(), st, st.Default(), &kargs.Edits{Set: []string{"quiet"}}); p != nil || err != nil {
				t.Errorf("the same again: got %v, %v, want nothing to do", p, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			s := newSystem(t)
			newImage := func(args string) *Image {
				version++
				img := b.osImage(t, wants(args), file{name: fmt.Sprintf("usr/version-%d", version)})
				img.ManifestDigest = digest.Digest(fmt.Sprintf("sha256:%064d", version))
				return img
			}
			ask(t, b, s, newImage(`"image", "quiet"`))
			b.deploy(t, s, Request{Image: newImage(`"quiet", "image"`)})
			last := newImage(`"other"`)
			b.deploy(t, s, Request{Image: last})
			if got := b.load(t, s).Default().Kargs; !slices.Contains(got, "quiet") || slices.Contains(got, "image") {
				t.Errorf("got the kernel arguments %q, want quiet, and not image", got)
			}
			if same := b.deploy(t, s, Request{Image: last}); same.Plan != nil {
				t.Errorf("the same again: got %+v, want nothing to do", same.Plan)
			}
		})
	}
}

// TestPlanErrors provokes each kind of error. None leaves a ref behind.
func TestPlanErrors(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	img := b.osImage(t)
	foreign := b.osImage(t)
	foreign.Config = []byte(`{"architecture": "s390"}`)
	for _, tt := range []struct {
		name string
		r    Request
		want error
	}{
		{"stateroot", Request{Image: img, Stateroot: "absent"}, ErrNoStateroot},
		{"stage", Request{Image: img, Stage: true}, ErrCannotStage},
		{"tries", Request{Image: img, Tries: 3}, ErrNoBootCounting},
		{"edits", Request{Image: img, Kargs: kargs.Edits{Delete: []string{"absent"}}}, kargs.ErrEdit},
		{"not bootable", Request{Image: b.image(t, "example.org/app:1", baseFiles)}, ErrNotBootable},
		{"architecture", Request{Image: foreign}, ErrArchitecture},
		{"arguments of the image", Request{Image: b.osImage(t, wants(`"ostree=/evil"`))}, ErrImageKargs},
		{"policy", Request{Image: b.osImage(t, file{name: "etc/selinux/config", content: "SELINUX=enforcing\nSELINUXTYPE=x\n"},
			file{name: "etc/selinux/x/policy"})}, selinux.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := s.Plan(t.Context(), b.load(t, s), b.layers, tt.r)
			if p != nil || !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", p, err, tt.want)
			}
			if names := refs(t, s.Repo()); len(names) != 0 {
				t.Errorf("refs %q are left", names)
			}
		})
	}
	if _, _, err := s.EnsureStateroot("another", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stateroot(b.load(t, s), ""); !errors.Is(err, ErrManyStateroots) {
		t.Errorf("got error %v, want %v", err, ErrManyStateroots)
	}
	if _, err := Open(t.TempDir(), Options{}); !errors.Is(err, sysroot.ErrNotSysroot) {
		t.Errorf("got error %v, want %v", err, sysroot.ErrNotSysroot)
	}
}

// TestPlanConflict: a file of the administrator's is a directory in the next image.
func TestPlanConflict(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	first := b.deploy(t, s, Request{Image: b.osImage(t)})
	testenv.Must(t, os.WriteFile(filepath.Join(s.Path, first.New.Path(), "etc/added"), []byte("x"), 0o600))
	next := b.osImage(t, file{name: "etc/added/file", content: "x"})
	next.Name = "example.org/os:2"
	p, err := s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: next})
	if p != nil || !errors.Is(err, etcmerge.ErrConflict) {
		t.Errorf("got %v, %v, want %v", p, err, etcmerge.ErrConflict)
	}
	if names := refs(t, s.Repo()); len(names) != 1 {
		t.Errorf("refs are %q, want that of the first image", names)
	}
	p, err = s.Plan(t.Context(), b.load(t, s), b.layers, Request{Image: next, Promote: PromoteOptions{DryRun: true}})
	if !errors.Is(err, etcmerge.ErrConflict) || len(p.Etc.Conflicts) != 1 {
		t.Errorf("dry run: got %v, %v, want a plan with a conflict", p, err)
	}
	testenv.Must(t, p.Close())
}

// TestUpdate: an image has failed to boot.
func TestUpdate(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	bad := b.osImage(t)
	bad.ManifestDigest = "sha256:bad"
	good := b.osImage(t, file{name: "usr/good"})
	good.ManifestDigest = "sha256:600d"
	b.deploy(t, s, Request{Image: good})
	b.deploy(t, s, Request{Image: bad})
	st := b.load(t, s)
	st.Deployments[0].Tries = &bls.Tries{Done: 3}

	from, image, err := s.UpgradeFrom(st, "")
	if err != nil || from != st.Deployments[1] || image.Name != good.Name {
		t.Errorf("upgrade from %v, %q, %v, want the deployment that boots", from, image, err)
	}
	for _, tt := range []struct {
		available digest.Digest
		wanted    bool
		failed    bool
	}{
		{good.ManifestDigest, false, false},
		{bad.ManifestDigest, false, true},
		{"sha256:03", true, false},
	} {
		u, err := s.Update(st, from, tt.available)
		if err != nil || *u != (Update{good.ManifestDigest, tt.available, tt.failed}) || u.Wanted() != tt.wanted {
			t.Errorf("%s: got %+v, %v, want failed %t, wanted %t", tt.available, u, err, tt.failed, tt.wanted)
		}
	}
	p, err := s.Plan(t.Context(), st, b.layers, Request{Image: bad, Untried: true})
	if err != nil || p.Plan != nil || p.Same != nil || p.OS != nil {
		t.Errorf("untried: got %+v, %v, want nothing to do", p, err)
	}
	testenv.Must(t, p.Execute(t.Context()))
	testenv.Must(t, p.Close())

	if _, _, err := s.UpgradeFrom(&sysroot.State{}, "os"); !errors.Is(err, ErrNothingDeployed) {
		t.Errorf("got error %v, want %v", err, ErrNothingDeployed)
	}
	st = &sysroot.State{Deployments: []*sysroot.Deployment{{Stateroot: "os"}}}
	if _, _, err := s.UpgradeFrom(st, ""); !errors.Is(err, ErrNotFromImage) {
		t.Errorf("got error %v, want %v", err, ErrNotFromImage)
	}
	if _, err := s.Newest(&sysroot.State{}, "os"); !errors.Is(err, ErrNoDeployment) {
		t.Errorf("got error %v, want %v", err, ErrNoDeployment)
	}
}

func TestPlanKargs(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	b.deploy(t, s, Request{Image: b.osImage(t), Kargs: kargs.Edits{Append: []string{"rw"}}})
	st := b.load(t, s)
	if p, err := s.PlanKargs(t.Context(), st, st.Default(), &kargs.Edits{Set: []string{"rw"}}); p != nil || err != nil {
		t.Errorf("no change: got %v, %v, want no plan", p, err)
	}
	var failed *KargsError
	_, err := s.PlanKargs(t.Context(), st, st.Default(), &kargs.Edits{Delete: []string{"absent"}})
	if !errors.As(err, &failed) || !slices.Equal(failed.Kargs, []string{"rw"}) || !errors.Is(err, kargs.ErrEdit) {
		t.Errorf("got error %v, want a %T with the arguments, and %v", err, failed, kargs.ErrEdit)
	}
	p, err := s.PlanKargs(t.Context(), st, st.Default(), &kargs.Edits{Append: []string{"quiet"}})
	testenv.Must(t, err)
	testenv.Must(t, s.Execute(t.Context(), p))
	if got := b.load(t, s).Default().Kargs.String(); got != "rw quiet" {
		t.Errorf("kernel arguments are %q", got)
	}
}

// TestCleanup: an image was promoted, but not deployed.
func TestCleanup(t *testing.T) {
	b := newBed(t)
	s := newSystem(t)
	b.deploy(t, s, Request{Image: b.osImage(t)})
	other := b.osImage(t, file{name: "usr/more", content: kib("more", 8)})
	other.Name = "example.org/other:1"
	testenv.Must(t, promoteTo(t, b.layers, s.Repo(), other, false).Close())
	if names := refs(t, s.Repo()); len(names) != 2 {
		t.Fatalf("refs are %q, want two", names)
	}
	found, err := s.Cleanup(t.Context(), b.load(t, s), CleanupOptions{DryRun: true})
	testenv.Must(t, err)
	kept, err := s.Cleanup(t.Context(), b.load(t, s), CleanupOptions{NoPrune: true})
	testenv.Must(t, err)
	if kept.Objects != 0 || kept.Freed != 0 || len(refs(t, s.Repo())) != 2 {
		t.Errorf("without pruning: got %+v, refs %q, want nothing removed", kept, refs(t, s.Repo()))
	}
	done, err := s.Cleanup(t.Context(), b.load(t, s), CleanupOptions{})
	testenv.Must(t, err)
	if done.Objects == 0 || done.Objects != found.Objects || done.Freed != found.Freed {
		t.Errorf("removed %d objects, %d bytes, the dry run found %d, %d", done.Objects, done.Freed, found.Objects, found.Freed)
	}
	if names := refs(t, s.Repo()); len(names) != 1 {
		t.Errorf("refs are %q, want that of the deployed image", names)
	}
}
