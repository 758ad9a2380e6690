package sysroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/internal/links"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// An osTree is the tree of a commit.
type osTree struct {
	repo   *objectstore.Repo
	commit *objectstore.Commit
}

func openTree(repo *objectstore.Repo, sum objectstore.Checksum) (*osTree, error) {
	c, err := repo.Commit(sum)
	if err != nil {
		return nil, err
	}
	return &osTree{repo, c}, nil
}

// lookup returns the entry at a path. An absent name is isAbsent.
func (t *osTree) lookup(name string) (objectstore.TreeEntry, error) {
	return t.repo.Lookup(t.commit.Root(), name)
}

func isAbsent(err error) bool { return errors.Is(err, objectstore.ErrNoEntry) }

// dir returns a directory, or nil for anything else.
func (t *osTree) dir(name string) (*objectstore.DirTree, error) {
	n, err := t.lookup(name)
	if isAbsent(err) || err == nil && !n.Dir {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return t.repo.DirTree(n.Checksum)
}

// A treeFile is a regular file in a tree.
type treeFile struct {
	sum  objectstore.Checksum
	size int64
	name string // below the directory that it is installed in
}

// regular describes a content object that must be a regular file.
func (t *osTree) regular(sum objectstore.Checksum, name string) (treeFile, error) {
	st, err := t.repo.Stat(sum)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("/%s is not a regular file: %w", name, ErrInvalid)
	}
	return treeFile{sum, st.Size, name}, err
}

// look is lookup, with the target of a symbolic link.
func (t *osTree) look(name string) (n objectstore.TreeEntry, target string, err error) {
	if n, err = t.lookup(name); err != nil || n.Dir {
		return n, "", err
	}
	m, err := t.repo.FileMeta(n.Checksum)
	if err != nil {
		return n, "", err
	}
	return n, m.Target, nil
}

// resolve returns the entry at a path, as [links.Resolve] does.
func (t *osTree) resolve(name string) (objectstore.TreeEntry, error) {
	return links.Resolve(name, t.look)
}

// readFile returns the content of a file of at most limit bytes. It follows symbolic links as if the tree were the
// root.
func (t *osTree) readFile(name string, limit int64) ([]byte, error) {
	n, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	return t.readEntry(n, name, limit)
}

// readEntry returns the content of a file of at most limit bytes.
func (t *osTree) readEntry(n objectstore.TreeEntry, name string, limit int64) ([]byte, error) {
	if n.Dir {
		return nil, &fs.PathError{Op: "read", Path: "/" + name, Err: unix.EISDIR}
	}
	f, err := t.repo.OpenFile(n.Checksum)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("/%s has more than %d bytes: %w", name, limit, ErrInvalid)
	}
	return data, err
}
