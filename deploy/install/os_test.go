package install

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// The kernel of the OS is larger than its initramfs, and neither is a multiple of a block.
var (
	kernel    = strings.Repeat("kernel\n", 700<<10)
	initramfs = strings.Repeat("initramfs\n", 100<<10)
)

// tinyOS returns an OS that can be installed as planned. It has a boot loader of its own if that is not "".
func tinyOS(p *Plan, loader string) *OS {
	type names = map[string]*objecttest.Node
	dir, file, link := objecttest.Dir, objecttest.File, objecttest.Symlink
	usrLib := names{
		"os-release": file(0o644, "PRETTY_NAME=\"Tiny OS\"\nID=tiny\n"),
		"tmpfiles.d": dir(0o755, nil),
		"modules":    dir(0o755, names{"6.1.0": dir(0o755, names{"vmlinuz": file(0o644, kernel), "initramfs.img": file(0o600, initramfs)})}),
	}
	if loader != "" {
		efi := names{"systemd-bootx64.efi": file(0o644, loader)}
		usrLib["systemd"] = dir(0o755, names{"boot": dir(0o755, names{"efi": dir(0o755, efi)})})
	}
	tree := dir(0o755, names{
		"boot": dir(0o755, nil), "sysroot": dir(0o755, nil), "ostree": link("sysroot/ostree"), "efi": dir(0o755, nil),
		"var": dir(0o755, names{"lib": dir(0o755, names{"db": file(0o644, "data")})}),
		"usr": dir(0o755, names{
			"bin": dir(0o755, names{"sh": file(0o755, "shell")}),
			"etc": dir(0o755, names{"hostname": file(0o644, "tiny\n")}),
			"lib": dir(0o755, usrLib),
		}),
	})
	origin := new(keyfile.File)
	origin.Set("origin", "container-image-reference", "ostree-unverified-registry:example.com/os:1")
	return &OS{
		Stateroot: "default", Origin: origin,
		Store: func(ctx context.Context, repo *objectstore.Repo) (sum objectstore.Checksum, args kargs.List, err error) {
			txn, err := repo.Begin(ctx)
			if err != nil {
				return sum, nil, err
			}
			defer func() { err = joined(err, txn.Abort()) }()
			if sum, err = objecttest.StoreCommit(txn, "ostree/container/image/os", tree); err != nil {
				return sum, nil, err
			}
			return sum, p.Kargs().Append("console=ttyS0", "quiet"), txn.Commit(ctx, objectstore.CommitOptions{})
		},
	}
}

// TestExecute installs an OS. ostree checks the root file system, mtools and fsck check the ESP.
func TestExecute(t *testing.T) {
	for _, fstype := range Filesystems {
		t.Run(fstype, func(t *testing.T) {
			needsTools(t)
			objecttest.NeedsOstree(t)
			testenv.NeedsTool(t, "mkfs."+fstype)
			if err := supports(fstype); err != nil {
				testenv.Unsupported(t, "%v", err)
			}
			image := filepath.Join(testenv.MemoryDir(t), "disk.img")
			opts := options()
			opts.Filesystem, opts.ExceptDefault = fstype, `grub_users=""`
			p := mustPlan(t, image, opts)
			const loader = "MZ the loader of the OS"
			if err := p.Execute(t.Context(), tinyOS(p, loader)); err != nil {
				t.Fatal(err)
			}
			checkClean(t, image)
			checkTable(t, image, p)
			root := mountPart(t, image, p.root())
			status := command(t, "ostree", "admin", "status", "--sysroot="+root)
			if !strings.Contains(status, "default ") || !strings.Contains(status, ".0") {
				t.Errorf("ostree admin status:\n%s", status)
			}
			command(t, "ostree", "fsck", "--repo="+root+"/ostree/repo")
			for key, want := range map[string]string{"bootloader": "none", "bls-append-except-default": opts.ExceptDefault} {
				if got := strings.TrimSpace(command(t, "ostree", "config", "--repo="+root+"/ostree/repo", "get", "sysroot."+key)); got != want {
					t.Errorf("sysroot.%s: got %q, want %q", key, got, want)
				}
			}
			entry := checkESP(t, image, p, root, loader)
			if want := "root=UUID=" + p.RootUUID + " rw console=ttyS0 quiet ostree=/ostree/boot."; !strings.Contains(entry, want) {
				t.Errorf("got the entry\n%s, want the arguments %s", entry, want)
			}
			if origins, err := filepath.Glob(root + "/ostree/deploy/default/deploy/*.0.origin"); err != nil || len(origins) != 1 {
				t.Errorf("origin files: %q, %v", origins, err)
			}
			if b, err := os.ReadFile(root + "/ostree/deploy/default/var/lib/db"); err != nil || string(b) != "data" {
				t.Errorf("/var of the stateroot: got %q, %v", b, err)
			}
		})
	}
}

