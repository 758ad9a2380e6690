package deploy

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// asks returns a file in which an image configures its installation.
func asks(name, text string) file {
	return file{name: "usr/lib/bootc/install/" + name, content: text}
}

// newInstallation plans to install an image that asks for something on a new disk image.
func newInstallation(t *testing.T, r InstallRequest, files ...file) (*Installation, error) {
	t.Helper()
	for _, tool := range []string{"sfdisk", "wipefs", "mkfs.vfat", "mcopy", "mkfs.ext4", "mkfs.xfs"} {
		testenv.NeedsTool(t, tool)
	}
	b := newBed(t)
	// The loader need not run.
	r.Image = b.osImage(t, append(files, file{name: "usr/lib/systemd/boot/efi/systemd-bootx64.efi"}, file{name: "usr/lib/systemd/boot/efi/systemd-bootaa64.efi"})...)
	r.Options.Size, r.Options.ESPSize = 400<<20, 40<<20
	return PlanInstall(t.Context(), b.layers, filepath.Join(t.TempDir(), "disk"), r)
}

// TestInstallConfig: an image chooses what the request leaves open.
func TestInstallConfig(t *testing.T) {
	files := []file{
		asks("00-base.toml", "[install]\nstateroot = \"ours\"\nkargs = [\"console=ttyS0\"]\nblock = [\"direct\"]\n[install.filesystem.root]\ntype = \"xfs\"\n"),
		asks("10-more.toml", "[install]\nkargs = [\"nosmt\"]\n[install.bootupd]\nskip-boot-uuid = true\n"),
		{name: "etc/bootc/install/20-site.toml", content: "[install]\nkargs = [\"site\"]\n"},
		wants(`"quiet"`),
	}
	p, err := newInstallation(t, InstallRequest{Kargs: kargs.Edits{Delete: []string{"nosmt"}}}, files...)
	testenv.Must(t, err)
	if p.Stateroot != "ours" || !strings.Contains(p.String(), "partition 2: root, 358 MiB, xfs") {
		t.Errorf("got the stateroot %s and the plan\n%s\nwant those of the image", p.Stateroot, p)
	}
	if want := "/usr/lib/bootc/install/10-more.toml: install.bootupd has no effect"; !slices.Contains(p.Notes, want) {
		t.Errorf("got the notes %q, want %q", p.Notes, want)
	}
	_, args, _, err := p.store(t.Context(), sysrootRepo(t, filepath.Join(t.TempDir(), "repo")), PromoteOptions{})
	testenv.Must(t, err)
	if got, want := strings.Join(args[1:], " "), "rw console=ttyS0 site quiet"; got != want {
		t.Errorf("got the kernel arguments %q, want %q", got, want)
	}

	p, err = newInstallation(t, InstallRequest{Stateroot: "mine", Options: install.Options{Filesystem: "ext4"}}, files...)
	testenv.Must(t, err)
	if p.Stateroot != "mine" || !strings.Contains(p.String(), "root, 358 MiB, ext4") {
		t.Errorf("got the stateroot %s and the plan\n%s\nwant those of the request", p.Stateroot, p)
	}
	p, err = newInstallation(t, InstallRequest{})
	testenv.Must(t, err)
	if p.Stateroot != DefaultStateroot || !strings.Contains(p.String(), "root, 358 MiB, ext4") {
		t.Errorf("got the stateroot %s and the plan\n%s\nwant the defaults", p.Stateroot, p)
	}
}

