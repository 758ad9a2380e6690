package install

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options are the choices for an installation.
type Options struct {
	Size       int64  // of an image file, which is created or extended; 0: its present size
	ESPSize    int64  // of the EFI system partition; 0: DefaultESPSize
	Filesystem string // of the root partition, one of Filesystems; "": ext4
	Arch       string // of the OS, as in Go
	Wipe       bool   // the contents of the disk may be lost
	Need       int64  // bytes that the OS takes on the root partition, as far as known
	ESPNeed    int64  // the same for its kernel and initramfs on the EFI system partition
	OSLoader   bool   // the OS has systemd-boot; otherwise this host needs it

	ExceptDefault string // see [Config]

	// Progress is told each step when it begins. It may be nil.
	Progress func(step string)
}

// A Plan is an installation that has not begun.
type Plan struct {
	Disk       string
	Size       int64    // present or future size
	Found      []string // contents, which will be lost
	Partitions []Partition
	RootUUID   string // of the root file system

	disk   *disk
	tools  tools
	arch   arch
	loader string // this host's program, for an OS that has none; "" if this host has none either
	opts   Options
}

// NewPlan plans to install on a disk: a block device, or a file, which need not exist. It changes nothing.
//
// A disk with contents is an ErrNotEmpty that lists them, unless it may be wiped. A disk that is in use is an ErrInUse,
// whatever the options. Missing programs are a *[MissingToolsError].
func NewPlan(ctx context.Context, path string, opts Options) (*Plan, error) {
	p, err := newPlan(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("plan installation: %w", err)
	}
	return p, nil
}

func newPlan(ctx context.Context, path string, opts Options) (p *Plan, err error) {
	if opts.Filesystem == "" {
		opts.Filesystem = Filesystems[0]
	}
	if !slices.Contains(Filesystems, opts.Filesystem) {
		return nil, fmt.Errorf("root file system %q: want one of %s", opts.Filesystem, strings.Join(Filesystems, ", "))
	}
	if opts.ESPSize == 0 {
		opts.ESPSize = DefaultESPSize
	}
	p = &Plan{Disk: path, RootUUID: newUUID(), opts: opts}
	var ok bool
	if p.arch, ok = arches[opts.Arch]; !ok {
		return nil, fmt.Errorf("architecture %q: no UEFI boot loader is known for it", opts.Arch)
	}
	if p.tools, err = p.findTools(); err != nil {
		return nil, err
	}
	if p.loader, err = hostLoader(p.arch); err != nil {
		return nil, err
	}
	if p.loader == "" && !opts.OSLoader {
		return nil, &MissingToolsError{[]string{"systemd-boot" + p.arch.efi + ".efi"}, []string{"systemd-boot-efi"}}
	}
	var f *os.File
	if p.disk, f, err = openDisk(path, unix.O_RDONLY); err != nil {
		return nil, err
	}
	if f != nil {
		defer func() { err = joined(err, f.Close()) }()
	}
	if p.Size, err = p.disk.newSize(opts.Size); err != nil {
		return nil, err
	}
	if p.Partitions, err = layout(p.Size, p.disk.sector, opts.ESPSize, opts.Filesystem, p.arch); err != nil {
		return nil, err
	}
	if room := p.root().room(); opts.Need > room {
		return nil, fmt.Errorf("disk of %s is too small: the OS takes %s, its partition has room for %s",
			human(p.Size), human(opts.Need), human(room))
	}
	if err := p.checkESPRoom(opts.ESPNeed); err != nil {
		return nil, err
	}
	if f == nil {
		return p, nil
	}
	users, err := p.disk.users()
	if err != nil {
		return nil, err
	}
	if len(users) > 0 {
		return nil, inUse(path, users)
	}
	if p.Found, err = p.disk.contents(ctx, p.tools, f); err != nil {
		return nil, err
	}
	if len(p.Found) > 0 && !opts.Wipe {
		return nil, fmt.Errorf("%s is %w: %s", path, ErrNotEmpty, strings.Join(p.Found, ", "))
	}
	return p, nil
}

func (p *Plan) findTools() (tools, error) {
	wanted := map[string]string{"wipefs": "util-linux", "sfdisk": "fdisk", "mcopy": "mtools"}
	for _, fstype := range []string{"vfat", p.opts.Filesystem} {
		command, debian, err := mkfs(fstype, "", "")
		if err != nil {
			return nil, err
		}
		wanted[command[0]] = debian
	}
	return findTools(wanted)
}

func (p *Plan) esp() Partition { return p.Partitions[0] }

func (p *Plan) root() Partition { return p.Partitions[1] }

// HasVerity reports whether files on the root partition can have fs-verity.
func (p *Plan) HasVerity() bool { return p.root().Filesystem != "xfs" }

// room estimates the room for files. File systems reserve some of their space, ext4 the most: 5 % for root, and as much
// for inodes.
func (p Partition) room() int64 { return p.Size - p.Size/16 - 32*mib }

// newSize returns the size that the disk will have. A size of 0 stands for the present one.
func (d *disk) newSize(size int64) (int64, error) {
	switch {
	case d.block && size != 0:
		return 0, fmt.Errorf("%s is a block device: its size is fixed, %s", d.path, human(d.size))
	case !d.exists && size == 0:
		return 0, fmt.Errorf("%s %w", d.path, ErrNoSize)
	case size == 0:
		return d.size, nil
	case size < d.size:
		return 0, fmt.Errorf("%s has %s: it cannot be shrunk to %s", d.path, human(d.size), human(size))
	}
	return size, nil
}

// String lists the steps, one a line.
func (p *Plan) String() string {
	var b strings.Builder
	switch {
	case !p.disk.exists:
		fmt.Fprintf(&b, "create the image file %s of %s\n", p.Disk, human(p.Size))
	case p.Size > p.disk.size:
		fmt.Fprintf(&b, "extend the image file %s from %s to %s\n", p.Disk, human(p.disk.size), human(p.Size))
	}
	for _, f := range p.Found {
		fmt.Fprintf(&b, "wipe %s: %s\n", p.Disk, f)
	}
	fmt.Fprintf(&b, "write a GPT to %s, %s\n", p.Disk, human(p.Size))
	from := "the OS"
	if !p.opts.OSLoader {
		from = p.loader
	}
	for i, part := range p.Partitions {
		fmt.Fprintf(&b, "partition %d: %s, %s, %s, at %s\n", i+1, part.Name, human(part.Size), part.Filesystem, human(part.Start))
	}
	fmt.Fprintf(&b, "boot loader: systemd-boot, from %s\n", from)
	return b.String()
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
