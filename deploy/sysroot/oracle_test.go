package sysroot_test

import (
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// A step is an operation on a sysroot, by this package or by "ostree admin".
type step struct {
	name   string
	ours   func(b *bed)
	theirs func(b *bed)
}

func deployStep(name, version string, args []string, change ...func(*sysroot.Request)) step {
	return step{
		name,
		func(b *bed) {
			b.deploy(ref(b, version), append(change, func(r *sysroot.Request) { r.Origin = originFile("os/" + version) })...)
		},
		func(b *bed) { b.admin(append([]string{"deploy", "--os=os", "os/" + version}, args...)...) },
	}
}

func ref(b *bed, version string) objectstore.Checksum {
	b.t.Helper()
	return value(b.Repo().Ref("os/" + version))(b.t)
}

func undeployStep(name string, index int) step {
	return step{
		name,
		func(b *bed) {
			b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, index) })
		},
		func(b *bed) { b.admin("undeploy", string(rune('0'+index))) },
	}
}

func pinStep(name string, index int, pinned bool) step {
	args := []string{"pin", string(rune('0' + index))}
	if !pinned {
		args = []string{"pin", "-u", args[1]}
	}
	return step{
		name,
		func(b *bed) {
			b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanPin(st, index, pinned) })
		},
		func(b *bed) { b.admin(args...) },
	}
}

var cleanupStep = step{
	"clean up",
	func(b *bed) {
		b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanCleanup(b.t.Context(), st) })
	},
	func(b *bed) { b.admin("cleanup") },
}

// TestSameAsOSTree does the same to three sysroots: one by this package, one by ostree, and one by both in turn. The
// results must be equal.
func TestSameAsOSTree(t *testing.T) {
	objecttest.NeedsOstree(t)
	steps := []step{
		deployStep("first", "1", []string{"--karg=root=LABEL=root", "--karg=rw"}, withKargs("root=LABEL=root", "rw")),
		deployStep("second, other kernel", "2", nil),
		deployStep("third, same kernel and version as second", "2", nil),
		deployStep("kernel argument", "2", []string{"--karg-append=quiet"}, withKargs("root=LABEL=root", "rw", "quiet")),
		pinStep("pin", 1, true),
		deployStep("next, with one pinned", "3", nil),
		deployStep("retain", "4", []string{"--retain"}, func(r *sysroot.Request) { r.Retain = true }),
		undeployStep("undeploy", 2),
		cleanupStep,
		deployStep("not as default", "5", []string{"--not-as-default"}, func(r *sysroot.Request) { r.NotDefault = true }),
		pinStep("unpin", 2, false),
		undeployStep("undeploy first", 0),
		deployStep("once more", "1", nil),
		undeployStep("undeploy last", 1),
		undeployStep("undeploy all", 0),
		deployStep("anew", "3", []string{"--karg=ro"}, withKargs("ro")),
	}
	run := func(t *testing.T, b *bed, s step, ours bool) {
		t.Helper()
		b.t = t
		if ours {
			s.ours(b)
		} else {
			s.theirs(b)
		}
		b.admin("status")
		b.load()
	}
	var beds []*bed
	for range 4 {
		b := newSysroot(t)
		for _, v := range []struct{ version, kernel string }{{"1", "a"}, {"2", "b"}, {"3", "b"}, {"4", "c"}, {"5", "a"}} {
			b.commit(v.version, v.kernel)
		}
		beds = append(beds, b)
	}
	for i, s := range steps {
		ok := t.Run(s.name, func(t *testing.T) {
			run(t, beds[0], s, false)
			want := snapshot(t, beds[0].path)
			for n, ours := range []bool{true, i%2 == 0, i%2 == 1} {
				b := beds[n+1]
				run(t, b, s, ours)
				if diff := testenv.Diff(want, snapshot(t, b.path)); diff != "" {
					t.Errorf("sysroot %d (-ostree +ours):\n%s", n+1, diff)
				}
				objecttest.Fsck(t, b.Repo())
			}
		})
		if !ok {
			return
		}
	}
}