// checkESP checks that the ESP has the boot loader, and the only entry of /boot with its files. It returns the entry.
func checkESP(t *testing.T, image string, p *Plan, root, loader string) string {
	t.Helper()
	esp := part(t, image, p.esp())
	command(t, "fsck.vfat", "-n", esp)
	read := func(name string) string {
		out := filepath.Join(t.TempDir(), "file")
		command(t, "mcopy", "-i", esp, "::"+name, out)
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, name := range []string{"/EFI/BOOT/BOOTX64.EFI", "/EFI/systemd/systemd-bootx64.efi"} {
		if read(name) != loader {
			t.Errorf("%s is another boot loader", name)
		}
	}
	if got := read("/loader/loader.conf"); got != loaderConf {
		t.Errorf("loader.conf: got %q", got)
	}
	entries, err := filepath.Glob(root + "/boot/loader/entries/*")
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries of /boot: %q, %v", entries, err)
	}
	want, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := command(t, "mdir", "-b", "-i", esp, "::/loader/entries"); strings.TrimSpace(got) != "::/loader/entries/"+filepath.Base(entries[0]) {
		t.Errorf("entries of the ESP: got %s, want %s", got, entries[0])
	}
	entry := read("/loader/entries/" + filepath.Base(entries[0]))
	if entry != string(want) {
		t.Errorf("entry of the ESP: got\n%s, want that of /boot\n%s", entry, want)
	}
	for line := range strings.Lines(entry) {
		key, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case key == "linux" && read(name) != kernel:
			t.Errorf("%s is not the kernel", name)
		case key == "initrd" && read(name) != initramfs:
			t.Errorf("%s is not the initramfs", name)
		}
	}
	return entry
}

// An OS without systemd-boot gets this host's.
func TestHostLoader(t *testing.T) {
	needsTools(t)
	testenv.NeedsFile(t, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
	image := filepath.Join(testenv.MemoryDir(t), "disk.img")
	opts := options()
	opts.OSLoader = false
	p := mustPlan(t, image, opts)
	if !strings.Contains(p.String(), "systemd-boot, from "+p.loader) {
		t.Errorf("got the plan\n%s", p)
	}
	if err := p.Execute(t.Context(), tinyOS(p, "")); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(p.loader)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "loader")
	command(t, "mcopy", "-i", part(t, image, p.esp()), "::/EFI/BOOT/"+"BOOTX64.EFI", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got a boot loader of %d bytes, %v, want the host's of %d", len(got), err, len(want))
	}
}

// An installation that is interrupted while the OS is copied leaves nothing.
func TestInterruptStore(t *testing.T) {
	needsTools(t)
	image := filepath.Join(testenv.MemoryDir(t), "disk.img")
	ctx, cancel := context.WithCancel(t.Context())
	p := mustPlan(t, image, options())
	o := tinyOS(p, "loader")
	store := o.Store
	o.Store = func(ctx context.Context, repo *objectstore.Repo) (objectstore.Checksum, kargs.List, error) {
		cancel()
		return store(ctx, repo)
	}
	if err := p.Execute(ctx, o); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want an error of one line", err)
	}
	checkClean(t, image)
	if _, err := os.Stat(image); !os.IsNotExist(err) {
		t.Errorf("the image file is still there: %v", err)
	}
}
