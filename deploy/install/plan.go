package install

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
)

// Options say what is to be made of a disk.
type Options struct {
	Size       int64  // of an image file, which is made or extended; 0: as large as it is
	ESPSize    int64  // of the EFI system partition; 0: DefaultESPSize
	Filesystem string // of the root partition, one of Filesystems; "": ext4
	Arch       string // of the OS, as Go calls it
	Wipe       bool   // what is on the disk may be lost
	Need       int64  // bytes that the OS takes on the root partition, as far as that is known
	ESPNeed    int64  // the same for its kernel and initramfs on the EFI system partition
	OSLoader   bool   // the OS has systemd-boot; otherwise this host must have it

	// Progress is told what is begun. It may be nil.
	Progress func(step string)
}

// A Plan is what is going to be done to a disk. Nothing of it has been done yet.
type Plan struct {
	Disk       string
	Size       int64    // that it has, or will have
	Found      []string // what is on it, and will be lost
	Partitions []Partition
	RootUUID   string // of the root file system

	disk   *disk
	tools  tools
	arch   arch
	loader string // program of this host that is taken if the OS has none; "" if this host has none either
	opts   Options
}

// NewPlan plans to install on a disk: a block device, or a file, which need not exist. It changes nothing.
//
// A disk that anything is on is an ErrNotEmpty that says what, unless it may be wiped; one that is in use is an ErrInUse,
// whatever the options say. Programs that are not installed are a *[MissingToolsError].
func NewPlan(ctx context.Context, path string, opts Options) (*Plan, error) {
	p, err := newPlan(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("plan installation: %w", err)
	}
	return p, nil
}

func newPlan(ctx context.Context, path string, opts Options) (*Plan, error) {
	if opts.Filesystem == "" {
		opts.Filesystem = Filesystems[0]
	}
	if opts.ESPSize == 0 {
		opts.ESPSize = DefaultESPSize
	}
	p := &Plan{Disk: path, RootUUID: newUUID(), opts: opts}
	var ok bool
	if p.arch, ok = arches[opts.Arch]; !ok {
		return nil, fmt.Errorf("architecture %q: no UEFI boot loader is known for it", opts.Arch)
	}
	var err error
	if p.tools, err = p.findTools(); err != nil {
		return nil, err
	}
	if p.loader, err = hostLoader(p.arch); err != nil {
		return nil, err
	}
	if p.loader == "" && !opts.OSLoader {
		return nil, &MissingToolsError{[]string{"systemd-boot" + p.arch.efi + ".efi"}, []string{"systemd-boot-efi"}}
	}
	if p.disk, err = look(path); err != nil {
		return nil, err
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
	if p.disk.exists {
		users, err := p.disk.users()
		if err != nil {
			return nil, err
		}
		if len(users) > 0 {
			return nil, inUse(path, users)
		}
	}
	if p.Found, err = p.disk.contents(ctx, p.tools); err != nil {
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

// room is about what files can take: file systems keep some of their space to themselves, most for ext4, which reserves 5 %
// for root and gives as much to inodes.
func (p Partition) room() int64 { return p.Size - p.Size/16 - 32*mib }

// newSize returns the size that a disk has once it is what was asked for, 0 being as it is.
func (d *disk) newSize(size int64) (int64, error) {
	switch {
	case d.block && size != 0:
		return 0, fmt.Errorf("%s is a block device: it has the size that it has, %s", d.path, human(d.size))
	case !d.exists && size == 0:
		return 0, fmt.Errorf("%s %w", d.path, ErrNoSize)
	case size == 0:
		return d.size, nil
	case size < d.size:
		return 0, fmt.Errorf("%s has %s: it is not made smaller, to %s", d.path, human(d.size), human(size))
	}
	return size, nil
}

// String says what is going to be done, one thing a line.
func (p *Plan) String() string {
	var b strings.Builder
	switch {
	case !p.disk.exists:
		fmt.Fprintf(&b, "make the image file %s of %s\n", p.Disk, human(p.Size))
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
