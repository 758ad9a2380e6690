package tenants

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reach tries to use a path of the host: to list, open and change what is there, and to add to it.
func reach(name, scratch string) (attempts []Attempt) {
	note := func(what string, err error) { attempts = append(attempts, attempt(what, name, err)) }
	_, err := os.ReadDir(name)
	note("list", err)
	_, err = os.Readlink(name)
	note("read a link", err)
	note("open", opened(name, os.O_RDONLY, nothing))
	note("execute", unix.Access(name, unix.X_OK))
	t := &target{path: name, scratch: scratch}
	note("create", os.WriteFile(t.temp(name), nil, 0o644))
	note("make a directory", os.Mkdir(t.temp(name), 0o755))
	note("change the mode", os.Chmod(name, 0o777))
	note("change the owner", os.Lchown(name, os.Geteuid(), os.Getegid()))
	note("rename", os.Rename(name, t.temp(scratch)))
	note("link", os.Link(name, t.temp(scratch)))
	return attempts
}

// connect connects to a unix socket: one with a path, or an abstract one, whose name begins with @.
func connect(name string) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Connect(s, &unix.SockaddrUnix{Name: name}), unix.Close(s))
}

// enter tries to see and to steer a process of another user.
func enter(pid int) (attempts []Attempt) {
	for _, name := range []string{"root", "cwd", "exe", "root/etc", "fd", "map_files", "task/" + fmt.Sprint(pid) + "/root"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		_, err := os.Readlink(path)
		if err != nil {
			_, err = os.ReadDir(path)
		}
		attempts = append(attempts, attempt("look into a process", path, err))
	}
	for _, name := range []string{"mem", "environ", "maps", "auxv", "syscall", "pagemap"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		attempts = append(attempts, attempt("read a process", path, opened(path, os.O_RDONLY, func(f *os.File) error {
			_, err := f.Read(make([]byte, 1))
			return err
		})))
	}
	for _, name := range []string{"mem", "oom_score_adj", "setgroups", "clear_refs"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		attempts = append(attempts, attempt("write to a process", path, opened(path, os.O_WRONLY, nothing)))
	}
	path := fmt.Sprintf("/proc/%d", pid)
	attempts = append(attempts, attempt("signal", path, unix.Kill(pid, 0)))
	attempts = append(attempts, attempt("trace", path, onThread(func() error { return unix.PtraceSeize(pid) })))
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return append(attempts, attempt("open a process", path, err))
	}
	defer unix.Close(pidfd)
	taken, err := unix.PidfdGetfd(pidfd, 0, 0)
	if err == nil {
		err = unix.Close(taken)
	}
	attempts = append(attempts, attempt("take a descriptor", path, err))
	return append(attempts, attempt("enter the mounts", path, onThread(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(pidfd, unix.CLONE_NEWNS))
	})))
}

// onThread calls f on a thread of its own that ends with the call.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// cached returns how many pages of a file are in the page cache, without reading it.
func cached(name string) (pages int, err error) {
	err = opened(name, os.O_RDONLY, func(f *os.File) error {
		return withMapping(f, unix.PROT_READ, unix.MAP_SHARED, func(m []byte) error {
			resident := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
			_, _, errno := unix.Syscall(unix.SYS_MINCORE, address(m), uintptr(len(m)), uintptr(unsafe.Pointer(&resident[0])))
			if errno != 0 {
				return errno
			}
			for _, r := range resident {
				pages += int(r & 1)
			}
			return nil
		})
	})
	return pages, err
}

