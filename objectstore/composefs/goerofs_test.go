package composefs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"

	erofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// goerofsView lists an image as the erofs project's Go reader sees it.
func goerofsView(image []byte) (map[string]seen, error) {
	fsys, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	var (
		out   = map[string]seen{}
		first = map[int64]string{}
		queue = []string{"/"}
	)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		s, ino, err := goerofsStat(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("stat %q: %w", name, err)
		}
		if _, dup := first[ino]; !dup {
			first[ino] = name
		}
		s.first = first[ino]
		out[name] = s
		if s.mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		entries, err := fs.ReadDir(fsys, inFS(name))
		if err != nil {
			return nil, fmt.Errorf("list %q: %w", name, err)
		}
		for _, e := range entries {
			queue = append(queue, path.Join(name, e.Name()))
		}
	}
	return out, nil
}

// inFS returns an absolute path in the form of io/fs.
func inFS(name string) string {
	if name == "/" {
		return "."
	}
	return name[1:]
}

func goerofsStat(fsys fs.FS, name string) (s seen, ino int64, err error) {
	info, err := fsys.(fs.ReadLinkFS).Lstat(inFS(name))
	if err != nil {
		return s, 0, err
	}
	st := info.Sys().(*erofs.Stat)
	s = seen{
		mode: unixMode(st.Mode), uid: st.UID, gid: st.GID, rdev: uint64(st.Rdev), size: st.Size,
		mtime: unix.Timespec{Sec: int64(st.Mtime), Nsec: int64(st.MtimeNs)},
		nlink: uint64(st.Nlink), xattrs: map[string]string{},
	}
	for k, v := range st.Xattrs {
		// go-erofs 0.3.1 puts a dot behind the two ACL names.
		for _, acl := range []string{xattrACLAccess, xattrACLDefault} {
			if rest, ok := strings.CutPrefix(k, acl+"."); ok {
				k = acl + rest
			}
		}
		s.xattrs[k] = v
	}
	switch s.mode & unix.S_IFMT {
	case unix.S_IFLNK:
		s.target, err = fs.ReadLink(fsys, inFS(name))
	case unix.S_IFREG:
		if st.InodeLayout != layoutChunk && s.size > 0 {
			var f fs.File
			if f, err = fsys.Open(inFS(name)); err == nil {
				var b []byte
				b, err = io.ReadAll(f)
				s.content = string(b)
			}
		}
	}
	return s, st.Ino, err
}

// suitsGoerofs reports whether go-erofs 0.3.1 can read an image of the tree: a
// shared attribute has to lie within one block, and it joins paths, so that it
// finds no name that path.Clean or fs.ValidPath object to.
func suitsGoerofs(root *Inode) error {
	for _, s := range view(root, 1) {
		for name, value := range s.xattrs {
			if len(name)+len(value) > 300 {
				return fmt.Errorf("xattr %s of %d bytes", name, len(value))
			}
		}
	}
	return nil
}

func TestGoerofsAgrees(t *testing.T) {
	compared := 0
	for _, tree := range allTrees(t) {
		if suitsGoerofs(tree.root) != nil {
			continue
		}
		compared++
		for _, opts := range allOptions {
			image := mustMarshal(t, tree.root, opts)
			got, err := goerofsView(image)
			if err != nil {
				t.Errorf("%s, versions %v: go-erofs: %v", tree.name, opts, err)
				continue
			}
			if err := diffViews(got, view(tree.root, le.Uint32(image[12:]))); err != nil {
				t.Errorf("%s, versions %v: %v", tree.name, opts, err)
			}
		}
	}
	if compared < 20 {
		t.Errorf("only %d trees suit go-erofs", compared)
	}
}

// BenchmarkGoerofs reads the same as BenchmarkRead through go-erofs.
func BenchmarkGoerofs(b *testing.B) {
	image := mustMarshal(b, osTree(12_000), ostree)
	b.SetBytes(int64(len(image)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := goerofsView(image); err != nil {
			b.Fatal(err)
		}
	}
}
