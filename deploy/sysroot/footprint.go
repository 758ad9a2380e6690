package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A Footprint is the space that a deployment takes in the sysroot: objects of the repository, and files of its own, which
// are its directories, its /etc and other copies, its composefs image, and the upper layer of a transient root. Those are
// allocated bytes, each inode once, without what the caller may not read. The stateroot's /var and what is in /boot are not
// part of it.
type Footprint struct {
	Unique int64 // freed if only this deployment went
	Shared int64 // needed by another deployment or another commit of the repository, or linked from elsewhere
}

// objectCounts counts the occurrences of each object in a commit's tree: a checkout has a hard link for each.
type objectCounts map[objectstore.ObjectName]int

// A measurer measures deployments. It reads commits and directories that several have only once.
type measurer struct {
	ctx     context.Context
	repo    *objectstore.Repo
	dirs    map[objectstore.Checksum]objectCounts // by dirtree
	commits map[objectstore.Checksum]objectCounts
	refs    map[string]objectstore.Checksum
	inside  map[objectstore.Checksum]struct{} // commits inside the images of deployments
}

// BlobRefs is where ostree's own tools have the refs of layers, and of the commits inside images. Such a ref of ours goes with
// the last deployment of its image.
const BlobRefs = "ostree/container/blob"

// Footprints measures each of a list of deployments. A deployment whose commit is incomplete gets nil.
func (s *Sysroot) Footprints(ctx context.Context, list []*Deployment) ([]*Footprint, error) {
	result, err := footprints(ctx, s.repo, s.boot, list)
	if err != nil {
		return nil, err
	}
	for i, d := range list {
		if result[i] == nil {
			continue
		}
		if err := s.addOwn(ctx, d, result[i]); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// addOwn adds the files of a deployment that are no objects. What the caller may not read is left out.
func (s *Sysroot) addOwn(ctx context.Context, d *Deployment, f *Footprint) error {
	m := ownMeasurer{ctx: ctx, links: make(map[atfs.Inode]int)}
	for _, name := range []string{d.Path(), originPath(d), path.Join(backingDir(d.Stateroot), d.Name())} {
		top, err := s.dir.Lstat(name)
		if err == nil {
			m.dev = top.Dev
			err = m.add(s.dir, name)
		}
		if err = ignoreHidden(err); err != nil {
			return err
		}
	}
	f.Unique += m.bytes
	image, err := s.statCfs(d)
	if err == nil && image != nil && image.Nlink > 1 {
		f.Shared += atfs.Allocated(image)
	}
	return ignoreHidden(err)
}

// ignoreHidden returns nil for a file that does not exist, as far as the caller may know.
func ignoreHidden(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EACCES) {
		return nil
	}
	return err
}

// An ownMeasurer measures files that are no objects.
type ownMeasurer struct {
	ctx   context.Context
	dev   uint64 // what is elsewhere is mounted there
	links map[atfs.Inode]int
	bytes int64
}

// add adds name in dir and everything below it. An inode with several names counts, unless it has one that was not found: an
// object has.
func (m *ownMeasurer) add(dir *atfs.Dir, name string) error {
	if m.ctx.Err() != nil {
		return context.Cause(m.ctx)
	}
	st, err := dir.Lstat(name)
	if err != nil || st.Dev != m.dev {
		return ignoreHidden(err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	unseen := 1
	if !isDir && st.Nlink > 1 {
		id := atfs.InodeOf(&st)
		m.links[id]++
		unseen = int(st.Nlink) - m.links[id] + 1
	}
	if unseen == 1 {
		m.bytes += atfs.Allocated(&st)
	}
	if !isDir {
		return nil
	}
	sub, err := dir.OpenDir(name)
	if err != nil {
		return ignoreHidden(err)
	}
	names, err := sub.ReadNames()
	for _, n := range names {
		if err == nil {
			err = m.add(sub, n)
		}
	}
	return errors.Join(ignoreHidden(err), sub.Close())
}

func footprints(ctx context.Context, repo *objectstore.Repo, boot *atfs.Dir, list []*Deployment) ([]*Footprint, error) {
	m := measurer{
		ctx: ctx, repo: repo, dirs: make(map[objectstore.Checksum]objectCounts), commits: make(map[objectstore.Checksum]objectCounts),
		inside: make(map[objectstore.Checksum]struct{}),
	}
	var err error
	if m.refs, err = repo.Refs(""); err != nil {
		return nil, err
	}
	uses := make([]objectCounts, len(list))
	for i, d := range list {
		use, err := m.deployed(d.Commit)
		if err != nil && !errors.Is(err, objectstore.ErrNotExist) {
			return nil, err
		}
		uses[i] = use
	}
	others, err := m.others(list)
	if err != nil {
		return nil, err
	}
	kernels, err := bootLinks(boot)
	if err != nil {
		return nil, err
	}
	result := make([]*Footprint, len(list))
	for i := range list {
		if uses[i] == nil {
			continue
		}
		result[i] = &Footprint{}
		for obj := range uses[i] {
			bytes, alone, err := m.object(obj, i, uses, kernels)
			if err != nil {
				return nil, err
			}
			if _, ok := others[obj]; ok || !alone {
				result[i].Shared += bytes
			} else {
				result[i].Unique += bytes
			}
		}
	}
	return result, nil
}

// deployed counts the objects of a deployed commit's tree, and has those of a commit inside its image, too.
func (m *measurer) deployed(sum objectstore.Checksum) (objectCounts, error) {
	use, err := m.commit(sum)
	if err != nil {
		return nil, err
	}
	c, err := m.repo.Commit(sum)
	if err != nil || c.Parent == nil || !m.isInside(*c.Parent) {
		return use, err
	}
	inside, err := m.commit(*c.Parent)
	if errors.Is(err, objectstore.ErrNotExist) {
		return use, nil
	}
	if err != nil {
		return nil, err
	}
	m.inside[*c.Parent] = struct{}{}
	use = maps.Clone(use)
	for obj := range inside {
		use[obj] += 0 // no links
	}
	return use, nil
}

// isInside reports whether a commit has the ref of one inside an image.
func (m *measurer) isInside(sum objectstore.Checksum) bool {
	for ref, s := range m.refs {
		if s == sum && strings.HasPrefix(ref, BlobRefs+"/") {
			return true
		}
	}
	return false
}

// commit counts the objects of a commit's tree, and the commit itself.
func (m *measurer) commit(sum objectstore.Checksum) (objectCounts, error) {
	if use, ok := m.commits[sum]; ok {
		return use, nil
	}
	c, err := m.repo.Commit(sum)
	if err != nil {
		return nil, err
	}
	tree, err := m.dir(c.Tree, c.Meta, 0)
	if err != nil {
		return nil, err
	}
	use := maps.Clone(tree)
	use[objectstore.ObjectName{Checksum: sum, Type: objectstore.TypeCommit}]++
	m.commits[sum] = use
	return use, nil
}

// maxTreeDepth is the largest depth of a tree that is measured; no path of a file system is as long.
const maxTreeDepth = 2048

func (m *measurer) dir(tree, meta objectstore.Checksum, depth int) (objectCounts, error) {
	if use, ok := m.dirs[tree]; ok {
		return withMeta(use, meta), nil
	}
	if m.ctx.Err() != nil {
		return nil, context.Cause(m.ctx)
	}
	if depth > maxTreeDepth {
		return nil, fmt.Errorf("dirtree %s: %w: too deep", tree, objectstore.ErrCorrupt)
	}
	t, err := m.repo.DirTree(tree)
	if err != nil {
		return nil, err
	}
	use := objectCounts{{Checksum: tree, Type: objectstore.TypeDirTree}: 1}
	for _, f := range t.Files {
		use[objectstore.ObjectName{Checksum: f.Checksum, Type: objectstore.TypeFile}]++
	}
	for _, d := range t.Dirs {
		below, err := m.dir(d.Tree, d.Meta, depth+1)
		if err != nil {
			return nil, err
		}
		for obj, n := range below {
			use[obj] += n
		}
	}
	m.dirs[tree] = use
	return withMeta(use, meta), nil
}

// withMeta adds the dirmeta of a directory to its objects.
func withMeta(use objectCounts, meta objectstore.Checksum) objectCounts {
	use = maps.Clone(use)
	use[objectstore.ObjectName{Checksum: meta, Type: objectstore.TypeDirMeta}]++
	return use
}

// others returns the objects of commits with refs that are not deployed.
func (m *measurer) others(list []*Deployment) (map[objectstore.ObjectName]struct{}, error) {
	objects := make(map[objectstore.ObjectName]struct{})
	for ref, sum := range m.refs {
		if _, ok := m.inside[sum]; ok && strings.HasPrefix(ref, BlobRefs+"/") {
			continue
		}
		if slices.ContainsFunc(list, func(d *Deployment) bool { return d.Commit == sum }) {
			continue
		}
		use, err := m.commit(sum)
		if errors.Is(err, objectstore.ErrNotExist) {
			continue // a partial commit keeps nothing that others do not keep too
		}
		if err != nil {
			return nil, err
		}
		for obj := range use {
			objects[obj] = struct{}{}
		}
	}
	return objects, nil
}

// object returns an object's size on the disk, and whether deployment i alone needs it: no other of the list has it,
// and its inode has no names but the object's and those in the checkout and in /boot.
func (m *measurer) object(obj objectstore.ObjectName, i int, uses []objectCounts, kernels map[atfs.Inode]int) (bytes int64, alone bool, err error) {
	st, err := m.repo.ObjectsDir().Lstat(objectstore.LoosePath(obj.Checksum, obj.Type))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, true, nil // partial
	}
	if err != nil {
		return 0, false, err
	}
	bytes = atfs.Allocated(&st)
	for j, use := range uses {
		if _, ok := use[obj]; ok && j != i {
			return bytes, false, nil
		}
	}
	names := 1 + kernels[atfs.InodeOf(&st)]
	if obj.Type == objectstore.TypeFile {
		names += uses[i][obj]
	}
	return bytes, int(st.Nlink) <= names, nil
}

// bootLinks counts the names of inodes in /boot.
func bootLinks(boot *atfs.Dir) (map[atfs.Inode]int, error) {
	links := make(map[atfs.Inode]int)
	top, err := boot.OpenDir(ostreeDir)
	if errors.Is(err, fs.ErrNotExist) {
		return links, nil
	}
	if err != nil {
		return nil, err
	}
	defer top.Close()
	kernels, err := top.ReadNames()
	if err != nil {
		return nil, err
	}
	for _, k := range kernels {
		dir, err := top.OpenDir(k)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := dir.ReadNames()
		for _, name := range names {
			if st, err := dir.Lstat(name); err == nil {
				links[atfs.InodeOf(&st)]++
			}
		}
		if err = errors.Join(err, dir.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", path.Join(ostreeDir, k), err)
		}
	}
	return links, nil
}
