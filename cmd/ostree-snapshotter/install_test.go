package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

// run runs a command in this process, with the bed's store and, through the environment, its containerd.
func (b *imageBed) run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	t.Setenv("CONTAINERD_ADDRESS", b.containerd.Address)
	var out, errs bytes.Buffer
	status = execute(t.Context(), append(args, "--root", b.root.Path()), &out, &errs)
	return status, out.String(), errs.String()
}

// needsInstall skips the test where "install" cannot work.
func needsInstall(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		testenv.Unsupported(t, "needs amd64")
	}
	testenv.NeedsLoop(t)
	for _, tool := range []string{"sfdisk", "wipefs", "mkfs.vfat", "mcopy", "mkfs.ext4", "ostree"} {
		testenv.NeedsTool(t, tool)
	}
	testenv.NeedsFile(t, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
}

func TestInstall(t *testing.T) {
	needsInstall(t)
	b := newImageBed(t)
	img := b.osImage(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	install := func(flags ...string) (status int, stdout, stderr string) {
		return b.run(t, append([]string{"install", img.Name, disk, "--stateroot", "os", "--esp-size", "36M"}, flags...)...)
	}

	status, out, errs := install("--size", "400M", "--dry-run")
	for _, want := range []string{
		"create the image file " + disk + " of 400 MiB\n", "partition 1: esp, 36 MiB, vfat", "partition 2: root, 362 MiB, ext4",
		"boot loader: systemd-boot, from /usr/lib/systemd/boot/efi/systemd-boot", "deployment: " + img.Name + ", in the stateroot os\n",
	} {
		if status != exitOK || !strings.Contains(out, want) {
			t.Errorf("dry run: got status %d,\n%s%s, want %q", status, out, errs, want)
		}
	}
	if _, err := os.Stat(disk); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("dry run: the image file is there: %v", err)
	}

	status, out, errs = install("--size", "400M", "--karg", "quiet", "--karg", "root=LABEL=other", "--karg-append", "console=tty0")
	if status != exitOK || out != "installed "+img.Name+" on "+disk+"\n" {
		t.Fatalf("got status %d, %q, %q", status, out, errs)
	}
	b.checkInstalled(t, disk, img)

	status, _, errs = install("--size", "400M")
	if status != exitFailed || !strings.Contains(errs, `not empty: gpt signature`) || !strings.Contains(errs, "hint: --wipe erases its contents") {
		t.Errorf("a disk that is not empty: got status %d, %q", status, errs)
	}
	if status, _, errs = install("--wipe"); status != exitOK {
		t.Errorf("--wipe: got status %d, %q", status, errs)
	}
}

// checkInstalled checks a disk with other tools.
func (b *imageBed) checkInstalled(t *testing.T, disk string, img *deploy.Image) {
	t.Helper()
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	var doc struct {
		Table struct {
			Partitions []struct{ Start, Size int64 }
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(run("sfdisk", "--json", disk)), &doc); err != nil || len(doc.Table.Partitions) != 2 {
		t.Fatalf("partitions: %v, %v", doc, err)
	}
	esp, root := doc.Table.Partitions[0], doc.Table.Partitions[1]
	entry := run("mtype", "-i", fmt.Sprintf("%s@@%d", disk, esp.Start*512), "::/loader/entries/ostree-1-os.conf")
	if !strings.Contains(entry, "options rw quiet root=LABEL=other console=tty0 ostree=") {
		t.Errorf("got the entry\n%s, want the kernel arguments", entry)
	}
	dir := t.TempDir()
	run("mount", "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d", root.Start*512, root.Size*512), disk, dir)
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		// The kernel detaches the loop device only when no other process, such as another test's, has it open.
		for end := time.Now().Add(10 * time.Second); run("losetup", "-j", disk) != "" && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if status := run("ostree", "admin", "status", "--sysroot="+dir); !strings.Contains(status, "Version: 1") {
		t.Errorf("ostree admin status:\n%s", status)
	}
	// The kernel does not know the partitions of the image: status notes it, and changes need to be told where the ESP
	// is.
	status, out, errs := b.run(t, "status", "--sysroot", dir)
	if status != exitOK || !strings.Contains(out, img.Name) || !strings.Contains(errs, "/dev/disk/by-partuuid/") {
		t.Errorf("status: got status %d, %s%s", status, out, errs)
	}
	status, _, errs = b.run(t, "cleanup", "--sysroot", dir)
	if status != exitFailed || !strings.Contains(errs, "/dev/disk/by-partuuid/") || !strings.Contains(errs, "hint: --esp DIR") {
		t.Errorf("cleanup: got status %d, %s", status, errs)
	}
	if refs := run("ostree", "refs", "--repo="+dir+"/ostree/repo"); !strings.Contains(refs, "ostree/container/image/docker_3A_") {
		t.Errorf("refs: %s", refs)
	}
	origins, err := filepath.Glob(dir + "/ostree/deploy/os/deploy/*.origin")
	if err != nil || len(origins) != 1 {
		t.Fatalf("origin files: %q, %v", origins, err)
	}
	if origin, err := os.ReadFile(origins[0]); err != nil || !strings.Contains(string(origin), "ostree-unverified-registry:"+img.Name+"\n") {
		t.Errorf("origin: %s, %v", origin, err)
	}
}

