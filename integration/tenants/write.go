package tenants

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A target is a file to change.
type target struct {
	path string
	held *os.File // opened for reading before anything was changed, or nil
	// scratch is a directory to which the program may write, on the file system of the store.
	scratch string
	step    int
}

// temp returns a new name in a directory.
func (t *target) temp(dir string) string {
	t.step++
	base := filepath.Base(t.path)
	return filepath.Join(dir, fmt.Sprintf(".%s-%d-%d", base[:min(16, len(base))], os.Getpid(), t.step))
}

func (t *target) beside() string { return t.temp(filepath.Dir(t.path)) }

// A technique changes a file, or fails.
type technique struct {
	name   string
	do     func(t *target) error
	effect effect
}

// An effect is what a technique does to a file of one's own.
type effect int

const (
	changes  effect = iota // the content or an attribute of the inode
	replaces               // at most the name
	fails                  // nothing, if the kernel has no fault
)

// descriptorTechniques start from a descriptor for reading.
var descriptorTechniques = []technique{
	{"write to a descriptor for reading", func(t *target) error { return write(t.held) }, fails},
	{"truncate a descriptor for reading", func(t *target) error { return t.held.Truncate(0) }, fails},
	{"punch a hole through a descriptor for reading", func(t *target) error { return punch(t.held) }, fails},
	{"make a mapping writable", func(t *target) error { return throughMapping(t.held, unix.PROT_READ, unix.MAP_SHARED) }, fails},
	{"write to a shared mapping as memory", func(t *target) error { return throughMemory(t.held, unix.MAP_SHARED) }, fails},
	{"write to a private mapping as memory", func(t *target) error {
		before, err := io.ReadAll(io.NewSectionReader(t.held, 0, int64(len(written))))
		if err != nil {
			return err
		}
		if err := throughMemory(t.held, unix.MAP_PRIVATE); err != nil {
			return err
		}
		after, err := io.ReadAll(io.NewSectionReader(t.held, 0, int64(len(written))))
		if err == nil && bytes.Equal(before, after) {
			err = errors.New("only the private copy has changed")
		}
		return err
	}, fails},
	{"clone onto a descriptor for reading", func(t *target) error {
		return withCopy(t, func(f *os.File) error { return unix.IoctlFileClone(fd(t.held), fd(f)) })
	}, fails},
	{"copy onto a descriptor for reading", func(t *target) error {
		return withCopy(t, func(f *os.File) error {
			_, err := unix.CopyFileRange(fd(f), nil, fd(t.held), nil, len(written), 0)
			return err
		})
	}, fails},
	{"change the mode of a descriptor", func(t *target) error { return t.held.Chmod(0o7777) }, changes},
	{"change the owner of a descriptor", func(t *target) error { return t.held.Chown(1000, 1000) }, changes},
	{"set an attribute of a descriptor", func(t *target) error {
		return unix.Fsetxattr(fd(t.held), "user.neighbour", []byte(written), 0)
	}, changes},
	{"set flags of a descriptor", func(t *target) error { return setFlags(t.held, fsNoAtime|fsNoDump) }, replaces},
	{"link a descriptor", func(t *target) error {
		name := t.temp(t.scratch)
		return errors.Join(unix.Linkat(fd(t.held), "", unix.AT_FDCWD, name, unix.AT_EMPTY_PATH), overwriteAt(name))
	}, changes},
	{"link what a descriptor leads to", func(t *target) error {
		name := t.temp(t.scratch)
		return errors.Join(unix.Linkat(unix.AT_FDCWD, procFD(t.held), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW), overwriteAt(name))
	}, changes},
	{"open a descriptor again", func(t *target) error { return overwriteAt(procFD(t.held)) }, changes},
	{"open a mapping", func(t *target) error { return throughMapFiles(t.held) }, changes},
	{"truncate a descriptor by its path", func(t *target) error { return os.Truncate(procFD(t.held), 3) }, changes},
	{"open by handle", func(t *target) error {
		handle, _, err := unix.NameToHandleAt(fd(t.held), "", unix.AT_EMPTY_PATH)
		if err != nil {
			return err
		}
		return overwriteByHandle(fd(t.held), handle)
	}, changes},
}

