// Package cfs makes the composefs image of a commit's tree: the file .ostree.cfs of a deployment, which
// ostree-prepare-root(1) mounts as the root. It is the image that ostree 2025.1 and later make, byte by byte.
//
// Every name has an inode of its own, of time 0, also where several lead to the same object. A regular file that is not
// empty has its object as its content. Files named .ostree-wh.NAME, which a checkout turns into whiteouts, stay as they
// are. The directories that a root needs to mount something on are added if the tree lacks them.
package cfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// Name is the name of the image in a deployment.
const Name = ".ostree.cfs"

// DigestKey is the key in a commit's metadata of the fs-verity digest of its image with [AllDigests].
const DigestKey = "ostree.composefs.digest.v0"

// ErrInvalid reports a tree that has no image.
var ErrInvalid = errors.New("tree has no composefs image")

// Digests selects the fs-verity digests of files in an image.
type Digests int

const (
	// KnownDigests are those of objects that have fs-verity.
	KnownDigests Digests = iota
	// AllDigests makes an image that depends on the tree alone. Objects without fs-verity are read.
	AllDigests
	// VerityDigests makes the same image as AllDigests, and gives fs-verity to every object in it. Damaged objects are an
	// objectstore.ErrCorrupt, and a file system without fs-verity is errors.ErrUnsupported.
	VerityDigests
)

// format is that of ostree: the second version for trees with whiteouts, which commits do not have.
var format = composefs.Options{MaxVersion: 1}

// Marshal returns the image of the tree of a commit. Objects are not verified. A tree that has no image is an
// ErrInvalid, an incomplete one an objectstore.ErrNotExist.
//
// Allocations, apart from the image, stay below 1 KiB for each name of the tree, of which there are at most 4 million.
func Marshal(ctx context.Context, repo *objectstore.Repo, root objectstore.TreeEntry, digests Digests) ([]byte, error) {
	image, err := marshal(ctx, repo, root, digests)
	if errors.Is(err, composefs.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("make composefs image: %w", err)
	}
	return image, nil
}

// Digest returns the fs-verity digest of the image of the tree of a commit with [AllDigests]. Errors are those of Marshal.
func Digest(ctx context.Context, repo *objectstore.Repo, root objectstore.TreeEntry) (objectstore.Checksum, error) {
	image, err := Marshal(ctx, repo, root, AllDigests)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	return composefs.VerityDigest(bytes.NewReader(image))
}

func marshal(ctx context.Context, repo *objectstore.Repo, root objectstore.TreeEntry, digests Digests) ([]byte, error) {
	t := tree{
		repo: repo, digests: digests, dirs: make(map[objectstore.Checksum]*dirTree),
		files: make(map[objectstore.Checksum][]*composefs.Inode), metas: make(map[objectstore.Checksum]*composefs.Inode),
	}
	if _, err := t.load(ctx, root.Checksum, 0); err != nil {
		return nil, err
	}
	top, err := t.dir(ctx, root)
	if err == nil {
		err = t.readFiles(ctx)
	}
	if err != nil {
		return nil, err
	}
	addMountPoints(top)
	return composefs.Marshal(top, format)
}

// Limits of a tree.
const (
	maxNames = 4 << 20
	maxDepth = 1024 // that of a checkout
)

// A tree is that of an image in the making.
type tree struct {
	repo    *objectstore.Repo
	digests Digests
	dirs    map[objectstore.Checksum]*dirTree
	files   map[objectstore.Checksum][]*composefs.Inode // by object; complete once readFiles has filled them in
	metas   map[objectstore.Checksum]*composefs.Inode   // directories without entries, by dirmeta
}

// A dirTree is a directory of a commit.
type dirTree struct {
	*objectstore.DirTree
	names int // in it and everywhere below
}

// load reads a directory with all below it. It bounds the tree before memory is allocated for each of its names: a few
// directories, each several times in another, have any number of them.
func (t *tree) load(ctx context.Context, sum objectstore.Checksum, depth int) (*dirTree, error) {
	if d, ok := t.dirs[sum]; ok {
		return d, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: more than %d directories in each other", ErrInvalid, maxDepth)
	}
	parsed, err := t.repo.DirTree(sum)
	if err != nil {
		return nil, err
	}
	d := &dirTree{parsed, len(parsed.Files) + len(parsed.Dirs)}
	for i := range d.Dirs {
		below, err := t.load(ctx, d.Dirs[i].Tree, depth+1)
		if err != nil {
			return nil, err
		}
		if d.names += below.names; d.names > maxNames {
			return nil, fmt.Errorf("%w: more than %d names", ErrInvalid, maxNames)
		}
	}
	t.dirs[sum] = d
	return d, nil
}

