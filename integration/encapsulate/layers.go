package encapsulate

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Options choose the form of an image.
type Options struct {
	// Chunks is the number of layers after layer 0.
	Chunks int
	// Chunk returns the chunk of a file, from 0, or -1 for layer 0. Not used without Chunks.
	Chunk func(path string) int
	// Parents adds the directories of the files to each chunk: rpm-ostree's format version 2. Version 1 leaves them to
	// layer 0.
	Parents bool
	// LinkedXattrs stores equal xattrs once in each layer, and links to them, as the first V1 builders did.
	LinkedXattrs bool
}

// A Layer writes the plain tar of a layer.
type Layer func(w io.Writer) error

const (
	repoDir    = "sysroot/ostree/repo"
	repoConfig = "[core]\nrepo_version=1\nmode=bare-split-xattrs\n"
)

// Layers returns layer 0 and the chunks of a commit.
func (c *Commit) Layers(o Options) []Layer {
	layers := []Layer{func(w io.Writer) error {
		l := c.newLayer(w, o)
		l.dir("./", c.root.attrs)
		l.skeleton()
		l.metadata(objectstore.TypeCommit, c.Checksum)
		l.metadata(objectstore.TypeDirMeta, c.root.meta)
		l.structure(c.root)
		if _, ok := c.dirs["var/tmp"]; !ok {
			l.dir("var/tmp", attrs{mode: 0o1777})
		}
		l.content(c.chunk(o, -1))
		return l.end()
	}}
	for i := range o.Chunks {
		layers = append(layers, func(w io.Writer) error {
			l := c.newLayer(w, o)
			l.skeleton()
			l.content(c.chunk(o, i))
			return l.end()
		})
	}
	return layers
}

// chunk returns the files of a chunk.
func (c *Commit) chunk(o Options, n int) (files []file) {
	for _, f := range c.files {
		of := -1
		if o.Chunks > 0 {
			of = o.Chunk(f.path)
		}
		if of == n {
			files = append(files, f)
		}
	}
	return files
}

// A layer writes one layer.
type layer struct {
	tarWriter
	c     *Commit
	o     Options
	done  map[string]bool // names below repoDir
	named map[string]bool // directories with an entry
}

func (c *Commit) newLayer(w io.Writer, o Options) *layer {
	return &layer{tarWriter: tarWriter{w: w}, c: c, o: o, done: make(map[string]bool), named: make(map[string]bool)}
}

// fail records an error.
func (l *layer) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

// skeleton writes an empty repository.
func (l *layer) skeleton() {
	l.dir("sysroot", attrs{mode: 0o755})
	l.dir("sysroot/ostree", attrs{mode: 0o755})
	dirs := []string{"", "/objects"}
	for i := range 256 {
		dirs = append(dirs, fmt.Sprintf("/objects/%02x", i))
	}
	dirs = append(dirs, "/extensions", "/refs", "/refs/heads", "/refs/mirrors", "/refs/remotes", "/state", "/tmp", "/tmp/cache")
	for _, dir := range dirs {
		l.dir(repoDir+dir, attrs{mode: 0o755})
	}
	l.file(repoDir+"/config", []byte(repoConfig), plain)
}

// object returns the path of an object.
func object(sum objectstore.Checksum, ext string) string {
	return fmt.Sprintf("%s/objects/%.2s/%s.%s", repoDir, sum, sum.String()[2:], ext)
}

// once reports whether a name has not been written in this layer.
func (l *layer) once(name string) bool {
	if l.done[name] {
		return false
	}
	l.done[name] = true
	return true
}

func (l *layer) metadata(t objectstore.ObjectType, sum objectstore.Checksum) {
	name := object(sum, t.Ext())
	if !l.once(name) {
		return
	}
	data, err := l.c.objects.ReadMetadata(t, sum)
	if err != nil {
		l.fail(err)
		return
	}
	l.file(name, data, plain)
}

// structure writes the metadata objects and directories below a directory.
func (l *layer) structure(d *directory) {
	l.metadata(objectstore.TypeDirTree, d.tree)
	for _, sub := range d.sub {
		l.metadata(objectstore.TypeDirMeta, sub.meta)
		if sub.path == "sysroot" {
			l.metadata(objectstore.TypeDirTree, sub.tree) // it must be empty
			continue
		}
		l.dir(shown(sub.path), sub.attrs)
		l.structure(sub)
	}
}

// shown returns the name in the root file system of a path in the commit.
func shown(name string) string {
	if name == "usr/etc" || strings.HasPrefix(name, "usr/etc/") {
		return strings.TrimPrefix(name, "usr/")
	}
	return name
}

// content writes the content objects of files, sorted, each with its names.
func (l *layer) content(files []file) {
	names := make(map[objectstore.Checksum][]string)
	var sums []objectstore.Checksum
	for _, f := range files {
		if _, ok := names[f.sum]; !ok {
			sums = append(sums, f.sum)
		}
		names[f.sum] = append(names[f.sum], f.path)
	}
	slices.SortFunc(sums, func(a, b objectstore.Checksum) int { return bytes.Compare(a[:], b[:]) })
	for _, sum := range sums {
		m, size := l.contentObject(sum)
		if l.err != nil {
			return
		}
		for _, name := range names[sum] {
			if l.o.Parents {
				l.parents(name)
			}
			a := attrs{m.UID, m.GID, m.Mode}
			if !m.IsSymlink() && size == 0 {
				l.file(shown(name), nil, a) // so that builders do not write to an object with many names
				continue
			}
			l.header(typeLink, shown(name), object(sum, "file"), a, 0)
		}
	}
}

// parents writes entries of the directories above a file.
func (l *layer) parents(name string) {
	for i, r := range name {
		if dir := name[:i]; r == '/' && !l.named[dir] {
			l.named[dir] = true
			l.dir(shown(dir), l.c.dirs[dir])
		}
	}
}

// contentObject writes a content object, and its xattrs.
func (l *layer) contentObject(sum objectstore.Checksum) (m *objectstore.FileMeta, size int64) {
	m, err := l.c.objects.FileMeta(sum)
	if err != nil {
		l.fail(err)
		return nil, 0
	}
	l.xattrs(sum, m.Xattrs)
	a := attrs{m.UID, m.GID, m.Mode}
	if m.IsSymlink() {
		l.header(typeSymlink, object(sum, "file"), m.Target, a, 0)
		return m, 0
	}
	content, size, err := l.c.objects.Open(sum)
	if err != nil {
		l.fail(err)
		return nil, 0
	}
	l.header(typeFile, object(sum, "file"), "", a, size)
	l.data(content, size)
	if err := content.Close(); err != nil {
		l.fail(err)
	}
	return m, size
}

// xattrs writes the xattrs of a content object twice: for ostree, and without the label for unpackers.
func (l *layer) xattrs(sum objectstore.Checksum, list []objectstore.Xattr) {
	data := xattrBytes(list)
	name := object(sum, "file-xattrs-link")
	if l.o.LinkedXattrs {
		target := object(sha256.Sum256(data), "file-xattrs")
		if l.once(target) {
			l.file(target, data, plain)
		}
		l.header(typeLink, name, target, plain, 0)
	} else {
		l.file(name, data, plain)
	}
	var records strings.Builder
	for _, x := range list {
		if x.Name != "security.selinux" {
			records.WriteString(paxRecord("SCHILY.xattr."+x.Name, string(x.Value)))
		}
	}
	if records.Len() > 0 {
		l.pax([]byte(records.String()))
	}
}
