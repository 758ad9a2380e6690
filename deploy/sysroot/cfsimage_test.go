package sysroot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
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

// cfsCommit stores a commit of a tree with the configuration of ostree-prepare-root; "": none.
func (b *bed) cfsCommit(version, config string, metadata ...objectstore.MetaEntry) objectstore.Checksum {
	b.t.Helper()
	tree := osTree(version, "a")
	if config != "" {
		at(tree, "usr/lib/ostree")["prepare-root.conf"] = file(0o644, config)
	}
	commitTree(b.t, b.Repo(), "os/"+version, version, tree, metadata...)
	return ref(b, version)
}

// A deployment has a composefs image if its tree, its kernel arguments or the repository's config ask for it.
func TestComposefsImage(t *testing.T) {
	for _, tt := range []struct {
		config, arg, repo string
		want              bool
	}{
		{config: "", want: false},
		{config: "[composefs]\nenabled=no\n", want: false},
		{config: "[composefs]\nenabled=maybe\n", want: true},
		{config: "[composefs]\nenabled = yes\n", want: true},
		{config: "[composefs]\nenabled=1\n", want: true},
		{config: "[composefs]\nenabled=yes\n", arg: "0", want: false},
		{config: "[composefs]\nenabled=verity\n", arg: "no", want: false},
		{arg: "maybe", want: true},
		{repo: "maybe", want: true},
		{repo: "yes", arg: "no", want: true},
		{repo: "no", want: false},
	} {
		t.Run(fmt.Sprintf("%q %q %q", tt.config, tt.arg, tt.repo), func(t *testing.T) {
			b := newSysroot(t)
			if tt.repo != "" {
				config := value(os.OpenFile(filepath.Join(b.path, "ostree/repo/config"), os.O_APPEND|os.O_WRONLY, 0))(t)
				value(fmt.Fprintf(config, "\n[ex-integrity]\ncomposefs=%s\n", tt.repo))(t)
				testenv.Must(t, config.Close())
				b = openSysroot(t, b.path, sysroot.Options{})
			}
			args := []string{"rw"}
			if tt.arg != "" {
				args = append(args, "ostree.prepare-root.composefs="+tt.arg)
			}
			sum := b.cfsCommit("1", tt.config)
			b.deploy(sum, withKargs(args...))
			name := b.cfsOf(b.load().Default())
			got, err := os.ReadFile(name)
			if !tt.want {
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("image: %v", err)
				}
				return
			}
			c := value(b.Repo().Commit(sum))(t)
			want := value(cfs.Marshal(t.Context(), b.Repo(), c.Root(), cfs.KnownDigests))(t)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the image is not that of the tree (%v)", err)
			}
			if st := value(os.Stat(name))(t); st.Mode() != 0o644 {
				t.Errorf("mode of the image is %v", st.Mode())
			}
		})
	}
}

// An image goes with its deployment, also if it is staged and never becomes the default.
func TestComposefsImageGoes(t *testing.T) {
	b := newSysroot(t)
	b.run = t.TempDir()
	const config = "[composefs]\nenabled=yes\n"
	b.deploy(b.cfsCommit("1", config))
	b.boot(0)
	two := b.cfsCommit("2", config)
	b.deploy(two, func(r *sysroot.Request) { r.Stage = true })
	staged := b.load().Staged.Deployment
	if _, err := os.Stat(b.cfsOf(staged)); err != nil {
		t.Error(err)
	}
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 0) })
	if _, err := os.Stat(filepath.Join(b.path, staged.Path())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of what was staged: %v", err)
	}
	b.deploy(two, func(r *sysroot.Request) { r.Stage = true })
	value(b.FinalizeStaged(t.Context()))(t)
	if _, err := os.Stat(b.cfsOf(b.load().Default())); err != nil {
		t.Error(err)
	}
}

// The size of a deployment includes that of its image, which is shared with a deployment of the same commit.
func TestComposefsImageFootprint(t *testing.T) {
	b := newSysroot(t)
	size := func() sysroot.Footprint {
		list := b.load().Deployments
		return *value(b.Footprints(t.Context(), list))(t)[0]
	}
	b.deploy(b.cfsCommit("1", "[composefs]\nenabled=yes\n"))
	with := size()
	root := openDir(t, filepath.Join(b.path, b.load().Default().Path()))
	testenv.Must(t, root.SetImmutable(false))
	st := value(root.Lstat(cfs.Name))(t)
	testenv.Must(t, root.Unlink(cfs.Name))
	without := size()
	if got := with.Unique - without.Unique; got != st.Blocks*512 || got == 0 || with.Shared != without.Shared {
		t.Errorf("with an image %+v, without %+v, the image has %d bytes", with, without, st.Blocks*512)
	}
	b.deploy(b.cfsCommit("2", "[composefs]\nenabled=yes\n"))
	alone := size()
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) {
		return b.PlanKargs(t.Context(), st, st.Default(), kargs.List{"quiet"}, nil)
	})
	if got := size(); got.Shared < st.Blocks*512 || got.Unique > alone.Unique-st.Blocks*512 {
		t.Errorf("alone %+v, twice %+v, want the image shared", alone, got)
	}
}

