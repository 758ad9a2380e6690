package bootloader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// kernelSize is the size of the kernels here. Their initramfs images are as large.
const kernelSize = 5000

// A machine has a /boot with the kernels a, b and c, and an ESP.
type machine struct {
	*SystemdBoot
	boot, esp *atfs.Dir
}

// newMachine makes one below a directory unless it exists. The hook sees the operations on the ESP.
func newMachine(tb testing.TB, dir string, hook atfs.Hook) *machine {
	tb.Helper()
	for _, kernel := range []string{"a", "b", "c"} {
		kdir := filepath.Join(dir, "boot", kernelDirOf(kernel))
		if err := os.MkdirAll(kdir, 0o755); err != nil {
			tb.Fatal(err)
		}
		for _, file := range []string{"vmlinuz-6.1", "initramfs-6.1.img"} {
			if err := os.WriteFile(filepath.Join(kdir, file), content(kernel, file), 0o644); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "esp", entriesDir), 0o755); err != nil {
		tb.Fatal(err)
	}
	m := &machine{boot: openDir(tb, dir+"/boot", nil), esp: openDir(tb, dir+"/esp", hook)}
	b, err := New(m.esp)
	if err != nil {
		tb.Fatal(err)
	}
	m.SystemdBoot = b
	return m
}

