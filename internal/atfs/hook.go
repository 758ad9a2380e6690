package atfs

import (
	"path"

	"golang.org/x/sys/unix"
)

// Op names an operation that changes the disk, as a [Hook] sees it.
type Op string

// The operations, named after their system calls.
const (
	OpMkdir    Op = "mkdir"
	OpCreate   Op = "create"   // open that may create or truncate
	OpTmpFile  Op = "tmpfile"  // open O_TMPFILE
	OpWrite    Op = "write"    // write to a File
	OpTruncate Op = "truncate" //
	OpLink     Op = "link"     // also the link that gives a temporary file its name
	OpSymlink  Op = "symlink"  //
	OpMknod    Op = "mknod"    //
	OpRename   Op = "rename"   //
	OpUnlink   Op = "unlink"   // also rmdir
	OpChown    Op = "chown"    //
	OpChmod    Op = "chmod"    //
	OpUtimes   Op = "utimes"   //
	OpSetxattr Op = "setxattr" // also removexattr
	OpClone    Op = "clone"    // reflink of a whole file
	OpSync     Op = "sync"     // fsync of a file or a directory
	OpSyncFS   Op = "syncfs"   //
	OpSetFlags Op = "setflags" // the immutable flag
	OpVerity   Op = "verity"   // fs-verity for a file
	OpFreeze   Op = "freeze"   // and thaw, of a whole file system
)

// A Hook is called before each operation that changes the disk, with the path below the hooked directory. If it returns
// an error, the operation is not executed and returns that error. Several goroutines may call it at once.
type Hook func(op Op, name string) error

// WithHook returns a second handle to the directory. Its operations, and those of every directory and file opened from
// it, are reported to hook. The original does not change; both must be closed.
func (d *Dir) WithHook(hook Hook) (*Dir, error) {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, d.err("dup", ".", err)
	}
	return &Dir{fd: fd, name: ".", root: d.Path(), hook: hook}, nil
}

func (d *Dir) before(op Op, name string) error {
	if d.hook == nil {
		return nil
	}
	if err := d.hook(op, path.Join(d.name, name)); err != nil {
		return d.err(string(op), name, err)
	}
	return nil
}

// Do runs f, an operation on the directory's descriptor that this package lacks, like its own: it reports op to the
// hook first, and wraps errors in the same way.
func (d *Dir) Do(op Op, f func(fd int) error) error {
	if err := d.before(op, "."); err != nil {
		return err
	}
	if err := f(d.fd); err != nil {
		return d.err(string(op), ".", err)
	}
	return nil
}
