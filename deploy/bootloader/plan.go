package bootloader

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// entryPrefix begins the names of a sysroot's entries.
const entryPrefix = "ostree-"

// overlaysDir holds initramfs images that do not come with a kernel.
const overlaysDir = "initramfs-overlays"

// kernelDirName matches the directory of a kernel: stateroot and bootcsum.
var kernelDirName = regexp.MustCompile(`(?i)^.+-[0-9a-f]{64}$`)

// isOurs reports whether a name in loader/entries is that of a sysroot's entry.
func isOurs(file string) bool {
	return strings.HasPrefix(fold(file), entryPrefix) && strings.HasSuffix(fold(file), ".conf")
}

// An entryFile is an entry that an ESP has, or should have.
type entryFile struct {
	file  string // name in loader/entries
	name  bls.Name
	data  []byte     // nil: not an entry
	entry *bls.Entry // of the data
}

// ostree returns the value of the kernel argument ostree=, or "".
func (e *entryFile) ostree() string {
	if e.data == nil {
		return ""
	}
	arg, _ := kargs.Parse(e.entry.Options).Value("ostree")
	return arg
}

// A kernelFile is a file that an entry names.
type kernelFile struct {
	dir, name string // below ostree/
	size      int64
}

// newKernelFile splits a path of an entry.
func newKernelFile(name string) (kernelFile, error) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0] != "" || parts[1] != kernelsDir {
		return kernelFile{}, fmt.Errorf("file %q of an entry: is not in a directory of /%s", name, kernelsDir)
	}
	for _, part := range parts[2:] {
		if err := checkName(part); err != nil {
			return kernelFile{}, fmt.Errorf("file of an entry: %w", err)
		}
	}
	return kernelFile{dir: parts[2], name: parts[3]}, nil
}

// path is the path below /boot, and below the ESP.
func (f kernelFile) path() string { return path.Join(kernelsDir, f.dir, f.name) }

func (f kernelFile) key() string { return fold(f.path()) }

// checkName makes sure that FAT can hold a name, and that Linux, whatever character set the ESP is mounted with, and
// the firmware read the same name.
func checkName(name string) error {
	bad := func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"*/:<>?\|`, r) }
	switch {
	case name == "", len(name)+len(tmpSuffix) > 255:
		return fmt.Errorf("%q: name has a length that FAT does not allow", name)
	case strings.ContainsFunc(name, bad), strings.HasSuffix(name, "."), strings.HasSuffix(name, " "), name[0] == ' ':
		return fmt.Errorf("%q: name has characters that FAT does not allow", name)
	}
	return nil
}

// onESP returns an entry as it is on an ESP, where no path begins with /boot.
func onESP(e *bls.Entry) *bls.Entry {
	c := *e
	trim := func(name string) string {
		if below, ok := strings.CutPrefix(name, "/boot/"); ok {
			return "/" + below
		}
		return name
	}
	c.Linux, c.DeviceTree = trim(c.Linux), trim(c.DeviceTree)
	c.Initrd = slices.Clone(c.Initrd)
	for i, name := range c.Initrd {
		c.Initrd[i] = trim(name)
	}
	return &c
}

// paths returns the files that systemd-boot loads for an entry.
func paths(e *bls.Entry) []string {
	all := append([]string{e.Linux, e.DeviceTree}, e.Initrd...)
	return slices.DeleteFunc(all, func(name string) bool { return name == "" })
}

// contents is the content of an ESP.
type contents struct {
	entries []entryFile // of sysroots
	kernels []kernelDir // in directories of a mirror
	tmp     []string    // paths in loader/entries that an interrupted Write has left
}

type kernelDir struct {
	name  string
	files []kernelFile // with leftovers of an interrupted Write
}

