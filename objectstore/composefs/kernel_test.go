package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// mount mounts until the test ends, or skips it if the kernel cannot.
func mount(t *testing.T, source, fstype, options string) string {
	t.Helper()
	testenv.NeedsRoot(t)
	target := t.TempDir()
	err := unix.Mount(source, target, fstype, unix.MS_RDONLY, options)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTBLK):
		testenv.Unsupported(t, "needs a kernel that mounts %s from a file (6.12 does, with CAP_SYS_ADMIN): %v", fstype, err)
	case err != nil:
		t.Fatalf("mount %s on %s with %q: %v", fstype, target, options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
	return target
}

func mountImage(t *testing.T, root *Inode, opts Options) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, mustMarshal(t, root, opts), 0o600); err != nil {
		t.Fatal(err)
	}
	return mount(t, name, "erofs", "")
}

// kernelView lists a mounted tree.
func kernelView(mnt string) (map[string]seen, error) {
	out := map[string]seen{}
	first := map[uint64]string{}
	queue := []string{"/"}
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		s, ino, err := kernelStat(mnt + path)
		if err != nil {
			return nil, fmt.Errorf("stat %q: %w", path, err)
		}
		if _, dup := first[ino]; !dup {
			first[ino] = path
		}
		s.first = first[ino]
		out[path] = s
		if s.mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		entries, err := os.ReadDir(mnt + path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			queue = append(queue, strings.TrimSuffix(path, "/")+"/"+e.Name())
		}
	}
	return out, nil
}

func kernelStat(name string) (s seen, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return s, 0, err
	}
	s = seen{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, size: st.Size, mtime: st.Mtim,
		nlink:  uint64(st.Nlink), //nolint:unconvert // uint32 on arm64
		xattrs: map[string]string{},
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if s.target, err = os.Readlink(name); err != nil {
			return s, 0, err
		}
	}
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return s, 0, fmt.Errorf("list xattrs: %w", err)
	}
	for _, key := range strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return s, 0, fmt.Errorf("get xattr %s: %w", key, err)
		}
		s.xattrs[key] = string(value[:n])
	}
	return s, st.Ino, nil
}

// forKernel returns the tree without anything that the kernel does not show in stored form: the owner -1, which is no
// user; attributes without a name after the prefix, with an escaped name near XATTR_NAME_MAX or of an unknown type;
// ACLs and capabilities, which it interprets; and user.* except on files and directories.
func forKernel(root *Inode) *Inode {
	seen := map[*Inode]bool{}
	stack := []*Inode{root}
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[i] {
			continue
		}
		seen[i] = true
		var kept []Xattr
		for _, x := range i.Xattrs {
			index, suffix := xattrIndex(x.Name)
			switch {
			case suffix == "" || len(x.Name) > 240 || x.Name == "security.capability":
			case index == 1 && i.kind() != unix.S_IFREG && i.kind() != unix.S_IFDIR:
			case index == 1 || index == 4 || index == 6:
				kept = append(kept, x)
			}
		}
		i.Xattrs = kept
		i.UID = min(i.UID, math.MaxUint32-1)
		i.GID = min(i.GID, math.MaxUint32-1)
		for _, e := range i.Entries {
			stack = append(stack, e.Inode)
		}
	}
	return root
}

func TestKernelShowsTree(t *testing.T) {
	for _, tree := range allTrees(t) {
		if tree.name == "deep" {
			continue // its paths are longer than PATH_MAX
		}
		t.Run(tree.name, func(t *testing.T) {
			root := forKernel(tree.root)
			mnt := mountImage(t, root, ostree)
			got, err := kernelView(mnt)
			if err != nil {
				t.Fatal(err)
			}
			want := view(root, le.Uint32(mustMarshal(t, root, ostree)[12:]))
			for path, s := range want {
				if s.content != "" {
					b, err := os.ReadFile(mnt + path)
					if err != nil || string(b) != s.content {
						t.Errorf("%q: inline content differs: %v", path, err)
					}
					s.content = ""
					want[path] = s
				}
			}
			if err := diffViews(got, want); err != nil {
				t.Error(err)
			}
		})
	}
}

// shrink reduces sizes that need a second chunk. Canonical images put a chunk table that does not fit behind its inode
// into a data block, where fsck.erofs does not look; nobody reads the table of a file with external data.
func shrink(i *Inode) {
	i.Size = min(i.Size, 1<<maxChunkBits)
	for _, e := range i.Entries {
		shrink(e.Inode)
	}
}

func TestFsckAccepts(t *testing.T) {
	fsck := testenv.NeedsTool(t, "fsck.erofs")
	for _, tree := range allTrees(t) {
		shrink(tree.root)
		name := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(name, mustMarshal(t, tree.root, ostree), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), fsck, name).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("<E>")) {
			t.Errorf("%s: %v\n%s", tree.name, err, out)
		}
	}
}

// TestOverlayReadsObjects mounts an image over an object directory, as for a container.
func TestOverlayReadsObjects(t *testing.T) {
	objects := t.TempDir()
	content := map[string]string{"hello": "hello, world\n", "big": strings.Repeat("0123456789", 100_000), "empty": ""}
	root := dir(Entry{"link", symlink("hello")}, Entry{"null", &Inode{Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)}})
	sub := dir()
	for i, name := range []string{"hello", "big", "empty"} {
		f := file(int64(len(content[name])), i+0xa0)
		f.Mtime = unix.Timespec{Sec: 1234567890 + int64(i), Nsec: 123456789}
		f.UID, f.Mode = 70000, unix.S_IFREG|0o640
		f.Xattrs = xattrs("user.name", name)
		if f.Size > 0 {
			object := filepath.Join(objects, f.Payload)
			if err := os.MkdirAll(filepath.Dir(object), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(object, []byte(content[name]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		root.Entries = append(root.Entries, Entry{name, f})
		sub.Entries = append(sub.Entries, Entry{name, f})
	}
	sortEntries(sub)
	root.Entries = append(root.Entries, Entry{"sub", sub})
	sortEntries(root)

	image := mountImage(t, root, ostree)
	mnt := mount(t, "overlay", "overlay", "metacopy=on,redirect_dir=on,lowerdir="+image+"::"+objects)
	entries, err := os.ReadDir(mnt)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(root.Entries) {
		t.Errorf("got %d entries in the root, want %d: %v", len(entries), len(root.Entries), entries)
	}
	for _, e := range root.Entries {
		for _, path := range []string{"/" + e.Name, "/sub/" + e.Name} {
			if _, ok := content[e.Name]; !ok {
				continue
			}
			got, err := os.ReadFile(mnt + path)
			if err != nil || string(got) != content[e.Name] {
				t.Errorf("%s: got %d bytes (%v), want %d", path, len(got), err, len(content[e.Name]))
			}
			s, _, err := kernelStat(mnt + path)
			if err != nil {
				t.Fatal(err)
			}
			want := seenInode(e.Inode, "")
			want.xattrs = map[string]string{"user.name": e.Name}
			want.nlink, want.content = 2, ""
			if g, w := fmt.Sprintf("%#v", s), fmt.Sprintf("%#v", want); g != w {
				t.Errorf("%s:\ngot  %s\nwant %s", path, g, w)
			}
		}
	}
	if got, err := os.Readlink(mnt + "/link"); err != nil || got != "hello" {
		t.Errorf("got link to %q (%v), want hello", got, err)
	}
}
