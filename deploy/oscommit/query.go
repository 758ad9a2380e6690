package oscommit

import (
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// FileSize returns the size of a regular file of the tree. It follows no symbolic links.
func (t *Tree) FileSize(name string) (size int64, ok bool) {
	n := lookup(t.root, name)
	if n == nil || n.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, false
	}
	return n.Size, true
}

// ReadDir returns the names in a directory, by its path in a system that runs the tree, sorted. It follows symbolic links.
// Anything but a directory has none.
func (t *Tree) ReadDir(name string) (names []string) {
	dir := t.resolve(name)
	if dir == nil {
		return nil
	}
	for _, e := range dir.Entries {
		names = append(names, e.Name)
	}
	return names
}

// Allocated estimates the size of a sysroot with one deployment of the tree on a file system with the given block size.
// Files count once, however often they occur. /etc, /var and, if copies is true, everything else outside of /usr count
// twice: a deployment has copies of it.
func (t *Tree) Allocated(block int64, copies bool) int64 {
	seen := make(map[string]bool) // payloads
	var walk func(n *composefs.Inode) int64
	walk = func(n *composefs.Inode) (sum int64) {
		if n.IsDir() {
			sum = 2 * block // in the deployment, and as dirtree
			for _, e := range n.Entries {
				sum += walk(e.Inode)
			}
			return sum
		}
		if n.Payload != "" && !seen[n.Payload] {
			seen[n.Payload] = true
			sum = (n.Size + block - 1) / block * block
		}
		return sum
	}
	sum := walk(t.root)
	clear(seen)
	for _, e := range t.root.Entries {
		if e.Name == "var" || copies && e.Name != "usr" {
			sum += walk(e.Inode)
		}
	}
	if etc := lookup(t.root, "usr/etc"); etc != nil {
		sum += walk(etc)
	}
	return sum
}
