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

// describeMachine says where the benchmark runs. What cannot be found out is left empty.
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

// value returns the first value of a key in a file with a key and a value in each line.
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

// versions returns the versions of programs on the PATH that do part of the work, those that are there.
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

// fileSystemOf names the file system of a directory by its number, for those that containerd is used on.
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
