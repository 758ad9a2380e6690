package bootloader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
)

// The directories of an ESP that hold the mirror.
const (
	entriesDir = "loader/entries"
	kernelsDir = "ostree"
)

// tmpSuffix ends the names of incomplete files. No boot loader takes them for an entry or a kernel.
const tmpSuffix = ".tmp"

// A SpaceError reports that an ESP is too small. It unwraps to ENOSPC.
type SpaceError struct{ Needs, Has int64 }

func (e *SpaceError) Error() string {
	return fmt.Sprintf("EFI system partition: needs %s for kernels and entries, has %s free",
		humanize.IBytes(uint64(e.Needs)), humanize.IBytes(uint64(e.Has)))
}

func (e *SpaceError) Unwrap() error { return unix.ENOSPC }

// SystemdBoot is systemd-boot on an EFI system partition. It implements [sysroot.Bootloader].
//
// Only one process at a time may use it: the holder of the lock of the mirrored sysroot. systemd-boot and
// systemd-bless-boot rename entries only while the machine starts.
type SystemdBoot struct {
	esp       *atfs.Dir
	mount     *mounts.Detached // of the ESP, if mounted for this process alone
	startedBy string           // boot loader that has started the running system, whose ESP this is; "" if unknown
}

var _ sysroot.Bootloader = (*SystemdBoot)(nil)

// New returns the boot loader of an ESP with loader/entries; without that, the error is an [ErrNone]. Close closes esp.
func New(esp *atfs.Dir) (*SystemdBoot, error) {
	st, err := esp.Lstat(entriesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, err
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("%w: %s has no directory %s", ErrNone, esp.Path(), entriesDir)
	}
	return &SystemdBoot{esp: esp}, nil
}

// Close closes the directory of the ESP.
func (b *SystemdBoot) Close() error {
	if b.mount != nil {
		return b.mount.Close()
	}
	return b.esp.Close()
}

// Path returns the ESP's mount point, for messages.
func (b *SystemdBoot) Path() string { return b.esp.Path() }

// Check returns a *[SpaceError] if the ESP has no room for the missing files. Unreferenced files count as free space,
// since Write removes them first, and so do those in the directories of gone.
func (b *SystemdBoot) Check(_ context.Context, need []sysroot.BootFile, gone []string) error {
	return wrap("check", b.check(need, gone))
}

func (b *SystemdBoot) check(need []sysroot.BootFile, gone []string) error {
	have, err := b.scan()
	if err != nil {
		return err
	}
	have.forget(gone)
	var files []kernelFile
	for _, f := range need {
		k, err := newKernelFile("/" + f.Name)
		if err != nil {
			return err
		}
		k.size = f.Size
		files = append(files, k)
	}
	return b.room(newPlan(have, files, nil), true, len(need))
}

// Write makes the ESP a mirror of the entries, the first of which boots by default. It can be repeated, and does
// nothing then. An unchanged entry keeps the name that boot counting has given it. After an error the machine boots as
// before, or as planned.
//
// Entries must be in the order in which systemd-boot sorts them, by the stems of their names. A name that FAT cannot
// hold is an error, and so is a file outside a directory of /boot/ostree. If there is not enough room, the error is a
// *[SpaceError], and nothing has been written.
func (b *SystemdBoot) Write(ctx context.Context, boot *atfs.Dir, entries []sysroot.BootEntry) error {
	return wrap("write", b.write(ctx, boot, entries))
}

func (b *SystemdBoot) write(ctx context.Context, boot *atfs.Dir, entries []sysroot.BootEntry) error {
	files, want, err := b.wanted(boot, entries)
	if err != nil {
		return err
	}
	have, err := b.scan()
	if err != nil {
		return err
	}
	p := newPlan(have, files, want)
	if err := b.remove(p.sweep); err != nil {
		return err
	}
	if err := b.room(p, false, 0); err != nil {
		return err
	}
	if err := b.copyKernels(ctx, boot, p.files); err != nil {
		return err
	}
	// From here on the state is a mixture: finishing is better than stopping.
	if err := b.writeEntries(p.entries); err != nil {
		return err
	}
	if err := b.remove(p.oldEntries); err != nil {
		return err
	}
	return b.remove(p.oldKernels)
}

// wanted returns the files and entries that the ESP should have.
func (b *SystemdBoot) wanted(boot *atfs.Dir, entries []sysroot.BootEntry) (files []kernelFile, want []entryFile, err error) {
	for i, e := range entries {
		if i > 0 && bls.CompareVersions(entries[i-1].Name.Stem, e.Name.Stem) <= 0 {
			return nil, nil, fmt.Errorf("entry %s would sort before %s", e.Name.Stem, entries[i-1].Name.Stem)
		}
		name := e.Name.String()
		if !isOurs(name) {
			return nil, nil, fmt.Errorf("entry %q: name does not begin with %s", name, entryPrefix)
		}
		if err := checkName(name); err != nil {
			return nil, nil, fmt.Errorf("entry %w", err)
		}
		entry := onESP(e.Entry)
		want = append(want, entryFile{file: name, name: e.Name, data: entry.Marshal(), entry: entry})
		for _, p := range paths(entry) {
			f, err := newKernelFile(p)
			if err != nil {
				return nil, nil, err
			}
			st, err := boot.Lstat(f.path())
			if err != nil {
				return nil, nil, err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil, nil, fmt.Errorf("%s/%s: not a regular file", boot.Path(), f.path())
			}
			f.size = st.Size
			files = append(files, f)
		}
	}
	return files, want, nil
}

