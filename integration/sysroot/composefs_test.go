package sysroot

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestComposefsImage checks that a deployment of the same commit keeps the composefs image that newer versions of
// ostree give to every deployment: byte by byte the one that ostree itself makes.
func TestComposefsImage(t *testing.T) {
	needs(t)
	disk, systems := newSystems(t, ostreehost.Forky, false, "ours", "theirs")
	image := func(s *system, serial string) []byte {
		t.Helper()
		name := filepath.Join(s.root, "ostree/deploy", osName, "deploy", s.commitOf("os/v1")+serial, ".ostree.cfs")
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return data
	}
	initAll(disk, systems...)
	for _, s := range systems {
		if _, err := s.admin("deploy", "--os="+osName, "--karg=root=LABEL=root", "--karg=rw", "os/v1"); err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := systems[0], systems[1]
	first := image(ours, ".0")
	if len(first) == 0 {
		t.Fatal("ostree makes no composefs image")
	}
	err := ours.change(t.Context(), func(sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
		return sr.PlanKargs(t.Context(), st, st.Default(), st.Default().Kargs.Append("quiet"), st.Default().Origin)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.admin("deploy", "--os="+osName, "--karg-append=quiet", "os/v1"); err != nil {
		t.Fatal(err)
	}
	if want := image(theirs, ".1"); !bytes.Equal(image(ours, ".1"), want) {
		t.Errorf("the image of the second deployment is not the one that ostree makes, of %d bytes", len(want))
	}
	if out, err := ours.admin("status"); err != nil {
		t.Errorf("ostree admin status: %v", err)
	} else if got := statusLines(out); len(got) != 2 {
		t.Errorf("ostree admin status lists %q, want two deployments", got)
	}
}

// oddTree returns a tree with everything that a commit can hold, and the files that a deployment needs. config is its
// prepare-root.conf; "": none.
func oddTree(config string) *objecttest.Node {
	file, dir := objecttest.File, objecttest.Dir
	type nodes = map[string]*objecttest.Node
	odd := objecttest.OddTree()
	linked := file(0o755, "several names").Own(5, 6).Xattr("security.selinux", "system_u:object_r:bin_t:s0\x00")
	odd.Entries["linked"], odd.Entries["linked again"] = linked, linked
	odd.Entries[".ostree-wh.gone"] = file(0o600, "").Own(3, 4)
	odd.Entries[".ostree-wh.full"] = file(0o600, "with content")
	odd.Entries[".wh.other"] = file(0o600, "of another kind")
	odd.Entries["00"] = file(0o600, "named as a directory of objects")
	ostree := nodes{}
	if config != "" {
		ostree["prepare-root.conf"] = file(0o644, config)
	}
	return dir(0o700, nodes{
		"odd": odd, "ff": file(0o644, "as well"), "var": dir(0o711, nil), "sysroot": dir(0o755, nil),
		"usr": dir(0o755, nodes{
			"etc": dir(0o750, nodes{"conf": file(0o640, "conf").Own(0, 7)}),
			"lib": dir(0o755, nodes{
				"ostree": dir(0o755, ostree), "os-release": file(0o644, "PRETTY_NAME=odd\n"),
				"modules": dir(0o755, nodes{"6.1.0": dir(0o755, nodes{
					"vmlinuz": file(0o644, "kernel"), "initramfs.img": file(0o600, "initramfs"),
				})}),
			}),
		}),
	}).Own(8, 9).Xattr("user.root", "r")
}

// TestComposefsImageOfOstree compares the images of odd trees with those that ostree makes of them, and their digests
// with those that it puts into commits.
func TestComposefsImageOfOstree(t *testing.T) {
	needs(t)
	configs := map[string]cfs.Digests{"": cfs.KnownDigests}
	for _, enabled := range []string{"no", "maybe", "yes", "1", "true"} {
		configs["[composefs]\nenabled="+enabled+"\n"] = cfs.KnownDigests
	}
	for _, enabled := range []string{"verity", "signed"} {
		configs["[composefs]\nenabled="+enabled+"\n"] = cfs.AllDigests
	}
	_, systems := newSystems(t, ostreehost.Forky, false, "theirs", "ours")
	s, ours := systems[0], systems[1]
	s.initEmpty()
	ours.initEmpty()
	repo := openRepo(t, s)
	for _, config := range slices.Sorted(maps.Keys(configs)) {
		t.Run(config, func(t *testing.T) {
			c, err := repo.Commit(objecttest.Commit(t, repo, "odd", oddTree(config)))
			if err != nil {
				t.Fatal(err)
			}
			s.ostree("commit", "--branch=digest", "--tree=ref=odd", "--generate-composefs-metadata")
			if _, err := s.admin("deploy", "--os="+osName, "digest"); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(s.root, s.deploymentOf(s.entries()[0]), cfs.Name))
			if err != nil {
				t.Fatal(err)
			}
			image, err := cfs.Marshal(t.Context(), repo, c.Root(), configs[config])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(image, want) {
				t.Errorf("image of %d bytes is not that of ostree, of %d bytes", len(image), len(want))
			}
			ours.compareImage(t, config, configs[config] == cfs.AllDigests, want)
			if image, err = cfs.Marshal(t.Context(), repo, c.Root(), cfs.AllDigests); err != nil {
				t.Fatal(err)
			}
			digest, err := composefs.VerityDigest(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("%#x", digest[:])
			if got := s.ostree("show", "--print-metadata-key="+cfs.DigestKey, "digest"); plainBytes(got) != text {
				t.Errorf("digest is %s, ostree has %s", text, got)
			}
		})
	}
}

// compareImage deploys the odd tree with our package, and compares its image with ostree's. A tree that demands fs-verity,
// which no file system in memory has, is refused.
func (s *system) compareImage(t *testing.T, config string, verity bool, want []byte) {
	t.Helper()
	repo := openRepo(t, s)
	objecttest.Commit(t, repo, "odd", oddTree(config))
	d := deployOp{ref: "odd", stateroot: osName, set: []string{"root=LABEL=root"}}
	before := s.list()
	err := d.ours(t.Context(), s)
	if verity {
		if !errors.Is(err, sysroot.ErrUnsupported) {
			t.Errorf("got %v, want %v", err, sysroot.ErrUnsupported)
		}
		if diff := before.diff(s.list()); len(diff) > 0 {
			t.Errorf("refused, and changed\n%s", strings.Join(diff, "\n"))
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(s.root, s.deploymentOf(s.entries()[0]), cfs.Name)
	got, err := os.ReadFile(name)
	switch {
	case strings.Contains(config, "maybe"), strings.Contains(config, "yes"), strings.Contains(config, "1"), strings.Contains(config, "true"):
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("our image of %d bytes is not that of ostree, of %d bytes (%v)", len(got), len(want), err)
		}
	case !errors.Is(err, os.ErrNotExist):
		t.Errorf("a tree without composefs: got %v", err)
	}
}

// TestComposefsBoot starts our deployments with the ostree-prepare-root of ostree 2026, which mounts their images.
func TestComposefsBoot(t *testing.T) {
	needs(t)
	disk, systems := newSystems(t, ostreehost.Forky, false, "ours")
	s := systems[0]
	s.initEmpty()
	const config = "[composefs]\nenabled=yes\n"
	tree := *trees["os/v1"]
	tree.files = map[string]string{"usr/lib/ostree/prepare-root.conf": config}
	s.commitTree(disk, "os/v1", &tree)
	d := deployOp{ref: "os/v1", stateroot: osName, set: []string{"root=LABEL=root", "rw"}}
	if err := d.ours(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	h := s.start(ostreehost.Forky, 0, config)
	info, err := os.ReadFile(h.Path("proc/1/mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(info), mountinfo.SingleEntryFilter("/"))
	if err != nil || len(mounts) == 0 {
		t.Fatalf("mounts of /: %v, %v", mounts, err)
	}
	if m := mounts[len(mounts)-1]; m.FSType != "overlay" || m.Source != "composefs" {
		t.Errorf("/ is %s of %s, want an overlay of composefs", m.FSType, m.Source)
	}
	want := []string{"* debian " + s.commitOf("os/v1") + ".0"}
	if got := statusLines(run(t, h, "ostree", "admin", "status")); !slices.Equal(got, want) {
		t.Errorf("status of the booted system: %q, want %q", got, want)
	}
	if got, err := os.ReadFile(h.Path("etc/conf")); err != nil || string(got) != "default of 1" {
		t.Errorf("/etc/conf is %q, %v", got, err)
	}
}

// plainBytes returns the bytes of a GVariant text in one hexadecimal number.
func plainBytes(text string) string {
	text = strings.NewReplacer("[byte ", "", "]", "", "0x", "", ", ", "").Replace(text)
	return "0x" + strings.TrimSpace(text)
}

// openRepo opens the repository of a system until the test ends.
func openRepo(t *testing.T, s *system) *objectstore.Repo {
	t.Helper()
	repo, err := objectstore.Open(objecttest.OpenDir(t, filepath.Join(s.root, "ostree/repo")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return repo
}
