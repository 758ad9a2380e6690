package boot

import (
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSELinux installs systems with a permissive policy and with one that is enforced, and boots them. The host has no
// SELinux: labels come from the policy inside the images.
func TestSELinux(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	for _, tt := range []struct{ image, version, mode string }{
		{"selinux:1", "1", "Permissive"},
		{"selinux:2", "2", "Enforcing"},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			b := newBed(t, images.SELinux, tt.image)
			c := b.boot(t, vm.Run{Name: tt.mode, Commands: lookSELinux})
			c.wantVersion(tt.version)
			c.wantSELinux(tt.mode)
			c.wantDeployments(want{image: tt.image, booted: true})
		})
	}
}

// lookSELinux are the commands that show the booted system, and files whose labels are not what the policy wants.
var lookSELinux = append([]vm.Command{
	{Name: "mode", Line: "getenforce"},
	// containerd makes files with other labels than the policy wants.
	{Name: "mislabelled", Line: "restorecon -nvR /usr /etc /var /boot | grep -v '^Would relabel /var/[a-z]*/containerd/'; exit ${PIPESTATUS[0]}"},
}, slices.DeleteFunc(slices.Clone(look), func(c vm.Command) bool {
	return c.Name == "entries" || c.Name == "mounts" // nothing is mounted at /efi
})...)

// wantSELinux checks the mode, and that all files have the labels that the policy wants.
func (b *bootCheck) wantSELinux(mode string) {
	b.t.Helper()
	if got := b.output("mode"); got != mode {
		b.errorf("SELinux is %s, want %s", got, mode)
	}
	if got := b.output("mislabelled"); got != "" {
		b.errorf("wrong labels:\n%s", got)
	}
}