// scan reads the ESP.
func (b *SystemdBoot) scan() (c *contents, err error) {
	c = new(contents)
	if c.tmp, err = b.scanLeftovers(); err != nil {
		return nil, err
	}
	if c.entries, err = b.scanEntries(); err != nil {
		return nil, err
	}
	c.kernels, err = b.scanKernels()
	return c, err
}

// forget removes the entries that name files in these directories of /boot.
func (c *contents) forget(dirs []string) {
	for _, dir := range dirs {
		isIn := func(name string) bool { return fold(path.Dir(name)) == fold("/"+dir) }
		c.entries = slices.DeleteFunc(c.entries, func(e entryFile) bool {
			return e.data != nil && slices.ContainsFunc(paths(e.entry), isIn)
		})
	}
}

// sortedNames returns the names in a directory of the ESP, in the same order on every file system.
func (b *SystemdBoot) sortedNames(name string) ([]string, error) {
	dir, err := b.esp.OpenDir(name)
	if err != nil {
		return nil, err
	}
	names, err := dir.ReadNames()
	slices.Sort(names)
	return names, errors.Join(err, dir.Close())
}

func (b *SystemdBoot) scanLeftovers() (tmp []string, err error) {
	names, err := b.sortedNames(entriesDir)
	for _, file := range names {
		if final, ok := strings.CutSuffix(file, tmpSuffix); ok && isOurs(final) {
			tmp = append(tmp, path.Join(entriesDir, file))
		}
	}
	return tmp, err
}

func (b *SystemdBoot) scanEntries() ([]entryFile, error) {
	dir, err := b.esp.OpenDir(entriesDir)
	if err != nil {
		return nil, err
	}
	entries, err := readEntries(dir)
	return entries, errors.Join(err, dir.Close())
}