// pathTechniques start from the name of a file.
var pathTechniques = []technique{
	{"set an attribute", func(t *target) error { return unix.Lsetxattr(t.path, "user.path", []byte(written), 0) }, changes},
	{"set a capability", func(t *target) error {
		return unix.Lsetxattr(t.path, "security.capability", append([]byte{1, 0, 0, 2}, make([]byte, 16)...), 0)
	}, changes},
	{"remove an attribute", func(t *target) error { return unix.Lremovexattr(t.path, "user.kept") }, changes},
	{"set an access list", func(t *target) error {
		acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x06\x00\xff\xff\xff\xff" +
			"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x06\x00\xff\xff\xff\xff")
		return unix.Lsetxattr(t.path, "system.posix_acl_access", acl, 0)
	}, changes},
	{"set times", func(t *target) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, t.path, []unix.Timespec{{Sec: 1}, {Sec: 2}}, unix.AT_SYMLINK_NOFOLLOW)
	}, changes},
	{"write", func(t *target) error { return overwriteAt(t.path) }, changes},
	{"write through a mapping", func(t *target) error {
		return opened(t.path, os.O_RDWR, func(f *os.File) error {
			return throughMapping(f, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		})
	}, changes},
	{"append", func(t *target) error { return opened(t.path, os.O_WRONLY|os.O_APPEND, appendTo) }, changes},
	{"allocate", func(t *target) error {
		return opened(t.path, os.O_RDWR, func(f *os.File) error { return unix.Fallocate(fd(f), 0, 0, 1<<16) })
	}, changes},
	{"punch a hole", func(t *target) error { return opened(t.path, os.O_RDWR, punch) }, changes},
	{"truncate while opening", func(t *target) error { return opened(t.path, os.O_WRONLY|os.O_TRUNC, appendTo) }, changes},
	{"truncate", func(t *target) error { return os.Truncate(t.path, 5) }, changes},
	{"link beside it", func(t *target) error {
		name := t.beside()
		return errors.Join(os.Link(t.path, name), overwriteAt(name))
	}, changes},
	{"link elsewhere", func(t *target) error {
		name := t.temp(t.scratch)
		return errors.Join(os.Link(t.path, name), overwriteAt(name))
	}, changes},
	{"clone and write", func(t *target) error { return cloneAndWrite(t.path, t.beside()) }, replaces},
	{"clone elsewhere and write", func(t *target) error { return cloneAndWrite(t.path, t.temp(t.scratch)) }, replaces},
	{"change the owner", func(t *target) error { return os.Lchown(t.path, 1000, 1000) }, changes},
	{"change the mode", func(t *target) error { return os.Chmod(t.path, 0o777) }, changes},
	{"enable fs-verity", func(t *target) error { return opened(t.path, os.O_RDONLY, enableVerity) }, replaces},
	{"rename onto it", func(t *target) error {
		name := t.beside()
		return errors.Join(os.WriteFile(name, []byte(written), 0o644), os.Rename(name, t.path))
	}, replaces},
	{"exchange", func(t *target) error {
		name := t.beside()
		return errors.Join(os.WriteFile(name, []byte(written), 0o644),
			unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, t.path, unix.RENAME_EXCHANGE))
	}, replaces},
	{"remove", func(t *target) error { return os.Remove(t.path) }, replaces},
	{"create again", func(t *target) error { return os.WriteFile(t.path, []byte(written), 0o644) }, changes},
}

// overwrite uses all techniques on all files: first all files are opened for reading.
func overwrite(names []string, scratch string) (attempts []Attempt) {
	targets := make([]*target, len(names))
	for i, name := range names {
		targets[i] = &target{path: name, scratch: scratch}
		if f, err := os.Open(name); err == nil {
			defer f.Close()
			targets[i].held = f
		}
	}
	for _, t := range targets {
		attempts = append(attempts, t.use(descriptorTechniques)...)
		attempts = append(attempts, t.use(pathTechniques)...)
		attempts = append(attempts, t.use(descriptorTechniques)...) // the file that it leads to may be another now
	}
	return attempts
}

// use uses techniques on a file. Those of descriptors need one.
func (t *target) use(techniques []technique) (attempts []Attempt) {
	for _, how := range techniques {
		if t.held == nil && &techniques[0] == &descriptorTechniques[0] {
			return attempts
		}
		attempts = append(attempts, attempt(how.name, t.path, how.do(t)))
	}
	return attempts
}

