// Package nativetest makes layers that hold an ostree commit, for tests: in the form of ostree-native images, from a
// commit in a repository.
package nativetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Repo is the path of the repository in a layer.
const Repo = "sysroot/ostree/repo/"

// An Entry is an entry of a layer's tar.
type Entry struct {
	tar.Header
	Content string
}

// A Layer is the entries of a layer's tar.
type Layer []Entry

// Dir is a directory. Like all entries made here, it is owned by root.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

// File is a regular file.
func File(name, content string, mode int64) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content}
}

// Link is a hard link to a file of mode 0644: that of a link counts.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Tar returns the tar, and its diff ID.
func (l Layer) Tar(tb testing.TB) ([]byte, digest.Digest) {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range l {
		e.ModTime = time.Unix(0, 0)
		e.Format = tar.FormatPAX
		testenv.Must(tb, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.Content)
		testenv.Must(tb, err)
	}
	testenv.Must(tb, w.Close())
	return b.Bytes(), digest.FromBytes(b.Bytes())
}

// Config returns an image configuration with these layers and labels.
func Config(tb testing.TB, diffIDs []digest.Digest, labels map[string]string) []byte {
	tb.Helper()
	var c struct {
		Config struct {
			Labels map[string]string
		} `json:"config"`
		RootFS struct {
			Type    string          `json:"type"`
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	c.Config.Labels, c.RootFS.Type, c.RootFS.DiffIDs = labels, "layers", diffIDs
	data, err := json.Marshal(c)
	testenv.Must(tb, err)
	return data
}

// ObjectPath returns the path of an object in a layer.
func ObjectPath(sum objectstore.Checksum, typ objectstore.ObjectType) string {
	return Repo + "objects/" + objectstore.LoosePath(sum, typ)
}

// Encapsulate returns the layers of a commit. Function chunk returns the number of the layer, from 1, for a file's path in
// the commit; 0 is the lowest, which has the metadata.
func Encapsulate(tb testing.TB, repo *objectstore.Repo, commit objectstore.Checksum, layers int, chunk func(name string) int) []Layer {
	tb.Helper()
	w := writer{tb: tb, repo: repo, layers: make([]Layer, layers), seen: make([]map[string]bool, layers), chunk: chunk}
	for i := range w.layers {
		w.seen[i] = make(map[string]bool)
		w.add(i, Dir("sysroot", 0o755), Dir("sysroot/ostree", 0o755), Dir("sysroot/ostree/repo", 0o755),
			File(Repo+"config", "[core]\nrepo_version=1\nmode=bare-split-xattrs\n", 0o644))
	}
	c, err := repo.Commit(commit)
	testenv.Must(tb, err)
	w.metadata(objectstore.TypeCommit, commit)
	w.metadata(objectstore.TypeDirMeta, c.Meta)
	w.dir("", c.Tree)
	return w.layers
}

type writer struct {
	tb     testing.TB
	repo   *objectstore.Repo
	layers []Layer
	seen   []map[string]bool // objects, by layer
	chunk  func(name string) int
}

func (w *writer) add(at int, entries ...Entry) { w.layers[at] = append(w.layers[at], entries...) }

func (w *writer) first(at int, name string) bool {
	was := w.seen[at][name]
	w.seen[at][name] = true
	return !was
}

func (w *writer) metadata(typ objectstore.ObjectType, sum objectstore.Checksum) {
	w.tb.Helper()
	name := ObjectPath(sum, typ)
	if !w.first(0, name) {
		return
	}
	data, err := w.repo.ReadMetadata(typ, sum)
	testenv.Must(w.tb, err)
	w.add(0, File(name, string(data), 0o644))
}

// shown returns the path that a container sees.
func shown(name string) string {
	if rest, ok := strings.CutPrefix(name+"/", "usr/etc/"); ok {
		return path.Join("etc", rest)
	}
	return name
}

func (w *writer) dir(name string, sum objectstore.Checksum) {
	w.tb.Helper()
	w.metadata(objectstore.TypeDirTree, sum)
	t, err := w.repo.DirTree(sum)
	testenv.Must(w.tb, err)
	for _, f := range t.Files {
		w.file(path.Join(name, f.Name), f.Checksum)
	}
	for _, d := range t.Dirs {
		below := path.Join(name, d.Name)
		w.metadata(objectstore.TypeDirMeta, d.Meta)
		if below == "sysroot" {
			continue
		}
		m, err := w.repo.DirMeta(d.Meta)
		testenv.Must(w.tb, err)
		e := Dir(shown(below), int64(m.Mode&0o7777))
		e.Uid, e.Gid = int(m.UID), int(m.GID)
		w.add(0, e)
		w.dir(below, d.Tree)
	}
}

func (w *writer) file(name string, sum objectstore.Checksum) {
	w.tb.Helper()
	at := w.chunk(name)
	m, err := w.repo.FileMeta(sum)
	testenv.Must(w.tb, err)
	object := ObjectPath(sum, objectstore.TypeFile)
	e := Entry{Header: tar.Header{Name: object, Uid: int(m.UID), Gid: int(m.GID), Mode: int64(m.Mode & 0o7777)}}
	if m.IsSymlink() {
		e.Typeflag, e.Linkname = tar.TypeSymlink, m.Target
	} else {
		f, err := w.repo.OpenFile(sum)
		testenv.Must(w.tb, err)
		content, err := io.ReadAll(f)
		testenv.Must(w.tb, err)
		testenv.Must(w.tb, f.Close())
		e.Typeflag, e.Content, e.Size = tar.TypeReg, string(content), int64(len(content))
	}
	if w.first(at, object) {
		w.add(at, File(ObjectPath(sum, objectstore.TypeFileXattrsLink), xattrs(w.tb, m), 0o644))
		own := e
		for _, x := range m.Xattrs {
			if x.Name != "security.selinux" {
				if own.PAXRecords == nil {
					own.PAXRecords = make(map[string]string)
				}
				own.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
			}
		}
		w.add(at, own)
	}
	if m.Mode&unix.S_IFMT == unix.S_IFREG && e.Size == 0 {
		e.Name = shown(name)
		w.add(at, e)
		return
	}
	link := Link(shown(name), object)
	link.Uid, link.Gid, link.Mode = e.Uid, e.Gid, e.Mode
	w.add(at, link)
}

// xattrs returns the list of a file's extended attributes: the end of its dirmeta, if it were a directory.
func xattrs(tb testing.TB, m *objectstore.FileMeta) string {
	tb.Helper()
	data, err := (&objectstore.DirMeta{Mode: unix.S_IFDIR, Xattrs: m.Xattrs}).Marshal()
	testenv.Must(tb, err)
	return string(data[12:])
}