// readEntries reads the entries of ostree in a directory, in the same order on every file system.
func readEntries(dir *atfs.Dir) (entries []entryFile, err error) {
	names, err := dir.ReadNames()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, file := range names {
		if !isOurs(file) {
			continue
		}
		e, err := readEntry(dir, file)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func readEntry(dir *atfs.Dir, file string) (entryFile, error) {
	e := entryFile{file: file}
	var ok bool
	if e.name, ok = bls.ParseName(file); !ok {
		return e, nil
	}
	data, err := dir.ReadFile(file, bls.MaxLen)
	switch {
	case errors.Is(err, unix.EFBIG), errors.Is(err, unix.EISDIR): // not ours: replaced if its name is needed
		return e, nil
	case err != nil:
		return e, err
	}
	if e.entry, err = bls.Parse(data); err == nil {
		e.data = data
	}
	return e, nil
}

func (b *SystemdBoot) scanKernels() (dirs []kernelDir, err error) {
	names, err := b.sortedNames(kernelsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, name := range names {
		if !kernelDirName.MatchString(name) && fold(name) != overlaysDir {
			continue
		}
		d := kernelDir{name: name}
		files, err := b.sortedNames(path.Join(kernelsDir, name))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			f := kernelFile{dir: name, name: file}
			st, err := b.esp.Lstat(f.path())
			if err != nil {
				return nil, err
			}
			f.size = st.Size
			d.files = append(d.files, f)
		}
		dirs = append(dirs, d)
	}
	return dirs, err
}

// A plan lists the changes of an ESP, in order.
type plan struct {
	sweep      []string     // paths that neither old nor wanted entries need
	files      []kernelFile // to copy
	entries    []entryFile  // to write
	oldEntries []string     // paths that are not wanted
	oldKernels []string     // paths that only old entries need

	swept   []int64 // sizes of the files of sweep
	newDirs int
}

// newPlan compares an ESP with the files and entries that it should have. The entries name no other files.
func newPlan(have *contents, files []kernelFile, entries []entryFile) *plan {
	p := &plan{sweep: have.tmp}
	wanted := make(map[string]bool)
	p.planFiles(have, files, wanted)
	p.planEntries(have, entries)
	before, readable := referenced(have.entries)
	for _, d := range have.kernels {
		p.planRemoval(d, wanted, func(f kernelFile) bool { return !readable || before[f.key()] })
	}
	return p
}

// planFiles finds out which files to copy, and records which are wanted. A file of the same size is the same: its
// directory is named after its content, and a file gets its name once all of it is on the disk.
func (p *plan) planFiles(have *contents, files []kernelFile, wanted map[string]bool) {
	dirs := make(map[string]bool)
	sizes := make(map[string]int64)
	for _, d := range have.kernels {
		dirs[fold(d.name)] = true
		for _, f := range d.files {
			sizes[f.key()] = f.size
		}
	}
	for _, f := range files {
		size, ok := sizes[f.key()]
		if wanted[f.key()] || ok && size == f.size {
			wanted[f.key()] = true
			continue
		}
		wanted[f.key()] = true
		if dir := fold(f.dir); !dirs[dir] {
			dirs[dir] = true
			p.newDirs++
		}
		p.files = append(p.files, f)
	}
}

// planEntries finds out which entries to write, and which to remove.
func (p *plan) planEntries(have *contents, entries []entryFile) {
	keep := make(map[string]bool) // folded names in loader/entries
	for _, e := range slices.Backward(entries) {
		i := slices.IndexFunc(have.entries, func(old entryFile) bool {
			return fold(old.name.Stem) == fold(e.name.Stem) && old.data != nil && bytes.Equal(old.data, e.data)
		})
		if i >= 0 {
			keep[fold(have.entries[i].file)] = true
			continue
		}
		keep[fold(e.file)] = true
		p.entries = append(p.entries, e)
	}
	for _, old := range have.entries {
		if !keep[fold(old.file)] {
			p.oldEntries = append(p.oldEntries, path.Join(entriesDir, old.file))
		}
	}
}

// planRemoval plans which files of a directory to remove, and when.
func (p *plan) planRemoval(d kernelDir, wanted map[string]bool, needed func(kernelFile) bool) {
	var sweep, old []kernelFile
	for _, f := range d.files {
		switch {
		case wanted[f.key()]:
		case needed(f) && !strings.HasSuffix(f.name, tmpSuffix):
			old = append(old, f)
		default:
			sweep = append(sweep, f)
		}
	}
	for _, f := range sweep {
		p.swept = append(p.swept, f.size)
	}
	dir := path.Join(kernelsDir, d.name)
	switch {
	case len(sweep) == len(d.files): // or it is empty
		p.sweep = append(p.sweep, dir)
		return
	case len(sweep)+len(old) == len(d.files):
		p.oldKernels = append(p.oldKernels, dir)
	default:
		for _, f := range old {
			p.oldKernels = append(p.oldKernels, f.path())
		}
	}
	for _, f := range sweep {
		p.sweep = append(p.sweep, f.path())
	}
}

// referenced returns the keys of the files that entries name, and whether all entries could be read.
func referenced(entries []entryFile) (keys map[string]bool, readable bool) {
	keys = make(map[string]bool)
	for _, e := range entries {
		if e.data == nil {
			return keys, false
		}
		for _, name := range paths(e.entry) {
			keys[fold(strings.TrimPrefix(path.Clean(name), "/"))] = true
		}
	}
	return keys, true
}

// needs returns the bytes that a plan, and a number of further entries, take on a file system with clusters of that
// size.
func (p *plan) needs(cluster int64, entries int) int64 {
	n := int64(p.newDirs+entries) * cluster
	for _, f := range p.files {
		n += roundUp(f.size, cluster)
	}
	for _, e := range p.entries {
		n += roundUp(int64(len(e.data)), cluster)
	}
	if n > 0 {
		n += 2 * cluster // by which directories may grow
	}
	return n
}

// frees returns the bytes that the plan's sweep frees.
func (p *plan) frees(cluster int64) (n int64) {
	for _, size := range p.swept {
		n += roundUp(size, cluster)
	}
	return n
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