// dir returns a directory with all below it.
func (t *tree) dir(ctx context.Context, e objectstore.TreeEntry) (*composefs.Inode, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	d := t.dirs[e.Checksum]
	n, err := t.newDir(e.Meta)
	if err != nil {
		return nil, err
	}
	n.Entries = make([]composefs.Entry, 0, len(d.Files)+len(d.Dirs))
	for i := range d.Files {
		f := &composefs.Inode{}
		t.files[d.Files[i].Checksum] = append(t.files[d.Files[i].Checksum], f)
		n.Entries = append(n.Entries, composefs.Entry{Name: d.Files[i].Name, Inode: f})
	}
	for i := range d.Dirs {
		below, err := t.dir(ctx, d.Dirs[i].Entry())
		if err != nil {
			return nil, err
		}
		n.Entries = append(n.Entries, composefs.Entry{Name: d.Dirs[i].Name, Inode: below})
	}
	slices.SortFunc(n.Entries, func(a, b composefs.Entry) int { return strings.Compare(a.Name, b.Name) })
	return n, nil
}

func (t *tree) newDir(meta objectstore.Checksum) (*composefs.Inode, error) {
	proto, ok := t.metas[meta]
	if !ok {
		m, err := t.repo.DirMeta(meta)
		if err != nil {
			return nil, err
		}
		proto = &composefs.Inode{Mode: m.Mode, UID: m.UID, GID: m.GID, Xattrs: xattrs(m.Xattrs)}
		t.metas[meta] = proto
	}
	n := *proto
	return &n, nil
}

// xattrs returns extended attributes in the order of an image. A dirmeta may have them in any.
func xattrs(list []objectstore.Xattr) []composefs.Xattr {
	out := make([]composefs.Xattr, len(list))
	for i, x := range list {
		out[i] = composefs.Xattr(x)
	}
	slices.SortFunc(out, func(a, b composefs.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// readFiles fills in the inodes of files, each object once.
func (t *tree) readFiles(ctx context.Context) error {
	known, err := t.repo.HasVerity()
	if err != nil {
		return err
	}
	sums := make([]objectstore.Checksum, 0, len(t.files))
	for sum := range t.files {
		sums = append(sums, sum)
	}
	group, ctx := panics.WithContext(ctx)
	var next atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(sums)); i = next.Add(1) - 1 {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				proto, err := t.file(sums[i], known)
				if err != nil {
					return err
				}
				for _, n := range t.files[sums[i]] {
					*n = *proto
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// file returns the inode of an object. Known tells whether it can have fs-verity.
func (t *tree) file(sum objectstore.Checksum, known bool) (*composefs.Inode, error) {
	st, err := t.repo.Stat(sum)
	if err != nil {
		return nil, err
	}
	m, err := t.repo.FileMeta(sum)
	if err != nil {
		return nil, err
	}
	n := &composefs.Inode{Mode: m.Mode, UID: m.UID, GID: m.GID, Target: m.Target, Xattrs: xattrs(m.Xattrs)}
	if m.IsSymlink() || st.Size == 0 {
		return n, nil
	}
	n.Size, n.Payload = st.Size, objectstore.LoosePath(sum, objectstore.TypeFile)
	if t.digests == KnownDigests && !known {
		return n, nil
	}
	n.Verity, err = t.digest(sum)
	return n, err
}

// digest returns the fs-verity digest of an object, or nil if the image does without.
func (t *tree) digest(sum objectstore.Checksum) ([]byte, error) {
	if t.digests == VerityDigests {
		d, err := t.repo.EnableVerity(sum)
		return d[:], err
	}
	known, ok, err := t.repo.MeasureVerity(sum)
	switch {
	case err != nil:
		return nil, err
	case ok:
		return known[:], nil
	case t.digests == KnownDigests:
		return nil, nil
	}
	f, err := t.repo.OpenFile(sum)
	if err != nil {
		return nil, err
	}
	d, err := composefs.VerityDigest(f)
	return d[:], errors.Join(err, f.Close())
}

// mountPoints are the directories that ostree-prepare-root and systemd mount something on.
var mountPoints = []string{"boot", "etc", "sysroot", "usr", "var"}

func addMountPoints(root *composefs.Inode) {
	for _, name := range mountPoints {
		i, ok := root.Find(name)
		if !ok {
			dir := &composefs.Inode{Mode: unix.S_IFDIR | 0o755}
			root.Entries = slices.Insert(root.Entries, i, composefs.Entry{Name: name, Inode: dir})
		}
	}
}
