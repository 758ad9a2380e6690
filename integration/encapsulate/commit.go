package encapsulate

import (
	"fmt"
	"io"
	"path"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// Objects are the objects of a commit.
type Objects interface {
	// ReadMetadata returns the bytes of a metadata object.
	ReadMetadata(t objectstore.ObjectType, sum objectstore.Checksum) ([]byte, error)
	// FileMeta returns the metadata of a content object.
	FileMeta(sum objectstore.Checksum) (*objectstore.FileMeta, error)
	// Open opens the content of a regular file.
	Open(sum objectstore.Checksum) (content io.ReadCloser, size int64, err error)
}

// Repo returns the objects of a repository.
func Repo(r *objectstore.Repo) Objects { return repo{r} }

type repo struct{ *objectstore.Repo }

func (r repo) Open(sum objectstore.Checksum) (io.ReadCloser, int64, error) {
	st, err := r.Stat(sum)
	if err != nil {
		return nil, 0, err
	}
	f, err := r.OpenFile(sum)
	return f, st.Size, err
}

// A Commit is an ostree commit to encapsulate.
type Commit struct {
	Checksum objectstore.Checksum

	objects Objects
	commit  *objectstore.Commit
	root    *directory
	files   []file // those of a directory before its subdirectories
	dirs    map[string]attrs
}

// Objects returns the objects of the commit.
func (c *Commit) Objects() Objects { return c.objects }

// A file is a name of a content object.
type file struct {
	path string
	sum  objectstore.Checksum
}

// A directory is a directory of a commit.
type directory struct {
	path       string
	tree, meta objectstore.Checksum
	attrs      attrs
	sub        []*directory
}

// Read reads the directories of a commit.
func Read(objects Objects, sum objectstore.Checksum) (*Commit, error) {
	data, err := objects.ReadMetadata(objectstore.TypeCommit, sum)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", sum, err)
	}
	c := &Commit{Checksum: sum, objects: objects, dirs: make(map[string]attrs)}
	if c.commit, err = objectstore.ParseCommit(data); err != nil {
		return nil, fmt.Errorf("read commit %s: %w", sum, err)
	}
	if c.root, err = c.read("", c.commit.Tree, c.commit.Meta); err != nil {
		return nil, fmt.Errorf("read commit %s: %w", sum, err)
	}
	return c, nil
}

func (c *Commit) read(name string, tree, meta objectstore.Checksum) (*directory, error) {
	d := &directory{path: name, tree: tree, meta: meta}
	data, err := c.objects.ReadMetadata(objectstore.TypeDirMeta, meta)
	if err != nil {
		return nil, err
	}
	m, err := objectstore.ParseDirMeta(data)
	if err != nil {
		return nil, err
	}
	d.attrs = attrs{m.UID, m.GID, m.Mode}
	c.dirs[name] = d.attrs
	if data, err = c.objects.ReadMetadata(objectstore.TypeDirTree, tree); err != nil {
		return nil, err
	}
	entries, err := objectstore.ParseDirTree(data)
	if err != nil {
		return nil, err
	}
	for _, f := range entries.Files {
		c.files = append(c.files, file{path.Join(name, f.Name), f.Checksum})
	}
	for _, e := range entries.Dirs {
		sub, err := c.read(path.Join(name, e.Name), e.Tree, e.Meta)
		if err != nil {
			return nil, err
		}
		d.sub = append(d.sub, sub)
	}
	return d, nil
}

// Labels returns the labels of an image with the commit, whose last layer with objects of the commit has this diff ID.
func (c *Commit) Labels(final string) map[string]string {
	labels := map[string]string{"ostree.commit": c.Checksum.String(), "ostree.final-diffid": final}
	if v, ok := c.commit.Lookup("ostree.bootable"); ok && v.Type == "b" {
		labels["ostree.bootable"] = fmt.Sprint(v.Data[0] != 0)
		labels["containers.bootc"] = "1"
	}
	if v, ok := c.commit.MetaString("ostree.linux"); ok {
		labels["ostree.linux"] = v
	}
	if v, ok := c.commit.MetaString("version"); ok {
		labels["org.opencontainers.image.version"] = v
	}
	return labels
}

// xattrBytes returns a list of xattrs as a GVariant a(ayay).
func xattrBytes(list []objectstore.Xattr) []byte {
	return gvariant.AppendArray(nil, 1, len(list), func(b []byte, i int) []byte {
		start := len(b)
		b = append(append(b, list[i].Name...), 0)
		name := len(b)
		return gvariant.AppendOffsets(append(b, list[i].Value...), start, name)
	})
}
