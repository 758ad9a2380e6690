package oscommit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/internal/links"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// ErrInvalid marks errors in an image's tree.
var ErrInvalid = errors.New("image cannot become an OS commit")

// A Tree is the tree of an OS commit.
type Tree struct {
	root     *composefs.Inode
	sources  map[*composefs.Inode]*composefs.Inode // what files were before they got their labels
	given    map[*composefs.Inode]Given
	Dropped  []Dropped      // files of the image that the commit does not have, by path
	Progress func(Progress) // called by Store after each object, by one goroutine at a time; may be nil
}

// Dropped is a file or directory that an OS commit does not have.
type Dropped struct {
	Path   string // in the image
	Reason string
}

// emptied are the directories whose contents in an image no system sees, and why.
var emptied = map[string]string{
	"boot": "is hidden by /boot of the running system",
	"dev":  atRunTime, "proc": atRunTime, "run": atRunTime, "sys": atRunTime, "tmp": atRunTime,
	"sysroot": "belongs to the running system",
}

const atRunTime = "is populated at run time"

// A Given file is one whose content object is known, and need not be that of a layer.
type Given struct {
	Sum   objectstore.Checksum
	Layer objectstore.FileMeta // of the object that the file's payload names; its content is the same
}

// Give tells the objects of some of the tree's files, by inode. The repository will have them when Store is called, unless
// Label changes the file.
func (t *Tree) Give(files map[*composefs.Inode]Given) { t.given = files }

// buildFiles are files that image builders leave behind empty. They belong to the build container.
var buildFiles = []string{"hostname", "resolv.conf"}

// NewTree turns the tree of an image's layers into the tree of an OS commit. It takes over root.
//
// /etc becomes /usr/etc, from which each deployment gets its own. The contents of directories that are populated at run
// time are dropped, and so are files that a commit cannot have: devices, FIFOs, sockets. The contents of /sysroot
// and /boot belong to an ostree system and not to an image. /var stays: a new stateroot starts with it.
//
// Names and symbolic link targets that are not UTF-8 are an ErrInvalid, since a commit cannot hold them, and so are an
// /etc and a /usr/etc that both have entries.
func NewTree(root *composefs.Inode) (*Tree, error) {
	t := &Tree{root: root}
	for _, name := range slices.Sorted(maps.Keys(emptied)) {
		if dir := entry(root, name); dir != nil && dir.IsDir() {
			t.empty(dir, name, emptied[name])
		}
	}
	if err := t.moveEtc(); err != nil {
		return nil, err
	}
	if err := t.walk(root, ""); err != nil {
		return nil, err
	}
	slices.SortStableFunc(t.Dropped, func(a, b Dropped) int { return cmp.Compare(a.Path, b.Path) })
	return t, nil
}

// entry returns the entry of a directory with a name, or nil.
func entry(dir *composefs.Inode, name string) *composefs.Inode {
	if i, ok := dir.Find(name); ok {
		return dir.Entries[i].Inode
	}
	return nil
}

// lookup returns the inode at a path, "." for the root, or nil. It follows no symbolic links.
func lookup(root *composefs.Inode, name string) *composefs.Inode {
	n := root
	if name == "." {
		return n
	}
	for part := range strings.SplitSeq(name, "/") {
		if n = entry(n, part); n == nil {
			return nil
		}
	}
	return n
}

// resolve returns the inode at a path, as [links.Resolve] does, or nil.
func (t *Tree) resolve(name string) *composefs.Inode {
	here, err := t.resolvePath(name)
	if err != nil {
		return nil
	}
	return lookup(t.root, here)
}

// resolvePath returns the path in the tree of what resolve returns.
func (t *Tree) resolvePath(name string) (string, error) {
	return links.Resolve(name, func(name string) (here, target string, err error) {
		n := lookup(t.root, name)
		if n == nil {
			return "", "", objectstore.ErrNoEntry
		}
		return name, n.Target, nil
	})
}

