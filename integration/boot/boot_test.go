package boot

import (
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestBoot follows a machine from an empty disk through an update, a rollback and an update that does not boot. In each
// boot it also checks the view of "ostree admin" and the kernel, not only ours.
func TestBoot(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	b := newBed(t, images.OS, "os:1")

	first := b.boot(t, vm.Run{Name: "installed", Commands: slices.Concat(
		look,
		b.pull("os:2"),
		inodes("/usr/bin/containerd"), // the host's repository had it before
		edit,
		b.deploy("os:2", "--boot-tries", "3"),
		after,
	)})
	first.wantVersion("1")
	first.wantDeployments(want{image: "os:1", booted: true})
	first.wantMounts()
	first.wantEtc(map[string]string{
		"changed.conf": "default of version 1", "edited.conf": "default of version 1", "gone.conf": "default of version 1",
	})
	first.wantShared()
	first.wantDeploymentsAfter(want{image: "os:2", pending: true, tries: "3-0"}, want{image: "os:1", booted: true})

	updated := b.boot(t, vm.Run{Name: "updated", Commands: slices.Concat(
		look,
		inodes("/usr/lib/example-version"), // the image brought it
		[]vm.Command{{Name: "rollback", Line: "ostree-snapshotter rollback"}},
		after,
	)})
	updated.wantVersion("2")
	// The boot was good, so the boot loader no longer counts.
	updated.wantDeployments(want{image: "os:2", booted: true}, want{image: "os:1", rollback: true})
	updated.wantMounts()
	updated.wantShared()
	updated.wantEtc(map[string]string{
		"changed.conf": "default of version 2", "edited.conf": "edited by hand", "new.conf": "default of version 2", "admin.conf": "made by hand",
	})
	updated.wantDeploymentsAfter(want{image: "os:1", pending: true}, want{image: "os:2", booted: true})

	back := b.boot(t, vm.Run{Name: "rolled-back", Commands: slices.Concat(
		look,
		b.pull("os:broken"),
		b.deploy("os:broken", "--boot-tries", "2"),
		after,
	)})
	back.wantVersion("1")
	back.wantDeployments(want{image: "os:1", booted: true}, want{image: "os:2", rollback: true})
	back.wantMounts()
	back.wantEtc(map[string]string{
		"changed.conf": "default of version 1", "edited.conf": "edited by hand", "gone.conf": "default of version 1", "admin.conf": "made by hand",
	})
	back.wantDeploymentsAfter(want{image: "os:broken", pending: true, tries: "2-0"}, want{image: "os:1", booted: true})

	fallen := b.boot(t, vm.Run{Name: "fallen-back", Failures: true, Commands: slices.Concat(
		look,
		fallback,
		b.deploy("os:2", "--stage"),
		after,
		editLate,
	)})
	fallen.wantConsole("this init is broken", 2)
	fallen.wantVersion("1")
	fallen.wantDeployments(want{image: "os:broken", pending: true, tries: "0-2"}, want{image: "os:1", booted: true})
	fallen.wantMounts()
	fallen.wantSaid("entries", "+0-2.conf")
	fallen.wantSaid("listing", "failed to boot 2 times")
	fallen.wantDeploymentsAfter(want{image: "os:2", staged: true}, want{image: "os:broken", tries: "0-2"}, want{image: "os:1", booted: true})

	staged := b.boot(t, vm.Run{Name: "staged", Commands: slices.Concat(look, check)})
	staged.wantVersion("2")
	staged.wantDeployments(want{image: "os:2", booted: true}, want{image: "os:1", rollback: true})
	staged.wantMounts()
	staged.wantEtc(map[string]string{
		"changed.conf": "default of version 2", "edited.conf": "edited by hand", "new.conf": "default of version 2",
		"admin.conf": "made by hand", "late.conf": "made by hand",
	})
	staged.wantSaid("kept", "made by hand")
}
