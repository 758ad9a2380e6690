package atfs

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// XattrSELinux is the attribute of SELinux labels. The host's policy assigns them, not an image.
const XattrSELinux = "security.selinux"

// Setxattr sets an extended attribute of name itself. It works on every type of file.
func (d *Dir) Setxattr(name, attr string, value []byte) error {
	if err := d.before(OpSetxattr, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Lsetxattr(procPath(fd, base), attr, value, 0) })
	})
	if err != nil {
		return d.err("setxattr "+attr, name, err)
	}
	return nil
}

// Removexattr removes an extended attribute of name itself.
func (d *Dir) Removexattr(name, attr string) error {
	if err := d.before(OpSetxattr, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Lremovexattr(procPath(fd, base), attr) })
	})
	if err != nil {
		return d.err("removexattr "+attr, name, err)
	}
	return nil
}

// Xattrs returns the extended attributes of name itself ("." for d): none on a file system without them.
func (d *Dir) Xattrs(name string) (map[string][]byte, error) {
	var m map[string][]byte
	f := func(fd int, base string) error {
		p := procPath(fd, base)
		var err error
		m, err = readXattrs(
			func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
			func(attr string, b []byte) (int, error) { return unix.Lgetxattr(p, attr, b) })
		return err
	}
	var err error
	if name == "." {
		m, err = readXattrs(
			func(b []byte) (int, error) { return unix.Flistxattr(d.fd, b) },
			func(attr string, b []byte) (int, error) { return unix.Fgetxattr(d.fd, attr, b) })
	} else {
		err = d.at(name, f)
	}
	if err != nil {
		return nil, d.err("listxattr", name, err)
	}
	return m, nil
}

// Xattr returns one extended attribute of name itself ("." for d): nil if there is none, or on a file system without them.
func (d *Dir) Xattr(name, attr string) (value []byte, err error) {
	if name == "." {
		value, err = readSized(func(b []byte) (int, error) { return unix.Fgetxattr(d.fd, attr, b) })
	} else {
		err = d.at(name, func(fd int, base string) (err error) {
			value, err = readSized(func(b []byte) (int, error) { return unix.Lgetxattr(procPath(fd, base), attr, b) })
			return err
		})
	}
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, d.err("getxattr "+attr, name, err)
	}
	return value, nil
}

func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	names, err := readSized(list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, err
	}
	var m map[string][]byte
	for attr := range strings.SplitSeq(string(names), "\x00") {
		if attr == "" {
			continue
		}
		v, err := readSized(func(b []byte) (int, error) { return get(attr, b) })
		if err != nil {
			if errors.Is(err, unix.ENODATA) { // removed since it was listed
				continue
			}
			return nil, err
		}
		if m == nil {
			m = make(map[string][]byte)
		}
		m[attr] = v
	}
	return m, nil
}

// xattrGuess is the size of the first buffer for a list of names, or a value. Most are smaller.
const xattrGuess = 128

// readSized calls a system call that fills a buffer or returns ERANGE, first with a small buffer, and then, as often as that
// is too small, with the size that it returns for an empty one.
func readSized(f func([]byte) (int, error)) ([]byte, error) {
	for buf := make([]byte, xattrGuess); ; {
		n, err := retry(func() (int, error) { return f(buf) })
		if err == nil {
			return append([]byte(nil), buf[:n]...), nil
		}
		if err != unix.ERANGE { //nolint:errorlint // system calls return bare numbers
			return nil, err
		}
		if n, err = retry(func() (int, error) { return f(nil) }); err != nil {
			return nil, err
		}
		buf = make([]byte, max(n, 1)) // an empty one asks for the size
	}
}

// procPath returns a path to a name in an open directory, for system calls that take no directory descriptor.
func procPath(fd int, base string) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base }

// SetxattrSelf sets an extended attribute of the directory itself.
func (d *Dir) SetxattrSelf(attr string, value []byte) error {
	f := File{fd: d.fd, dir: d, name: "."}
	return f.Setxattr(attr, value)
}

// Setxattr sets an extended attribute. File capabilities are lost by a later Chown.
func (f *File) Setxattr(attr string, value []byte) error {
	if err := f.dir.before(OpSetxattr, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fsetxattr(f.fd, attr, value, 0) }); err != nil {
		return f.err("setxattr "+attr, err)
	}
	return nil
}

// Removexattr removes an extended attribute.
func (f *File) Removexattr(attr string) error {
	if err := f.dir.before(OpSetxattr, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fremovexattr(f.fd, attr) }); err != nil {
		return f.err("removexattr "+attr, err)
	}
	return nil
}

// Xattrs returns the extended attributes.
func (f *File) Xattrs() (map[string][]byte, error) {
	m, err := readXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(f.fd, b) },
		func(attr string, b []byte) (int, error) { return unix.Fgetxattr(f.fd, attr, b) })
	if err != nil {
		return nil, f.err("listxattr", err)
	}
	return m, nil
}
