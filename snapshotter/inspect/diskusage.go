package inspect

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// diskUsage holds the allocated bytes of a store, each inode counted once, as du(1) counts. The four sums add up to the
// whole.
type diskUsage struct {
	objects   int64 // repo/objects/*/*
	checkouts int64 // layers/, rootfs/ and mounts/, without the inodes that are objects
	snapshots int64 // snapshots/ and lost/, without the inodes that are objects
	metadata  int64 // everything else: directories, refs, metadata.db, temporary files

	objectBytes   map[objectstore.ObjectName]int64 // by object
	refBytes      map[string]int64                 // by ref, and directory of refs, below refs/heads; part of metadata
	checkoutBytes map[string]int64                 // by directory of layers/, without the inodes that are objects

	// elsewhere holds the objects whose inodes also have names outside the store, in other repositories or deployments.
	// Removing them here frees nothing.
	elsewhere map[objectstore.ObjectName]struct{}
}

// usageWalk adds up a tree. Files that vanish meanwhile, because the daemon is at work, are not counted.
type usageWalk struct {
	ctx    context.Context
	names  map[atfs.Inode]uint64               // names met so far, of files with several names and of directories
	linked map[objectstore.ObjectName]linkedTo // objects that have several names
	use    *diskUsage
	tick   func(files int64)
	n      int64
	device uint64 // of the tree
}

// linkedTo is an inode and the number of its names, inside the store and outside.
type linkedTo struct {
	inode atfs.Inode
	links uint64
}

// diskUsage measures the store. The repository comes first, so that a hard link in a checkout is counted as the object.
func (s *Store) diskUsage(ctx context.Context, tick func(files int64)) (*diskUsage, error) {
	w := &usageWalk{
		ctx:    ctx,
		names:  make(map[atfs.Inode]uint64),
		linked: make(map[objectstore.ObjectName]linkedTo),
		use: &diskUsage{
			objectBytes:   make(map[objectstore.ObjectName]int64),
			refBytes:      make(map[string]int64),
			checkoutBytes: make(map[string]int64),
			elsewhere:     make(map[objectstore.ObjectName]struct{}),
		},
		tick: tick,
	}
	if err := w.top(s.Repo.Dir(), w.repoEntry); err != nil {
		return nil, err
	}
	if err := w.top(s.Root, w.rootEntry); err != nil {
		return nil, err
	}
	for obj, l := range w.linked {
		if l.links > w.names[l.inode] {
			w.use.elsewhere[obj] = struct{}{}
		}
	}
	return w.use, nil
}

// top walks the tree below dir.
func (w *usageWalk) top(dir *atfs.Dir, add func(name string, st *unix.Stat_t)) error {
	st, err := dir.Lstat(".")
	if err != nil {
		return err
	}
	if !w.first(st) { // the repository, which was measured already
		return nil
	}
	w.device = st.Dev
	add(".", &st)
	return w.walk(dir, ".", add)
}

func (w *usageWalk) walk(dir *atfs.Dir, prefix string, add func(name string, st *unix.Stat_t)) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	names, err := dir.ReadNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := dir.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !w.first(st) {
			continue
		}
		w.n++
		w.tick(w.n)
		below := path.Join(prefix, name)
		add(below, &st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Dev != w.device {
			continue // not into images that are mounted
		}
		if err := w.enter(dir, name, below, add); err != nil {
			return err
		}
	}
	return nil
}

func (w *usageWalk) enter(dir *atfs.Dir, name, below string, add func(string, *unix.Stat_t)) error {
	sub, err := dir.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(w.walk(sub, below, add), sub.Close())
}

// first reports whether an inode was not met before. Directories are remembered too, whatever their link count (Btrfs
// always says 1): the repository may be below the root.
func (w *usageWalk) first(st unix.Stat_t) bool {
	if st.Nlink < 2 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true
	}
	id := atfs.InodeOf(&st)
	w.names[id]++
	return w.names[id] == 1
}

// repoEntry counts a file of the repository.
func (w *usageWalk) repoEntry(name string, st *unix.Stat_t) {
	bytes := atfs.Allocated(st)
	if loose, ok := strings.CutPrefix(name, "objects/"); ok {
		if obj, err := objectstore.ParseLoosePath(loose); err == nil {
			w.use.objects += bytes
			w.use.objectBytes[obj] += bytes
			if st.Nlink > 1 {
				w.linked[obj] = linkedTo{atfs.InodeOf(st), uint64(st.Nlink)} //nolint:unconvert // it has 32 bits on arm64
			}
			return
		}
	}
	w.use.metadata += bytes
	if ref, ok := strings.CutPrefix(name, "refs/heads/"); ok {
		w.use.refBytes[ref] = bytes
	}
}

// rootEntry counts a file of the root that is not in the repository.
func (w *usageWalk) rootEntry(name string, st *unix.Stat_t) {
	bytes := atfs.Allocated(st)
	top, rest, _ := strings.Cut(name, "/")
	switch {
	case (top == layer.RootfsDir || top == snapshotter.MountsDir) && rest != "":
		w.use.checkouts += bytes
	case top == layer.LayersDir && rest != "":
		w.use.checkouts += bytes
		checkout, _, _ := strings.Cut(rest, "/")
		w.use.checkoutBytes[checkout] += bytes
	case (top == snapshotter.SnapshotsDir || top == snapshotter.LostDir) && rest != "":
		w.use.snapshots += bytes
	default:
		w.use.metadata += bytes
	}
}
