package sysroot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// A listing has a line for each part of a sysroot, by path. Files that share an inode have the first name of the inode.
type listing map[string]string

// passing are names below the sysroot that are temporary, or that programs leave behind in different ways.
var passing = []string{
	"ostree/lock", "ostree/repo/.lock", "ostree/repo/tmp", "ostree/repo/state", "ostree/repo/extensions",
}

// list lists the sysroot, and the staged deployment.
func (s *system) list() listing {
	s.t.Helper()
	l := make(listing)
	first := make(map[uint64]string) // first name of an inode with several
	err := filepath.WalkDir(s.root, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(s.root, file)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: file, Err: err}
		}
		switch isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; {
		case slices.Contains(passing, name) && isDir:
			return fs.SkipDir
		case slices.Contains(passing, name):
		case strings.HasPrefix(name, "ostree/repo/objects/"): // named after their content, which ostree fsck checks
			if !isDir {
				l[name] = "object"
			}
		case strings.HasPrefix(name, "ostree/repo/refs/") && isDir: // empty ones stay behind
		default:
			if l[name], err = describe(file, &st); err != nil {
				return err
			}
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if other, ok := first[st.Ino]; ok {
				l[name] += " = " + other
			} else {
				first[st.Ino] = name
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.booted != nil {
		s.listStaged(l)
	}
	return l
}

// stagedFile is libostree's file for the staged deployment.
const stagedFile = "run/ostree/staged-deployment"

// listStaged adds the staged deployment to a listing, with a line for each of its keys.
func (s *system) listStaged(l listing) {
	s.t.Helper()
	staged, err := os.ReadFile(s.booted.Path(stagedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.t.Fatal(err)
	}
	entries, err := gvariant.ParseDict(staged)
	if err != nil {
		s.t.Fatalf("parse %s: %v", stagedFile, err)
	}
	for _, e := range entries {
		l[stagedFile+" "+e.Key] = fmt.Sprintf("%s %q", e.Value.Type, e.Value.Data)
	}
}

// describe describes a file, with its content if that is short.
func describe(file string, st *unix.Stat_t) (string, error) {
	line := fmt.Sprintf("%#o %d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return "", err
		}
		line += " -> " + target
	case unix.S_IFREG:
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if len(text) > 1000 {
			line += fmt.Sprintf(" %d bytes %x", len(text), sha256.Sum256(text))
		} else {
			line += fmt.Sprintf(" %q", text)
		}
	case unix.S_IFDIR:
		d, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer d.Close()
		flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return "", &fs.PathError{Op: "FS_IOC_GETFLAGS", Path: file, Err: err}
		}
		if flags&immutableFlag != 0 {
			line += " immutable"
		}
	}
	var names [4096]byte
	n, err := unix.Llistxattr(file, names[:])
	if err != nil {
		return "", &fs.PathError{Op: "llistxattr", Path: file, Err: err}
	}
	var attrs []string
	for attr := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if attr == "" {
			continue
		}
		var value [4096]byte
		n, err := unix.Lgetxattr(file, attr, value[:])
		if err != nil {
			return "", &fs.PathError{Op: "lgetxattr " + attr, Path: file, Err: err}
		}
		attrs = append(attrs, fmt.Sprintf(" %s=%q", attr, value[:n]))
	}
	slices.Sort(attrs)
	return line + strings.Join(attrs, ""), nil
}

// immutableFlag is FS_IMMUTABLE_FL.
const immutableFlag = 0x10

// diff returns a line for each difference of got.
func (l listing) diff(got listing) (lines []string) {
	names := maps.Clone(l)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		want, in := l[name]
		has, ok := got[name]
		switch {
		case !in:
			lines = append(lines, fmt.Sprintf("%s: has %s, want nothing", name, has))
		case !ok:
			lines = append(lines, fmt.Sprintf("%s: missing, want %s", name, want))
		case want != has:
			lines = append(lines, fmt.Sprintf("%s: has %s, want %s", name, has, want))
		}
	}
	return lines
}