// Lookup returns a file by its path in a system that runs the tree, and that path without symbolic links to directories.
// If the file itself is a symbolic link, it is not followed. The inode of an absent file is nil.
func (t *Tree) Lookup(name string) (at string, n *composefs.Inode) {
	name = path.Clean("/" + name)
	dir, err := t.resolvePath(path.Dir(name))
	if err != nil {
		return name, nil
	}
	if name == "/" {
		return name, t.root
	}
	at = path.Join(dir, path.Base(name))
	if at == "etc" && lookup(t.root, at) == nil {
		at = "usr/etc"
	}
	n = lookup(t.root, at)
	if strings.HasPrefix(name, "/usr/etc") {
		return "/" + at, n
	}
	return imagePath(at), n
}

// ReadFile returns the content of a regular file of at most limit bytes, by its path in a system that runs the tree, from
// the repository of the image's layers. It follows symbolic links. The error for an absent file is an fs.ErrNotExist,
// and that for a file that is too large, or no regular file, an ErrInvalid.
func (t *Tree) ReadFile(repo *objectstore.Repo, name string, limit int64) ([]byte, error) {
	n := t.resolve(name)
	switch {
	case n == nil:
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: fs.ErrNotExist}
	case !isFile(n):
		return nil, fmt.Errorf("%w: /%s is a %s", ErrInvalid, name, kind(n.Mode))
	case n.Size > limit:
		return nil, fmt.Errorf("%w: /%s has %d bytes, at most %d are read", ErrInvalid, name, n.Size, limit)
	case n.Payload == "":
		return n.Content, nil
	}
	sum, err := layer.PayloadSum(n.Payload)
	if err != nil {
		return nil, err
	}
	f, err := repo.OpenFile(sum)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

func (t *Tree) empty(dir *composefs.Inode, name, reason string) {
	for _, e := range dir.Entries {
		t.Dropped = append(t.Dropped, Dropped{path.Join("/", name, e.Name), reason})
	}
	dir.Entries = nil
}

func (t *Tree) moveEtc() error {
	i, ok := t.root.Find("etc")
	if !ok || !t.root.Entries[i].Inode.IsDir() {
		return nil
	}
	etc := t.root.Entries[i].Inode
	usr := entry(t.root, "usr")
	if usr == nil || !usr.IsDir() {
		return nil // Missing reports it
	}
	t.dropBuildFiles(etc)
	j, taken := usr.Find("etc")
	if taken && usr.Entries[j].Inode.IsDir() && len(usr.Entries[j].Inode.Entries) > 0 {
		if len(etc.Entries) > 0 {
			return fmt.Errorf("%w: both /etc and /usr/etc have files", ErrInvalid)
		}
		etc = usr.Entries[j].Inode
	}
	t.root.Entries = slices.Delete(t.root.Entries, i, i+1)
	if taken {
		usr.Entries[j].Inode = etc
	} else {
		usr.Entries = slices.Insert(usr.Entries, j, composefs.Entry{Name: "etc", Inode: etc})
	}
	return nil
}

func (t *Tree) dropBuildFiles(etc *composefs.Inode) {
	etc.Entries = slices.DeleteFunc(etc.Entries, func(e composefs.Entry) bool {
		if !slices.Contains(buildFiles, e.Name) || e.Inode.Mode&unix.S_IFMT != unix.S_IFREG || e.Inode.Size > 0 {
			return false
		}
		t.Dropped = append(t.Dropped, Dropped{path.Join("/etc", e.Name), "is an empty file of the build container"})
		return true
	})
}

// walk drops the files that a commit cannot have.
func (t *Tree) walk(dir *composefs.Inode, name string) error {
	var errs []error
	dir.Entries = slices.DeleteFunc(dir.Entries, func(e composefs.Entry) bool {
		below := path.Join(name, e.Name)
		switch e.Inode.Mode & unix.S_IFMT {
		case unix.S_IFDIR, unix.S_IFREG:
		case unix.S_IFLNK:
			if !utf8.ValidString(e.Inode.Target) {
				errs = append(errs, fmt.Errorf("%w: /%s: target %q is not UTF-8", ErrInvalid, below, e.Inode.Target))
			}
		default:
			t.Dropped = append(t.Dropped, Dropped{imagePath(below), "is a " + kind(e.Inode.Mode)})
			return true
		}
		if !utf8.ValidString(e.Name) {
			errs = append(errs, fmt.Errorf("%w: /%q: name is not UTF-8", ErrInvalid, below))
		}
		if e.Inode.IsDir() {
			errs = append(errs, t.walk(e.Inode, below))
		}
		return false
	})
	return errors.Join(errs...)
}

