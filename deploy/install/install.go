package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
)

// Execute installs an OS as planned. It needs root.
//
// The old contents of the disk are gone once Execute has begun to write. Contents that have appeared since the disk was
// planned are an error before that, and so is another disk at its path, an ErrChanged. After an error, or if the process
// is killed, the disk has no partition table and counts as empty. After an error a new image file is removed, and an
// existing one has its old size. No mount and no loop device stays in any case. When it returns nil everything is on the
// disk.
func (p *Plan) Execute(ctx context.Context, o *OS) error {
	err := p.execute(ctx, func(ctx context.Context, root *atfs.Dir) error { return p.fill(ctx, root, o) })
	if err != nil {
		return fmt.Errorf("install on %s: %w", p.Disk, err)
	}
	return nil
}

// execute is Execute with a function that puts the OS on the root file system, and the ESP's contents into espDir
// there.
func (p *Plan) execute(ctx context.Context, fill func(ctx context.Context, root *atfs.Dir) error) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("make and mount file systems: %w", unix.EPERM)
	}
	if err := supports(p.root().Filesystem); err != nil {
		return err
	}
	f, end, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = joined(joined(err, end(err != nil)), f.Close()) }()
	if err := p.checkTable(ctx, f); err != nil {
		return err
	}
	if err := p.wipe(f); err != nil {
		return err
	}
	if err := p.fileSystems(ctx, f, fill); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return p.writeTable(ctx, f)
}

// joined is errors.Join, but returns a single error as it is.
func joined(err, second error) error {
	if second == nil {
		return err
	}
	return errors.Join(err, second)
}

func (p *Plan) progress(ctx context.Context, step string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.opts.Progress != nil {
		p.opts.Progress(step)
	}
	return nil
}

// open claims the disk and prepares it for writing. End is for its end: after a failure it restores an image file.
func (p *Plan) open(ctx context.Context) (f *os.File, end func(failed bool) error, err error) {
	d := p.disk
	if !d.exists {
		f, end, err = d.create()
	} else if f, err = d.claim(); err == nil {
		end = func(failed bool) error { return d.empty(f, failed) }
		if !p.opts.Wipe {
			err = p.stillEmpty(ctx, f)
		}
	}
	if err != nil {
		if f != nil {
			err = joined(err, f.Close())
		}
		return nil, nil, err
	}
	if !d.block {
		if err := f.Truncate(p.Size); err != nil {
			return nil, nil, joined(joined(err, end(true)), f.Close())
		}
	}
	return f, end, nil
}

// stillEmpty refuses contents that have appeared since the disk was planned for.
func (p *Plan) stillEmpty(ctx context.Context, f *os.File) error {
	found, err := p.disk.contents(ctx, p.tools, f)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("it is %w any more: %s", ErrNotEmpty, strings.Join(found, ", "))
	}
	return err
}

// empty gives an image file its old size after a failure, without contents.
func (d *disk) empty(f *os.File, failed bool) error {
	if d.block || !failed {
		return nil
	}
	return errors.Join(f.Truncate(0), f.Truncate(d.size))
}

// wipe removes the partition table of the disk.
func (p *Plan) wipe(f *os.File) error {
	if err := zeroEdges(f, 0, p.Size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return p.disk.rereadTable(f)
}

// checkTable asks sfdisk whether it would write the table, which happens when everything else is done.
func (p *Plan) checkTable(ctx context.Context, f *os.File) error {
	return p.sfdisk(ctx, f, "--no-act")
}

func (p *Plan) writeTable(ctx context.Context, f *os.File) error {
	if err := p.progress(ctx, "write the partition table"); err != nil {
		return err
	}
	if err := p.disk.checkPath(f); err != nil {
		return err
	}
	if err := p.sfdisk(ctx, f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return p.disk.rereadTable(f)
}

func (p *Plan) sfdisk(ctx context.Context, f *os.File, options ...string) error {
	options = append(options, "--quiet", "--wipe", "never", "--wipe-partitions", "never", "--no-reread", "--no-tell-kernel")
	script := sfdiskScript(p.Partitions, p.disk.sector)
	_, err := p.tools.run(ctx, script, []*os.File{f}, "sfdisk", append(options, "--", childPath(0))...)
	return err
}

// fileSystems makes the file systems and puts the OS on them.
func (p *Plan) fileSystems(ctx context.Context, f *os.File, fill func(ctx context.Context, root *atfs.Dir) error) (err error) {
	if err := p.progress(ctx, "make file systems"); err != nil {
		return err
	}
	esp, err := p.makeFilesystem(ctx, f, p.esp())
	if err != nil {
		return err
	}
	defer func() { err = joined(err, esp.close()) }()
	root, err := p.makeFilesystem(ctx, f, p.root())
	if err != nil {
		return err
	}
	defer func() { err = joined(err, root.close()) }()
	m, err := mounts.MountDetached(root.path(), p.root().Filesystem, p.Disk+":root")
	if err != nil {
		return err
	}
	defer func() { err = joined(err, m.Close()) }()
	if err := fill(ctx, m.Dir); err != nil {
		return err
	}
	if err := p.progress(ctx, "write the EFI system partition"); err != nil {
		return err
	}
	if err := p.copyESP(ctx, m.Dir, esp); err != nil {
		return err
	}
	if err := m.Dir.RemoveAll(espDir); err != nil {
		return err
	}
	return p.progress(ctx, "write everything to the disk")
}

// makeFilesystem returns the loop device of a partition with a new file system.
func (p *Plan) makeFilesystem(ctx context.Context, f *os.File, part Partition) (l *loop, err error) {
	if err := zeroEdges(f, part.Start, part.Size); err != nil {
		return nil, err
	}
	if l, err = attach(f, part.Start, part.Size, p.disk.sector); err != nil {
		return nil, err
	}
	command, _, err := mkfs(part.Filesystem, part.Label, p.RootUUID)
	if err == nil {
		_, err = p.tools.run(ctx, "", []*os.File{l.f}, command[0], append(command[1:], childPath(0))...)
	}
	if err != nil {
		return nil, joined(err, l.close())
	}
	return l, nil
}
