package boot

import (
	"context"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestComposefs installs a system in the form of images for bootc, with the ostree of Debian testing, that boots on
// composefs, and updates it from inside to one that demands fs-verity. Objects that are exchanged before it boots cannot
// be read then, and fsck names them.
func TestComposefs(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	b := newBed(t, composefsImages, "composefs:1")

	first := b.boot(t, vm.Run{Name: "composefs", Commands: slices.Concat(
		lookComposefs,
		edit,
		[]vm.Command{
			{Name: "network", Line: "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60"},
			{Name: "switch", Line: "ostree-snapshotter switch --plain-http --boot-tries 3 " + b.registry + "/composefs:2"},
		},
		after,
		exchange,
	)})
	first.wantVersion("1")
	first.wantComposefs("")
	first.wantInstallConfig()
	first.wantDeployments(want{image: "composefs:1", booted: true})
	first.wantDeploymentsAfter(want{image: "composefs:2", pending: true, tries: "3-0"}, want{image: "composefs:1", booted: true})

	second := b.boot(t, vm.Run{Name: "verity", Commands: slices.Concat(
		lookComposefs,
		read,
		[]vm.Command{
			{Name: "fsck", Line: "ostree-snapshotter fsck --json 2>/dev/null", Fails: true},
			// As on a system that was partitioned by hand.
			{Name: "forget", Line: "unshare -m sh -c 'mount -o remount,rw /sysroot && sed -i /^esp=/d /sysroot/ostree/repo/config' && ! grep esp= /sysroot/ostree/repo/config"},
			{Name: "rollback", Line: "ostree-snapshotter rollback"},
			{Name: "mirror", Line: "mount -o ro /dev/vda1 /efi && ls /efi/loader/entries && diff -r /boot/loader/entries /efi/loader/entries", Fails: true},
		},
		after,
	)})
	second.wantVersion("2")
	second.wantComposefs("verity=require")
	second.wantDeployments(want{image: "composefs:2", booted: true}, want{image: "composefs:1", rollback: true})
	second.wantEtc(map[string]string{
		"changed.conf": "default of version 2", "edited.conf": "edited by hand", "new.conf": "default of version 2", "admin.conf": "made by hand",
	})
	second.wantRefused(first.output("exchange"))
	second.wantMirror()
	second.wantDeploymentsAfter(want{image: "composefs:1", pending: true}, want{image: "composefs:2", booted: true})
}

// composefsImages makes the images, with one repository for the system and for images. They have no ctr, since what a guest
// hashes takes time.
func composefsImages(ctx context.Context, log io.Writer, dir string, files []images.File) (map[string]*images.Image, error) {
	files = slices.DeleteFunc(files, func(f images.File) bool { return f.Name == "usr/bin/ctr" })
	for i := range files {
		if files[i].Name == "etc/ostree-snapshotter/config.toml" {
			files[i].Source = "testdata/ostree-snapshotter-shared.toml"
		}
	}
	return images.Composefs(ctx, log, dir, files)
}

// lookComposefs are the commands that show the booted system and its root. systemd mounts the ESP at /boot since version
// 257, where ostree mounts the sysroot's, so it is mounted nowhere.
var lookComposefs = append([]vm.Command{
	{Name: "rootfs", Line: "findmnt -no FSTYPE,SOURCE,OPTIONS /"},
	{Name: "esp", Line: "findmnt -t vfat", Fails: true},
}, slices.DeleteFunc(slices.Clone(look), func(c vm.Command) bool { return c.Name == "entries" || c.Name == "mounts" })...)

// exchange are the commands of someone who exchanges the objects of files behind the back of a system that has not booted
// yet: for one with the same bytes, without fs-verity; for one with other bytes; for one that has fs-verity itself. In the
// last it changes the bytes on the disk.
var exchange = []vm.Command{{Name: "exchange", Line: `set -e
mount -o remount,rw /sysroot
cd /sysroot/ostree/repo/objects
for name in ` + strings.Join(exchanged(), " ") + `; do
	o=$(find . -samefile "$(ls /sysroot/ostree/deploy/example/deploy/*/$name)")
	echo "$name $o"
	case $name in
	*/same) cp -p "$o" "$o.new" && mv "$o.new" "$o" ;;
	*/damaged)
		block=$(debugfs -R "bmap <$(stat -c %i "$o")> 0" /dev/vda2)
		head -c 4096 "$o" | sed s/made/else/g | dd of=/dev/vda2 bs=4096 seek="$block" oflag=direct conv=notrunc ;;
	*)
		sed s/made/else/ "$o" >"$o.new" && chmod --reference="$o" "$o.new" && mv "$o.new" "$o"
		# FS_IOC_ENABLE_VERITY with SHA-256 and blocks of 4096 bytes.
		[ "${name##*/}" = other ] || perl -e 'open(F, "<", $ARGV[0]) && ioctl(F, 0x40806685, pack("L4QL2Q12", 1, 1, 4096, (0) x 16)) or die $!' "$o"
	esac
done`}}

// read are the commands that read the exchanged files, and one that was not.
var read = func() (commands []vm.Command) {
	for _, name := range images.Exchanged {
		commands = append(commands, vm.Command{Name: path.Base(name), Line: "cat /" + name, Fails: true})
	}
	return commands
}()

// exchanged returns the files that are exchanged: all but one.
func exchanged() []string { return images.Exchanged[:len(images.Exchanged)-1] }

// wantComposefs checks that the root is a composefs image, mounted with an option unless that is "", and that nothing but
// /etc and /var can be written to.
func (b *bootCheck) wantComposefs(option string) {
	b.t.Helper()
	got := b.output("rootfs")
	if f := strings.Fields(got); len(f) != 3 || f[0] != "overlay" || f[1] != "composefs" {
		b.errorf("the root is %q, want composefs", got)
	}
	if has := strings.Contains(got, "verity="); has != (option != "") || !strings.Contains(got, option) {
		b.errorf("the root is %q, want the option %q", got, option)
	}
	if got, want := b.output("writable"), "/etc\n/var"; got != want {
		b.errorf("can be written to:\n%s\nwant\n%s", got, want)
	}
}

// wantInstallConfig checks that the system is installed as its image configures it.
func (b *bootCheck) wantInstallConfig() {
	b.t.Helper()
	if got := b.output("cmdline"); !strings.Contains(got, " systemd.hostname=installed ") {
		b.errorf("the kernel arguments %q lack that of the installation", got)
	}
	if got := b.output("root"); !strings.HasPrefix(got, "/sysroot/ostree/deploy/example/") {
		b.errorf("the deployment is %s, want the stateroot example", got)
	}
}

// wantMirror checks that the entries on the ESP are those in /boot.
func (b *bootCheck) wantMirror() {
	b.t.Helper()
	if r := b.Results["mirror"]; r.Status != 0 || r.Output != "ostree-1-example.conf\nostree-2-example.conf\n" {
		b.errorf("the entries on the ESP are not those in /boot: status %d\n%s", r.Status, r.Output)
	}
}

// wantRefused checks that exchanged files, which lines of names and objects list, cannot be read, that the other one can
// be, and that fsck names the objects whose content has changed.
func (b *bootCheck) wantRefused(lines string) {
	b.t.Helper()
	var want []string
	refused := 0
	for line := range strings.Lines(lines) {
		name, object, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains(exchanged(), name) {
			continue
		}
		refused++
		if path.Base(name) != "same" {
			want = append(want, strings.ReplaceAll(strings.TrimPrefix(object, "./"), "/", ""))
		}
		if r := b.Results[path.Base(name)]; r.Status == 0 || !strings.Contains(r.Output, "Input/output error") {
			b.errorf("read %s: status %d\n%.200s", name, r.Status, r.Output)
		}
	}
	if r := b.Results["whole"]; r.Status != 0 || r.Output != strings.Repeat("as whole was made\n", 1000) {
		b.errorf("read the file that is whole: status %d\n%.200s", r.Status, r.Output)
	}
	var fsck struct {
		Problems []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(b.output("fsck")), &fsck); err != nil {
		b.t.Fatalf("boot %s: read output of fsck: %v\n%s", b.name, err, b.output("fsck"))
	}
	var got []string
	for _, p := range fsck.Problems {
		got = append(got, p.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if refused != len(exchanged()) || !slices.Equal(got, want) {
		b.errorf("fsck names %q, want %q\n%s", got, want, b.output("fsck"))
	}
}