func openDir(tb testing.TB, name string, hook atfs.Hook) *atfs.Dir {
	tb.Helper()
	plain, err := atfs.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer plain.Close()
	dir, err := plain.WithHook(hook)
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

func (m *machine) Close() error { return errors.Join(m.SystemdBoot.Close(), m.boot.Close()) }

func kernelDirOf(kernel string) string { return "ostree/os-" + strings.Repeat(kernel, 64) }

func content(kernel, file string) []byte {
	return []byte(strings.Repeat(kernel+" "+file+"\n", kernelSize/(len(kernel)+len(file)+2)+1)[:kernelSize])
}

// entries returns the boot entries of deployments in boot order, each given as a kernel's name, with "+" and tries if
// it counts boots. The bootversion tells texts apart.
func entries(bootversion int, deployments ...string) []sysroot.BootEntry {
	var all []sysroot.BootEntry
	for i, d := range deployments {
		kernel, tries, counts := strings.Cut(d, "+")
		n := len(deployments) - i
		e := sysroot.BootEntry{
			Name: bls.Name{Stem: fmt.Sprintf("ostree-%d-os", n)},
			Entry: &bls.Entry{
				Title:   "OS " + kernel,
				Version: fmt.Sprint(n),
				Options: fmt.Sprintf("rw ostree=/ostree/boot.%d/os/%s/0", bootversion, strings.Repeat(kernel, 64)),
				Linux:   "/" + kernelDirOf(kernel) + "/vmlinuz-6.1",
				Initrd:  []string{"/" + kernelDirOf(kernel) + "/initramfs-6.1.img"},
			},
		}
		if counts {
			e.Name.Tries = new(bls.Tries)
			if _, err := fmt.Sscan(tries, &e.Name.Tries.Left); err != nil {
				panic(err)
			}
		}
		all = append(all, e)
	}
	return all
}

// list lists the ESP by path.
func list(tb testing.TB, esp *atfs.Dir) map[string]string {
	tb.Helper()
	files := make(map[string]string)
	err := fs.WalkDir(os.DirFS(esp.Path()), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(esp.Path(), name))
		files[name] = string(b)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return files
}

// menu returns the kernels of the entries that systemd-boot would offer, the default first. Their files must be
// complete.
func menu(tb testing.TB, esp *atfs.Dir) (kernels []string) {
	tb.Helper()
	files := list(tb, esp)
	var names []bls.Name
	for file := range files {
		if dir, base := filepath.Split(file); dir == entriesDir+"/" {
			if name, ok := bls.ParseName(base); ok {
				names = append(names, name)
			}
		}
	}
	last := func(n bls.Name) int {
		if n.Tries != nil && n.Tries.Left == 0 {
			return 1
		}
		return 0
	}
	counts := func(n bls.Name) int { // the loader skips the "+", and takes "3.conf" for newer than ".conf"
		if n.Tries != nil {
			return 0
		}
		return 1
	}
	slices.SortFunc(names, func(a, b bls.Name) int {
		return cmp.Or(last(a)-last(b), -bls.CompareVersions(a.Stem, b.Stem), counts(a)-counts(b))
	})
	for _, name := range names {
		text := files[entriesDir+"/"+name.String()]
		e, err := bls.Parse([]byte(text))
		if err != nil {
			tb.Fatal(err)
		}
		kernel := strings.TrimPrefix(e.Title, "OS ")
		for _, p := range append(e.Initrd, e.Linux) {
			if files[p[1:]] != string(content(kernel, filepath.Base(p))) {
				tb.Errorf("entry %s: file %s is not complete", name, p)
			}
		}
		kernels = append(kernels, kernel)
	}
	return kernels
}

func (m *machine) write(tb testing.TB, bootversion int, deployments ...string) {
	tb.Helper()
	if err := m.Write(tb.Context(), m.boot, entries(bootversion, deployments...)); err != nil {
		tb.Fatal(err)
	}
}

// names returns the names of the files in loader/entries.
func (m *machine) names(tb testing.TB) string {
	tb.Helper()
	var names []string
	for _, file := range slices.Sorted(maps.Keys(list(tb, m.esp))) {
		if base, ok := strings.CutPrefix(file, entriesDir+"/"); ok {
			names = append(names, base)
		}
	}
	return strings.Join(names, " ")
}

// notOnFAT are operations that FAT does not support.
var notOnFAT = []atfs.Op{
	atfs.OpLink, atfs.OpSymlink, atfs.OpMknod, atfs.OpTmpFile, atfs.OpChown, atfs.OpChmod, atfs.OpSetxattr, atfs.OpSetFlags,
}

// TestWrite goes through the life of a machine. It also runs on FAT, where the kernel supports it.
func TestWrite(t *testing.T) {
	t.Run("directory", func(t *testing.T) { testWrite(t, t.TempDir()) })
	t.Run("vfat", func(t *testing.T) { testWrite(t, testenv.NewDisk(t, "vfat", 64<<20).Dir) })
}

func testWrite(t *testing.T, dir string) {
	t.Helper()
	var ops []string
	m := newMachine(t, dir, func(op atfs.Op, name string) error {
		ops = append(ops, fmt.Sprintf("%s %s", op, name))
		if slices.Contains(notOnFAT, op) {
			t.Errorf("%s %s: FAT cannot do that", op, name)
		}
		return nil
	})
	defer m.Close()
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "loader/loader.conf", "loader/entries/other.conf", "ostree/notes.txt"} {
		name = filepath.Join(m.esp.Path(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("not ours"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	before := list(t, m.esp)
	for _, step := range []struct {
		bootversion int
		deployments []string
		want        string // entries
	}{
		{0, []string{"a"}, "ostree-1-os.conf"},
		{1, []string{"b+3", "a"}, "ostree-1-os.conf ostree-2-os+3.conf"},
		{0, []string{"c+2", "b", "a"}, "ostree-1-os.conf ostree-2-os.conf ostree-3-os+2.conf"},
		{1, []string{"b", "c", "a"}, "ostree-1-os.conf ostree-2-os.conf ostree-3-os.conf"},
		{0, []string{"b"}, "ostree-1-os.conf"},
		{1, []string{"b", "b"}, "ostree-1-os.conf ostree-2-os.conf"}, // two deployments, one kernel
	} {
		m.write(t, step.bootversion, step.deployments...)
		want := maps.Clone(before)
		for _, e := range entries(step.bootversion, step.deployments...) {
			want[entriesDir+"/"+e.Name.String()] = string(e.Entry.Marshal())
			for _, p := range paths(e.Entry) {
				kernel := e.Entry.Title[len("OS "):]
				want[p[1:]] = string(content(kernel, filepath.Base(p)))
			}
		}
		if got := list(t, m.esp); !maps.Equal(got, want) {
			t.Errorf("%v: got the files %q, want %q", step.deployments,
				slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		ops = nil
		m.write(t, step.bootversion, step.deployments...)
		if len(ops) > 0 {
			t.Errorf("%v, again: did %q, want nothing", step.deployments, ops)
		}
	}
}

// Boot counting renames entries. The new name stays until the entry changes.
func TestTries(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	arg := func(bootversion int, kernel string) string {
		return fmt.Sprintf("/ostree/boot.%d/os/%s/0", bootversion, strings.Repeat(kernel, 64))
	}
	tries := func(want map[string]*bls.Tries) {
		t.Helper()
		got, err := m.Tries(t.Context())
		if err != nil {
			t.Error(err)
		}
		if diff := testenv.Diff(want, got); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
	}
	names := func(want string) {
		t.Helper()
		if got := m.names(t); got != want {
			t.Errorf("entries: got %s, want %s", got, want)
		}
	}
	// start does what systemd-boot does before it starts an entry.
	start := func(from, to string) {
		t.Helper()
		if err := m.esp.Rename(entriesDir+"/"+from, m.esp, entriesDir+"/"+to, 0); err != nil {
			t.Fatal(err)
		}
	}
	m.write(t, 0, "b+2", "a")
	tries(map[string]*bls.Tries{arg(0, "b"): {Left: 2}, arg(0, "a"): nil})
	start("ostree-2-os+2.conf", "ostree-2-os+1-1.conf")
	m.write(t, 0, "b+2", "a")
	names("ostree-1-os.conf ostree-2-os+1-1.conf")
	start("ostree-2-os+1-1.conf", "ostree-2-os+0-2.conf")
	m.write(t, 0, "b+2", "a")
	names("ostree-1-os.conf ostree-2-os+0-2.conf")
	tries(map[string]*bls.Tries{arg(0, "b"): {Left: 0, Done: 2}, arg(0, "a"): nil})
	if got := menu(t, m.esp); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("after two failures: got the menu %q, want the other one first", got)
	}
	m.write(t, 1, "c+3", "a")
	names("ostree-1-os.conf ostree-2-os+3.conf")
	start("ostree-2-os+3.conf", "ostree-2-os+2-1.conf")
	for range 2 {
		if err := m.Bless(t.Context(), arg(1, "c")); err != nil {
			t.Error(err)
		}
		names("ostree-1-os.conf ostree-2-os.conf")
		m.write(t, 1, "c+3", "a") // the deployment still has its tries recorded
	}
	tries(map[string]*bls.Tries{arg(1, "c"): nil, arg(1, "a"): nil})
	if err := m.Bless(t.Context(), arg(0, "c")); err != nil {
		t.Errorf("bless an absent entry: %v", err)
	}
}

// An interrupted Write leaves the old entry beside the new one, with another counter.
func TestBlessBeside(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	m.write(t, 0, "a")
	old := list(t, m.esp)
	m.write(t, 1, "b+3")
	for name, text := range old {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(m.esp.Path(), name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.esp.Path(), name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := menu(t, m.esp); !slices.Equal(got, []string{"b", "a"}) {
		t.Fatalf("got the menu %q, want both", got)
	}
	if err := m.Bless(t.Context(), "/ostree/boot.1/os/"+strings.Repeat("b", 64)+"/0"); err != nil {
		t.Fatal(err)
	}
	if got := menu(t, m.esp); !slices.Equal(got, []string{"b"}) {
		t.Errorf("got the menu %q, want the blessed one alone", got)
	}
}

// FAT finds names in any case. A wanted file must not be removed under the case that it happens to have.
func TestCase(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	m.write(t, 0, "a")
	for from, to := range map[string]string{
		entriesDir + "/ostree-1-os.conf": entriesDir + "/OSTREE-1-OS.conf",
		kernelDirOf("a"):                 "ostree/OS-" + strings.Repeat("A", 64),
	} {
		if err := m.esp.Rename(from, m.esp, to, 0); err != nil {
			t.Fatal(err)
		}
	}
	before := list(t, m.esp)
	m.write(t, 0, "a")
	if got := list(t, m.esp); !maps.Equal(got, before) {
		t.Errorf("got the files %q, want them unchanged: %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(before)))
	}
}

// A kernel of the wrong size is incomplete.
func TestWriteMends(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	m.write(t, 0, "a")
	name := filepath.Join(m.esp.Path(), kernelDirOf("a"), "vmlinuz-6.1")
	if err := os.Truncate(name, 100); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+tmpSuffix, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.esp.Path(), entriesDir, "ostree-3-os.conf"+tmpSuffix), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m.write(t, 0, "a")
	menu(t, m.esp)
	if got := len(list(t, m.esp)); got != 3 {
		t.Errorf("got the files %q, want three", slices.Sorted(maps.Keys(list(t, m.esp))))
	}
}

func TestWriteRefuses(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	m.write(t, 0, "a")
	before := list(t, m.esp)
	one := func(change func(*sysroot.BootEntry)) []sysroot.BootEntry {
		all := entries(1, "b")
		change(&all[0])
		return all
	}
	both := entries(1, "b", "a")
	slices.Reverse(both)
	for name, c := range map[string]struct {
		entries []sysroot.BootEntry
		want    string
	}{
		"order":       {both, "would sort before"},
		"stem":        {one(func(e *sysroot.BootEntry) { e.Name.Stem = "linux" }), "does not begin with ostree-"},
		"colon":       {one(func(e *sysroot.BootEntry) { e.Name.Stem = "ostree-1-a:b" }), "does not allow"},
		"not ASCII":   {one(func(e *sysroot.BootEntry) { e.Name.Stem = "ostree-1-ä" }), "does not allow"},
		"escape":      {one(func(e *sysroot.BootEntry) { e.Entry.Linux = "/ostree/../vmlinuz" }), "does not allow"},
		"not ours":    {one(func(e *sysroot.BootEntry) { e.Entry.Linux = "/vmlinuz" }), "is not in a directory of /ostree"},
		"not there":   {one(func(e *sysroot.BootEntry) { e.Entry.Initrd[0] += "x" }), "no such file"},
		"a directory": {one(func(e *sysroot.BootEntry) { e.Entry.Initrd[0] = "/ostree/os-" + strings.Repeat("b", 64) + "/d" }), "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(filepath.Join(m.boot.Path(), kernelDirOf("b"), "d"), 0o755); err != nil {
				t.Fatal(err)
			}
			err := m.Write(t.Context(), m.boot, c.entries)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if got := list(t, m.esp); !maps.Equal(got, before) {
				t.Error("the ESP was changed")
			}
		})
	}
}

// In a sysroot with bootprefix set, paths begin with /boot. An ESP has no such directory.
func TestBootPrefix(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	plain := entries(0, "a")
	prefixed := entries(0, "a")
	prefixed[0].Entry.Linux = "/boot" + prefixed[0].Entry.Linux
	prefixed[0].Entry.Initrd[0] = "/boot" + prefixed[0].Entry.Initrd[0]
	if err := m.Write(t.Context(), m.boot, prefixed); err != nil {
		t.Fatal(err)
	}
	if got := list(t, m.esp)[entriesDir+"/ostree-1-os.conf"]; got != string(plain[0].Entry.Marshal()) {
		t.Errorf("got the entry\n%s", got)
	}
}

func TestSpace(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp")
	if err := os.Mkdir(esp, 0o755); err != nil {
		t.Fatal(err)
	}
	const blocks = 12 // two kernels with their images, not three
	if err := unix.Mount("esp", esp, "tmpfs", 0, fmt.Sprintf("size=%d", blocks*4096)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(esp, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	m := newMachine(t, dir, nil)
	defer m.Close()
	need := func(kernels ...string) (files []sysroot.BootFile) {
		for _, k := range kernels {
			files = append(files, sysroot.BootFile{Name: kernelDirOf(k) + "/vmlinuz-6.1", Size: kernelSize},
				sysroot.BootFile{Name: kernelDirOf(k) + "/initramfs-6.1.img", Size: kernelSize})
		}
		return files
	}
	m.write(t, 0, "a")
	for _, c := range []struct {
		kernels []string
		fits    bool
	}{
		{[]string{"a"}, true},
		{[]string{"b", "a"}, false},
	} {
		before := list(t, m.esp)
		check := m.Check(t.Context(), need(c.kernels...), nil)
		write := m.Write(t.Context(), m.boot, entries(1, c.kernels...))
		for what, err := range map[string]error{"check": check, "write": write} {
			var space *SpaceError
			if c.fits != (err == nil) || !c.fits && (!errors.As(err, &space) || !errors.Is(err, unix.ENOSPC) || space.Needs <= space.Has) {
				t.Errorf("%v: %s: got %v", c.kernels, what, err)
			}
		}
		if got := list(t, m.esp); !c.fits && !maps.Equal(got, before) {
			t.Error("the ESP was changed")
		}
	}
	// Files that go before do not get in the way.
	if err := m.Check(t.Context(), need("b"), []string{kernelDirOf("a")}); err != nil {
		t.Errorf("a goes first: %v", err)
	}
	if err := m.Check(t.Context(), need("b"), []string{kernelDirOf("c")}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("another kernel goes first: got %v, want ENOSPC", err)
	}
	// Unreferenced files do not get in the way.
	m.write(t, 1)
	garbage := filepath.Join(esp, kernelDirOf("c"))
	if err := os.MkdirAll(garbage, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(garbage, "vmlinuz-6.1"), make([]byte, (blocks-3)*4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context(), need("a"), nil); err != nil {
		t.Error(err)
	}
	m.write(t, 0, "a")
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"efi", "boot/efi/" + entriesDir, "boot/" + entriesDir} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	fat := func(names ...string) func(*atfs.Dir) (bool, error) {
		return func(d *atfs.Dir) (bool, error) { return slices.Contains(at(names...), d.Path()), nil }
	}
	for name, c := range map[string]struct {
		mountPoints []string
		fat         []string
		want        string // "": ErrNone
	}{
		"no FAT":                    {at("efi", "boot/efi", "boot"), nil, ""},
		"an ESP without entries":    {at("efi", "boot/efi", "boot"), []string{"efi"}, ""},
		"the first with entries":    {at("efi", "boot/efi", "boot"), []string{"efi", "boot/efi", "boot"}, "boot/efi"},
		"the one that is FAT":       {at("efi", "boot/efi", "boot"), []string{"boot"}, "boot"},
		"directories are not there": {at("nowhere", "boot/nowhere"), []string{"nowhere"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := find(c.mountPoints, fat(c.fat...))
			if c.want == "" {
				if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), c.mountPoints[1]) {
					t.Errorf("got %v, want ErrNone with the places searched", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if got := b.Path(); got != filepath.Join(dir, c.want) {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	if _, err := Open(filepath.Join(dir, "efi")); !errors.Is(err, ErrNone) {
		t.Errorf("open a directory without entries: got %v, want ErrNone", err)
	}
	if _, err := Open(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open an absent directory: got %v", err)
	}
}

func TestCanCount(t *testing.T) {
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	program := func(name, text string) {
		t.Helper()
		name = filepath.Join(m.esp.Path(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.CanCount(); !errors.Is(err, ErrCannotCount) {
		t.Errorf("an ESP without programs: got %v", err)
	}
	program("EFI/BOOT/BOOTX64.EFI", "MZ GRUB")
	program("EFI/systemd/README", sdMagic)
	if err := m.CanCount(); !errors.Is(err, ErrCannotCount) {
		t.Errorf("an ESP with another loader: got %v", err)
	}
	program("EFI/BOOT/BOOTX64.EFI", "MZ"+sdMagic+"252 ####")
	if err := m.CanCount(); err != nil {
		t.Errorf("systemd-boot: got %v", err)
	}
	m.startedBy = "GRUB 2.12"
	if err := m.CanCount(); !errors.Is(err, ErrCannotCount) || !strings.Contains(err.Error(), "GRUB 2.12") {
		t.Errorf("a machine that GRUB has started: got %v", err)
	}
	m.startedBy = "systemd-boot 252.39"
	if err := m.CanCount(); err != nil {
		t.Errorf("a machine that systemd-boot has started: got %v", err)
	}
}

// Debian's systemd-boot is recognized.
func TestCanCountDebian(t *testing.T) {
	names, err := filepath.Glob("/usr/lib/systemd/boot/efi/systemd-boot*.efi")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		testenv.Missing(t, "needs the Debian package systemd-boot-efi")
	}
	m := newMachine(t, t.TempDir(), nil)
	defer m.Close()
	data, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(m.esp.Path(), "EFI/systemd", filepath.Base(names[0]))
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := m.CanCount(); err != nil {
		t.Error(err)
	}
}

// What a boot loader tells of itself is read from the variables of the firmware.
func TestVariables(t *testing.T) {
	const uuid = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	variable := func(text string) []byte {
		data := []byte{6, 0, 0, 0}
		for _, c := range text + "\x00" {
			data = append(data, byte(c), 0)
		}
		return data
	}
	for name, c := range map[string]struct {
		vars       map[string]string
		info, from string
	}{
		"none":         {nil, "", ""},
		"systemd-boot": {map[string]string{loaderInfo: "systemd-boot 252.39", loaderPart: strings.ToUpper(uuid)}, "systemd-boot 252.39", uuid},
		"another":      {map[string]string{loaderInfo: "GRUB 2.12", loaderPart: uuid}, "GRUB 2.12", ""},
		"no partition": {map[string]string{loaderInfo: "systemd-boot 252.39"}, "systemd-boot 252.39", ""},
		"no loader":    {map[string]string{loaderPart: uuid}, "", ""},
		"no UUID":      {map[string]string{loaderInfo: "systemd-boot 252.39", loaderPart: "../../sda1"}, "systemd-boot 252.39", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.vars {
				if err := os.WriteFile(filepath.Join(dir, name), variable(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := readVariable(dir, loaderInfo); got != c.info {
				t.Errorf("loader: got %q, want %q", got, c.info)
			}
			if got := startedFrom(dir); got != c.from {
				t.Errorf("partition: got %q, want %q", got, c.from)
			}
		})
	}
	if got := readVariable("nowhere", loaderInfo); got != "" {
		t.Errorf("no directory: got %q", got)
	}
	for _, n := range []int{0, 3, 5, 7} {
		decodeVariable(variable("systemd-boot")[:n]) // does not read past its end
	}
}

// A sysroot with entries on an ESP is never mistaken for one whose boot loader reads /boot.
func TestFindFor(t *testing.T) {
	const uuid = "0fc63daf-8483-4772-8e79-3d69d8477de4" // a partition type, which is no partition's UUID
	for name, c := range map[string]struct {
		config string // "": no file
		none   bool
		want   string
	}{
		"no sysroot":      {"", true, "the sysroot names no EFI system partition"},
		"plain":           {"[core]\nmode=bare\n", true, "the sysroot names no EFI system partition"},
		"not a key file":  {"core\n", false, "ostree/repo/config"},
		"not a UUID":      {"[ostree-snapshotter]\nesp=../../sda1\n", false, `"../../sda1"`},
		"not there":       {"[ostree-snapshotter]\nesp=" + uuid + "\n", false, "/dev/disk/by-partuuid/" + uuid},
		"written by ours": {string(withESP(uuid)), false, "/dev/disk/by-partuuid/" + uuid},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.config != "" {
				err := os.MkdirAll(filepath.Join(dir, "ostree/repo"), 0o755)
				if err = errors.Join(err, os.WriteFile(filepath.Join(dir, configFile), []byte(c.config), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			sysroot := openDir(t, dir, nil)
			defer sysroot.Close()
			b, err := FindFor(sysroot, sysroot, false)
			if b != nil || errors.Is(err, ErrNone) != c.none || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v, want an error with %q, and ErrNone to be %t", err, c.want, c.none)
			}
		})
	}
}

func withESP(uuid string) []byte {
	config := new(keyfile.File)
	SetESP(config, strings.ToUpper(uuid))
	return config.Marshal()
}

// An ESP that is not mounted is mounted for as long as needed. Here it is ext4, which every kernel supports.
func TestMountESP(t *testing.T) {
	testenv.NeedsLoop(t)
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(testenv.NeedsTool(t, name), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	dir := t.TempDir()
	image, tree := filepath.Join(dir, "image"), filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, entriesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	run("truncate", "--size", "8M", image)
	run("mkfs.ext4", "-q", "-d", tree, image)
	device := run("losetup", "--find", "--show", image)
	defer run("losetup", "--detach", device)
	m := newMachine(t, dir, nil)
	defer m.boot.Close()
	defer m.esp.Close()
	system := func(kernel, stateroot string) *bls.OSTreeArg {
		return &bls.OSTreeArg{BootVersion: 1, Stateroot: stateroot, BootCsum: strings.Repeat(kernel, 64), BootSerial: 3}
	}
	if b, err := mountESP(device, "ext4", system("a", "os")); !errors.Is(err, ErrNone) {
		t.Errorf("an ESP without entries: got %v, %v, want ErrNone", b, err)
	}
	for i, deployments := range [][]string{{"a"}, {"b", "a"}} {
		booted := system("a", "os")
		if i == 0 {
			booted = nil
		}
		b, err := mountESP(device, "ext4", booted)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Write(t.Context(), m.boot, entries(0, deployments...)); err != nil {
			t.Error(err)
		}
		mounts, err := mountinfo.GetMounts(nil)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.Source == device }) {
			t.Error("the device is mounted where others see it")
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, other := range []*bls.OSTreeArg{system("c", "os"), system("a", "other"), {}} {
		if b, err := mountStarted(device, "ext4", m.boot, *other); !errors.Is(err, ErrNone) || errors.Is(err, ErrUncertain) {
			t.Errorf("an ESP with the entries of another system than %s: got %v, %v, want ErrNone", other, b, err)
		}
	}
	b, err := mountStarted(device, "ext4", m.boot, *system("a", "os"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if tries, err := b.Tries(t.Context()); err != nil || len(tries) != 2 {
		t.Errorf("got %v, %v, want two entries", tries, err)
	}
	if _, err := mountESP(device, "no-such-fs", nil); err == nil || !strings.Contains(err.Error(), "the running kernel does not have it") {
		t.Errorf("a file system that the kernel does not have: got %v", err)
	}
}

// An ESP that cannot be mounted, and is not recorded, is none if the entries of the running system are in /boot.
func TestUncertainESP(t *testing.T) {
	dir := t.TempDir()
	boot := openDir(t, dir, nil)
	defer boot.Close()
	booted := bls.OSTreeArg{Stateroot: "os", BootCsum: strings.Repeat("a", 64)}
	check := func(what string, booted bls.OSTreeArg, want bool) {
		t.Helper()
		b, err := mountStarted(filepath.Join(dir, "nowhere"), "no-such-fs", boot, booted)
		if b != nil || err == nil || errors.Is(err, ErrNone) != want || errors.Is(err, ErrUncertain) != want || !strings.Contains(err.Error(), "no-such-fs") {
			t.Errorf("%s: got %v, %v, want ErrUncertain to be %t", what, b, err, want)
		}
	}
	check("no entries", booted, false)
	e := entries(1, "a")[0]
	list := filepath.Join(dir, "loader.1/entries")
	err := errors.Join(os.MkdirAll(list, 0o755), os.WriteFile(filepath.Join(list, e.Name.String()), e.Entry.Marshal(), 0o644))
	if err = errors.Join(err, os.Symlink("loader.1", filepath.Join(dir, "loader"))); err != nil {
		t.Fatal(err)
	}
	check("its entry", booted, true)
	check("another's entry", bls.OSTreeArg{Stateroot: "os", BootCsum: strings.Repeat("b", 64)}, false)
	check("unknown", bls.OSTreeArg{}, false)
	if err := errors.Join(os.Remove(filepath.Join(dir, "loader")), os.Rename(filepath.Dir(list), filepath.Join(dir, "loader"))); err != nil {
		t.Fatal(err)
	}
	check("its entry without a link", booted, true)
}
