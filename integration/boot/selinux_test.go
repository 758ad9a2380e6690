package boot

import (
	"context"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSELinux follows a machine with an SELinux policy that a host without SELinux has installed: it boots permissive, then
// enforcing. From inside, it pulls and deploys an update, boots that, rolls back and boots what it had before.
func TestSELinux(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	b := newBed(t, selinuxImages, "selinux:1")

	permissive := b.boot(t, vm.Run{Name: "permissive", Commands: slices.Concat(lookSELinux, edit, enforce)})
	permissive.wantVersion("1")
	permissive.wantSELinux("Permissive")
	permissive.wantDeployments(want{image: "selinux:1", booted: true})

	enforcing := b.boot(t, vm.Run{Name: "enforcing", Commands: slices.Concat(
		lookSELinux,
		b.pull("selinux:2"),
		b.deploy("selinux:2"),
		after,
		lookDenied,
	)})
	enforcing.wantVersion("1")
	enforcing.wantSELinux("Enforcing")
	enforcing.wantNotDenied()
	enforcing.wantDeployments(want{image: "selinux:1", booted: true})
	enforcing.wantDeploymentsAfter(want{image: "selinux:2", pending: true}, want{image: "selinux:1", booted: true})

	updated := b.boot(t, vm.Run{Name: "updated", Commands: slices.Concat(
		lookSELinux,
		[]vm.Command{
			{Name: "labels", Line: "stat -c '%n %C' " + strings.Join(slices.Sorted(maps.Keys(labels)), " ")},
			{Name: "rollback", Line: "ostree-snapshotter rollback"},
		},
		after,
		lookDenied,
	)})
	updated.wantVersion("2")
	updated.wantSELinux("Enforcing")
	updated.wantLabels()
	updated.wantNotDenied()
	updated.wantDeployments(want{image: "selinux:2", booted: true}, want{image: "selinux:1", rollback: true})
	updated.wantEtc(map[string]string{
		"changed.conf": "default of version 2", "edited.conf": "edited by hand", "new.conf": "default of version 2", "admin.conf": "made by hand",
	})
	updated.wantDeploymentsAfter(want{image: "selinux:1", pending: true}, want{image: "selinux:2", booted: true})

	back := b.boot(t, vm.Run{Name: "rolled-back", Commands: slices.Concat(lookSELinux, lookDenied)})
	back.wantVersion("1")
	back.wantSELinux("Enforcing")
	back.wantNotDenied()
	back.wantDeployments(want{image: "selinux:1", booted: true}, want{image: "selinux:2", rollback: true})
}

// selinuxImages makes the images of images.SELinux with containerd where Debian's policy does not know it. It confines
// /usr/bin/containerd so that it cannot connect to a snapshotter.
func selinuxImages(ctx context.Context, log io.Writer, dir string, files []images.File) (map[string]*images.Image, error) {
	const unconfined = "usr/libexec/containerd"
	for i := range files {
		if files[i].Name == "usr/bin/containerd" {
			files[i].Name = unconfined
		}
	}
	return images.SELinux(ctx, log, dir, append(files, images.File{
		Name: guestUnits + "containerd.service.d/10-unconfined.conf", Mode: 0o644,
		Data: "[Service]\nExecStart=\nExecStart=/" + unconfined + "\n",
	}))
}

// lookSELinux are the commands that show the booted system, and files whose labels are not what the policy wants.
var lookSELinux = append([]vm.Command{
	{Name: "mode", Line: "getenforce"},
	// containerd makes files with other labels than the policy wants.
	{Name: "mislabelled", Line: "restorecon -nvR /usr /etc /var /boot | grep -v '^Would relabel /var/[a-z]*/containerd[/ ]'; exit ${PIPESTATUS[0]}"},
}, slices.DeleteFunc(slices.Clone(look), func(c vm.Command) bool {
	return c.Name == "entries" || c.Name == "mounts" // nothing is mounted at /efi
})...)

// localLabel is the label that the administrator wants for a file.
const localLabel = "system_u:object_r:httpd_config_t:s0"

// enforce are the commands of an administrator who changes the policy for one file, and has the next boot enforce it.
var enforce = []vm.Command{
	{Name: "local", Line: `echo '/etc/example/admin\.conf -- ` + localLabel + `' >/etc/selinux/default/contexts/files/file_contexts.local`},
	{Name: "relabel", Line: "restorecon /etc/example/admin.conf"},
	{Name: "enforce", Line: "sed -i s/^SELINUX=permissive/SELINUX=enforcing/ /etc/selinux/config"},
}

// labels are those of files in the updated system: of the image, and changed or added by the administrator.
var labels = map[string]string{
	"/usr/lib/example-version":  "system_u:object_r:lib_t:s0",
	"/etc/example/changed.conf": "system_u:object_r:etc_t:s0",
	"/etc/example/edited.conf":  "system_u:object_r:etc_t:s0",
	"/etc/example/admin.conf":   localLabel,
}

// lookDenied are the commands that show what the policy has denied since the machine was started.
var lookDenied = []vm.Command{{Name: "denied", Line: "dmesg | grep 'avc: *denied'"}}

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

// wantLabels checks the labels of some files.
func (b *bootCheck) wantLabels() {
	b.t.Helper()
	got := make(map[string]string)
	for line := range strings.Lines(b.output("labels")) {
		name, label, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = label
	}
	if !maps.Equal(got, labels) {
		b.errorf("got the labels %q, want %q", got, labels)
	}
}

// ourPrograms matches the messages about programs that deploy. Debian's policy denies a little to systemd in each boot.
var ourPrograms = regexp.MustCompile(`comm="(ostree-snapshot|ostree|containerd|ctr)"`)

// wantNotDenied checks that the policy has denied nothing to programs that deploy.
func (b *bootCheck) wantNotDenied() {
	b.t.Helper()
	for line := range strings.Lines(b.output("denied")) {
		if ourPrograms.MatchString(line) {
			b.errorf("denied: %s", line)
		}
	}
}