// TestInstallConfigBlocks: a disk without encryption is made only for an image that allows it.
func TestInstallConfigBlocks(t *testing.T) {
	p, err := newInstallation(t, InstallRequest{}, asks("00.toml", "[install]\nblock = [\"tpm2-luks\", \"direct\"]\n"))
	testenv.Must(t, err)
	if want := `the image prefers a disk of the kind "tpm2-luks"; this one is not encrypted`; !slices.Contains(p.Notes, want) {
		t.Errorf("got the notes %q, want %q", p.Notes, want)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"encrypted":   {"[install]\nblock = [\"tpm2-luks\"]\n", "allows only disks of the kind"},
		"none":        {"[install]\nblock = []\n", "allows only disks of the kind"},
		"not TOML":    {"[install\n", "read /usr/lib/bootc/install/00.toml: "},
		"type":        {"[install]\nstateroot = 1\n", "00.toml: line 2: install.stateroot: "},
		"file system": {"[install.filesystem.root]\ntype = \"zfs\"\n", `root file system "zfs"`},
		"stateroot":   {"[install]\nstateroot = \"../x\"\n", "../x"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newInstallation(t, InstallRequest{}, asks("00.toml", tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
			if !errors.Is(err, ErrInstallConfig) {
				t.Errorf("got error %v, want an ErrInstallConfig", err)
			}
		})
	}
}

// TestInstallConfigNotes: a file names few of the keys that have no effect, however many there are.
func TestInstallConfigNotes(t *testing.T) {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "key%d = 1\n", i)
	}
	p, err := newInstallation(t, InstallRequest{}, asks("00.toml", text.String()))
	testenv.Must(t, err)
	want := []string{"/usr/lib/bootc/install/00.toml: key7 has no effect", "/usr/lib/bootc/install/00.toml: 92 more keys have no effect"}
	if !slices.Equal(p.Notes[max(len(p.Notes)-2, 0):], want) {
		t.Errorf("got %d notes, that end in %q, want %q", len(p.Notes), p.Notes[max(len(p.Notes)-2, 0):], want)
	}
}

// TestInstallSize: the copies that a deployment has of files outside of /usr count, unless its root is a composefs image.
func TestInstallSize(t *testing.T) {
	large := file{name: "opt/large", content: strings.Repeat("x", 170<<20)}
	_, err := newInstallation(t, InstallRequest{}, large)
	if err == nil || !strings.Contains(err.Error(), "too small: the OS takes 341 MiB") {
		t.Errorf("got error %v, want one about the size", err)
	}
	_, err = newInstallation(t, InstallRequest{}, large, file{name: "usr/lib/ostree/prepare-root.conf", content: "[composefs]\nenabled=yes\n"})
	testenv.Must(t, err)
}

// TestInstallVerity: whether files can have fs-verity depends on the file system to come, not on that of the store.
func TestInstallVerity(t *testing.T) {
	demands := file{name: "usr/lib/ostree/prepare-root.conf", content: "[composefs]\nenabled=verity\n"}
	_, err := newInstallation(t, InstallRequest{}, demands)
	testenv.Must(t, err)
	for name, files := range map[string][]file{
		"flag": {demands}, "image": {demands, asks("00.toml", "[install]\nroot-fs-type = \"xfs\"\n")},
	} {
		var r InstallRequest
		if name == "flag" {
			r.Options.Filesystem = "xfs"
		}
		if _, err := newInstallation(t, r, files...); !errors.Is(err, sysroot.ErrUnsupported) {
			t.Errorf("xfs by the %s: got error %v, want %v", name, err, sysroot.ErrUnsupported)
		}
	}
}

// TestInstallNative: an image whose commit cannot be deployed as it is, for its files lack labels, is refused before the
// disk is written to.
func TestInstallNative(t *testing.T) {
	b := newBed(t)
	from := objecttest.NewRepo(t)
	tree := nativeTree()
	unlabel(tree)
	commit := objecttest.Commit(t, from, "os", tree)
	img := b.nativeImage(t, "example.org/native:1", commit, nativetest.Encapsulate(t, from, commit, inside, byName)...)
	plan := func(noSELinux bool) error {
		_, err := PlanInstall(t.Context(), b.layers, filepath.Join(t.TempDir(), "disk"), InstallRequest{
			Image: img, NoSELinux: noSELinux, Options: install.Options{Size: 400 << 20, ESPSize: 40 << 20},
		})
		return err
	}
	if err := plan(false); !errors.Is(err, sysroot.ErrSELinux) {
		t.Errorf("got error %v, want %v", err, sysroot.ErrSELinux)
	}
	testenv.Must(t, plan(true))
}

// unlabel removes the labels of a tree.
func unlabel(n *objecttest.Node) {
	n.Xattrs = slices.DeleteFunc(n.Xattrs, func(x objectstore.Xattr) bool { return x.Name == selinuxXattr })
	for _, e := range n.Entries {
		unlabel(e)
	}
}
