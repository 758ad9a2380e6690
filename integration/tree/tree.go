// Package tree reads all attributes of a directory tree that a container can see, and compares two trees.
package tree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// An Entry is one name in a tree.
type Entry struct {
	Mode   uint32 // with the file type
	UID    uint32
	GID    uint32
	Rdev   uint64 // of devices
	Size   int64  // of regular files and symbolic links
	Mtime  unix.Timespec
	Target string // of symbolic links
	SHA256 string // of regular files
	Xattrs map[string]string
	Nlink  uint64 // of all files except directories
	Inode  atfs.Inode
}

// A Tree is a directory tree: entries by path below its root, with "." for the root itself.
type Tree map[string]*Entry

// Read reads the tree below a directory.
func Read(ctx context.Context, root string) (Tree, error) {
	tree := make(Tree)
	attributes := new(xattrReader)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		e, err := readEntry(path, attributes)
		if err != nil {
			return err
		}
		tree[rel] = e
		if e.Mode&unix.S_IFMT == unix.S_IFREG {
			group.Go(func() error {
				var err error
				e.SHA256, err = hashFile(path)
				return err
			})
		}
		return nil
	})
	if waitErr := group.Wait(); err == nil {
		err = waitErr
	}
	if err != nil {
		return nil, fmt.Errorf("read tree: %w", err)
	}
	return tree, nil
}

func readEntry(path string, attributes *xattrReader) (*Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	e := &Entry{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim,
		Inode: atfs.InodeOf(&st),
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Nlink = uint64(st.Nlink) //nolint:unconvert // it has 32 bits on arm64
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Size = st.Size
		if e.Target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	if e.Xattrs, err = attributes.read(path); err != nil {
		return nil, err
	}
	return e, nil
}

// An xattrReader reads extended attributes. Its buffers, of the largest size that the kernel returns, serve all files.
type xattrReader struct{ names, value [64 << 10]byte }

func (r *xattrReader) read(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, r.names[:])
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var xattrs map[string]string
	for name := range strings.SplitSeq(strings.TrimRight(string(r.names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, r.value[:])
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[name] = string(r.value[:n])
	}
	return xattrs, nil
}

// buffers are for hashFile: trees have many thousands of files, most of them small.
var buffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := buffers.Get().(*[128 << 10]byte) //nolint:forcetypeassert // of the pool
	defer buffers.Put(buf)
	h := sha256.New()
	// Without the methods of an os.File, io.CopyBuffer uses the buffer.
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, buf[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Options limit the comparison of Diff.
type Options struct {
	// IgnoreMtime names directories whose modification time is not in any layer.
	IgnoreMtime []string
	// ExactLinks requires that files which are not hard links of each other in want are not in got either, and that
	// each file has as many links as names.
	ExactLinks bool
}

// Diff compares got with want and returns one line for each difference, sorted by path. Files that are hard links of
// each other in want must be so in got. The reverse is required only by the options, since equal files may share an
// inode.
func Diff(want, got Tree, opts Options) []string {
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w, g := want[path], got[path]
		if g == nil {
			lines = append(lines, fmt.Sprintf("%q: missing, want %v", path, w))
			continue
		}
		for _, d := range w.diff(g, slices.Contains(opts.IgnoreMtime, path)) {
			lines = append(lines, fmt.Sprintf("%q: %s", path, d))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] == nil {
			lines = append(lines, fmt.Sprintf("%q: %v, want none", path, got[path]))
		}
	}
	lines = append(lines, diffLinks(want, got, "not a hard link of %q, want one")...)
	if opts.ExactLinks {
		lines = append(lines, diffLinks(got, want, "a hard link of %q, want none")...)
		lines = append(lines, got.miscounted()...)
	}
	return lines
}

// miscounted finds files whose number of links differs from that of their names.
func (t Tree) miscounted() (lines []string) {
	names := make(map[atfs.Inode]uint64)
	for _, e := range t {
		names[e.Inode]++
	}
	for _, path := range slices.Sorted(maps.Keys(t)) {
		if e := t[path]; e.Mode&unix.S_IFMT != unix.S_IFDIR && e.Nlink != names[e.Inode] {
			lines = append(lines, fmt.Sprintf("%q: has %d links, want %d", path, e.Nlink, names[e.Inode]))
		}
	}
	return lines
}

func (e *Entry) diff(g *Entry, ignoreMtime bool) []string {
	var lines []string
	note := func(what string, got, want any) {
		lines = append(lines, fmt.Sprintf("%s is %v, want %v", what, got, want))
	}
	if g.Mode != e.Mode {
		note("mode", fmt.Sprintf("%#o", g.Mode), fmt.Sprintf("%#o", e.Mode))
	}
	if g.UID != e.UID || g.GID != e.GID {
		note("owner", fmt.Sprintf("%d:%d", g.UID, g.GID), fmt.Sprintf("%d:%d", e.UID, e.GID))
	}
	if g.Rdev != e.Rdev {
		note("device", g.Rdev, e.Rdev)
	}
	if g.Size != e.Size {
		note("size", g.Size, e.Size)
	}
	if g.Mtime != e.Mtime && !ignoreMtime {
		note("mtime", formatTime(g.Mtime), formatTime(e.Mtime))
	}
	if g.Target != e.Target {
		note("target", fmt.Sprintf("%q", g.Target), fmt.Sprintf("%q", e.Target))
	}
	if g.SHA256 != e.SHA256 {
		note("content", g.SHA256, e.SHA256)
	}
	if !maps.Equal(g.Xattrs, e.Xattrs) {
		note("xattrs", fmt.Sprintf("%q", g.Xattrs), fmt.Sprintf("%q", e.Xattrs))
	}
	return lines
}

func formatTime(t unix.Timespec) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// String returns a short description of the entry.
func (e *Entry) String() string {
	return fmt.Sprintf("mode %#o owner %d:%d size %d", e.Mode, e.UID, e.GID, e.Size)
}

// diffLinks reports the hard links of want that are not links of one file in got.
func diffLinks(want, got Tree, say string) []string {
	first := make(map[atfs.Inode]string)
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w, g := want[path], got[path]
		if g == nil || w.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		other, seen := first[w.Inode]
		if !seen {
			first[w.Inode] = path
			continue
		}
		if got[other] != nil && got[other].Inode != g.Inode {
			lines = append(lines, fmt.Sprintf("%q: "+say, path, other))
		}
	}
	return lines
}

// Links returns groups of names that share an inode, sorted.
func (t Tree) Links() [][]string {
	groups := make(map[atfs.Inode][]string)
	for _, path := range slices.Sorted(maps.Keys(t)) {
		if e := t[path]; e.Mode&unix.S_IFMT != unix.S_IFDIR {
			groups[e.Inode] = append(groups[e.Inode], path)
		}
	}
	var links [][]string
	for _, group := range groups {
		if len(group) > 1 {
			links = append(links, group)
		}
	}
	slices.SortFunc(links, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return links
}
