package encapsulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// ErrInvalid marks commits that no image can hold.
var ErrInvalid = errors.New("commit cannot be encapsulated")

// Limits of a commit. Importers have limits like these.
const (
	maxPaths = 4 << 20
	maxPath  = 4095 // PATH_MAX without the NUL
)

// Objects are the objects of a commit.
type Objects interface {
	// ReadMetadata returns the verified bytes of a metadata object. Of a commit without all its objects it is an ErrInvalid.
	ReadMetadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error)
	// FileMeta returns the metadata of a content object.
	FileMeta(sum objectstore.Checksum) (*objectstore.FileMeta, error)
	// Open opens the content of a regular file.
	Open(sum objectstore.Checksum) (content io.ReadCloser, size int64, err error)
}

// Repo returns the objects of a repository.
func Repo(r *objectstore.Repo) Objects { return repo{r} }

type repo struct{ *objectstore.Repo }

func (r repo) ReadMetadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error) {
	if t == objectstore.TypeCommit {
		switch partial, err := r.IsPartial(sum); {
		case err != nil:
			return nil, err
		case partial:
			return nil, fmt.Errorf("%w: the commit is incomplete; pull it again", ErrInvalid)
		}
	}
	return r.Repo.ReadMetadata(t, sum)
}

func (r repo) Open(sum objectstore.Checksum) (io.ReadCloser, int64, error) {
	f, err := r.OpenFile(sum)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size, nil
}

// A Commit is an ostree commit to encapsulate. It is safe for concurrent use.
type Commit struct {
	Sum    objectstore.Checksum
	Object *objectstore.Commit
	// Files are the names of all files: those of a directory, sorted, before those of its subdirectories.
	Files []File

	objects Objects
	dirs    []directory // each before those below it
	dirAt   map[string]int
	signed  bool // it has detached metadata
}

// A File is a name of a content object.
type File struct {
	Path string // in the commit
	Sum  objectstore.Checksum
}

// A directory is a directory of a commit.
type directory struct {
	path       string // "" for the root
	tree, meta objectstore.Checksum
	attrs      attrs
}

// The directory that images have for themselves. What a commit has in it has no place in them.
const ownDir = "sysroot"

// Read reads a commit and its directories. An absent object is an objectstore.ErrNotExist, a damaged one an
// objectstore.ErrCorrupt, and a commit that no image can hold an ErrInvalid.
func Read(ctx context.Context, objects Objects, sum objectstore.Checksum) (*Commit, error) {
	c := &Commit{Sum: sum, objects: objects, dirAt: make(map[string]int)}
	if err := c.read(ctx); err != nil {
		return nil, fmt.Errorf("read commit %s: %w", sum, err)
	}
	return c, nil
}

func (c *Commit) read(ctx context.Context) error {
	data, err := c.metadata(objectstore.TypeCommit, c.Sum)
	if err != nil {
		return err
	}
	if c.Object, err = objectstore.ParseCommit(data); err != nil {
		return err
	}
	switch _, err := c.metadata(objectstore.TypeCommitMeta, c.Sum); {
	case err == nil:
		c.signed = true
	case !errors.Is(err, objectstore.ErrNotExist):
		return err
	}
	if err := c.readDir(ctx, "", c.Object.Tree, c.Object.Meta); err != nil {
		return err
	}
	_, shown := c.dirAt["etc"]
	if _, ok := c.dirAt["usr/etc"]; ok && shown {
		return fmt.Errorf("%w: it has both /etc and /usr/etc", ErrInvalid)
	}
	return nil
}

// metadata returns the bytes of a metadata object, which are not too many for an image.
func (c *Commit) metadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error) {
	data, err := c.objects.ReadMetadata(t, sum)
	if err == nil && len(data) > format.MaxMetadata {
		err = fmt.Errorf("%w: object %s.%s has %d bytes, importers allow %d", ErrInvalid, sum, t, len(data), format.MaxMetadata)
	}
	return data, err
}

func (c *Commit) readDir(ctx context.Context, name string, tree, meta objectstore.Checksum) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	data, err := c.metadata(objectstore.TypeDirMeta, meta)
	if err != nil {
		return err
	}
	m, err := objectstore.ParseDirMeta(data)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	if data, err = c.metadata(objectstore.TypeDirTree, tree); err != nil {
		return err
	}
	entries, err := objectstore.ParseDirTree(data)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	c.dirAt[name] = len(c.dirs)
	c.dirs = append(c.dirs, directory{name, tree, meta, attrs{m.UID, m.GID, m.Mode}})
	if name == ownDir && tree != format.EmptyTree.Checksum {
		return fmt.Errorf("%w: /%s is not empty; images have their own files there", ErrInvalid, ownDir)
	}
	for _, f := range entries.Files {
		c.Files = append(c.Files, File{path.Join(name, f.Name), f.Checksum})
	}
	if len(c.Files)+len(c.dirs) > maxPaths || len(name) > maxPath {
		return fmt.Errorf("%w: more than %d paths, or one longer than %d bytes", ErrInvalid, maxPaths, maxPath)
	}
	for _, e := range entries.Dirs {
		if err := c.readDir(ctx, path.Join(name, e.Name), e.Tree, e.Meta); err != nil {
			return err
		}
	}
	return nil
}
