// Package probe is the program that the benchmark runs in containers. It reports what a container sees, and needs
// nothing from the image.
package probe

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Program is the path of our program in a container.
const Program = "/.ostree-snapshotter-bench"

// mounted are the paths in a container that do not belong to the image.
var mounted = []string{"/proc", "/dev", Program}

// Mounted reports whether a path in a container is, or is below, one that does not belong to the image.
func Mounted(name string) bool {
	return slices.ContainsFunc(mounted, func(m string) bool { return name == m || strings.HasPrefix(name, m+"/") })
}

// An Entry holds the compared attributes of a file in a container: all except times and most extended attributes.
type Entry struct {
	Mode       uint32 // as in st_mode
	UID, GID   uint32
	Size       int64  // of a regular file
	Digest     string // sha256 in hex, of a regular file
	Target     string // of a symbolic link
	Device     uint64 // of a device
	Capability string // the attribute security.capability
}

// Line returns the entry in the form that "list" prints.
func (e Entry) Line() string {
	return fmt.Sprintf("%o %d:%d %d %s %q %d %x", e.Mode, e.UID, e.GID, e.Size, e.Digest, e.Target, e.Device, e.Capability)
}

// Run performs the action in args: "nothing"; "wait" until killed; "list" the tree at the root; "evict" its files from
// the page cache; or "read" them and print the number of bytes, and of bytes that were in the page cache before.
func Run(ctx context.Context, w io.Writer, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("run probe: got %q, want one word", args)
	}
	switch args[0] {
	case "nothing":
		return nil
	case "wait":
		_, err := fmt.Fprintln(w, "waiting")
		<-ctx.Done()
		return err
	case "list":
		return list(ctx, w, "/")
	case "evict":
		return walkFiles(ctx, "/", evict)
	case "read":
		var all, cached int64
		err := walkFiles(ctx, "/", func(f *os.File, size int64) error {
			n, err := read(f, size)
			all, cached = all+size, cached+n
			return err
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, all, cached)
		return err
	}
	return fmt.Errorf("run probe: it cannot %q", args[0])
}

// walk calls f for each file of the image below root, except root itself. Names begin with "/".
func walk(ctx context.Context, root string, f func(name, file string, st *unix.Stat_t) error) error {
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		name := path.Join("/", strings.TrimPrefix(file, root))
		switch {
		case name == "/":
			return nil
		case Mounted(name) && d.IsDir():
			return fs.SkipDir
		case Mounted(name):
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: name, Err: err}
		}
		return f(name, file, &st)
	})
}

// list prints a line for each file: its quoted name and its entry.
func list(ctx context.Context, w io.Writer, root string) error {
	out := bufio.NewWriter(w)
	err := walk(ctx, root, func(name, file string, st *unix.Stat_t) error {
		e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid}
		var err error
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			e.Size = st.Size
			if e.Capability, err = capability(file); err == nil {
				e.Digest, err = hash(file)
			}
		case unix.S_IFLNK:
			e.Target, err = os.Readlink(file)
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Device = st.Rdev
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%q %s\n", name, e.Line())
		return err
	})
	return errors.Join(err, out.Flush())
}

func capability(file string) (string, error) {
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(file, "security.capability", buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "getxattr", Path: file, Err: err}
	}
	return string(buf[:n]), nil
}

func open(file string) (*os.File, error) { return os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0) }

func hash(file string) (_ string, err error) {
	f, err := open(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// walkFiles calls do for each regular file that is not empty.
func walkFiles(ctx context.Context, root string, do func(f *os.File, size int64) error) error {
	return walk(ctx, root, func(_, file string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
			return nil
		}
		f, err := open(file)
		if err != nil {
			return err
		}
		return errors.Join(do(f, st.Size), f.Close())
	})
}

// evict asks the kernel to drop a file from the page cache. The kernel drops clean pages that are not mapped.
func evict(f *os.File, _ int64) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// read reads a file and returns the number of its bytes that were in the page cache before.
func read(f *os.File, size int64) (cached int64, err error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, &fs.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	defer func() { err = errors.Join(err, unix.Munmap(b)) }()
	page := int64(os.Getpagesize())
	resident := make([]byte, (size+page-1)/page)
	if err := mincore(b, resident); err != nil {
		return 0, &fs.PathError{Op: "mincore", Path: f.Name(), Err: err}
	}
	for i, r := range resident {
		if r&1 != 0 {
			cached += min(page, size-int64(i)*page)
		}
	}
	_, err = io.Copy(io.Discard, f)
	return cached, err
}
