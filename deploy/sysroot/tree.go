package sysroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// An osTree is the tree of a commit. Its directories are read when they are needed.
type osTree struct {
	repo   *objectstore.Repo
	commit *objectstore.Commit
	dirs   map[objectstore.Checksum]*objectstore.DirTree
}

// A node is what a name in a tree is.
type node struct {
	dir  bool
	sum  objectstore.Checksum // of a content object or a dirtree
	meta objectstore.Checksum // of a directory
}

func openTree(repo *objectstore.Repo, sum objectstore.Checksum) (*osTree, error) {
	c, err := repo.Commit(sum)
	if err != nil {
		return nil, err
	}
	return &osTree{repo, c, make(map[objectstore.Checksum]*objectstore.DirTree)}, nil
}

func (t *osTree) read(n node) (*objectstore.DirTree, error) {
	if d, ok := t.dirs[n.sum]; ok {
		return d, nil
	}
	d, err := t.repo.DirTree(n.sum)
	if err == nil {
		t.dirs[n.sum] = d
	}
	return d, err
}

// lookup returns what is at a path, an absentError if nothing is. It follows no symbolic links.
func (t *osTree) lookup(name string) (node, error) {
	n := node{true, t.commit.Tree, t.commit.Meta}
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !n.dir {
			return node{}, notThere(name)
		}
		d, err := t.read(n)
		if err != nil {
			return node{}, err
		}
		var ok bool
		if n, ok = entryOf(d, part); !ok {
			return node{}, notThere(name)
		}
	}
	return n, nil
}

// An absentError is not fs.ErrNotExist, which a missing object is: a name may be missing, objects may not.
type absentError struct{ name string }

func (e *absentError) Error() string { return "there is no /" + e.name }

func notThere(name string) error { return &absentError{name} }

func isAbsent(err error) bool {
	var absent *absentError
	return errors.As(err, &absent)
}

func entryOf(d *objectstore.DirTree, name string) (node, bool) {
	for i := range d.Dirs {
		if d.Dirs[i].Name == name {
			return node{true, d.Dirs[i].Tree, d.Dirs[i].Meta}, true
		}
	}
	for i := range d.Files {
		if d.Files[i].Name == name {
			return node{sum: d.Files[i].Checksum}, true
		}
	}
	return node{}, false
}

// dir returns a directory, nil if nothing or something else is there.
func (t *osTree) dir(name string) (*objectstore.DirTree, error) {
	n, err := t.lookup(name)
	if isAbsent(err) || err == nil && !n.dir {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return t.read(n)
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
		err = fmt.Errorf("/%s is no regular file: %w", name, ErrInvalid)
	}
	return treeFile{sum, st.Size, name}, err
}

// resolve follows symbolic links as if the tree were the root.
func (t *osTree) resolve(name string) (node, error) {
	rest := strings.Split(name, "/")
	var done []string
	for links := 0; ; {
		if len(rest) == 0 {
			return t.lookup(path.Join(append([]string{"."}, done...)...))
		}
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = done[:max(len(done)-1, 0)]
			continue
		}
		here := path.Join(append(done[:len(done):len(done)], part)...)
		n, err := t.lookup(here)
		if err != nil {
			return node{}, err
		}
		if !n.dir {
			m, err := t.repo.FileMeta(n.sum)
			if err != nil {
				return node{}, err
			}
			if m.IsSymlink() {
				if links++; links > 40 {
					return node{}, &fs.PathError{Op: "resolve", Path: "/" + name, Err: unix.ELOOP}
				}
				if path.IsAbs(m.Target) {
					done = nil
				}
				rest = append(strings.Split(m.Target, "/"), rest...)
				continue
			}
		}
		done = append(done, part)
	}
}

// readFile returns the content of a file of at most limit bytes. Symbolic links are followed as if the tree were the root.
func (t *osTree) readFile(name string, limit int64) ([]byte, error) {
	n, err := t.resolve(name)
	if err == nil && n.dir {
		err = &fs.PathError{Op: "read", Path: "/" + name, Err: unix.EISDIR}
	}
	if err != nil {
		return nil, err
	}
	f, err := t.repo.OpenFile(n.sum)
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