// escape tries to get from a container to the disk and the files of the host.
func escape(device uint64, host []string, scratch string) (attempts []Attempt) {
	note := func(what, path string, err error) { attempts = append(attempts, attempt(what, path, err)) }
	for _, dir := range []string{"/", "/tmp", "/dev", controlPath} {
		node := filepath.Join(dir, fmt.Sprintf("disk-%d", os.Getpid()))
		err := unix.Mknod(node, unix.S_IFBLK|0o666, int(device))
		note("open the disk", node, errors.Join(err, opened(node, os.O_RDONLY, nothing)))
		for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
			note("mount the disk as "+fstype, node, unix.Mount(node, scratch, fstype, unix.MS_RDONLY, ""))
		}
	}
	for _, mount := range []string{"/", controlPath, volumePath} {
		root := binary.LittleEndian.AppendUint64(nil, 2) // inode 2, any generation
		note("open the root of the file system by handle", mount, opened(mount, unix.O_DIRECTORY, func(f *os.File) error {
			n, err := unix.OpenByHandleAt(fd(f), unix.NewFileHandle(1, root), unix.O_CLOEXEC)
			if err != nil {
				return err
			}
			return unix.Close(n)
		}))
	}
	host = append(host, mountSources()...)
	for _, name := range host {
		for _, prefix := range []string{"", "/proc/1/root", "/proc/self/root/..", "/proc/1/cwd/..", "/proc/self/fd/0/.."} {
			_, err := os.Lstat(prefix + name)
			note("reach a path of the host", prefix+name, err)
		}
		note("bind a path of the host", name, unix.Mount(name, scratch, "", unix.MS_BIND, ""))
		note("mount an overlay over a path of the host", name, unix.Mount("overlay", scratch, "overlay", 0, "lowerdir="+name+":/etc"))
	}
	return append(attempts, attempt("leave a chroot", "/", onThread(func() error { return leaveChroot(host[0]) })))
}

// mountSources returns the directories of the host that the mounts of the container are made of, as far as it sees
// them.
func mountSources() (found []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		for option := range strings.SplitSeq(s.Text()[strings.LastIndexByte(s.Text(), ' ')+1:], ",") {
			key, value, _ := strings.Cut(option, "=")
			if strings.HasPrefix(key, "lowerdir") || key == "upperdir" || key == "workdir" || key == "datadir+" {
				for dir := range strings.SplitSeq(value, ":") {
					if filepath.IsAbs(dir) {
						found = append(found, dir)
					}
				}
			}
		}
	}
	return found
}

// leaveChroot uses that a process whose working directory is above its root directory can go up. It fails unless a path
// of the host is there.
func leaveChroot(path string) error {
	jail, err := os.MkdirTemp("/", "jail")
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir("/"), unix.Chroot(jail)); err != nil {
		return err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	return unix.Lstat(strings.TrimPrefix(path, "/"), &st)
}

// overlayAttributes are those by which overlayfs takes the content of a file from elsewhere, or hides it.
var overlayAttributes = []string{
	"opaque", "redirect", "metacopy", "origin", "impure", "nlink", "upper", "uuid", "protattr", "verity", "whiteouts", "whiteout",
}

// overlayPrefixes are those under which a kernel could know them.
var overlayPrefixes = []string{"trusted.overlay.", "trusted.overlay.overlay.", "user.overlay.", "user.overlay.overlay."}

// tamper sets attributes of overlayfs on all files and directories below dir, under each prefix by which the kernel
// could know them. Where they are redirects they lead to an object.
func tamper(dir, object string) (attempts []Attempt) {
	stolen := filepath.Join(dir, "stolen")
	attempts = append(attempts, attempt("create", stolen, os.WriteFile(stolen, nil, 0o644)))
	names := append(files(dir), dir)
	for _, name := range names {
		for _, prefix := range overlayPrefixes {
			for _, attribute := range overlayAttributes {
				value := "y"
				if attribute == "redirect" {
					value = "/" + object
				}
				if attribute == "metacopy" {
					value = ""
				}
				attempts = append(attempts, attempt("set "+prefix+attribute, name, unix.Lsetxattr(name, prefix+attribute, []byte(value), 0)))
			}
		}
	}
	whiteout := filepath.Join(dir, "whiteout")
	return append(attempts, attempt("make a whiteout", whiteout, unix.Mknod(whiteout, unix.S_IFCHR, 0)))
}
