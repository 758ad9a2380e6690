package boot

import (
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSigned: a system whose policy demands a key refuses an unsigned image, from inside and by its timer, and upgrades to
// the same image once it is signed.
func TestSigned(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	signer, err := testhost.NewSigner(t.Context(), t.Output(), t.TempDir())
	testenv.Must(t, err)
	b := newBed(t, images.OS, "os:1")
	second := b.images["os:2"]
	// The name that the system was installed by now stands for another image. In the guest the registry has another name.
	testenv.Must(t, second.Push(t.Context(), b.host, "os:1"))

	policy, err := signer.Policy(b.registry+"/os", b.host+"/os")
	testenv.Must(t, err)

	const timer = `mkdir -p /run/systemd/system/ostree-snapshotter-upgrade.timer.d
printf '[Timer]\nOnCalendar=\nOnActiveSec=1\nRandomizedDelaySec=0\nAccuracySec=100ms\n' >/run/systemd/system/ostree-snapshotter-upgrade.timer.d/now.conf
systemctl daemon-reload
systemctl start ostree-snapshotter-upgrade.timer
for i in $(seq 300); do test -e /run/ostree-snapshotter/refused && break; sleep 0.2; done
while systemctl is-active -q ostree-snapshotter-upgrade.service || test "$(systemctl is-active ostree-snapshotter-upgrade.service)" = activating; do sleep 0.2; done
systemctl show -p ExecMainStatus ostree-snapshotter-upgrade.service
systemctl stop ostree-snapshotter-upgrade.timer
systemctl reset-failed`
	refusing := b.boot(t, vm.Run{Name: "refusing", Commands: slices.Concat(
		look,
		[]vm.Command{
			{Name: "network", Line: "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60"},
			{Name: "policy", Line: "mkdir -p /etc/containers/registries.d '/etc/containerd/certs.d/" + b.registry + "' && echo '" + policy +
				"' >/etc/containers/policy.json && echo 'server = \"http://" + b.registry + "\"' >'/etc/containerd/certs.d/" + b.registry + "/hosts.toml'"},
			{Name: "switch", Line: "ostree-snapshotter switch --plain-http " + b.registry + "/os:1 2>&1; echo status $?"},
			{Name: "refused", Line: "ostree-snapshotter status 2>&1"},
			{Name: "forget", Line: "rm /run/ostree-snapshotter/refused"},
			{Name: "origin", Line: "sed -i 's|" + b.host + "|" + b.registry + "|' /ostree/deploy/*/deploy/*.origin"},
			{Name: "upgrade", Line: "ostree-snapshotter upgrade --plain-http 2>&1; echo status $?"},
			{Name: "forget-again", Line: "rm /run/ostree-snapshotter/refused"},
			{Name: "timer", Line: timer},
			{Name: "refused-timer", Line: "ostree-snapshotter status 2>&1"},
		},
		after,
	)})
	refusing.wantVersion("1")
	refusing.wantSaid("switch", "it has no signature")
	refusing.wantSaid("switch", "status 17")
	refusing.wantSaid("refused", "was refused at")
	refusing.wantSaid("upgrade", "status 17")
	refusing.wantSaid("timer", "ExecMainStatus=17")
	refusing.wantSaid("refused-timer", b.registry+"/os:1 sha256:")
	refusing.wantSaid("refused-timer", "was refused at")

	testenv.Must(t, signer.Sign(t.Context(), b.host+"/os:1"))
	accepting := b.boot(t, vm.Run{Name: "accepting", Commands: slices.Concat(
		[]vm.Command{
			{Name: "network", Line: "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60"},
			{Name: "upgrade", Line: "ostree-snapshotter upgrade --plain-http 2>&1; echo status $?"},
			{Name: "listing", Line: "ostree-snapshotter status -v 2>&1"},
		},
		after,
	)})
	accepting.wantSaid("upgrade", "status 0")
	accepting.wantSaid("listing", "rule    "+b.registry+"/os of /etc/containers/policy.json")
	accepting.wantSaid("listing", "cosign attachment")

	upgraded := b.boot(t, vm.Run{Name: "upgraded", Commands: slices.Concat(look, []vm.Command{{Name: "listing", Line: "ostree-snapshotter status -v"}})})
	upgraded.wantVersion("2")
	upgraded.wantSaid("listing", "signed  checked ")
}