// An unknown argument, with which the system would not boot, is refused.
func TestComposefsArgument(t *testing.T) {
	b := newSysroot(t)
	b.deploy(b.cfsCommit("1", ""))
	st := b.load()
	_, err := b.PlanKargs(t.Context(), st, st.Default(), kargs.List{"ostree.prepare-root.composefs=verity"}, nil)
	if !errors.Is(err, sysroot.ErrInvalid) || !strings.Contains(err.Error(), "ostree.prepare-root.composefs=verity") {
		t.Errorf("got %v, want an ErrInvalid that names the argument", err)
	}
}

// If the boot demands fs-verity, files and image have it, and the image is the one that the commit states.
func TestComposefsVerity(t *testing.T) {
	path := t.TempDir()
	testenv.NeedsRoot(t)
	testenv.NeedsVerity(t, path)
	initSysroot(t, path)
	b := openSysroot(t, path, sysroot.Options{})
	const verity, signed = "[composefs]\nenabled=verity\n", "[composefs]\nenabled=signed\n"
	b.deploy(b.cfsCommit("1", verity))
	d := b.load().Default()
	digest := b.measure(b.cfsOf(d))
	c := value(b.Repo().Commit(d.Commit))(t)
	image := value(cfs.Marshal(t.Context(), b.Repo(), c.Root(), cfs.AllDigests))(t)
	if want := value(composefs.VerityDigest(bytes.NewReader(image)))(t); digest != want {
		t.Errorf("digest of the image is %x, want %x", digest, want)
	}
	b.measure(filepath.Join(path, d.Path(), "usr/bin/sh"))
	state := func(digest objectstore.Checksum) objectstore.MetaEntry {
		return objectstore.MetaEntry{Key: cfs.DigestKey, Value: gvariant.Bytes(digest[:])}
	}
	b.deploy(b.cfsCommit("1", verity, state(digest)))

	plan := func() (*sysroot.Plan, error) {
		return b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: ref(b, "1")})
	}
	b.cfsCommit("1", verity, state(objectstore.Checksum{1}))
	p := value(plan())(t)
	if err := b.Execute(t.Context(), p); !errors.Is(err, sysroot.ErrInvalid) || !strings.Contains(err.Error(), "0100") {
		t.Errorf("another digest: got %v, want an ErrInvalid", err)
	}
	sum := b.cfsCommit("1", signed)
	sign(t, b, sum)
	if _, err := plan(); !errors.Is(err, sysroot.ErrUnsupported) || !strings.Contains(err.Error(), cfs.DigestKey) {
		t.Errorf("signed without a digest: got %v, want an ErrUnsupported", err)
	}
	c = value(b.Repo().Commit(sum))(t)
	image = value(cfs.Marshal(t.Context(), b.Repo(), c.Root(), cfs.AllDigests))(t)
	sum = b.cfsCommit("1", signed, state(value(composefs.VerityDigest(bytes.NewReader(image)))(t)))
	sign(t, b, sum)
	b.deploy(sum)
	b.measure(b.cfsOf(b.load().Default()))
}

// TestComposefsSignedParent: the signature of the commit inside a container image holds for an image without more files alone.
func TestComposefsSignedParent(t *testing.T) {
	b := newSysroot(t)
	const signed = "[composefs]\nenabled=signed\n"
	parent := b.cfsCommit("1", signed, objectstore.MetaEntry{Key: cfs.DigestKey, Value: gvariant.Bytes(make([]byte, 32))})
	sign(t, b, parent)
	for version, same := range map[string]bool{"1": true, "2": false} {
		c := *value(b.Repo().Commit(b.cfsCommit(version, signed)))(t)
		c.Parent = &parent
		c.Metadata = append(c.Metadata, objectstore.MetaEntry{Key: "ostree.container.image-config", Value: gvariant.String("{}")})
		txn := value(b.Repo().Begin(t.Context()))(t)
		stored := value(txn.StoreMetadata(objectstore.TypeCommit, value(c.Marshal())(t)))(t)
		txn.SetRef("os/image", stored.Checksum)
		testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
		_, err := b.PlanDeploy(t.Context(), b.load(), sysroot.Request{Stateroot: "os", Commit: stored.Checksum, Rehearsal: true})
		if same {
			testenv.Must(t, err)
		} else if !errors.Is(err, sysroot.ErrUnsupported) {
			t.Errorf("with another tree than the signed parent's: got error %v, want an ErrUnsupported", err)
		}
	}
}

// measure returns the fs-verity digest of a file, which must have one.
func (b *bed) measure(name string) objectstore.Checksum {
	b.t.Helper()
	d := openDir(b.t, filepath.Dir(name))
	f := value(d.Open(filepath.Base(name)))(b.t)
	defer f.Close()
	digest, ok, err := f.MeasureVerity()
	if !ok || err != nil {
		b.t.Errorf("%s: got %v, %v, want fs-verity", name, ok, err)
	}
	return digest
}

// sign gives a commit a signature, which only ostree-prepare-root would verify.
func sign(t *testing.T, b *bed, sum objectstore.Checksum) {
	t.Helper()
	data := gvariant.AppendDict(nil, []gvariant.Entry{{Key: "ostree.sign.ed25519", Value: gvariant.Variant{Type: "aay", Data: []byte("signature\x09")}}})
	name := filepath.Join(b.path, "ostree/repo/objects", objectstore.LoosePath(sum, objectstore.TypeCommitMeta))
	testenv.Must(t, os.WriteFile(name, data, 0o644))
}