// imagePath returns the path in the image of a path in the commit.
func imagePath(name string) string {
	if rest, ok := strings.CutPrefix(name+"/", "usr/etc/"); ok {
		return path.Join("/etc", rest)
	}
	return "/" + name
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	}
	return "device"
}

// Kernel returns the version of the kernel that the tree boots: the only directory of /usr/lib/modules with a vmlinuz.
// It returns "" if there is none, or more than one.
func (t *Tree) Kernel() string {
	if k := t.kernels(); len(k) == 1 {
		return k[0]
	}
	return ""
}

func (t *Tree) kernels() (versions []string) {
	modules := lookup(t.root, "usr/lib/modules")
	if modules == nil {
		return nil
	}
	for _, e := range modules.Entries {
		if isFile(entry(e.Inode, "vmlinuz")) {
			versions = append(versions, e.Name)
		}
	}
	return versions
}

func isFile(n *composefs.Inode) bool { return n != nil && n.Mode&unix.S_IFMT == unix.S_IFREG }

// isSysrootLink reports whether the inode of /tmp or /boot is a symbolic link to the directory of the sysroot, as in
// images of rpm-ostree.
func isSysrootLink(name string, n *composefs.Inode) bool {
	return (name == "tmp" || name == "boot") && n.Mode&unix.S_IFMT == unix.S_IFLNK && n.Target == "sysroot/"+name
}

// kernelElsewhere tells of a kernel where packages of distributions put it.
func (t *Tree) kernelElsewhere() string {
	const prefix = "/boot/vmlinuz-"
	for _, d := range t.Dropped {
		if version, ok := strings.CutPrefix(d.Path, prefix); ok && bls.IsKernelVersion(version) {
			return fmt.Sprintf(" (%s belongs there)", d.Path)
		}
	}
	return ""
}

// Missing lists what the tree lacks to boot; nothing if it can.
func (t *Tree) Missing() (missing []string) {
	switch k := t.kernels(); len(k) {
	case 0:
		missing = append(missing, "kernel: /usr/lib/modules/<version>/vmlinuz"+t.kernelElsewhere())
	case 1:
		if !bls.IsKernelVersion(k[0]) {
			missing = append(missing, fmt.Sprintf("kernel: %q is not the name of a version", k[0]))
		}
		if name := path.Join("usr/lib/modules", k[0], "initramfs.img"); !isFile(lookup(t.root, name)) {
			missing = append(missing, "initramfs: /"+name)
		}
	default:
		missing = append(missing, "a single kernel: /usr/lib/modules has "+strings.Join(k, ", "))
	}
	for _, name := range []string{"boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "usr", "usr/etc", "var"} {
		if n := lookup(t.root, name); n == nil || !n.IsDir() && !isSysrootLink(name, n) {
			missing = append(missing, "directory: "+strings.Replace("/"+name, "/usr/etc", "/etc", 1))
		}
	}
	if n := entry(t.root, "etc"); n != nil && !n.IsDir() { // moveEtc has moved a directory
		missing = append(missing, "directory: /etc, which is a "+kind(n.Mode))
	}
	if n := entry(t.root, "ostree"); n == nil || n.Target != "sysroot/ostree" {
		missing = append(missing, "symbolic link: /ostree -> sysroot/ostree")
	}
	if !isFile(t.resolve("usr/lib/os-release")) && !isFile(t.resolve("etc/os-release")) { // as in os-release(5)
		missing = append(missing, "file: /usr/lib/os-release")
	}
	return missing
}
