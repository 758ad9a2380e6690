package oscommit

import (
	"cmp"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// A Labeler knows the SELinux labels of files, as a policy does.
type Labeler interface {
	// Label returns the label of a file by its path in the system, which begins with a slash, and its type. It returns
	// false for a file that gets none.
	Label(name string, typ fs.FileMode) (string, bool)
}

// An Epoch is a version of the rules for labels, with the numbers of ostree's option --selinux-labeling-epoch.
type Epoch int

// The epochs. They differ in the defaults of /etc: each deployment's /etc itself has the labels of /etc.
const (
	EpochUsrEtc Epoch = 0 // /usr/etc has the labels of /usr/etc
	EpochEtc    Epoch = 1 // /usr/etc has the labels of /etc
)

// ParseEpoch parses the number of an epoch.
func ParseEpoch(text string) (Epoch, bool) {
	for _, e := range []Epoch{EpochUsrEtc, EpochEtc} {
		if text == e.String() {
			return e, true
		}
	}
	return 0, false
}

func (e Epoch) String() string { return strconv.Itoa(int(e)) }

// Label gives the files of the tree their SELinux labels, as ostree does when it commits a tree with a policy: to
// directories, regular files and symbolic links. A label replaces the one that a file has; a file that gets none keeps
// its own. Names of one file that get different labels become separate files.
//
// Of a tree with labels, [Tree.Store] creates objects of its own for files whose layers have them without: it reads each
// such file once. Call Label once.
func (t *Tree) Label(labels Labeler, epoch Epoch) {
	l := labelling{Labeler: labels, epoch: epoch, files: make(map[labelled]*composefs.Inode), sources: make(map[*composefs.Inode]*composefs.Inode)}
	l.dir(t.root, "")
	t.sources = l.sources
}

type labelling struct {
	Labeler
	epoch   Epoch
	files   map[labelled]*composefs.Inode
	sources map[*composefs.Inode]*composefs.Inode // of files with a new label
}

// labelled identifies a file with a label; "" for none.
type labelled struct {
	inode *composefs.Inode
	label string
}

// lookup returns the label of a file by its path in the commit; "" for none.
func (l *labelling) lookup(name string, mode uint32) string {
	label, ok := l.Label(l.path(name), selinux.TypeOf(mode))
	if !ok {
		return ""
	}
	return label
}

// path returns the path by which ostree looks up a file.
func (l *labelling) path(name string) string {
	switch {
	case name == "/proc":
		return "/mnt" // policies have no label for a /proc that is not mounted
	case l.epoch == EpochEtc && (name == "/usr/etc" || strings.HasPrefix(name, "/usr/etc/")):
		return strings.TrimPrefix(name, "/usr")
	}
	return name
}

func (l *labelling) dir(n *composefs.Inode, name string) {
	setLabel(n, l.lookup(cmp.Or(name, "/"), n.Mode))
	for i := range n.Entries {
		e := &n.Entries[i]
		below := name + "/" + e.Name
		if e.Inode.IsDir() {
			l.dir(e.Inode, below)
		} else {
			e.Inode = l.file(e.Inode, l.lookup(below, e.Inode.Mode))
		}
	}
}

// file returns a file with a label. Other names of the file keep theirs.
func (l *labelling) file(n *composefs.Inode, label string) *composefs.Inode {
	key := labelled{n, label}
	if with, ok := l.files[key]; ok {
		return with
	}
	with := *n
	if !setLabel(&with, label) {
		l.files[key] = n
		return n
	}
	l.files[key] = &with
	l.sources[&with] = n
	return &with
}

// setLabel reports whether the label, "" for none, changed the inode. Extended attributes stay sorted: ostree 2022.7
// appends a label instead, but what it stores so does not match the checksum when it is read back (ostree fsck); later
// versions sort.
func setLabel(n *composefs.Inode, label string) bool {
	if label == "" {
		return false
	}
	x := composefs.Xattr{Name: atfs.XattrSELinux, Value: append([]byte(label), 0)}
	i, found := slices.BinarySearchFunc(n.Xattrs, x.Name, func(x composefs.Xattr, name string) int { return strings.Compare(x.Name, name) })
	if found && slices.Equal(n.Xattrs[i].Value, x.Value) {
		return false
	}
	others := n.Xattrs[i:]
	if found {
		others = others[1:]
	}
	// In a new slice: inodes may share the old one.
	n.Xattrs = slices.Concat(n.Xattrs[:i], []composefs.Xattr{x}, others)
	return true
}

// labelOf returns the label of an inode.
func labelOf(n *composefs.Inode) string {
	for _, x := range n.Xattrs {
		if x.Name == atfs.XattrSELinux {
			return string(x.Value)
		}
	}
	return ""
}