func fd(f *os.File) int         { return int(f.Fd()) }
func procFD(f *os.File) string  { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
func write(f *os.File) error    { _, err := f.WriteAt([]byte(written), 0); return err }
func appendTo(f *os.File) error { _, err := f.WriteString(written); return err }

func opened(name string, flags int, do func(*os.File) error) error {
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// nothing is what to do with a file that must not open.
func nothing(*os.File) error { return nil }

func overwriteAt(name string) error { return opened(name, os.O_RDWR, write) }

func punch(f *os.File) error {
	return unix.Fallocate(fd(f), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
}

// throughMapping writes to a mapping of a file, after it was made writable.
func throughMapping(f *os.File, prot, flags int) error {
	return withMapping(f, prot, flags, func(m []byte) error {
		if err := unix.Mprotect(m, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return err
		}
		copy(m, written)
		return unix.Msync(m, unix.MS_SYNC)
	})
}

// throughMemory writes to a mapping by way of the process's memory file, which ignores protection.
func throughMemory(f *os.File, flags int) error {
	return withMapping(f, unix.PROT_READ, flags, func(m []byte) error {
		return opened("/proc/self/mem", os.O_RDWR, func(mem *os.File) error {
			_, err := mem.WriteAt([]byte(written)[:min(len(written), len(m))], int64(address(m)))
			return err
		})
	})
}

// throughMapFiles opens the file behind a mapping.
func throughMapFiles(f *os.File) error {
	return withMapping(f, unix.PROT_READ, unix.MAP_SHARED, func(m []byte) error {
		start := address(m)
		end := start + (uintptr(len(m))+4095)&^4095
		return overwriteAt(fmt.Sprintf("/proc/self/map_files/%x-%x", start, end))
	})
}

func address(m []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(m))) }

func withMapping(f *os.File, prot, flags int, do func([]byte) error) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return errors.New("nothing to map")
	}
	m, err := unix.Mmap(fd(f), 0, int(st.Size()), prot, flags)
	if err != nil {
		return err
	}
	return errors.Join(do(m), unix.Munmap(m))
}

// withCopy calls do with a file that contains what the program writes.
func withCopy(t *target, do func(*os.File) error) error {
	name := t.temp(t.scratch)
	if err := os.WriteFile(name, []byte(written), 0o644); err != nil {
		return err
	}
	return opened(name, os.O_RDONLY, do)
}

func cloneAndWrite(from, to string) error {
	return opened(from, os.O_RDONLY, func(f *os.File) error {
		clone, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		return errors.Join(unix.IoctlFileClone(fd(clone), fd(f)), write(clone), clone.Close())
	})
}

// Flags of files.
const (
	fsNoDump  = 0x40
	fsNoAtime = 0x80
)

func setFlags(f *os.File, flags int) error {
	got, err := unix.IoctlGetInt(fd(f), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(fd(f), unix.FS_IOC_SETFLAGS, got|flags)
}

func enableVerity(f *os.File) error {
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

func overwriteByHandle(mount int, handle unix.FileHandle) error {
	n, err := unix.OpenByHandleAt(mount, handle, unix.O_RDWR|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(n), "handle")
	return errors.Join(write(f), f.Close())
}

// Contents of the files that hold creates: one that a commit reads into memory and one that it clones.
var heldFiles = map[string]string{
	"small": "as it was when it was committed\n",
	"large": strings.Repeat("as it was when it was committed\n", 16<<10),
}

// hold creates files, keeps them open and mapped, and changes them by that when it is told to.
func hold(dir, ready, start string) (attempts []Attempt, err error) {
	type held struct {
		target
		writable *os.File
		mapping  []byte
	}
	var all []held
	for name, content := range heldFiles {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return nil, err
		}
		h := held{target: target{path: name, scratch: dir}}
		if h.held, err = os.Open(name); err != nil {
			return nil, err
		}
		if h.writable, err = os.OpenFile(name, os.O_RDWR, 0); err != nil {
			return nil, err
		}
		h.mapping, err = unix.Mmap(fd(h.writable), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	if err := errors.Join(os.WriteFile(ready, nil, 0o644), await(start)); err != nil {
		return nil, err
	}
	for _, h := range all {
		copy(h.mapping, written)
		attempts = append(attempts, attempt("write to an old mapping", h.path, unix.Msync(h.mapping, unix.MS_SYNC)))
		attempts = append(attempts, attempt("write to an old descriptor", h.path, write(h.writable)))
		attempts = append(attempts, h.use(descriptorTechniques)...)
		attempts = append(attempts, h.use(pathTechniques)...)
	}
	return attempts, nil
}
