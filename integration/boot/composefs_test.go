package boot

import (
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestComposefs installs and boots a system that demands composefs, with the ostree of Debian testing.
func TestComposefs(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	b := newBed(t, images.Composefs, "composefs:1")

	booted := b.boot(t, vm.Run{Name: "composefs", Commands: []vm.Command{
		{Name: "rootfs", Line: "findmnt -no FSTYPE,SOURCE /"},
		{Name: "version", Line: "cat /usr/lib/example-version"},
		{Name: "root", Line: `readlink -f "/sysroot$(sed -n 's/.*ostree=\([^ ]*\).*/\1/p' /proc/cmdline)"`},
		{Name: "writable", Line: "for d in / /usr /etc /var; do touch $d/probe 2>/dev/null && rm $d/probe && echo $d; done; true"},
		{Name: "ostree", Line: "ostree admin status"},
	}})
	if got := booted.output("version"); got != "1" {
		t.Errorf("version %q has booted, want 1", got)
	}
	if got := strings.Fields(booted.output("rootfs")); !slices.Equal(got, []string{"overlay", "composefs"}) {
		t.Errorf("the root is %q, want composefs", got)
	}
	if got, want := booted.output("writable"), "/etc\n/var"; got != want {
		t.Errorf("can be written to:\n%s\nwant\n%s", got, want)
	}
	lines := ostreeLines(booted.output("ostree"))
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "*") {
		t.Errorf("ostree admin status lists %q, want one booted deployment", lines)
	}
}
