package sysroot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
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
