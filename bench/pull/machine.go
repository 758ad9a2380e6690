package pull

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
)

// describeMachine describes this machine. Unknown fields are empty.
func describeMachine() report.Machine {
	m := report.Machine{CPUs: runtime.NumCPU()}
	m.OS = strings.Trim(value("/etc/os-release", "PRETTY_NAME", "="), `"`)
	m.CPU = value("/proc/cpuinfo", "model name", ":")
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:]) + " " +
			unix.ByteSliceToString(name.Machine[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	return m
}

// value returns the first value of a key in a file with one key and value per line.
func value(file, key, separator string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		k, v, ok := strings.Cut(lines.Text(), separator)
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// versions returns the versions of the programs on the PATH that do part of the work. Missing programs are left out.
func versions(ctx context.Context) (list []report.Program) {
	for _, argv := range [][]string{
		{"runc", "--version"}, {"mkfs.erofs", "-V"}, {"igzip", "--version"}, {"unpigz", "--version"},
	} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		list = append(list, report.Program{Name: argv[0], Version: strings.TrimSpace(strings.TrimPrefix(first, argv[0]))})
	}
	return list
}

// fileSystemOf returns the name of a directory's file system, if it is one that containerd is used on, or else its
// number.
func fileSystemOf(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return ""
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "XFS"
	case unix.BTRFS_SUPER_MAGIC:
		return "Btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("file system of type %#x", st.Type)
}