// Every refusal has a message and a status, and leaves no disk.
func TestInstallRefuses(t *testing.T) {
	needsInstall(t)
	b := newImageBed(t)
	img := b.osImage(t)
	b.containerd.Tag("default", "example.org/app:1", b.containerd.Manifest(containerdtest.Image{Platform: hostPlatform(), DiffIDs: b.diffIDs[:1]}))
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	for name, c := range map[string]struct {
		args   []string
		status int
		want   []string
	}{
		"one argument":      {[]string{img.Name}, exitUsage, []string{"takes two arguments, IMAGE and DISK"}},
		"size":              {[]string{img.Name, disk, "--size", "8X"}, exitUsage, []string{`"8X" is not a size such as 8G`}},
		"no size":           {[]string{img.Name, disk}, exitFailed, []string{"does not exist", "hint: --size creates it"}},
		"small ESP":         {[]string{img.Name, disk, "--size", "2G", "--esp-size", "8M"}, exitFailed, []string{"FAT32 needs 34 MiB"}},
		"small disk":        {[]string{img.Name, disk, "--size", "300M"}, exitFailed, []string{"disk of 300 MiB is too small"}},
		"file system":       {[]string{img.Name, disk, "--size", "2G", "--filesystem", "zfs"}, exitFailed, []string{`"zfs": want one of ext4, xfs, btrfs`}},
		"no image":          {[]string{"example.org/none:1", disk, "--size", "2G"}, exitNoImage, []string{"containerd has no such image"}},
		"image cannot boot": {[]string{"example.org/app:1", disk, "--size", "2G"}, exitNotBootable, []string{"not bootable"}},
		"kernel argument":   {[]string{img.Name, disk, "--size", "2G", "--karg", "ostree=x"}, exitUsage, []string{"names the deployment"}},
		"no such argument":  {[]string{img.Name, disk, "--size", "2G", "--karg-delete", "splash"}, exitUsage, []string{"splash"}},
		"stateroot":         {[]string{img.Name, disk, "--size", "2G", "--stateroot", "a/b"}, exitUsage, []string{"a/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, errs := b.run(t, append([]string{"install"}, c.args...)...)
			if status != c.status || out != "" {
				t.Errorf("got status %d, output %q, want status %d and none: %s", status, out, c.status, errs)
			}
			for _, want := range c.want {
				if !strings.Contains(errs, want) {
					t.Errorf("got\n%s, want %q", errs, want)
				}
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
				t.Errorf("something was made: %v, %v", names, err)
			}
		})
	}
}

func TestSizeValue(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "8G": 8 << 30, "8g": 8 << 30, "8GiB": 8 << 30, "512M": 512 << 20, "3K": 3072, "2T": 2 << 40, "1500M": 1500 << 20,
		"": 0, "0": 0, "-1G": 0, "8X": 0, "G": 0, "8GB": 0, "8Gi": 0, "8 G": 0, "8G8": 0, "9999999999T": 0, "1.5G": 0, "8MG": 0,
	} {
		var v sizeValue
		err := v.Set(text)
		if (err == nil) != (want != 0) || int64(v) != want {
			t.Errorf("%q: got %d, %v, want %d", text, int64(v), err, want)
		}
		if want != 0 {
			var again sizeValue
			if err := again.Set(v.String()); err != nil || again != v {
				t.Errorf("%q is written %q, which is %d, %v", text, v.String(), again, err)
			}
		}
	}
}
