package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// Small, but not too small for FAT32 and XFS.
const (
	testESP  = 36 * mib
	testDisk = 400 * mib
)

func options() Options {
	return Options{Size: testDisk, ESPSize: testESP, Arch: "amd64", OSLoader: true}
}

// needsTools skips the test if an installation lacks its programs.
func needsTools(tb testing.TB) {
	tb.Helper()
	testenv.NeedsLoop(tb)
	for _, name := range []string{"sfdisk", "wipefs", "mkfs.vfat", "mcopy", "mkfs.ext4"} {
		testenv.NeedsTool(tb, name)
	}
}

func command(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(testenv.NeedsTool(tb, name), args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func mustPlan(tb testing.TB, path string, opts Options) *Plan {
	tb.Helper()
	p, err := NewPlan(tb.Context(), path, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// look examines a disk and closes it.
func look(tb testing.TB, path string) *disk {
	tb.Helper()
	d, f, err := openDisk(path, unix.O_RDONLY)
	if err == nil && f != nil {
		err = f.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// checkClean fails the test if anything holds the image.
func checkClean(tb testing.TB, path string) {
	tb.Helper()
	d := look(tb, path)
	if !d.exists {
		return
	}
	users, err := d.users()
	if err != nil || len(users) > 0 {
		tb.Errorf("%s is in use: %q, %v", path, users, err)
	}
}

// part copies a partition of an image to a file of its own.
func part(tb testing.TB, image string, p Partition) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), p.Name)
	command(tb, "dd", "if="+image, "of="+out, "bs=1M", "conv=sparse", fmt.Sprintf("skip=%d", p.Start/mib),
		fmt.Sprintf("count=%d", p.Size/mib))
	return out
}

// mountPart mounts the root partition of an image until the test ends.
func mountPart(tb testing.TB, image string, p Partition) string {
	tb.Helper()
	dir := tb.TempDir()
	command(tb, "mount", "-t", p.Filesystem, "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d", p.Start, p.Size), image, dir)
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// fakeFill stands for an OS: a file, and something to boot.
func fakeFill(_ context.Context, root *atfs.Dir) error {
	for _, dir := range []string{"etc", espDir + "/EFI/BOOT", espDir + "/loader/entries", espDir + "/ostree/os-0123456789abcdef"} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{
		"etc/hostname", espDir + "/EFI/BOOT/BOOTX64.EFI", espDir + "/loader/loader.conf",
		espDir + "/loader/entries/ostree-1-os+3.conf", espDir + "/ostree/os-0123456789abcdef/vmlinuz-6.1.0-49-amd64",
	} {
		if err := root.WriteFile(name, []byte(name), 0o644, false); err != nil {
			return err
		}
	}
	return nil
}

func TestDisk(t *testing.T) {
	for _, fstype := range Filesystems {
		t.Run(fstype, func(t *testing.T) {
			needsTools(t)
			testenv.NeedsTool(t, "mkfs."+fstype)
			if err := supports(fstype); err != nil {
				testenv.Unsupported(t, "%v", err)
			}
			image := filepath.Join(testenv.MemoryDir(t), "disk.img")
			opts := options()
			opts.Filesystem = fstype
			p := mustPlan(t, image, opts)
			if err := p.execute(t.Context(), fakeFill); err != nil {
				t.Fatal(err)
			}
			checkClean(t, image)
			checkTable(t, image, p)
			esp := part(t, image, p.esp())
			command(t, "fsck.vfat", "-n", esp)
			for name, want := range map[string]string{
				"/loader/entries/ostree-1-os+3.conf":                 espDir + "/loader/entries/ostree-1-os+3.conf",
				"/ostree/os-0123456789abcdef/vmlinuz-6.1.0-49-amd64": espDir + "/ostree/os-0123456789abcdef/vmlinuz-6.1.0-49-amd64",
				"/EFI/BOOT/BOOTX64.EFI":                              espDir + "/EFI/BOOT/BOOTX64.EFI",
			} {
				if got := command(t, "mtype", "-i", esp, "::"+name); got != want {
					t.Errorf("%s on the ESP: got %q, want %q", name, got, want)
				}
			}
			root := mountPart(t, image, p.root())
			if b, err := os.ReadFile(root + "/etc/hostname"); err != nil || string(b) != "etc/hostname" {
				t.Errorf("file on the root file system: got %q, %v", b, err)
			}
			if _, err := os.Stat(filepath.Join(root, espDir)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the layout of the ESP still exists: %v", err)
			}
		})
	}
}

// checkTable compares the partition table with the plan, and checks UUID and labels of the file systems.
func checkTable(t *testing.T, image string, p *Plan) {
	t.Helper()
	var doc struct {
		Table struct {
			Label      string
			Partitions []struct {
				Start, Size int64
				Type, Name  string
				UUID        string
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(command(t, "sfdisk", "--json", image)), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Table.Label != "gpt" || len(doc.Table.Partitions) != len(p.Partitions) {
		t.Fatalf("got the table %+v", doc.Table)
	}
	for i, got := range doc.Table.Partitions {
		want := p.Partitions[i]
		if got.Start*512 != want.Start || got.Size*512 != want.Size || got.Type != want.Type || got.Name != want.Name ||
			!strings.EqualFold(got.UUID, want.UUID) {
			t.Errorf("partition %d: got %+v, want %+v", i+1, got, want)
		}
		probed := command(t, "blkid", "-p", "-o", "export", "-O", fmt.Sprint(want.Start), "-S", fmt.Sprint(want.Size), image)
		for _, line := range []string{"TYPE=" + want.Filesystem, "LABEL=" + want.Label} {
			if !slices.Contains(strings.Split(probed, "\n"), line) {
				t.Errorf("partition %d: blkid says\n%s, want %s", i+1, probed, line)
			}
		}
		if i == 1 && !strings.Contains(probed, "\nUUID="+p.RootUUID+"\n") {
			t.Errorf("root file system: blkid says\n%s, want the UUID %s", probed, p.RootUUID)
		}
	}
}

// A disk with contents is refused with a list of them, and is left alone.
func TestNotEmpty(t *testing.T) {
	needsTools(t)
	fileSystem := func(t *testing.T, image string) {
		t.Helper()
		command(t, "mkfs.ext4", "-q", "-L", "precious", image)
	}
	partitions := func(t *testing.T, image string) {
		t.Helper()
		cmd := exec.Command(testenv.NeedsTool(t, "sfdisk"), "-q", image)
		cmd.Stdin = strings.NewReader("label: gpt\nsize=10M, name=windows\nsize=20M\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	data := func(off int64) func(*testing.T, string) {
		return func(t *testing.T, image string) {
			t.Helper()
			writeAt(t, image, off, "x")
		}
	}
	for name, c := range map[string]struct {
		make func(t *testing.T, image string)
		want []string
	}{
		"file system":     {fileSystem, []string{"ext4 signature", `"precious"`}},
		"partitions":      {partitions, []string{"gpt signature", `10 MiB called "windows"`, "20 MiB"}},
		"some data":       {data(5000), []string{"unknown kind in the first"}},
		"data at the end": {data(testDisk - 5), []string{"unknown kind in the last"}},
	} {
		t.Run(name, func(t *testing.T) {
			image := newImage(t)
			c.make(t, image)
			before := stampOf(t, image)
			_, err := NewPlan(t.Context(), image, options())
			if !errors.Is(err, ErrNotEmpty) {
				t.Fatalf("got %v, want ErrNotEmpty", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %s in it", err, want)
				}
			}
			opts := options()
			opts.Wipe = true
			p := mustPlan(t, image, opts)
			for _, want := range c.want {
				if !strings.Contains(p.String(), want) {
					t.Errorf("got the plan\n%s, want that %s is wiped", p, want)
				}
			}
			if stampOf(t, image) != before {
				t.Fatal("the image was changed")
			}
			if err := p.execute(t.Context(), fakeFill); err != nil {
				t.Fatal(err)
			}
			checkTable(t, image, p)
		})
	}
}

func newImage(tb testing.TB) string {
	tb.Helper()
	image := filepath.Join(testenv.MemoryDir(tb), "disk.img")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(testDisk), f.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
	return image
}

func writeAt(tb testing.TB, image string, off int64, text string) {
	tb.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		tb.Error(err)
	}
	if err := f.Close(); err != nil {
		tb.Error(err)
	}
}

// stampOf returns a value that changes with every write to a file.
func stampOf(tb testing.TB, image string) string {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprint(st.Size, st.Blocks, st.Mtim)
}

func TestInUse(t *testing.T) {
	needsTools(t)
	wipe := options()
	wipe.Wipe = true
	refused := func(t *testing.T, image, want string) {
		t.Helper()
		opts := wipe
		if strings.HasPrefix(image, "/dev/") {
			opts.Size = 0
		}
		if _, err := NewPlan(t.Context(), image, opts); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrInUse with %s", err, want)
		}
	}
	t.Run("mounted image", func(t *testing.T) {
		image := newImage(t)
		command(t, "mkfs.ext4", "-q", image)
		dir := mountPart(t, image, Partition{Filesystem: "ext4", Size: testDisk})
		refused(t, image, "mounted at "+dir)
		refused(t, image, "by /dev/loop")
	})
	t.Run("mounted device", func(t *testing.T) {
		image := newImage(t)
		command(t, "mkfs.ext4", "-q", image)
		dev := device(t, image)
		dir := t.TempDir()
		command(t, "mount", dev, dir)
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
		refused(t, dev, "mounted at "+dir)
	})
	t.Run("claimed device", func(t *testing.T) {
		dev := device(t, newImage(t))
		opts := options()
		opts.Size = 0
		p := mustPlan(t, dev, opts)
		fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := p.execute(t.Context(), fakeFill); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
	})
	t.Run("locked image", func(t *testing.T) {
		image := newImage(t)
		p := mustPlan(t, image, options())
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1} // as qemu does
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
		if err := p.execute(t.Context(), fakeFill); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
	})
}

// device makes an image a block device until the test ends.
func device(tb testing.TB, image string, options ...string) string {
	tb.Helper()
	dev := strings.TrimSpace(command(tb, "losetup", append(options, "--find", "--show", "--partscan", image)...))
	tb.Cleanup(func() { command(tb, "losetup", "--detach", dev) })
	return dev
}

// A block device gets its partitions at the very end.
func TestBlockDevice(t *testing.T) {
	needsTools(t)
	image := newImage(t)
	dev := device(t, image)
	opts := options()
	opts.Size = 0
	p := mustPlan(t, dev, opts)
	err := p.execute(t.Context(), func(ctx context.Context, root *atfs.Dir) error {
		if _, err := os.Stat(dev + "p1"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("there are partitions already: %v", err)
		}
		return fakeFill(ctx, root)
	})
	if err != nil {
		t.Fatal(err)
	}
	checkTable(t, image, p)
	command(t, "partx", "--update", dev) // for kernels that do not know a GPT
	if _, err := NewPlan(t.Context(), dev+"p2", opts); err == nil || !strings.Contains(err.Error(), "is a partition") {
		t.Errorf("a partition: got %v", err)
	}
	fd, err := unix.Open(dev+"p2", unix.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	opts.Wipe = true
	if err := mustPlan(t, dev, opts).execute(t.Context(), fakeFill); !errors.Is(err, ErrInUse) {
		t.Errorf("a partition of it is in use: got %v, want ErrInUse", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	if err := mustPlan(t, dev, opts).execute(t.Context(), fakeFill); err != nil {
		t.Errorf("once more, with Wipe: %v", err)
	}
}

// Disks with sectors of 4 KiB have larger clusters, and other numbers in their table.
func TestLargeSectors(t *testing.T) {
	needsTools(t)
	image := filepath.Join(testenv.MemoryDir(t), "disk.img")
	command(t, "truncate", "--size", "700M", image)
	dev := device(t, image, "--sector-size", "4096")
	opts := options()
	opts.Size = 0
	if _, err := NewPlan(t.Context(), dev, opts); err == nil || !strings.Contains(err.Error(), "FAT32 needs 260 MiB") {
		t.Errorf("a small ESP: got %v", err)
	}
	opts.ESPSize = minESPSize4K
	p := mustPlan(t, dev, opts)
	if err := p.execute(t.Context(), fakeFill); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Table struct {
			SectorSize int64
			Partitions []struct{ Start, Size int64 }
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(command(t, "sfdisk", "--json", dev)), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Table.SectorSize != 4096 || len(doc.Table.Partitions) != 2 {
		t.Fatalf("got the table %+v", doc.Table)
	}
	for i, got := range doc.Table.Partitions {
		if want := p.Partitions[i]; got.Start*4096 != want.Start || got.Size*4096 != want.Size {
			t.Errorf("partition %d: got %+v, want %+v", i+1, got, want)
		}
	}
	command(t, "fsck.vfat", "-n", part(t, image, p.esp()))
}

// Paths that cannot be disks are errors with the reason.
func TestPlanRefuses(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	image := newImage(t)
	for name, c := range map[string]struct {
		path   string
		change func(*Options)
		want   string
	}{
		"no size":               {dir + "/new", func(o *Options) { o.Size = 0 }, "no size is given"},
		"smaller":               {image, func(o *Options) { o.Size = testDisk - mib }, "cannot be shrunk"},
		"too small":             {dir + "/new", func(o *Options) { o.Size = 200 * mib }, "too small: needs 338 MiB"},
		"too small for the OS":  {dir + "/new", func(o *Options) { o.Need = 400 * mib }, "the OS takes 400 MiB"},
		"ESP too small":         {dir + "/new", func(o *Options) { o.ESPSize = 10 * mib }, "FAT32 needs 34 MiB"},
		"kernel too large":      {dir + "/new", func(o *Options) { o.ESPNeed = 35 * mib }, "EFI system partition: needs 36 MiB"},
		"unknown file system":   {dir + "/new", func(o *Options) { o.Filesystem = "zfs" }, `"zfs": want one of ext4, xfs, btrfs`},
		"no root file system":   {dir + "/new", func(o *Options) { o.Filesystem = "vfat" }, `"vfat": want one of ext4, xfs, btrfs`},
		"unknown architecture":  {dir + "/new", func(o *Options) { o.Arch = "s390x" }, `"s390x"`},
		"loader not for a host": {dir + "/new", func(o *Options) { o.Arch, o.OSLoader = "arm64", false }, "systemd-bootaa64.efi"},
		"a directory":           {dir, func(*Options) {}, "neither a block device nor a regular file"},
		"a character device":    {"/dev/null", func(*Options) {}, "neither a block device nor a regular file"},
		"no such directory":     {dir + "/none/new", func(*Options) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			opts := options()
			c.change(&opts)
			p, err := NewPlan(t.Context(), c.path, opts)
			if err == nil && c.want == "" {
				err = p.execute(t.Context(), fakeFill)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, c.want)
			}
		})
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("something was made: %v, %v", names, err)
	}
}

// Whatever fails, the disk counts as empty again, and nothing is left over.
func TestFailure(t *testing.T) {
	needsTools(t)
	fault := errors.New("injected fault")
	for name, c := range map[string]struct {
		fill func(ctx context.Context, root *atfs.Dir) error
		want string
	}{
		"in the middle": {func(ctx context.Context, root *atfs.Dir) error { return errors.Join(fakeFill(ctx, root), fault) }, "injected fault"},
		"ESP too small": {func(ctx context.Context, root *atfs.Dir) error {
			return errors.Join(fakeFill(ctx, root), root.WriteFile(espDir+"/ostree/initramfs", make([]byte, testESP), 0o644, false))
		}, "EFI system partition: needs 37 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, made := range []string{"new", "existing", "device"} {
				t.Run(made, func(t *testing.T) {
					image := filepath.Join(testenv.MemoryDir(t), "disk.img")
					opts := options()
					if made != "new" {
						image = newImage(t)
					}
					if made == "device" {
						image, opts.Size = device(t, image), 0
					}
					err := mustPlan(t, image, opts).execute(t.Context(), c.fill)
					if err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v, want %q", err, c.want)
					}
					checkClean(t, image)
					if _, err := os.Stat(image); errors.Is(err, fs.ErrNotExist) != (made == "new") {
						t.Errorf("image afterwards: %v", err)
					}
					if err := mustPlan(t, image, opts).execute(t.Context(), fakeFill); err != nil {
						t.Errorf("the same again: %v", err)
					}
				})
			}
		})
	}
}

// An installation that is interrupted between two steps, or in the middle of a program, leaves nothing.
func TestInterrupt(t *testing.T) {
	needsTools(t)
	for at := 1; ; at++ {
		image := newImage(t)
		ctx, cancel := context.WithCancel(t.Context())
		opts := options()
		steps := 0
		opts.Progress = func(string) {
			if steps++; steps == at {
				cancel()
			}
		}
		err := mustPlan(t, image, opts).execute(ctx, fakeFill)
		cancel()
		checkClean(t, image)
		if steps < at {
			if err != nil {
				t.Errorf("not interrupted: %v", err)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted at step %d: got %v", at, err)
		}
		if d := look(t, image); d.size != testDisk {
			t.Errorf("interrupted at step %d: image of %d bytes", at, d.size)
		}
		mustPlan(t, image, options()) // takes it for empty
	}
}

// An installation that is killed while the root file system is mounted leaves no mount and no loop device, and the disk
// counts as empty.
func TestKill(t *testing.T) {
	const env = "OSTREE_SNAPSHOTTER_TEST_INSTALL"
	if image := os.Getenv(env); image != "" {
		err := mustPlan(t, image, options()).execute(t.Context(), func(ctx context.Context, root *atfs.Dir) error {
			if err := fakeFill(ctx, root); err != nil {
				return err
			}
			if err := root.SyncFS(); err != nil {
				return err
			}
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		})
		t.Fatalf("lived on: %v", err)
	}
	needsTools(t)
	image := newImage(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$", "-test.count=1")
	cmd.Env = append(os.Environ(), env+"="+image)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Fatalf("child: %v\n%s", err, out)
	}
	checkClean(t, image)
	if err := mustPlan(t, image, options()).execute(t.Context(), fakeFill); err != nil {
		t.Errorf("the same again: %v", err)
	}
}