// Tries returns the boot counting states of the entries, nil for one that does not count, by the values of the kernel
// argument ostree= in their options.
func (b *SystemdBoot) Tries(_ context.Context) (map[string]*bls.Tries, error) {
	entries, err := b.scanEntries()
	if err != nil {
		return nil, wrap("read", err)
	}
	tries := make(map[string]*bls.Tries)
	for _, e := range entries {
		if arg := e.ostree(); arg != "" {
			tries[arg] = e.name.Tries
		}
	}
	return tries, nil
}

// Bless removes the counter from the entry with this value of the kernel argument ostree=. An entry that does not
// count, or does not exist, is success.
func (b *SystemdBoot) Bless(_ context.Context, ostree string) error {
	return wrap("bless", b.bless(ostree))
}

func (b *SystemdBoot) bless(ostree string) (err error) {
	entries, err := b.scanEntries()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(entries, func(e entryFile) bool { return e.name.Tries != nil && e.ostree() == ostree })
	if i < 0 {
		return nil
	}
	// Another entry may have that name: the one that this one was to replace when a Write was interrupted.
	blessed := bls.Name{Stem: entries[i].name.Stem}.String()
	dir, err := b.esp.OpenDir(entriesDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := dir.Rename(entries[i].file, dir, blessed, 0); err != nil {
		return err
	}
	return dir.Sync()
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s boot entries of systemd-boot: %w", what, err)
	}
	return nil
}

// room returns a *SpaceError if there is no room for what a plan writes, and a number of further entries. The plan's
// sweep counts as room unless it is done already.
func (b *SystemdBoot) room(p *plan, sweep bool, entries int) error {
	space, known, err := b.esp.Space()
	if err != nil || !known {
		return err
	}
	cluster := int64(space.BlockSize)
	needs, has := p.needs(cluster, entries), int64(space.Free)
	if sweep {
		has += p.frees(cluster)
	}
	if needs > has {
		return &SpaceError{Needs: needs, Has: has}
	}
	return nil
}

// copyKernels copies files of /boot.
func (b *SystemdBoot) copyKernels(ctx context.Context, boot *atfs.Dir, files []kernelFile) error {
	for group := range chunk(files) {
		dir := path.Join(kernelsDir, group[0].dir)
		if err := b.mkdirs(dir); err != nil {
			return err
		}
		to, err := b.esp.OpenDir(dir)
		if err != nil {
			return err
		}
		for _, f := range group {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err == nil {
				err = copyFile(boot, f, to)
			}
		}
		if err == nil {
			err = to.Sync()
		}
		if err = errors.Join(err, to.Close()); err != nil {
			return err
		}
	}
	return nil
}

// chunk groups consecutive files of one directory.
func chunk(files []kernelFile) func(yield func([]kernelFile) bool) {
	return func(yield func([]kernelFile) bool) {
		for len(files) > 0 {
			n := slices.IndexFunc(files, func(f kernelFile) bool { return f.dir != files[0].dir })
			if n < 0 {
				n = len(files)
			}
			if !yield(files[:n]) {
				return
			}
			files = files[n:]
		}
	}
}

// mkdirs makes a directory and its parents, durably.
func (b *SystemdBoot) mkdirs(name string) error {
	if ok, err := b.esp.Exists(name); ok || err != nil {
		return err
	}
	parent := path.Dir(name)
	if parent != "." {
		if err := b.mkdirs(parent); err != nil {
			return err
		}
	}
	if err := b.esp.Mkdir(name, 0o755); err != nil {
		return err
	}
	return b.syncDir(parent)
}

func (b *SystemdBoot) syncDir(name string) error {
	d, err := b.esp.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func copyFile(boot *atfs.Dir, f kernelFile, to *atfs.Dir) (err error) {
	src, err := boot.Open(f.path())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return writeFile(to, f.name, func(w *atfs.File) error {
		if err := w.CopyFrom(src); err != nil {
			return err
		}
		st, err := w.Stat()
		if err == nil && st.Size != f.size {
			err = fmt.Errorf("copy %s: got %d bytes, want %d", f.path(), st.Size, f.size)
		}
		return err
	})
}

// writeFile writes a file, and then gives it its name. It sets neither owner nor mode: FAT has none. The name is
// durable once the directory is synced.
func writeFile(dir *atfs.Dir, name string, fill func(*atfs.File) error) (err error) {
	tmp := name + tmpSuffix
	f, err := dir.OpenFile(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // it takes room; otherwise the next Write removes it
			_ = dir.Unlink(tmp)
		}
	}()
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return dir.Rename(tmp, dir, name, 0)
}

// writeEntries writes entries in the order given.
func (b *SystemdBoot) writeEntries(entries []entryFile) (err error) {
	if len(entries) == 0 {
		return nil
	}
	dir, err := b.esp.OpenDir(entriesDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, e := range entries {
		err := writeFile(dir, e.file, func(w *atfs.File) error {
			_, err := w.Write(e.data)
			return err
		})
		if err == nil {
			err = dir.Sync()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove removes paths, durably.
func (b *SystemdBoot) remove(names []string) error {
	for i, name := range names {
		if err := b.esp.RemoveAll(name); err != nil {
			return err
		}
		if dir := path.Dir(name); i+1 == len(names) || path.Dir(names[i+1]) != dir {
			if err := b.syncDir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// fold maps names that FAT cannot tell apart to one form.
func fold(name string) string { return strings.ToLower(name) }
