package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// seen is a file as seen by a reader that knows EROFS but not composefs.
type seen struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	size     int64
	mtime    unix.Timespec
	nlink    uint64
	target   string
	content  string // inline only
	first    string // first path of the inode, in breadth-first order
	xattrs   map[string]string
}

// view lists an image of the tree, including stubs and escapes. It knows how the format rewrites a tree from the
// specification, not from writer.
func view(root *Inode, version uint32) map[string]seen {
	type item struct {
		path, dir string
		*Inode
	}
	out := map[string]seen{}
	first := map[*Inode]string{}
	names := map[string]uint64{} // by first path
	var whiteoutDirs []string
	queue := []item{{"/", "", root}}
	for len(queue) > 0 {
		it := queue[0]
		queue = queue[1:]
		if _, dup := first[it.Inode]; !dup {
			first[it.Inode] = it.path
			if it.IsWhiteout() {
				whiteoutDirs = append(whiteoutDirs, it.dir)
			}
		}
		names[first[it.Inode]]++
		out[it.path] = seenInode(it.Inode, first[it.Inode])
		for _, e := range it.Entries {
			queue = append(queue, item{strings.TrimSuffix(it.path, "/") + "/" + e.Name, it.path, e.Inode})
		}
	}
	for p, s := range out {
		if s.mode&unix.S_IFMT != unix.S_IFDIR {
			s.nlink = names[s.first]
			out[p] = s
		}
	}
	for _, d := range whiteoutDirs {
		out[d].xattrs["trusted.overlay.overlay.whiteouts"] = ""
		out[d].xattrs["user.overlay.whiteouts"] = ""
		if version >= 1 {
			out[d].xattrs["trusted.overlay.overlay.opaque"] = "x"
			out[d].xattrs["user.overlay.opaque"] = "x"
		}
	}
	out["/"].xattrs["trusted.overlay.opaque"] = "y"
	addStubs(out, root)
	return out
}

func seenInode(i *Inode, first string) seen {
	s := seen{
		mode: i.Mode, uid: i.UID, gid: i.GID, rdev: i.Rdev, size: i.Size, mtime: i.Mtime,
		target: i.Target, content: string(i.Content), first: first, xattrs: map[string]string{},
	}
	for _, x := range i.Xattrs {
		name := x.Name
		if strings.HasPrefix(name, "trusted.overlay.") {
			name = "trusted.overlay.overlay." + name[len("trusted.overlay."):]
		}
		s.xattrs[name] = string(x.Value)
	}
	switch {
	case i.IsDir():
		s.nlink = 2
		for _, e := range i.Entries {
			if e.Inode.IsDir() {
				s.nlink++
			}
		}
	case i.Mode&unix.S_IFMT == unix.S_IFLNK:
		s.size = int64(len(i.Target))
	case i.IsWhiteout():
		s.mode = unix.S_IFREG | i.Mode&0o7777
		s.xattrs["trusted.overlay.overlay.whiteout"] = ""
		s.xattrs["user.overlay.whiteout"] = ""
	case i.Payload != "":
		s.xattrs["trusted.overlay.redirect"] = "/" + i.Payload
		s.xattrs["trusted.overlay.metacopy"] = ""
		if i.Verity != nil {
			s.xattrs["trusted.overlay.metacopy"] = "\x00\x24\x00\x01" + string(i.Verity)
		}
	}
	return s
}

func addStubs(out map[string]seen, root *Inode) {
	for i := range 256 {
		path := fmt.Sprintf("/%02x", i)
		if _, ok := out[path]; ok {
			continue
		}
		s := seen{mode: unix.S_IFCHR | 0o644, uid: root.UID, gid: root.GID, mtime: root.Mtime, nlink: 1, first: path, xattrs: map[string]string{}}
		for _, x := range root.Xattrs {
			if x.Name == "security.selinux" {
				s.xattrs[x.Name] = string(x.Value)
			}
		}
		out[path] = s
	}
}

// diffViews returns the differences between a reader's view and the expected one.
func diffViews(got, want map[string]seen) error {
	var errs []error
	for _, path := range sortedKeys(want) {
		w := want[path]
		g, ok := got[path]
		if !ok {
			errs = append(errs, fmt.Errorf("%q: missing", path))
			continue
		}
		if g.mode&unix.S_IFMT == unix.S_IFDIR {
			g.size = w.size // of the entries
		}
		if a, b := fmt.Sprintf("%#v", g), fmt.Sprintf("%#v", w); a != b {
			errs = append(errs, fmt.Errorf("%q:\ngot  %s\nwant %s", path, a, b))
		}
	}
	for _, path := range sortedKeys(got) {
		if _, ok := want[path]; !ok {
			errs = append(errs, fmt.Errorf("%q: not in the tree", path))
		}
	}
	return errors.Join(errs[:min(len(errs), 5)]...)
}

func sortedKeys(m map[string]seen) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// unixMode reverses io/fs's conversion of a mode.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, value := range map[fs.FileMode]uint32{
		fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX,
	} {
		if m&bit != 0 {
			mode |= value
		}
	}
	return mode | map[fs.FileMode]uint32{
		0:                                 unix.S_IFREG,
		fs.ModeDir:                        unix.S_IFDIR,
		fs.ModeSymlink:                    unix.S_IFLNK,
		fs.ModeDevice:                     unix.S_IFBLK,
		fs.ModeDevice | fs.ModeCharDevice: unix.S_IFCHR,
		fs.ModeNamedPipe:                  unix.S_IFIFO,
		fs.ModeSocket:                     unix.S_IFSOCK,
	}[m.Type()]
}
